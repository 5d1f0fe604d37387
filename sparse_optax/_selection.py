"""Finding exactly the k smallest weights of a tree, without sorting it.

The bit pattern of a non-negative float, read as an integer, orders as the float does.
So the k-th smallest magnitude is found bit by bit from the top, each time counting the
weights below a candidate. Counting is a sum: it gathers nothing, so it works the same
on arrays spread over devices, whatever their sharding.

This file is the only one that knows how weights are chosen; everything else says how
many.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from sparse_optax import _counts
from sparse_optax._counts import Count


@jax.jit  # so that outside of jit too the loops below are compiled once
def drop_smallest(
    weights: Sequence[jax.Array], masks: Sequence[jax.Array], k: Count
) -> list[jax.Array]:
    """Returns `masks` without the `k` weights smallest in magnitude among the kept.

    Args:
        weights: floating arrays, of any shapes and dtypes.
        masks: boolean arrays of the same shapes, True where a weight is still kept.
        k: how many to drop, at most as many as are kept.

    Among equal magnitudes the earlier goes first: by position in the list, then by
    row-major index. Zeros of either sign are equal, infinities are larger than any
    number, and NaNs larger still and equal to one another.
    """
    dtype = _key_dtype(weights)
    keys = [_magnitude_key(w, m, dtype) for w, m in zip(weights, masks, strict=True)]

    def count_below(bound: jax.Array) -> Count:
        return _counts.count_true_in(key < bound for key in keys)

    # The largest bound with fewer than k keys below it is the k-th smallest key.
    num_bits = jnp.iinfo(dtype).bits - 1  # the sign bit is never set
    bound = _largest(num_bits, dtype, lambda b: _counts.less(count_below(b), k))
    tied = _counts.subtract(k, count_below(bound))  # to be dropped of those equal to it

    result = []
    for key, mask in zip(keys, masks, strict=True):
        ties = key == bound
        num_ties = _counts.count_true(ties)
        num_dropped = _counts.minimum(tied, num_ties)
        tied = _counts.subtract(tied, num_dropped)
        dropped = (key < bound) | _first(ties, num_dropped, num_ties)
        result.append(mask & ~dropped)
    return result


def _key_dtype(weights: Sequence[jax.Array]) -> jnp.dtype:
    """The unsigned integer wide enough for every weight's bit pattern."""
    widest = max((jnp.finfo(w.dtype).bits for w in weights), default=32)
    return jnp.dtype(jnp.uint64 if widest > 32 else jnp.uint32)


def _magnitude_key(weight: jax.Array, mask: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Unsigned integers that order as |weight| does; pruned weights come last."""
    # Narrower floats convert without loss, so that all dtypes can be compared.
    wide = jnp.float64 if dtype == jnp.uint64 else jnp.float32
    bits = lax.bitcast_convert_type(weight.astype(wide), dtype)
    largest = jnp.iinfo(dtype).max
    infinity = lax.bitcast_convert_type(jnp.array(jnp.inf, wide), dtype)
    magnitude = jnp.minimum(bits & (largest >> 1), infinity + 1)  # one key for all NaNs
    return jnp.where(mask, magnitude, jnp.array(largest, dtype))


def _largest(num_bits: int, dtype, holds) -> jax.Array:
    """The largest number of `num_bits` bits for which `holds` (monotone) is true.

    Zero where it holds for no other number.
    """

    def set_bit(i, value):
        candidate = value | jnp.left_shift(
            jnp.ones([], dtype), jnp.asarray(num_bits - 1 - i, dtype)
        )
        return jnp.where(holds(candidate), candidate, value)

    return lax.fori_loop(0, num_bits, set_bit, jnp.zeros([], dtype))


def _first(ties: jax.Array, n: Count, num_ties: Count) -> jax.Array:
    """The first `n` true elements of `ties` in row-major order."""

    def split():
        # Their end is found one coordinate after the other, by counting again.
        before = jnp.zeros_like(ties)  # rows that are taken whole
        here = jnp.ones_like(ties)  # the row in which the end lies
        for axis, size in enumerate(ties.shape):
            index = lax.broadcasted_iota(
                jnp.uint32, ties.shape, axis, out_sharding=jax.typeof(ties).sharding
            )
            last = jnp.uint32(size if axis == ties.ndim - 1 else max(size - 1, 0))

            def fits(end, before=before, here=here, index=index, last=last):
                taken = ties & (before | (here & (index < end)))
                return (end <= last) & ~_counts.less(n, _counts.count_true(taken))

            end = _largest(size.bit_length(), jnp.uint32, fits)
            before, here = before | (here & (index < end)), here & (index == end)
        return ties & before

    # Weights seldom tie across the bound, and then there is nothing to split.
    none, every = _counts.is_zero(n), ~_counts.less(n, num_ties)
    return lax.cond(none | every, lambda: ties & ~none, split)
