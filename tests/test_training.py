"""Training: regularizers, optimizers, masks at initialisation, data and phases."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import exact_share, find_states, make_step, numpy_drop
from short_runs import Small, quickly  # noqa: F401

import sparse_optax
from experiments import networks
from experiments.data import images
from experiments.networks.functional import Variables, init_network
from experiments.running import program
from experiments.tasks.digits import CONFIG
from experiments.training import loop, optimizers, regularizers
from experiments.training.augmentation import augment
from experiments.training.image_problem import ImageProblem
from experiments.training.phases import Phases

pytestmark = pytest.mark.quickly_compiled


def changed(**changes):
    return dataclasses.replace(CONFIG, **changes)


def small_split(number=50, size=4):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 17, (number, size, size, 1), np.uint8)
    return images.Split(pixels, rng.integers(0, 10, number, np.int32))


@pytest.mark.parametrize("name", ["relevance", "l2", "l1", "root", "log", "none"])
def test_regularizers_by_hand(name):
    """Their strength decays in four updates, and starts again at a pruning step."""
    strength, scale, steps = 0.3, 0.5, 4
    w = np.array([1.5, -2.0, 0.0, 0.25], np.float32)
    g = np.array([0.1, -0.7, 0.3, 0.0], np.float32)
    penalty = {
        "relevance": 2 * strength * np.exp(-np.abs(g) / scale) * w,
        "l2": 2 * strength * w,
        "l1": strength * np.sign(w),
        "root": strength * np.sign(w) * 0.5 / np.sqrt(np.abs(w) + 0.01),
        "log": strength * np.sign(w) / (np.abs(w) + 0.01),
        "none": 0 * w,
    }[name]
    params, grads = {"w": jnp.asarray(w)}, {"w": jnp.asarray(g)}
    config = changed(regularizer=name, scale=scale)
    tx = optax.chain(
        regularizers.make_regularizer(config, strength, steps),
        sparse_optax.prune_by_magnitude(0.5, mask=None),
    )
    update = jax.jit(tx.update)
    sizes, state = jax.tree.map(jnp.abs, grads), tx.init(params)
    for number, factor in enumerate((1, 0.75, 0.5, 1, 0.75, 0.5, 0.25, 0, 0)):
        if number == 3:
            _, state = sparse_optax.prune(params, state, fraction=0.0)
        updates, state = update(grads, state, params, grad=sizes)
        np.testing.assert_allclose(updates["w"], g + factor * penalty, rtol=1e-5)


def test_lobster_by_hand():
    """w - eta * (momentum) - lambda * w * max(0, 1 - |g|)."""
    settings = {"strength": 0.1, "optimizer": "sgd", "learning_rate": 0.25}
    config = changed(regularizer="lobster", **settings)
    tx = optimizers.pruning_optimizer(config, 100, 10)
    w = np.array([2.0, -4.0, 1.0, 0.0], np.float32)
    g = np.array([0.0, 0.25, -3.0, 0.5], np.float32)
    updates, _ = tx.update(
        jnp.asarray(g), tx.init(jnp.asarray(w)), jnp.asarray(w), grad=jnp.abs(g)
    )
    shrinkage = np.array([0.1 * 2 * 1, 0.1 * -4 * 0.75, 0, 0])
    by_hand = 0.25 * np.array([0, -0.25, 3, -0.5]) - shrinkage
    np.testing.assert_allclose(updates, by_hand, rtol=1e-6)


def test_dense_training_by_hand():
    """v <- 0.9 v + g + 2 s w and w <- w - eta (1 + cos(pi t / n)) / 2 v."""
    config = changed(
        **{"dense_optimizer": "sgd", "dense_strength": 0.1, "dense_learning_rate": 0.5}
    )
    tx = optimizers.dense_optimizer(config, num_steps=4)
    w, v = np.array([2.0, -1.0]), np.zeros(2)
    params = jnp.asarray(w, jnp.float32)
    state = tx.init(params)
    for step, g in enumerate(np.array([[1.0, 0.5], [-1.0, 0.25], [0.0, 2.0]])):
        params, state = make_step(tx)(params, state, jnp.asarray(g, jnp.float32))
        v = 0.9 * v + g + 2 * 0.1 * w
        w = w - 0.5 * (1 + np.cos(np.pi * step / 4)) / 2 * v
        np.testing.assert_allclose(params, w, rtol=1e-6)


@pytest.mark.parametrize("start", [0.0, 0.3])
def test_gradual_pruning_follows_the_cubic_schedule(start):
    """s + (s_0 - s) (1 - t/n)^3 at every interval, up to three quarters of the updates.

    s_0 is the sparsity of the network that it starts from.
    """
    config = changed(prune="gradual", target_sparsity=0.8, interval=10)
    tx = optimizers.pruning_optimizer(config, 80, 10, start=start)
    params = {"w": jnp.arange(1.0, 1001.0)}
    state = tx.init(params)
    step = jax.jit(lambda s: tx.update({"w": jnp.zeros(1000)}, s, params)[1])
    kept = []
    for _ in range(80):
        state = step(state)
        kept.append(int(sparse_optax.get_masks(state)["w"].sum()))
    updates = np.minimum(np.arange(10, 81, 10), 60)
    sparsity = 0.8 + (start - 0.8) * (1 - updates / 60) ** 3
    assert kept[9::10] == [1000 - round(1000 * s) for s in sparsity]
    assert kept[:9] == [1000] * 9 and kept[10:19] == kept[9:10] * 9
    assert not sparse_optax.get_masks(state)["w"][:800].any()


def test_fine_tuning_starts_its_own_schedule():
    """It is shorter than that of pruning, which is at its end."""
    config = changed(
        **{"finetune_schedule": "cosine", "finetune_learning_rate": 0.5},
        **{"finetune_epochs": 2, "epochs": 4, "interval": 1, "batch_size": 1000},
        **{"optimizer": "sgd", "regularizer": "none", "schedule": "cosine"},
    )
    phases = Phases(config, ImageProblem(config, images.load_digits()))
    assert phases.num_rounds[1:] == (4, 2)
    state = phases.start_pruning(phases.start_dense())
    for _ in range(4):
        state = state._replace(current=phases.train_sparse(state.current))
    before = phases.start_finetuning(state.current)
    for rate in (0.5, 0.25):
        after = phases.finetune(before)
        (trace,) = find_states(after.opt_state, optax.TraceState)
        trees = before.params, after.params, trace.trace
        for w, then, momentum in zip(*map(jax.tree.leaves, trees), strict=True):
            np.testing.assert_allclose(then, w - rate * momentum, rtol=1e-5, atol=1e-6)
        before = after


def test_relevant_shares():
    params = {"a": jnp.array([1.0, 0.0, 2.0, 3.0]), "b": jnp.zeros(2)}
    irrelevance = {"a": jnp.array([0.0, 0.0, 1.0, 0.49]), "b": jnp.zeros(2)}
    total, by_leaf = loop.relevant_shares(params, irrelevance)
    assert total == by_leaf["a"] == pytest.approx(2 / 3)
    assert jnp.isnan(by_leaf["b"])


@pytest.mark.parametrize("prune", ["snip", "static"])
def test_masks_at_initialisation_are_those_of_the_untrained_network(prune, monkeypatch):
    """Of |g * w| on one batch, or random scores; norms are spared."""
    monkeypatch.setitem(networks.NETWORKS, "lenet300", Small)
    config = changed(prune=prune, target_sparsity=0.7, batch_size=100, seed=3)
    phases = Phases(config, ImageProblem(config, images.load_digits()))
    start, problem = phases.start_dense(), phases.problem
    dense = start._replace(
        params=jax.tree.map(lambda w: w + 1, start.params), step=jnp.int32(7)
    )
    state = phases.start_pruning(dense).current
    assert state.step == 7
    grads = problem.gradients_at(problem.variables, 0)
    scores = jax.tree.map(lambda g, w: abs(g * w), grads, start.params)
    masks = sparse_optax.get_masks(state.opt_state)
    assert not jax.tree.leaves(masks["norm"])
    leaves = {name: start.params[name] for name in ("hidden", "output")}
    scores, masks = ({n: tree[n] for n in leaves} for tree in (scores, masks))
    total = sum(mask.size for mask in jax.tree.leaves(masks))
    everything = jax.tree.map(np.ones_like, masks)
    expected = numpy_drop(scores, everything, exact_share(0.7, total))
    if prune == "static":  # as many, at random
        assert sum(map(np.sum, jax.tree.leaves(masks))) == sum(
            map(np.sum, jax.tree.leaves(expected))
        )
        expected = masks
    trees = masks, expected, {n: state.params[n] for n in leaves}, leaves
    for mask, wanted, w, initial in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_array_equal(mask, wanted)
        np.testing.assert_array_equal(w, jnp.where(mask, initial, 0))


def small_phases(monkeypatch, **changes):
    """Returns the phases of a run, and the state before its first round of pruning."""
    monkeypatch.setitem(networks.NETWORKS, "lenet300", Small)
    rounds = {"epochs": 3, "finetune_epochs": 1, "interval": 16, "batch_size": 64}
    config = changed(**(rounds | changes))
    phases = Phases(config, ImageProblem(config, images.load_digits()))
    return phases, phases.start_pruning(phases.start_dense()).current


@pytest.mark.parametrize("criterion", ["magnitude", "saliency", "random", "relevance"])
def test_a_pruning_step_removes_the_lowest_by_the_criterion(criterion, monkeypatch):
    settings = {"criterion": criterion, "fraction": 0.4, "seed": 5}
    phases, state = small_phases(monkeypatch, **settings)
    w, grads = state.params, phases.problem.gradients_at(state.variables, state.step)
    scores = {
        "magnitude": jax.tree.map(abs, w),
        "saliency": jax.tree.map(lambda w, g: abs(w * g), w, grads),
        "relevance": jax.tree.map(
            lambda w, g: abs(w) * (1 - jnp.exp(-abs(g) / CONFIG.scale)), w, grads
        ),
    }.get(criterion)
    once = sparse_optax.get_masks(phases.prune(state).opt_state)
    flat = [
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (once, w)
    ]
    mask, size = flat[0], flat[1].size
    assert mask.sum() == size - round(0.4 * size)
    if scores is not None:
        ranked = np.concatenate([np.ravel(x) for x in jax.tree.leaves(scores)])
        # exp differs in its last bits.
        assert ranked[mask].min() >= ranked[~mask].max() - 1e-6
    else:  # the same order again, so that masks nest
        other, there = small_phases(monkeypatch, **settings, strength=1.0)
        again = sparse_optax.get_masks(other.prune(other.train_sparse(there)).opt_state)
        jax.tree.map(np.testing.assert_array_equal, once, again)


@pytest.mark.parametrize("structure", ["2:4", "channel", "block2x2"])
def test_a_pruning_step_removes_what_the_structure_says(structure, monkeypatch):
    phases, state = small_phases(
        monkeypatch, structure=structure, fraction=0.5, distribution="uniform"
    )
    masks = sparse_optax.get_masks(phases.prune(state).opt_state)
    assert not jax.tree.leaves((masks["norm"], masks["hidden"]["bias"]))
    for kernel in (np.asarray(masks[x]["kernel"]) for x in ("hidden", "output")):
        rows, columns = kernel.shape
        groups = {
            "2:4": kernel.reshape(rows // 4, 4, columns).sum(1) == 2,
            "channel": kernel.all(0) | ~kernel.any(0),
            "block2x2": np.isin(
                kernel.reshape(rows // 2, 2, columns // 2, 2).sum((1, 3)), (0, 4)
            ),
        }[structure]
        assert groups.all() and kernel.mean() == pytest.approx(0.5, abs=0.05)


def test_units_are_removed_as_a_whole_and_leave_a_smaller_network(monkeypatch):
    phases, state = small_phases(monkeypatch, structure="units", fraction=0.5)
    pruned = phases.prune(phases.train_sparse(state))
    masks = sparse_optax.get_masks(pruned.opt_state)
    kept = np.asarray(masks["hidden"]["bias"])
    assert kept.sum() == 4
    for rows in (
        np.asarray(masks["hidden"]["kernel"]).T,
        np.asarray(masks["output"]["kernel"]),
        *(np.asarray(masks["norm"][name])[:, None] for name in ("scale", "bias")),
    ):
        assert (rows == kept[:, None]).all()
    assert not jax.tree.leaves(masks["output"]["bias"])
    tuned = phases.finetune(phases.start_finetuning(pruned))
    smaller = phases.problem.compact(tuned.variables).params
    assert smaller.params["hidden"]["kernel"].shape[1] == 4
    assert {x.shape for x in jax.tree.leaves(smaller.statistics)} == {(4,)}


@pytest.mark.parametrize("name", ["relevance", "l1", "none"])
def test_penalties_of_units_by_hand(name):
    """The irrelevance is that of the mean |g| of a unit, and l1 the group lasso."""
    params = {"a": jnp.array([[3.0, 1.0]]), "b": jnp.array([[4.0], [-2.0]])}
    grads = {"a": jnp.array([[0.1, 0.5]]), "b": jnp.array([[-0.3], [0.7]])}
    units = sparse_optax.channel_groups(
        lambda params, x: x @ params["a"] @ params["b"], params, jnp.ones((1, 1))
    )
    config = changed(regularizer=name, scale=0.5, structure="units")
    tx = regularizers.make_regularizer(config, 0.1, 0, units)
    updates, _ = tx.update(grads, tx.init(params), params, grad=grads)
    factors = {
        "relevance": 0.2 * np.exp([-0.2 / 0.5, -0.6 / 0.5]),
        "l1": [0.1 / 5, 0.1 / np.sqrt(5)],
        "none": [0, 0],
    }[name]
    added = jax.tree.map(jnp.subtract, updates, grads)
    factors = np.array(factors, np.float32)
    np.testing.assert_allclose(added["a"][0], factors * params["a"][0], 1e-5, 1e-7)
    wanted = factors * params["b"][:, 0]
    np.testing.assert_allclose(added["b"][:, 0], wanted, 1e-5, 1e-7)


@pytest.mark.parametrize("prune", ["rigl", "set", "static"])
def test_weights_grow_at_intervals_until_fine_tuning(prune, monkeypatch):
    """And by Erdos-Renyi densities, biases stay dense."""
    settings = {"prune": prune, "target_sparsity": 0.8, "distribution": "erk"}
    phases, start = small_phases(monkeypatch, **settings)
    trained = phases.train_sparse(start)
    tuned = phases.finetune(phases.start_finetuning(trained))
    first, second, third = (
        sparse_optax.get_masks(x.opt_state) for x in (start, trained, tuned)
    )
    assert second["hidden"]["bias"].all()
    kernel = (x["hidden"]["kernel"] for x in (first, second, third))
    one, two, three = map(np.asarray, kernel)
    assert one.sum() == two.sum() < 0.3 * one.size
    assert (one != two).any() == (prune != "static")
    np.testing.assert_array_equal(two, three)
    sparse_optax.check_sparsity(start.params, start.opt_state)


def test_gradients_at_a_step_are_those_of_a_batch_of_its_own():
    config = changed(batch_size=6)
    problem = ImageProblem(config, images.load_digits())
    params = problem.variables.params
    one, same, other = (problem.gradients_at(problem.variables, n) for n in (0, 0, 1))
    found = [np.asarray(x["output"]["bias"]) for x in (one, same, other)]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0
    # The gradient of biases is that of logits: the mean of softmax - one-hot.
    assert found[0].sum() == pytest.approx(0, abs=1e-6)
    assert one["output"]["kernel"].shape == params["output"]["kernel"].shape


def test_rounds_of_any_length_make_the_same_updates():
    """The step of a state says where in the data it is, through several epochs."""
    network, variables = init_network(networks.LeNet300, (4, 4, 1), 16, 0)
    optimizer = optimizers.pruning_optimizer(CONFIG, 40, 7)

    def train(num_steps, num_rounds, seed=0):
        state = loop.init_state(variables, optimizer)
        config = changed(batch_size=7, interval=num_steps, seed=seed)
        round_of = loop.make_train(config, network, optimizer, small_split())
        for _ in range(num_rounds):
            state = round_of(state)
        return state

    long, short = train(20, 1), train(5, 4)
    jax.tree.map(np.testing.assert_array_equal, long[:3], short[:3])
    other = train(20, 1, seed=1)
    assert jnp.any(other.params["output"]["kernel"] != long.params["output"]["kernel"])


def test_every_epoch_visits_each_example_once():
    # Image i is all i, so that the gradient shows which images there were.
    pixels = np.arange(12, dtype=np.uint8)[:, None, None, None]

    class Spy:
        def loss(self, params, statistics, images, labels):
            seen = jnp.zeros(12).at[images.ravel()].add(1.0)
            return jnp.vdot(params, seen), statistics

    optimizer, config = optax.sgd(1.0), changed(batch_size=4, interval=1)
    split = images.Split(pixels, np.zeros(12, np.int32))
    train = loop.make_train(config, Spy(), optimizer, split)
    state = loop.init_state(Variables(jnp.zeros(12), {}), optimizer)
    seen = []
    for _ in range(6):
        before, state = state, train(state)
        seen.append(np.flatnonzero(before.params - state.params))
    for epoch in (seen[:3], seen[3:]):
        assert sorted(np.concatenate(epoch)) == list(range(12))
    assert not all(np.array_equal(*pair) for pair in zip(seen, seen[3:], strict=False))


def test_images_are_shifted_and_mirrored():
    image = np.zeros((7, 9, 2), np.uint8)
    image[3, 2] = [5, 6]
    batch = jnp.asarray(np.stack([image] * 400))
    result = np.asarray(augment(batch, jax.random.key(0), shift=2, mirror=True))
    assert result.dtype == np.uint8
    places = set()
    for moved in result:
        ((row, column),) = np.argwhere(moved.any(-1))
        assert moved[row, column].tolist() == [5, 6]
        places.add((row - 3, column - 2))
    moves = range(-2, 3)
    # The mirrored pixel is at 6, four further to the right.
    assert places == {(i, j + k) for i in moves for j in moves for k in (0, 4)}
    white = jnp.full((50, 4, 4, 1), 9, jnp.uint8)
    moved = np.asarray(augment(white, jax.random.key(1), shift=1, mirror=False))
    areas = {int((image == 9).sum()) for image in moved}
    assert areas == {16, 12, 9} and set(np.unique(moved)) == {0, 9}
    assert augment(white, jax.random.key(0), shift=0, mirror=False) is white


@pytest.mark.filterwarnings("ignore:round .* removed all weights")
@pytest.mark.parametrize(
    "prune", ["gated", pytest.param("gradual", marks=pytest.mark.slow)]
)
def test_one_program_does_what_rounds_one_by_one_do(prune, monkeypatch):
    """Scanned or called from Python: the same masks, and weights up to rounding."""
    monkeypatch.setitem(networks.NETWORKS, "lenet300", Small)
    config = changed(
        **{"dense_epochs": 2, "epochs": 8, "finetune_epochs": 2, "interval": 16},
        **{"batch_size": 64, "fraction": 0.7, "prune": prune, "target_sparsity": 0.7},
    )
    dataset = images.load_digits()
    numbers = [getattr(config, name) for name in program.Numbers._fields]
    whole = jax.jit(program.whole_run, static_argnums=(0, 4))(
        config, program.Numbers(*numbers), *dataset[:2], dataset.white
    )
    phases = Phases(config, ImageProblem(config, dataset))
    dense = phases.start_dense()
    for _ in range(phases.num_rounds.dense):
        dense = phases.train_dense(dense)

    def evaluate(state):
        return phases.problem.metric(state.variables)

    bound = phases.bound(dense.variables)
    *rounds, last = sparse_optax.iterative_pruning(
        phases.start_pruning(dense),
        phases.train_sparse,
        evaluate,
        phases.prune,
        bound=bound,
        max_rounds=phases.num_rounds.pruning,
        start_finetuning=phases.start_finetuning,
        finetune=phases.finetune,
        finetune_rounds=phases.num_rounds.finetuning,
    )
    assert {x.pruned for x in rounds} == {prune == "gated", False}
    best = last.state.best
    np.testing.assert_allclose(whole.bound, bound)
    assert abs(whole.best_correct / 359 - evaluate(best)) < 0.01
    masks, others = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(masks)])
        for masks in map(sparse_optax.get_masks, (best.opt_state, whole.best.opt_state))
    )
    assert sum(masks != others) <= 2  # rounding may swap neighbours in size
    assert not masks.all()


def test_settings_reach_training(monkeypatch):
    """Each of them changes what its phase makes of the same weights."""
    monkeypatch.setitem(networks.NETWORKS, "lenet300", Small)
    dataset = images.load_digits()

    def kernel(phase, **changes):
        usual = {"dense_epochs": 1, "epochs": 1, "finetune_epochs": 1, "interval": 5}
        config = changed(**(usual | changes))
        phases = Phases(config, ImageProblem(config, dataset))
        state = phases.start_dense()
        if phase != "train_dense":
            state = phases.start_pruning(state).current
        return getattr(phases, phase)(state).params["hidden"]["kernel"]

    for phase, changes in (
        ("train_dense", {"mirror": True, "shift": 1, "bfloat16": True}),
        ("train_dense", {"warmup_steps": 2, "dense_strength": 0.1}),
        ("train_sparse", {"schedule": "cosine", "strength_decay_epochs": 0.1}),
        ("finetune", {"finetune_schedule": "cosine"}),
    ):
        usual = kernel(phase)
        for name, value in changes.items():
            assert jnp.any(kernel(phase, **{name: value}) != usual), name
