"""Which weights are removed, against sorting all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    exact_share,
    first_unmarked,
    make_chain,
    make_step,
    make_whole,
    num_kept,
    numpy_drop,
)
from hypothesis import given, settings, strategies as st

import sparse_optax
from sparse_optax import _selection

TX = sparse_optax.prune_by_magnitude(0.5, mask=None)
TREES = {
    "vector": [(13,)],
    "cube": [(2, 3, 4)],
    "mixed": [(4,), (), (2, 3), (0,), (2, 1, 3), (1, 2, 2, 2)],
    "empty": [(0, 3), (0,)],
}
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
# Few different numbers, so that ties are the rule; all are exact in bfloat16.
SPECIAL = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan, 2.0**-14]


def assert_removes_the_smallest(weights, masks, k):
    state = TX.init(weights)._replace(masks=masks)
    pruned, state = sparse_optax.prune(weights, state, k / max(num_kept(masks), 1))
    expected = numpy_drop(weights, masks, k)
    for weight, after, mask, wanted in zip(
        weights, pruned, state.masks, expected, strict=True
    ):
        np.testing.assert_array_equal(mask, wanted)
        # As float64: NaNs of bfloat16 differ for NumPy.
        stored = np.where(wanted, np.asarray(weight, np.float64), 0)
        np.testing.assert_array_equal(np.asarray(after, np.float64), stored)


def assert_removes_any_number(weights):
    masks = [np.ones(w.shape, bool) for w in weights]
    for k in range(1 + sum(w.size for w in weights)):
        assert_removes_the_smallest(weights, masks, k)


@pytest.mark.parametrize(
    ("tree", "dtypes"),
    [
        *(("vector", DTYPES[:1]), ("cube", DTYPES[1:2]), ("mixed", DTYPES[2:])),
        *(("mixed", DTYPES), ("empty", DTYPES[:1])),
    ],
    ids=str,
)
@settings(max_examples=25)
@given(data=st.data())
def test_removes_what_sorting_would(tree, dtypes, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    values = data.draw(st.sampled_from([SPECIAL, [1.0], [0.0, 1.0], None]))
    weights = [
        np.asarray(
            rng.normal(size=shape) if values is None else rng.choice(values, shape)
        ).astype(dtypes[i % len(dtypes)])
        for i, shape in enumerate(TREES[tree])
    ]
    kept = data.draw(st.sampled_from([1.0, 0.6, 0.1]), label="kept")
    masks = [np.array(rng.random(w.shape) < kept) for w in weights]
    k = data.draw(st.integers(0, num_kept(masks)), label="k")
    assert_removes_the_smallest(weights, masks, k)


@pytest.mark.parametrize("shapes", [[(2, 3, 2, 2)], [(3,), (2, 2), (), (1, 2, 2)]])
def test_ties_are_split_in_the_order_of_leaves_and_their_elements(shapes):
    assert_removes_any_number([np.ones(shape, np.float32) for shape in shapes])


@every_dtype
def test_subnormals_rank_by_magnitude(dtype):
    tiniest = float(jnp.finfo(dtype).smallest_subnormal)
    normal = float(jnp.finfo(dtype).tiny)
    values = [3 * tiniest, normal, -2 * tiniest, 0.0, tiniest, -normal / 2, 1.0, -0.0]
    weights = [np.array(values).astype(dtype)]
    assert len(np.unique(np.abs(weights[0].astype(np.float64)))) == 7
    assert_removes_any_number(weights)
    with jax.disable_jit():
        assert_removes_the_smallest(weights, [np.ones(8, bool)], 3)


def test_subnormals_of_different_dtypes_rank_together():
    assert_removes_any_number(
        [
            np.array([3e-40, 1e-45, 7e-39]).astype(jnp.bfloat16),
            np.array([2e-40, 1e-44, 6e-39], np.float32),
            np.array([6e-8, 0.0, 1e-6]).astype(np.float16),
        ]
    )


def test_float64_weights_differ_below_float32():
    weights = [
        np.array([1 + 2e-16, 1.0, 1 - 1e-16, 1e-300]),
        np.array([1.0, 1e-310, -1e-40, np.nan], np.float64),
        np.array([1.0, 0.5], np.float32),
    ]
    with jax.enable_x64(True):
        assert_removes_any_number(weights)


# With few bits many weights tie: what is ranked are the weights before the update.


def chain(fraction):
    return make_chain(optax.sgd(0.37), fraction=fraction)


def whole(fraction):
    return make_whole(optax.adamw(1e-2), fraction=fraction)


def decoupled(fraction):
    return make_whole(optax.adam(1e-2), fraction=fraction, decoupled=True)


@pytest.mark.parametrize(
    ("make", "dtype", "grad_dtype"),
    first_unmarked(
        (chain, jnp.bfloat16, jnp.float32),
        (whole, jnp.float16, jnp.float32),
        (decoupled, jnp.float32, jnp.bfloat16),
        (chain, jnp.float32, jnp.float32),
        (whole, jnp.bfloat16, jnp.bfloat16),
        (decoupled, jnp.float16, jnp.float16),
        quick=3,
    ),
)
def test_what_is_ranked_is_what_is_given(make, dtype, grad_dtype):
    rng = np.random.default_rng(0)
    draw = lambda s, dtype: jnp.asarray(rng.normal(size=s), dtype)  # noqa: E731
    params = {"a": draw((60, 50), dtype), "b": draw(1000, dtype)}
    tx = make(0.3)
    state, step = tx.init(params), jax.jit(make_step(tx))
    masks = {"a": np.ones((60, 50), bool), "b": np.ones(1000, bool)}
    for _ in range(3):
        grads = jax.tree.map(lambda p: draw(p.shape, grad_dtype), params)
        masks = numpy_drop(params, masks, exact_share(0.3, num_kept(masks)))
        stored, _ = step(params, state, grads, prune=jnp.array(False))
        params, state = step(params, state, grads, prune=jnp.array(True))
        found = sparse_optax.get_masks(state)
        jax.tree.map(np.testing.assert_array_equal, found, masks)
        # What is kept is stored the same, in a pruning step or not.
        expected = jax.tree.map(lambda m, s: np.where(m, s, 0), masks, stored)
        jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_ranked_is_what_is_given_where_prune_is_static(dtype):
    rng = np.random.default_rng(1)
    params, grads = (jnp.asarray(rng.normal(size=4000), dtype) for _ in range(2))

    @jax.jit
    def step(params, grads, fraction):  # one program, that removes more or less
        tx = chain(fraction)
        return make_step(tx)(params, tx.init(params), grads, prune=True)

    stored, _ = step(params, grads, 0.0)
    pruned, state = step(params, grads, 0.5)
    masks = numpy_drop(params, np.ones(4000, bool), 2000)
    np.testing.assert_array_equal(sparse_optax.get_masks(state), masks)
    np.testing.assert_array_equal(pruned, np.where(masks, stored, 0))


# Units of any scores, where layers have caps and some units may not be removed.


def one_by_one(units, most, k, layers, by_layer):
    """Removes the lowest unit that may be, again and again."""
    rows = []
    for leaf, (unit, num) in enumerate(zip(units, layers, strict=True)):
        first = sum(n or 1 for n in layers[:leaf])
        places = np.indices(unit.kept.shape)[0] if num else np.zeros(unit.kept.shape)
        layer = (first + places).astype(int).ravel()
        columns = (np.asarray(x).ravel() for x in unit)
        for i, (score, kept, removable) in enumerate(zip(*columns, strict=True)):
            score = np.float64(score)
            order = (bool(np.isnan(score)), 0.0 if np.isnan(score) else score + 0.0)
            rows.append((*order, layer[i], leaf, i, kept, removable))
    lost = np.zeros(len(most), int)
    for row in rows:
        lost[row[2]] += not row[5]
    kept = [np.array(unit.kept) for unit in units]
    for *_, layer, leaf, i, is_kept, removable in sorted(rows):
        enough = not by_layer and np.minimum(lost, most).sum() >= k
        if is_kept and removable and lost[layer] < most[layer] and not enough:
            kept[leaf].reshape(-1)[i] = False
            lost[layer] += 1
    return kept, lost


@functools.partial(jax.jit, static_argnames=("layers", "by_layer"))
def remove(units, most, k, layers, by_layer):
    with jax.enable_x64(True):
        most, k = jnp.asarray(most, jnp.int64), jnp.asarray(k, jnp.int64)
        removal = _selection.remove_lowest(
            units, most, k, layers=layers, by_layer=by_layer
        )
        return removal.kept, removal.total.astype(jnp.int32)


@pytest.mark.parametrize("dtypes", [DTYPES[:1], DTYPES[1:], [jnp.float64, *DTYPES]])
@pytest.mark.parametrize("by_layer", [False, True])
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_removes_the_lowest_that_may_be_one_by_one(by_layer, dtypes, seed):
    rng = np.random.default_rng(seed)
    shapes, layers = [(4, 5), (7,), (3, 2, 4), (1,), (2, 3)], (4, 0, 0, 0, 2)
    scale = rng.choice([1, 0.5, 6e-8] if jnp.float64 in dtypes else [1, 1.5e-45])
    units = []
    with jax.enable_x64(jnp.float64 in dtypes):
        for i, shape in enumerate(shapes):
            scores = np.asarray(rng.integers(-3, 4, shape) * scale)
            for odd in rng.choice(SPECIAL, 2):
                scores.reshape(-1)[rng.integers(scores.size)] = odd
            scores = jnp.asarray(scores.astype(dtypes[i % len(dtypes)]))
            kept, removable = rng.random((2, *shape)) < rng.choice([0.5, 0.9, 1])
            units.append(sparse_optax.Units(scores, kept, removable))
        sizes = [5, 5, 5, 5, 7, 24, 1, 3, 3]
        most = [rng.integers(0, n + 1) if rng.random() < 0.7 else n for n in sizes]
        k = rng.integers(0, sum(sizes) + 1)
        found, total = remove(units, np.int32(most), np.int32(k), layers, by_layer)
    expected, lost = one_by_one(units, most, k, layers, by_layer)
    for mask, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mask, wanted)
    if k >= sum(np.sum(~unit.kept) for unit in units):
        assert total == np.minimum(lost, most).sum()
