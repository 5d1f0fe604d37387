"""Forms of relevance against computations by hand, and controls of equal dose."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparse_optax
from experiments import data, forms
from experiments.config import ExperimentError
from experiments.forms import Form
from experiments.networks import NETWORKS
from experiments.networks.functional import init_network
from experiments.tasks.digits import CONFIG
from experiments.training import loop, optimizers, phases, regularizers
from experiments.training.image_problem import ImageProblem

W = {"a": np.array([[1.0, 0.0], [-2.0, 0.5]], np.float32), "b": np.float32([3.0, -1.0])}
G = [
    {"a": np.array([[0.1, 9.0], [-0.4, 0.2]], np.float32), "b": np.float32([2.0, 0.0])},
    {"a": np.array([[0.3, 9.0], [0.8, -0.1]], np.float32), "b": np.float32([1.0, 4.0])},
]
ALIVE = {"a": W["a"] != 0, "b": W["b"] != 0}


def penalties(form, strength=0.5, scale=2.0, grads=G, seed=0):
    """Returns what each of some updates adds, over 2 * strength * w, and the state."""
    tx = forms.add_decay_in_form(form, strength, scale, seed)
    params = jax.tree.map(jnp.asarray, W)
    state, added = tx.init(params), []
    update = jax.jit(tx.update)
    for g in grads:
        updates, state = update(
            jax.tree.map(jnp.zeros_like, params),
            state,
            params,
            abs_grads=jax.tree.map(np.abs, g),
        )
        added.append(
            jax.tree.map(
                lambda u, w: np.divide(
                    u, 2 * strength * w, out=np.zeros_like(w), where=w != 0
                ),
                updates,
                W,
            )
        )
    return added, state


def check(found, expected):
    for name in W:
        np.testing.assert_allclose(
            found[name], np.where(ALIVE[name], expected[name], 0), rtol=2e-5
        )


def test_absolute_is_the_librarys():
    params, grads = (jax.tree.map(jnp.asarray, tree) for tree in (W, G[0]))
    ours = forms.add_decay_in_form(Form(), 0.3, 0.7, 0)
    theirs = sparse_optax.add_relevance_decay(0.3, 0.7, mask=None)
    updates, _ = ours.update(
        grads, ours.init(params), params, abs_grads=jax.tree.map(jnp.abs, grads)
    )
    expected, _ = theirs.update(grads, theirs.init(params), params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected
    )


def test_running_measure():
    added, _ = penalties(Form(memory=0.75))
    one, two = ({n: np.abs(g[n]) for n in W} for g in G)
    check(added[1], {n: np.exp(-(0.75 * one[n] + two[n]) / 1.75 / 2) for n in W})


def test_saliency():
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
    for step, unit_square in enumerate((one, second)):
        check(
            added[step],
            {n: np.exp(-np.abs(G[step][n]) / (2 * np.sqrt(unit_square[n]))) for n in W},
        )


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_relative_units_do_not_depend_on_the_losss_factor(factor):
    """One setting works for a loss multiplied by anything."""
    scaled = [jax.tree.map(lambda x: np.float32(factor) * x, g) for g in G]
    for unit in ("leaf", "network"):
        added, _ = penalties(Form(unit=unit))
        others, _ = penalties(Form(unit=unit), grads=scaled)
        check(others[1], added[1])


def test_quantile_spares_its_share():
    """After some updates, about a tenth of the weights left do not decay."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=5_000), jnp.float32).at[:4_000].set(0)}
    tx = forms.add_decay_in_form(Form(unit="quantile"), 0.5, 0.1, 0)
    state = tx.init(params)
    update = jax.jit(tx.update)
    shares = []
    for _ in range(300):
        size = {"w": jnp.asarray(np.exp(3 * rng.normal(size=5_000) - 9), jnp.float32)}
        updates, state = update(
            jax.tree.map(jnp.zeros_like, params), state, params, abs_grads=size
        )
        spared = (updates["w"] == 0)[4_000:]
        shares.append(float(spared.mean()))
        # All or nothing, and the most relevant are the spared ones.
        left = size["w"][4_000:]
        assert left[spared].min(initial=np.inf) > left[~spared].max(initial=0)
        np.testing.assert_array_equal(
            updates["w"], jnp.where(updates["w"] == 0, 0, params["w"])
        )
    assert abs(np.mean(shares[100:]) - 0.1) < 0.01


