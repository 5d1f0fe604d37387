"""Forms of relevance, and their controls, against plain NumPy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from runs import Small, quickly  # noqa: F401

import sparse_optax
from experiments.config import Form
from experiments.data import images
from experiments.networks.functional import init_network
from experiments.tasks.digits import CONFIG
from experiments.training import forms, loop, optimizers, phases
from experiments.training.image_problem import ImageProblem


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


def penalties(form, strength=0.5, scale=2.0, grads=G, seed=0):
    """Returns I at each of some updates, by what they add, and the state."""
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


def test_the_default_form_is_that_of_the_library():
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


def test_measures():
    """The running mean of |g|, and |g * w|."""
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
    for step, unit_square in enumerate((one, second)):
        check(
            added[step],
            {n: np.exp(-np.abs(G[step][n]) / (2 * np.sqrt(unit_square[n]))) for n in W},
        )


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
        updates, state = tx.update(zeros, state, params, abs_grads=size)
        return state, updates

    _, updates = jax.jit(lambda: jax.lax.scan(update, tx.init(params), sizes))()
    spared, sizes = np.asarray(updates == 0)[:, 4_000:], np.asarray(sizes)[:, 4_000:]
    assert abs(spared[100:].mean() - 0.1) < 0.015
    np.testing.assert_array_equal(updates, jnp.where(updates == 0, 0, params))
    for one, size in zip(spared, sizes, strict=True):
        assert size[one].min(initial=np.inf) > size[~one].max(initial=0)


@pytest.mark.parametrize("size, share", [(1, 1.0), (9, 0.5), (7_000, 0.3), (50, 0.0)])
def test_a_permutation_is_one_of_the_remaining_weights(size, share):
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
            updates, state = update(params, state, params, abs_grads=g)
        return updates

    ones = after(0, 1), after(0, 1)
    jax.tree.map(np.testing.assert_array_equal, *ones)
    for other in (after(0, 2), after(1, 1)):
        assert np.mean(other["a"] == ones[0]["a"]) < 0.1
    assert np.mean(ones[0]["a"] == ones[0]["b"]) < 0.1


def test_scores_of_a_ranking():
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


def test_pruning_follows_the_ranking():
    config = dataclasses.replace(
        CONFIG, form=Form(acts_on="ranking"), fraction=0.5, scale=1.0, interval=2
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


def test_gradients_of_single_examples():
    """Their mean is the batch's gradient; the mean of their sizes is larger."""
    seen = {}

    def spy(updates, state, params=None, *, abs_grads=None, **extra):
        return updates, {"grads": updates, "abs_grads": abs_grads}

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"grads": zeros, "abs_grads": zeros}

    optimizer = optax.GradientTransformationExtraArgs(init, spy)
    train = images.take(images.load_digits().train, np.arange(8))
    network, variables = init_network(WithoutNorm, (8, 8, 1), 16, 0)
    config = dataclasses.replace(CONFIG, batch_size=8, interval=1)
    for per_example in (False, True):
        state = loop.init_state(variables, optimizer)
        update = loop.make_train(
            *(config, network, optimizer, train), per_example=per_example
        )
        seen[per_example] = update(state).opt_state

    for name in ("kernel", "bias"):
        whole, single = (seen[flag]["grads"]["hidden"][name] for flag in (False, True))
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
