"""Criteria: each through every way to prune, against a sort in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import first_unmarked, numpy_drop, random_tree

import sparse_optax as so

PARAMS = random_tree(0, shapes={"a": (4, 6), "b": (5, 3)})
GRADS = jax.tree.map(jnp.square, random_tree(1, shapes={"a": (4, 6), "b": (5, 3)}))
KEY = jax.random.key(3)


def cubes(params, grads):
    """A user's own: signed, and only of the weights."""
    del grads
    return jax.tree.map(lambda w: w**3, params)


def norm(x):
    return np.sqrt(np.sum(np.square(np.float64(x))))


# Of each criterion, its scores by hand, and whether it takes the weights alone.
CRITERIA = {
    "magnitude": (so.magnitude, lambda w, g: np.abs(w), True),
    "saliency": (so.saliency, lambda w, g: np.abs(w * g), False),
    "relevance": (
        so.relevance(0.2),
        lambda w, g: np.abs(w) * (1 - np.exp(-np.abs(g) / 0.2)),
        False,
    ),
    "per_leaf": (so.per_leaf(so.magnitude), lambda w, g: np.abs(w) / norm(w), True),
    "user": (cubes, lambda w, g: w**3, True),
}


def expected(name, share=0.4):
    scores = jax.tree.map(CRITERIA[name][1], *map(on_host, (PARAMS, GRADS)))
    # By ranks, as numpy_drop ranks by magnitude.
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(scores)])
    ranks = np.argsort(np.argsort(flat, kind="stable")) + 1.0
    split = np.split(ranks, [24])
    ranks = {k: r.reshape(PARAMS[k].shape) for k, r in zip("ab", split, strict=True)}
    kept = jax.tree.map(lambda w: np.ones(w.shape, bool), PARAMS)
    return numpy_drop(ranks, kept, round(share * 39))


def on_host(tree):
    return jax.tree.map(np.asarray, tree)


def by_chain(criterion, **_):
    tx = optax.chain(optax.adam(0.1), so.prune_by(criterion, 0.4))
    step = jax.jit(lambda g, s, p, flag: tx.update(g, s, p, prune=flag, grad=g)[1])
    return step(GRADS, tx.init(PARAMS), PARAMS, True)


def by_wrapper(criterion, **_):
    tx = so.hide_pruned(optax.adam(0.1), so.prune_by(criterion, 0.4))
    return tx.update(GRADS, tx.init(PARAMS), PARAMS, prune=True)[1]


def by_schedule(criterion, **_):
    tx = so.hide_pruned(optax.sgd(0.1), so.prune_to_sparsity(0.4, criterion=criterion))
    return jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)[1]


def by_prune(criterion, alone):
    state = so.prune_by(criterion, 0.1).init(PARAMS)
    if alone:
        return so.prune(PARAMS, state, 0.4, criterion=criterion)[1]
    return so.prune(PARAMS, state, 0.4, scores=criterion(PARAMS, GRADS))[1]


def by_rounds(criterion, **_):
    state = so.prune_by(criterion, 0.1).init(PARAMS)
    *_, last = so.iterative_pruning(
        (PARAMS, state),
        train=lambda state: state,
        evaluate=lambda state: 1.0,
        prune=lambda s: so.prune(*s, 0.4, scores=criterion(s[0], GRADS)),
        bound=0.0,
        max_rounds=1,
    )
    return last.state.current[1]


WAYS = [by_chain, by_wrapper, by_schedule, by_prune, by_rounds]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_ranks(name, way):
    criterion, _, alone = CRITERIA[name]
    masks = so.get_masks(way(criterion, alone=alone))
    jax.tree.map(np.testing.assert_array_equal, masks, expected(name))


@pytest.mark.parametrize("way", first_unmarked(*WAYS))
def test_random_masks_nest(way):
    masks = so.get_masks(way(so.random(KEY), alone=True))
    _, fewer = so.one_shot(PARAMS, 0.8, criterion=so.random(KEY))
    for mask, sparser in zip(*map(jax.tree.leaves, (masks, fewer)), strict=True):
        assert jnp.all(mask | ~sparser)
    assert so.sparsity(masks) == np.float32(16 / 39)
    assert so.sparsity(fewer) == np.float32(31 / 39)


