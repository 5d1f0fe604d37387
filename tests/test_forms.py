"""Forms of relevance, and their controls, against plain NumPy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from short_runs import Small, quickly  # noqa: F401

import sparse_optax
from experiments.config import Form
from experiments.data import images
from experiments.networks.functional import init_network
from experiments.tasks.digits import CONFIG
from experiments.training import forms, loop, optimizers, phases
from experiments.training.image_problem import ImageProblem
from experiments.training.penalties import SLOPES

pytestmark = pytest.mark.quickly_compiled


class WithoutNorm(Small):
    """Whose examples do not depend on one another."""

    def __call__(self, images):
        return self.output(nnx.relu(self.hidden(images.reshape(len(images), -1))))


W = {"a": np.array([[1.0, 0.0], [-2.0, 0.5]], np.float32), "b": np.float32([3.0, -1.0])}
G = [
    {"a": np.array([[0.1, 9.0], [-0.4, 0.2]], np.float32), "b": np.float32([2.0, 0.0])},
    {"a": np.array([[0.3, 9.0], [0.8, -0.1]], np.float32), "b": np.float32([1.0, 4.0])},
]
ALIVE = {"a": W["a"] != 0, "b": W["b"] != 0}


def penalties(form, grads=G, penalty="l2"):
    """Returns I at each of some updates, by what they add, and the state."""
    tx = forms.add_decay_in_form(form, 0.5, 2.0, seed=0, penalty=penalty)
    params = jax.tree.map(jnp.asarray, W)
    state, added = tx.init(params), []
    update = jax.jit(tx.update)
    for g in grads:
        sizes, zeros = (jax.tree.map(f, g) for f in (np.abs, np.zeros_like))
        updates, state = update(zeros, state, params, grad=sizes)
        added.append({n: updates[n] / np.where(ALIVE[n], W[n], 1) for n in W})
    return added, state


def check(found, expected):
    for name in W:
        np.testing.assert_allclose(
            found[name], np.where(ALIVE[name], expected[name], 0), rtol=2e-5
        )


def test_measures():
    """That of the library, the running mean of |g|, and |g * w|."""
    added, _ = penalties(Form())
    check(added[0], sparse_optax.irrelevance(G[0], 2.0))
    added, _ = penalties(Form(memory=0.75))
    one, two = ({n: np.abs(g[n]) for n in W} for g in G)
    check(added[1], {n: np.exp(-(0.75 * one[n] + two[n]) / 1.75 / 2) for n in W})
    added, _ = penalties(Form(measure="saliency"))
    check(added[0], {n: np.exp(-np.abs(G[0][n] * W[n]) / 2) for n in W})


@pytest.mark.parametrize("unit", ["leaf", "network"])
def test_units_are_running_root_mean_squares_of_what_is_left(unit):
    added, _ = penalties(Form(unit=unit))

    def square(g):
        left = {n: np.square(g[n][ALIVE[n]]) for n in W}
        if unit == "network":
            return dict.fromkeys(W, np.mean(np.concatenate(list(left.values()))))
        return {n: np.mean(left[n]) for n in W}

    one, two = map(square, G)
    beta = forms.UNIT_MEMORY
    second = {n: (beta * one[n] + two[n]) / (1 + beta) for n in W}
    for found, g, square in zip(added, G, (one, second), strict=True):
        check(found, {n: np.exp(-np.abs(g[n]) / 2 / np.sqrt(square[n])) for n in W})


def test_quantile_spares_its_share():
    """After some updates, a tenth of the remaining weights do not decay.

    All others decay in full, and the most relevant ones are spared.
    """
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=5_000), jnp.float32).at[:4_000].set(0)
    sizes = jnp.asarray(np.exp(3 * rng.normal(size=(200, 5_000)) - 9), jnp.float32)
    tx = forms.add_decay_in_form(Form(unit="quantile"), 0.5, 0.1, 0)

    def update(state, size):
        zeros = jnp.zeros_like(params)
        updates, state = tx.update(zeros, state, params, grad=size)
        return state, updates

    _, updates = jax.jit(lambda: jax.lax.scan(update, tx.init(params), sizes))()
    spared, sizes = np.asarray(updates == 0)[:, 4_000:], np.asarray(sizes)[:, 4_000:]
    assert abs(spared[100:].mean() - 0.1) < 0.015
    np.testing.assert_array_equal(updates, jnp.where(updates == 0, 0, params))
    for one, size in zip(spared, sizes, strict=True):
        assert size[one].min(initial=np.inf) > size[~one].max(initial=0)


@pytest.mark.parametrize("size, share", [(1, 1.0), (9, 0.5), (7_000, 0.3), (50, 0.0)])
def test_permutations_stay_within_remaining_weights(size, share):
    key = jax.random.key(size)
    alive = jax.random.bernoulli(key, share, (size,))
    x = jnp.arange(1.0, size + 1)
    permute = jax.jit(forms.permute_where)
    found = [np.asarray(permute(x, alive, k)) for k in jax.random.split(key, 20)]
    left = np.asarray(alive)
    for y in found:
        np.testing.assert_array_equal(np.sort(y[left]), x[left])
        np.testing.assert_array_equal(y[~left], x[~left])
    if left.sum() > 100:
        for y, z in itertools.pairwise(found):
            assert abs(np.corrcoef(y[left], z[left])[0, 1]) < 0.1
            assert abs(np.corrcoef(y[left], x[left])[0, 1]) < 0.1


def test_controls_decay_as_much_as_their_form():
    form = Form(unit="leaf")
    (own, _), _ = penalties(form)
    (mean, _), _ = penalties(dataclasses.replace(form, control="mean"))
    form = dataclasses.replace(form, control="permuted")
    (first, second), _ = penalties(form, [G[0], G[0]])
    for name, alive in ALIVE.items():
        left = own[name][alive]
        np.testing.assert_allclose(mean[name][alive], left.mean(), rtol=1e-5)
        for permuted in (first, second):
            found = np.sort(permuted[name][alive])
            np.testing.assert_allclose(found, np.sort(left), rtol=1e-5)


def test_permutations_change_with_update_and_seed():
    rng = np.random.default_rng(0)
    g = {name: rng.random((40, 40)).astype(np.float32) for name in W}
    params = {name: jnp.ones((40, 40)) for name in W}

    def after(seed, num_updates):
        form = Form(control="permuted")
        tx = forms.add_decay_in_form(form, 0.5, 1.0, seed)
        state = tx.init(params)
        update = jax.jit(tx.update)
        for _ in range(num_updates):
            updates, state = update(params, state, params, grad=g)
        return updates

    ones = after(0, 1), after(0, 1)
    jax.tree.map(np.testing.assert_array_equal, *ones)
    for other in (after(0, 2), after(1, 1)):
        assert np.mean(other["a"] == ones[0]["a"]) < 0.1
    assert np.mean(ones[0]["a"] == ones[0]["b"]) < 0.1


def test_scores_of_a_ranking():
    params = jax.tree.map(jnp.asarray, W)
    _, state = penalties(Form())
    expected = {n: np.exp(-np.abs(G[1][n]) / 2) for n in W}
    scores = forms.ranking_scores(params, (state,))
    for name, w in W.items():
        by_hand = np.abs(w) * (1 - expected[name])
        np.testing.assert_allclose(scores[name], by_hand, rtol=1e-5)


def test_pruning_follows_the_ranking():
    """That of the form, whatever shrinks the weights."""
    config = dataclasses.replace(
        CONFIG,
        **{"criterion": "relevance", "regularizer": "l2", "form": Form(unit="leaf")},
        **{"fraction": 0.5, "scale": 1.0, "interval": 2},
    )
    parts = phases.Phases(config, ImageProblem(config, images.load(config)))
    state = parts.start_pruning(parts.start_dense()).current
    state = parts.train_sparse(state)
    scores = forms.ranking_scores(state.params, state.opt_state)
    pruned = parts.prune(state)
    masks = sparse_optax.get_masks(pruned.opt_state)
    flat, kept = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
        for tree in (scores, masks)
    )
    assert kept.sum() == round(kept.size / 2)
    assert flat[kept].min() >= flat[~kept].max()
    jax.tree.map(
        lambda p, w, m: np.testing.assert_array_equal(p, jnp.where(m, w, 0)),
        *(pruned.params, state.params, masks),
    )


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("regularizer", ["l2", "relevance"])
def test_decoupled_decay_is_added_after_the_optimizer(optimizer, regularizer):
    """With all weights irrelevant, both are optax's decay after the optimizer."""
    config = dataclasses.replace(
        CONFIG,
        **{"optimizer": optimizer, "regularizer": regularizer, "scale": 1e9},
        **{"strength": 0.05, "decoupled": True, "learning_rate": 0.1},
    )
    params, grads = (jax.tree.map(jnp.asarray, tree) for tree in (W, G[0]))
    ours = optimizers.pruning_optimizer(config, 10, 10)
    inner = optax.scale_by_adam() if optimizer == "adam" else optax.trace(0.9)
    theirs = optax.chain(
        inner, optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(0.1)
    )
    state, other = ours.init(params), theirs.init(params)
    sizes = jax.tree.map(jnp.abs, grads)
    for _ in range(3):
        found, state = ours.update(grads, state, params, grad=sizes)
        expected, other = theirs.update(grads, other, params)
        for name in W:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize("penalty", ["l2", "l1", "root", "log"])