@pytest.mark.parametrize("size, share", [(1, 1.0), (9, 0.5), (7_000, 0.3), (50, 0.0)])
def test_permutation_is_one_of_the_weights_left(size, share):
    key = jax.random.key(size)
    alive = jax.random.bernoulli(key, share, (size,))
    x = jnp.arange(1.0, size + 1)
    found = [
        np.asarray(jax.jit(forms.permute_where)(x, alive, k))
        for k in jax.random.split(key, 20)
    ]
    left = np.asarray(alive)
    for y in found:
        np.testing.assert_array_equal(np.sort(y[left]), x[left])
        np.testing.assert_array_equal(y[~left], x[~left])
    if left.sum() > 100:
        for y, z in itertools.pairwise(found):
            assert abs(np.corrcoef(y[left], z[left])[0, 1]) < 0.1
            assert abs(np.corrcoef(y[left], x[left])[0, 1]) < 0.1


def test_permutation_keeps_nothing_of_rows_and_columns():
    x = jnp.broadcast_to(jnp.arange(40.0), (30, 40))  # all that a unit knows
    for key in jax.random.split(jax.random.key(0), 5):
        y = np.asarray(forms.permute_where(x, jnp.ones((30, 40), bool), key))
        assert y.std(axis=0).min() > 5 and y.std(axis=1).min() > 5


def test_leaf_without_gradients_decays_in_full():
    grads = [jax.tree.map(np.zeros_like, G[0])]
    for unit in ("absolute", "leaf", "network"):
        (added,), _ = penalties(Form(unit=unit), grads=grads)
        check(added, jax.tree.map(np.ones_like, W))


def test_controls_have_the_dose_of_their_form():
    form = Form(unit="leaf")
    (own, _), _ = penalties(form)
    (mean, _), _ = penalties(dataclasses.replace(form, control="mean"))
    (first, second), _ = penalties(
        dataclasses.replace(form, control="permuted"), grads=[G[0], G[0]]
    )
    for name in W:
        left = own[name][ALIVE[name]]
        np.testing.assert_allclose(
            mean[name][ALIVE[name]], np.full_like(left, left.mean()), rtol=1e-5
        )
        for permuted in (first, second):
            np.testing.assert_allclose(
                np.sort(permuted[name][ALIVE[name]]), np.sort(left), rtol=1e-5
            )


def test_permutation_changes_with_update_and_seed():
    rng = np.random.default_rng(0)
    g = {name: rng.random((40, 40)).astype(np.float32) for name in W}
    params = {name: jnp.ones((40, 40)) for name in W}

    def after(seed, num_updates):
        form = Form(control="permuted")
        tx = forms.add_decay_in_form(form, 0.5, 1.0, seed)
        state = tx.init(params)
        for _ in range(num_updates):
            updates, state = tx.update(params, state, params, abs_grads=g)
        return updates

    ones = after(0, 1), after(0, 1)
    jax.tree.map(np.testing.assert_array_equal, *ones)
    for other in (after(0, 2), after(1, 1)):
        assert np.mean(other["a"] == ones[0]["a"]) < 0.1
    assert np.mean(ones[0]["a"] == ones[0]["b"]) < 0.1


def test_latest_irrelevance_is_that_of_the_form():
    """In its own unit; where no form keeps one, the paper's of the gradients given."""
    added, state = penalties(Form(unit="leaf"), scale=0.3)
    check(added[-1], forms.latest_irrelevance((state, None), None, 0.3))
    grads = jax.tree.map(jnp.asarray, G[0])
    found = forms.latest_irrelevance(optax.EmptyState(), grads, 2.0)
    for name, g in G[0].items():
        np.testing.assert_allclose(found[name], np.exp(-np.abs(g) / 2), rtol=1e-6)


def test_ranking_weighs_by_relevance():
    params = jax.tree.map(jnp.asarray, W)
    for acts_on in ("ranking", "both"):
        added, state = penalties(Form(acts_on=acts_on))
        expected = {n: np.exp(-np.abs(G[1][n]) / 2) for n in W}
        check(
            added[1], expected if acts_on == "both" else jax.tree.map(np.ones_like, W)
        )
        scores = forms.ranking_scores(params, (state,))
        for name in W:
            np.testing.assert_allclose(
                scores[name], np.abs(W[name]) * (1 - expected[name]), rtol=1e-5
            )