def test_criteria_without_their_gradients_raise():
    tx = so.prune_by(so.saliency, 0.5)
    state = tx.init(PARAMS)
    tx.update(GRADS, state, PARAMS)  # nothing is pruned
    with pytest.raises(ValueError, match=r"saliency needs .*hide_pruned.*grad=grads"):
        tx.update(GRADS, state, PARAMS, prune=True)
    with pytest.raises(ValueError, match=r"criterion, or scores such as saliency"):
        so.prune(PARAMS, state, 0.5)
    with pytest.raises(ValueError, match="either criterion or scores"):
        so.prune(PARAMS, state, 0.5, criterion=so.magnitude, scores=GRADS)


@pytest.mark.parametrize("bad", [{"a": GRADS["a"]}, GRADS | {"a": GRADS["b"]}])
def test_scores_that_do_not_fit(bad):
    state = so.prune_by_magnitude(0.5).init(PARAMS)
    with pytest.raises(ValueError, match="scores has"):
        so.prune(PARAMS, state, 0.5, scores=bad)
    with pytest.raises(TypeError, match="scores has an array of int32"):
        so.prune(PARAMS, state, 0.5, scores=jax.tree.map(jnp.int32, GRADS))


def test_nans_rank_largest_and_scores_may_be_negative():
    scores = jnp.array([[-1.0, jnp.nan, -jnp.inf, 0.0, -0.0, jnp.inf]])
    params = jnp.ones((1, 6))
    for count, kept in ((1, "110111"), (3, "010011"), (5, "010000")):
        _, masks = so.one_shot(params, count=count, scores=scores)
        assert "".join(str(int(m)) for m in masks[0]) == kept


def test_snip_and_wanda_by_hand():
    x = jnp.array([[1.0, 2.0, -1.0], [0.0, 1.0, 3.0]])
    kernel = jnp.array([[0.5, -1.0], [0.25, 0.5], [-0.5, 0.125]])

    def loss(kernel):
        return jnp.sum((x @ kernel) ** 2)

    gradient = 2 * np.asarray(x).T @ (np.asarray(x) @ np.asarray(kernel))
    saliency = np.abs(gradient * np.asarray(kernel))
    scores = so.saliency(kernel, jax.grad(loss)(kernel))
    np.testing.assert_allclose(scores, saliency, rtol=1e-6)
    _, masks = so.one_shot(kernel, 0.5, scores=scores)
    np.testing.assert_array_equal(masks, saliency > np.sort(saliency.ravel())[2])

    wanda = np.abs(kernel) * np.sqrt([[1.0], [5.0], [10.0]])
    _, masks = so.one_shot(
        kernel, 1 / 3, scores=jnp.asarray(wanda), distribution="uniform",
        stacked={".*": 1},
    )  # fmt: skip
    np.testing.assert_array_equal(masks, wanda > wanda.min(axis=0))


@pytest.mark.parametrize("name", CRITERIA)
def test_gradients_pass_by_the_ranking(name):
    criterion = CRITERIA[name][0]
    tx = so.hide_pruned(optax.sgd(0.5), so.prune_by(criterion, 0.4))

    def loss(params):
        updates, state = tx.update(GRADS, tx.init(params), params, prune=True)
        total = optax.tree.sum(optax.apply_updates(params, updates))
        return total, so.get_masks(state)

    gradient, masks = jax.grad(loss, has_aux=True)(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, gradient, masks)


def test_norms_ignore_values_that_are_not_finite():
    tree = {"a": jnp.array([3.0, 4, jnp.nan, jnp.inf])}
    scores = so.per_leaf(so.magnitude)(tree, None)
    np.testing.assert_allclose(scores["a"], [0.6, 0.8, np.nan, np.inf], rtol=1e-6)
