"""Finding exactly the k smallest weights of a tree, without sorting it.

The bit pattern of a non-negative float, read as an integer, orders as the float does.
So the k-th smallest magnitude is found digit by digit from the top, each time counting
the weights below every value that the digit may take. To count is to sum: that gathers
nothing, so it works the same on arrays spread over devices, whatever their sharding,
and is one pass over the weights on every backend.

This file is the only one that knows how weights are chosen; everything else says how
many.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from sparse_optax import _counts
from sparse_optax._counts import Count

_DIGIT = 2  # bits: a longer one takes fewer passes, each of twice as many counts


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
    if not weights:
        return []
    dtype = _key_dtype(weights)
    num_bits = jnp.iinfo(dtype).bits - 1  # the sign bit is never set

    def keys(weights, masks):
        pairs = zip(weights, masks, strict=True)
        return [_magnitude_key(w, m, dtype) for w, m in pairs]

    bound = _kth_smallest(keys, (weights, masks), k, num_bits)
    counts = [
        _counts.count_each([key < bound, key == bound]) for key in keys(weights, masks)
    ]
    num_below, num_ties = (_counts.stack(n) for n in zip(*counts, strict=True))
    tied = _counts.subtract(k, _counts.total(num_below))  # to be dropped of the ties

    def take(tied, num_ties):
        n = _counts.minimum(tied, num_ties)
        return _counts.subtract(tied, n), n

    # By a loop, because of a chain of 64-bit numbers XLA makes exponentially many.
    _, num_dropped = lax.scan(take, tied, num_ties)
    result = []
    for key, mask, n, (_, num_ties) in zip(
        keys(weights, masks), masks, _counts.unstack(num_dropped), counts, strict=True
    ):
        dropped = (key < bound) | _first(key == bound, n, num_ties)
        result.append(mask & ~dropped)
    return result


def _key_dtype(weights: Sequence[jax.Array]) -> jnp.dtype:
    """The integer wide enough for every weight's bit pattern."""
    widest = max(jnp.finfo(w.dtype).bits for w in weights)
    return jnp.dtype(jnp.int64 if widest > 32 else jnp.int32)


def _magnitude_key(weight: jax.Array, mask: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Integers that order as |weight| does; pruned weights come last."""
    # Narrower floats convert without loss, so that all dtypes can be compared.
    wide = jnp.float64 if dtype == jnp.int64 else jnp.float32
    largest = jnp.array(jnp.iinfo(dtype).max, dtype)
    bits = lax.bitcast_convert_type(weight.astype(wide), dtype) & largest
    infinity = lax.bitcast_convert_type(jnp.array(jnp.inf, wide), dtype)
    return jnp.where(mask, jnp.minimum(bits, infinity + 1), largest)  # NaNs are alike


def _kth_smallest(
    keys: Callable[..., Sequence[jax.Array]],
    inputs: tuple,
    k: Count,
    num_bits: int,
    skip: jax.Array | bool = False,
    otherwise: int = 0,
) -> jax.Array:
    """The largest number with fewer than `k` keys below it, or 0 if `k` is 0.

    Args:
        keys: returns arrays of integers, of one dtype, made of the `inputs`.
        inputs: anything that takes memory already.
        k: at most as many as there are keys of `num_bits` bits.
        num_bits: of the number.
        skip: whether to search nothing and to return `otherwise`.
        otherwise: an integer.
    """
    dtype = jax.eval_shape(keys, *inputs)[0].dtype

    def add_digit(i, bound):
        # Keys are made anew for every digit: behind the barrier, or XLA would make
        # them once before the loop, and they would take as much memory as the weights.
        inputs_now, bound = lax.optimization_barrier((inputs, bound))
        shift = jnp.maximum(num_bits - _DIGIT * (i + 1), 0).astype(dtype)
        steps = [jnp.array(digit, dtype) << shift for digit in range(1, 2**_DIGIT)]
        counts = [
            _counts.stack(_counts.count_each([key < bound + step for step in steps]))
            for key in keys(*inputs_now)
        ]
        num_below = _counts.total(_counts.stack(counts))
        digit = jnp.sum(_counts.less(num_below, k), dtype=dtype)
        return bound + (digit << shift)

    num_digits = jnp.where(skip, 0, -(-num_bits // _DIGIT))
    start = jnp.where(skip, jnp.asarray(otherwise, dtype), 0)
    return lax.fori_loop(0, num_digits, add_digit, start)


def _first(ties: jax.Array, n: Count, num_ties: Count) -> jax.Array:
    """The first `n` of the `num_ties` true elements of `ties`, in row-major order."""
    none, every = _counts.is_zero(n), ~_counts.less(n, num_ties)
    first, here = jnp.zeros_like(ties), ties & ~none
    # Up to that of the last in index, or to its row and then to that within the row.
    for axes in _counts.axes_within_words(ties.shape):

        def keys(here, axes=axes):
            return [jnp.where(here, _index(here, axes), ~jnp.uint32(0))]

        size = math.prod(ties.shape[axis] for axis in axes)
        num_bits = size.bit_length()
        skip = none | every  # as it is for all arrays but one at most
        last = _kth_smallest(keys, (here,), n, num_bits, skip, otherwise=size)
        before = here & (_index(here, axes) < last)
        n = _counts.subtract(n, _counts.count_true(before))
        first, here = first | before, here & (_index(here, axes) == last)
    return first | here


def _index(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The row-major index of every element of `x` along the given axes."""
    index = jnp.zeros_like(x, jnp.uint32)
    for axis in axes:
        along = lax.broadcasted_iota(
            jnp.uint32, x.shape, axis, out_sharding=jax.typeof(x).sharding
        )
        index = index * jnp.uint32(x.shape[axis]) + along
    return index
