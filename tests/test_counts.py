"""How many weights are removed: exactly, whatever their number."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import exact_share, first_unmarked
from hypothesis import example, given, strategies as st

import sparse_optax
from sparse_optax import _counts

TX = sparse_optax.prune_by_magnitude(0.5, mask=None)
SIZE = 100_003
PARAMS = jnp.arange(1.0, 1 + SIZE)
FRACTIONS = st.one_of(
    st.floats(0, 1, width=32),
    st.floats(0, float(np.finfo(np.float32).tiny), width=32),  # subnormal
    st.integers(0, 1024).map(lambda i: i / 1024),
)


@given(FRACTIONS, st.integers(0, SIZE))
@example(0.5, 1)
@example(0.5, 3)
@example(0.25, 2)
@example(0.1, 66_610)
@example(float(np.nextafter(np.float32(0.5), np.float32(1))), 1)
@example(float(np.nextafter(np.float32(0.5), np.float32(0))), 3)
@example(float(np.nextafter(np.float32(1), np.float32(0))), SIZE)
def test_a_fraction_of_the_kept_weights_is_removed(fraction, n):
    state = TX.init(PARAMS)._replace(masks=np.arange(SIZE) < n)
    _, state = sparse_optax.prune(PARAMS, state, fraction)
    k = exact_share(fraction, n)
    np.testing.assert_array_equal(
        state.masks, (np.arange(SIZE) >= k) & (np.arange(SIZE) < n)
    )


@given(FRACTIONS, st.integers(0, SIZE))
def test_a_sparsity_of_all_weights_is_reached(sparsity, n):
    state = TX.init(PARAMS)._replace(masks=np.arange(SIZE) < n)
    _, state = sparse_optax.prune(PARAMS, state, sparsity=sparsity)
    wanted = SIZE - exact_share(sparsity, SIZE)
    assert np.count_nonzero(state.masks) == min(n, wanted)


LARGE = 2**24 + 3  # which float32 cannot hold


@pytest.mark.parametrize("shape", [(LARGE,), (LARGE, 1)], ids=str)
def test_a_leaf_above_2_to_the_24(shape):
    params = jnp.ones(shape, jnp.bfloat16)
    pruned, state = sparse_optax.prune(params, TX.init(params), 0.9)
    k = exact_share(0.9, LARGE)
    assert k != int(np.float32(0.9) * np.float32(LARGE))
    kept = np.asarray(state.masks).ravel()
    assert not kept[:k].any() and kept[k:].all()  # all are equal: the first ones
    report = sparse_optax.sparsity_report(pruned, state.masks)
    assert report.total == (LARGE - k, LARGE)
    assert sparse_optax.sparsity(pruned) == np.float32(k / LARGE)


@pytest.mark.parametrize(
    ("shape", "distribution"),
    first_unmarked(
        ((2**32, 3), "uniform"), ((2**31 + 8,), "global"), ((3, 2**32), "erk")
    ),
)
def test_leaves_that_no_memory_holds_by_their_shapes(shape, distribution):
    params = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    tx = sparse_optax.prune_by_magnitude(
        0.1, distribution=distribution, min_kept=2, mask=None
    )
    given = params, jax.eval_shape(tx.init, params)
    prune = lambda p, s: sparse_optax.prune(p, s, 0.1)  # noqa: E731
    assert jax.eval_shape(prune, *given) == given
    for shape in ((2**32, 3), (3, 2**32)):
        params = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
        assert jax.eval_shape(sparse_optax.sparsity, params).shape == ()


@pytest.mark.parametrize("n", [3, 7, 10, 97, 1000, LARGE])
def test_sparsity_is_the_nearest_float32(n):
    zeros = {0, 1, n // 3, n // 2, 4 * n // 5, n - 1, n} if n > 10 else range(n + 1)
    compiled = jax.jit(sparse_optax.sparsity)
    for k in zeros:
        x = jnp.where(jnp.arange(n) < k, 0.0, 1.0)
        assert sparse_optax.sparsity(x) == compiled(x) == np.float32(k / n)


# What is below is seen by private names alone: numbers of weights that no memory holds.


@given(FRACTIONS, st.integers(0, 2**38 - 1))
@example(1.0, 2**38 - 1)
@example(float(np.finfo(np.float32).smallest_subnormal), 2**38 - 1)
@example(float(np.nextafter(np.float32(1), np.float32(0))), 2**38 - 1)
@example(0.5, 2**33 + 1)
def test_a_fraction_of_any_number_has_one_rounding(fraction, n):
    with jax.enable_x64(True):
        result = jax.jit(_counts.fraction_of)(np.float32(fraction), np.int64(n))
    assert int(result) == exact_share(fraction, n)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
@example(2**32 - 1, 2**32)
def test_words_of_the_code_are_exact(a, b):
    with jax.enable_x64(True):
        words = [_counts.to_words(jnp.int64(n)) for n in (a, b)]
        assert (int(words[0].high) << 32) + int(words[0].low) == a
        assert int(_counts.to_uint32(jnp.int64(a))) == min(a, 2**32 - 1)
    assert bool(_counts.less(*words)) == (a < b)


@pytest.mark.parametrize("limit", first_unmarked(2, 12))
def test_arrays_with_more_than_2_to_the_32_weights(monkeypatch, limit):
    """Such as those of more than 2^32, where a word holds less."""
    monkeypatch.setattr(_counts, "_WORD", limit)
    params = {"a": jnp.ones((2, 3, 4)), "b": jnp.ones((4, 3))}

    @jax.jit
    def prune(fraction):
        with jax.disable_jit():  # compiled here and now, not as another test did it
            return sparse_optax.prune(params, TX.init(params), fraction)[1].masks

    for k in range(0, 37, 5):
        kept = np.concatenate([np.ravel(m) for m in prune(k / 36).values()])
        np.testing.assert_array_equal(kept, np.arange(36) >= k)


@pytest.mark.parametrize(
    "shape",
    [
        *((10**6,), (10**6, 2), (10**6, 15), (10**6, 16), (3, 3, 64, 64), (40, 1000)),
        *((256_000, 18_432), (2**26, 64), (80, 8192, 28_672)),
    ],
    ids=str,
)
def test_counts_take_little_memory(shape):
    x = jax.ShapeDtypeStruct(shape, bool)
    with _counts.exact_numbers():
        program = jax.make_jaxpr(
            lambda x: _counts.count_true([x, x], (*range(x.ndim),))
        )
        sums = [e for e in program(x).eqns if e.primitive.name == "reduce"]
    assert sums[-1].outvars[0].aval.shape == ()
    for equation in sums:
        assert all(v.aval.size <= math.prod(shape) / 16 for v in equation.outvars)
