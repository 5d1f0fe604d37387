"""Which weights are dropped, against sorting all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import sparse_optax
from sparse_optax import _counts, _selection

TREES = {
    "vector": [(13,)],
    "matrix": [(3, 5)],
    "cube": [(2, 3, 4)],
    "four axes": [(2, 3, 2, 2)],
    "mixed": [(4,), (), (2, 3), (0,), (2, 1, 3), (1, 2, 2, 2)],
    "empty": [(0, 3), (0,)],
}
DTYPES = {
    "float32": [jnp.float32],
    "bfloat16": [jnp.bfloat16],
    "float16": [jnp.float16],
    "all": [jnp.bfloat16, jnp.float32, jnp.float16],
}
# Few different numbers, so that ties are the rule; all are exact in bfloat16.
SPECIAL = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan, 2.0**-14]


def smallest(weights, masks, k):
    """`masks` without the `k` smallest: a stable sort, zeros alike, NaNs last."""
    flat = np.concatenate([np.ravel(w).astype(np.float64) for w in weights])
    kept = np.concatenate([np.ravel(m) for m in masks])
    magnitude = np.where(np.isnan(flat), 0, np.abs(flat))
    order = np.lexsort((magnitude, np.isnan(flat), ~kept))  # the last key comes first
    kept[order[:k]] = False
    ends = np.cumsum([np.size(m) for m in masks])[:-1]
    parts = np.split(kept, ends)
    return [part.reshape(np.shape(m)) for part, m in zip(parts, masks, strict=True)]


@jax.jit
def drop(weights, masks, high, low):
    return _selection.drop_smallest(weights, masks, _counts.Count(high, low))


def assert_drops_the_smallest(weights, masks, k, drop=drop):
    result = drop(weights, masks, np.uint32(0), np.uint32(k))
    expected = smallest(weights, masks, k)
    for r, e in zip(result, expected, strict=True):
        assert r.dtype == bool
        np.testing.assert_array_equal(r, e)


def arrays(shapes, dtypes, values):
    pairs = zip(shapes, dtypes * len(shapes), strict=False)
    return [np.asarray(values(shape)).astype(dtype) for shape, dtype in pairs]


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("tree", TREES)
@settings(max_examples=25)
@given(data=st.data())
def test_drops_what_sorting_would_drop(tree, dtypes, data):
    seed = data.draw(st.integers(0, 2**32 - 1), label="seed")
    rng = np.random.default_rng(seed)
    values = data.draw(st.sampled_from([SPECIAL, [1.0], [0.0, 1.0], None]))

    def draw(shape):
        return rng.normal(size=shape) if values is None else rng.choice(values, shape)

    weights = arrays(TREES[tree], DTYPES[dtypes], draw)
    kept = data.draw(st.sampled_from([1.0, 0.6, 0.1]), label="kept")
    masks = [rng.random(w.shape) < kept for w in weights]
    k = data.draw(st.integers(0, int(sum(m.sum() for m in masks))), label="k")
    assert_drops_the_smallest(weights, masks, k)


@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, 3, 4), (2, 3, 2, 2), (1, 24)])
def test_every_split_of_ties_is_by_row_major_index(shape):
    for k in range(25):
        assert_drops_the_smallest(
            [np.ones(shape, np.float32)], [np.ones(shape, bool)], k
        )


def test_ties_are_split_in_the_order_of_leaves():
    weights = [np.ones(s, np.float32) for s in [(3,), (2, 2), (), (1, 2, 2)]]
    masks = [np.ones(w.shape, bool) for w in weights]
    masks[1][0, 1] = False
    for k in range(12):
        assert_drops_the_smallest(weights, masks, k)


@pytest.mark.parametrize("limit", [2, 4, 12])
def test_ties_in_large_arrays_are_split_by_row_and_then_within_it(monkeypatch, limit):
    monkeypatch.setattr(_counts, "_WORD", limit)
    jax.clear_caches()
    weights = [np.ones((2, 3, 4), np.float32), np.ones((4, 3), np.float32)]
    masks = [np.ones(w.shape, bool) for w in weights]
    for k in range(37):
        assert_drops_the_smallest(weights, masks, k)
    jax.clear_caches()


def test_constant_weights_compile_in_no_time():
    # Of constants XLA would make the counts while compiling, weight by weight.
    weights, masks = [jnp.ones((4000, 1000))], [jnp.ones((4000, 1000), bool)]
    k = _counts.constant(10**6)
    (result,) = jax.jit(lambda: _selection.drop_smallest(weights, masks, k))()
    assert jnp.sum(result) == 3 * 10**6 and not result[:1000].any()


def test_eager_and_compiled_agree():
    rng = np.random.default_rng(3)
    shapes = [(3, 4), (5,)]
    weights = arrays(shapes, DTYPES["all"], lambda s: rng.choice(SPECIAL, s))
    masks = [np.ones(w.shape, bool) for w in weights]
    eager = _selection.drop_smallest
    for k in (0, 6, 17):
        assert_drops_the_smallest(
            weights, masks, k, lambda w, m, h, n: eager(w, m, _counts.Count(h, n))
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
def test_subnormals_rank_by_magnitude(dtype, compiled):
    tiniest = float(jnp.finfo(dtype).smallest_subnormal)
    normal = float(jnp.finfo(dtype).tiny)
    values = [3 * tiniest, normal, -2 * tiniest, 0.0, tiniest, -normal / 2, 1.0, -0.0]
    weights = [np.array(values).astype(dtype)]
    assert len(np.unique(np.abs(weights[0].astype(np.float64)))) == 7
    function = drop if compiled else drop.__wrapped__
    for k in range(len(values) + 1):
        assert_drops_the_smallest(weights, [np.ones(8, bool)], k, function)


def test_subnormals_of_different_dtypes_rank_together():
    weights = [
        np.array([3e-40, 1e-45, 7e-39]).astype(jnp.bfloat16),
        np.array([2e-40, 1e-44, 6e-39], np.float32),
        np.array([6e-8, 0.0, 1e-6]).astype(np.float16),
    ]
    for k in range(10):
        assert_drops_the_smallest(weights, [np.ones(3, bool)] * 3, k)


def test_float64_weights_are_told_apart_below_float32():
    weights = [
        np.array([1 + 2e-16, 1.0, 1 - 1e-16, 1e-300]),
        np.array([1.0, 1e-310, -1e-40, np.nan], np.float64),
        np.array([1.0, 0.5], np.float32),
    ]
    masks = [np.ones(w.shape, bool) for w in weights]
    with jax.enable_x64(True):
        for k in range(11):
            assert_drops_the_smallest(weights, masks, k)


def chain(optimizer, fraction):
    return optax.chain(
        sparse_optax.add_relevance_decay(0.01, 0.1, mask=None),
        optimizer,
        sparse_optax.prune_by_magnitude(fraction, mask=None),
    )


def whole(optimizer, fraction):
    return sparse_optax.relevance_pruning(optimizer, 0.01, 0.1, fraction, mask=None)


def decoupled(optimizer, fraction):
    return sparse_optax.relevance_pruning(
        optimizer, 0.01, 0.1, fraction, decoupled=True, mask=None
    )


@pytest.mark.parametrize(
    ("make", "optimizer", "grad_dtype"),
    [
        (chain, optax.sgd(0.37), jnp.float32),
        (whole, optax.adamw(1e-2), jnp.float32),
        (decoupled, optax.adam(1e-2), jnp.bfloat16),
    ],
    ids=["chain-sgd", "whole-adamw", "decoupled-adam"],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_is_ranked_is_what_is_stored(make, optimizer, grad_dtype, dtype):
    # With few bits many weights tie, and one rounding more or less changes the order.
    fraction = 0.3
    tx = make(optimizer, fraction)

    @jax.jit
    def step(params, state, grads, prune):
        updates, state = tx.update(grads, state, params, prune=prune)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.normal(size=(60, 50)), dtype),
        "b": jnp.asarray(rng.normal(size=1000), dtype),
    }
    state = tx.init(params)
    masks = {"a": np.ones((60, 50), bool), "b": np.ones(1000, bool)}
    for _ in range(4):
        grads = jax.tree.map(
            lambda p: jnp.asarray(rng.normal(size=p.shape), grad_dtype), params
        )
        stored, _ = step(params, state, grads, False)
        params, state = step(params, state, grads, True)
        remaining = sum(int(m.sum()) for m in masks.values())
        k = round(float(np.float32(fraction)) * remaining)
        leaves, structure = jax.tree.flatten(masks)
        masks = structure.unflatten(smallest(jax.tree.leaves(stored), leaves, k))
        jax.tree.map(
            np.testing.assert_array_equal, sparse_optax.get_masks(state), masks
        )
        # What is kept is stored the same, pruned on that step or not.
        expected = jax.tree.map(
            lambda m, s: np.where(m, s, np.zeros_like(s)), masks, stored
        )
        jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_is_ranked_is_what_is_stored_in_a_static_prune(dtype):
    rng = np.random.default_rng(1)
    params, grads = (jnp.asarray(rng.normal(size=4000), dtype) for _ in range(2))

    @jax.jit
    def step(params, grads, fraction):  # one program, that drops more or less
        tx = chain(optax.sgd(0.37), fraction)
        updates, state = tx.update(grads, tx.init(params), params, prune=True)
        return optax.apply_updates(params, updates), state

    stored, _ = step(params, grads, 0.0)
    pruned, state = step(params, grads, 0.5)
    masks = sparse_optax.get_masks(state)
    expected = smallest([np.asarray(stored)], [np.ones(4000, bool)], 2000)
    np.testing.assert_array_equal(masks, expected[0])
    np.testing.assert_array_equal(pruned, np.where(masks, stored, 0))