def test_prune_follows_the_ranking():
    config = dataclasses.replace(
        CONFIG, form=Form(acts_on="ranking"), fraction=0.5, scale=1.0
    )
    dataset = data.load(config, "")
    parts = phases.Phases(config, ImageProblem(config, dataset))
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
def test_decoupled_decay_goes_round_the_optimizer(optimizer, regularizer):
    """With all weights irrelevant, either is optax's decay beside the optimizer."""
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
    states = ours.init(params), theirs.init(params)
    for _ in range(3):
        found, one = ours.update(
            grads, states[0], params, abs_grads=jax.tree.map(jnp.abs, grads)
        )
        expected, two = theirs.update(grads, states[1], params)
        states = one, two
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected
        )


def test_paper_is_made_by_the_librarys_link():
    tx = regularizers.make_regularizer(CONFIG, 0.1, 0)
    state = tx.init({"w": jnp.ones(2)})
    assert type(state) is sparse_optax.RelevanceDecayState


def test_gradients_of_single_examples():
    """Their mean is the batch's gradient; the mean of their sizes is larger."""
    seen = {}

    def spy(updates, state, params=None, *, abs_grads=None, **extra):
        return updates, {"grads": updates, "abs_grads": abs_grads}

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"grads": zeros, "abs_grads": zeros}

    optimizer = optax.GradientTransformationExtraArgs(init, spy)
    dataset = data.load(CONFIG, "")
    train = data.take(dataset.train, np.arange(8))
    network, variables = init_network(NETWORKS["lenet300"], (8, 8, 1), dataset.white, 0)
    for per_example in (False, True):
        state = loop.init_state(variables, optimizer, jnp.zeros([], jnp.int32))
        update = loop.make_train(
            *(network, optimizer, train),
            batch_size=8,
            num_steps=1,
            seed=0,
            scale=1.0,
            per_example=per_example,
        )
        seen[per_example] = update(state).opt_state

    for name in ("kernel", "bias"):
        whole, single = (seen[flag]["grads"]["hidden1"][name] for flag in (False, True))
        np.testing.assert_allclose(whole, single, atol=1e-6)
    examples = [
        jax.grad(network.loss, has_aux=True)(
            *variables, train.images[[i]], train.labels[[i]]
        )[0]
        for i in range(8)
    ]
    expected = np.mean([np.abs(g["output"]["kernel"]) for g in examples], axis=0)
    np.testing.assert_allclose(
        seen[True]["abs_grads"]["output"]["kernel"], expected, atol=1e-6
    )
    np.testing.assert_allclose(
        seen[False]["abs_grads"]["output"]["kernel"],
        np.abs(np.mean([g["output"]["kernel"] for g in examples], axis=0)),
        atol=1e-6,
    )


def test_spoilt_training_sets():
    whole = data.load(CONFIG, "")
    few = data.load(dataclasses.replace(CONFIG, num_train=100), "")
    assert len(few.train.labels) == 100
    for old, new in zip(whole.validation, few.validation, strict=True):
        np.testing.assert_array_equal(old, new)
    noisy = data.load(dataclasses.replace(CONFIG, label_noise=0.5), "")
    np.testing.assert_array_equal(noisy.train.images, whole.train.images)
    np.testing.assert_array_equal(noisy.validation.labels, whole.validation.labels)
    changed = np.mean(noisy.train.labels != whole.train.labels)
    assert abs(changed - 0.5 * 0.9) < 0.05
    again = data.load(dataclasses.replace(CONFIG, label_noise=0.5, seed=3), "")
    np.testing.assert_array_equal(noisy.train.labels, again.train.labels)
    with pytest.raises(ExperimentError, match="--num-train must be 1078 or less"):
        data.load(dataclasses.replace(CONFIG, num_train=2_000), "")


def test_pixels_that_do_not_appear_have_no_gradient():
    """A token is a pixel of a shade: what is rare in the data is rarely trained."""
    dataset = data.load(CONFIG, "")
    network, variables = init_network(
        NETWORKS["pixel-transformer"], (8, 8, 1), dataset.white, 0
    )
    images, labels = dataset.train.images[:5], dataset.train.labels[:5]
    grads, _ = jax.grad(network.loss, has_aux=True)(*variables, images, labels)
    grads = grads["embedding"]["embedding"]
    seen = np.arange(64) * 17 + images.reshape(5, 64)
    rows = np.flatnonzero(np.abs(grads).max(axis=1))
    np.testing.assert_array_equal(rows, np.unique(seen))