def test_irrelevance_weighs_any_penalty(penalty):
    """The slopes are derivatives of the penalties, here by differences."""
    values = {
        "l2": lambda a: a**2,
        "l1": lambda a: a,
        "root": lambda a: np.sqrt(a + 0.01),
        "log": lambda a: np.log1p(a / 0.01),
    }[penalty]
    added, _ = penalties(Form(), penalty=penalty)
    for name, w in W.items():
        size, step = np.abs(w).astype(float), 1e-6
        slope = (values(size + step) - values(size)) / step
        expected = 0.5 * np.exp(-np.abs(G[0][name]) / 2) * slope * np.sign(w)
        found = added[0][name] * np.where(ALIVE[name], w, 1)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("regularizer", ["relevance", "l2", "l1", "root", "log"])
def test_proximal_steps_follow_the_update_and_stop_at_zero(regularizer):
    """sign(v) max(0, |v| - rate * strength * I * slope), after plain gradient steps.

    The learning rate falls with a cosine, and the strength makes some weights zero.
    """
    config = dataclasses.replace(
        CONFIG,
        **{"optimizer": "sgd", "regularizer": regularizer, "scale": 2.0},
        **{"strength": 1.5, "proximal": True, "schedule": "cosine"},
        learning_rate=0.2,
    )
    tx = optimizers.pruning_optimizer(config, 10, 10)
    params = jax.tree.map(jnp.asarray, W)
    state, expected, trace = tx.init(params), W, jax.tree.map(np.zeros_like, W)
    slope = SLOPES["l2" if regularizer == "relevance" else regularizer]
    for number, g in enumerate([*G, *G]):
        sizes = jax.tree.map(np.abs, g)
        updates, state = tx.update(g, state, params, grad=sizes)
        params = optax.apply_updates(params, updates)
        rate = 0.1 * (1 + np.cos(np.pi * number / 10))
        for name in W:
            weight = np.exp(-sizes[name] / 2) if regularizer == "relevance" else 1
            trace[name] = g[name] + 0.9 * trace[name]
            v = expected[name] - rate * trace[name]
            size = np.abs(v) - rate * 1.5 * weight * np.asarray(slope(np.abs(v)))
            expected = expected | {name: np.sign(v) * np.maximum(size, 0)}
            np.testing.assert_allclose(params[name], expected[name], atol=1e-5)
    # Fine-tuning goes on from the state, and shrinks nothing.
    tx = optimizers.finetuning_optimizer(config, 10, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    tuned, _ = tx.update(zeros, state, params, grad=zeros)
    momentum = {name: 0.9 * trace[name] for name in W}
    rate = config.finetune_learning_rate
    for name in W:
        np.testing.assert_allclose(tuned[name], -rate * momentum[name], rtol=1e-4)
    reaches_zero = any((np.asarray(params[name]) == 0).any() for name in W)
    assert reaches_zero == (regularizer in ("l1", "root", "log"))


def test_gradients_of_single_examples():
    """Their mean is the batch's gradient; the mean of their sizes is larger."""

    def spy(updates, state, params=None, *, grad=None, **extra):
        return updates, (updates, jax.tree.map(jnp.abs, grad))

    optimizer = optax.GradientTransformationExtraArgs(lambda w: (w, w), spy)
    train = images.take(images.load_digits().train, np.arange(8))
    network, variables = init_network(WithoutNorm, (8, 8, 1), 16, 0)
    config = dataclasses.replace(CONFIG, batch_size=8, interval=1)
    state, settings = loop.init_state(variables, optimizer), (config, network)
    (whole, whole_sizes), (single, single_sizes) = (
        loop.make_train(*settings, optimizer, train, per_example=flag)(state).opt_state
        for flag in (False, True)
    )
    gradient = jax.grad(network.loss, has_aux=True)
    examples = [
        gradient(*variables, train.images[[i]], train.labels[[i]])[0]["output"]
        for i in range(8)
    ]
    for name in ("kernel", "bias"):
        each = np.array([example[name] for example in examples])
        for found, expected in (
            (whole, each.mean(0)),
            (single, each.mean(0)),
            (whole_sizes, np.abs(each.mean(0))),
            (single_sizes, np.abs(each).mean(0)),
        ):
            np.testing.assert_allclose(found["output"][name], expected, atol=1e-6)
