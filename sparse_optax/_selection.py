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
    wide = jnp.float64 if any(w.dtype == jnp.float64 for w in weights) else jnp.float32
    # Those of narrower floats end in zeros, which need not be searched.
    num_zeros = jnp.finfo(wide).nmant - max(jnp.finfo(w.dtype).nmant for w in weights)
    num_bits = jnp.finfo(wide).bits - 1 - num_zeros  # the sign bit is never set

    def keys(weights, masks):
        pairs = zip(weights, masks, strict=True)
        return [_magnitude_key(w, m, wide, num_zeros) for w, m in pairs]

    bound = _kth_smallest(keys, (weights, masks), k, num_bits)
    below = [key < bound for key in keys(weights, masks)]
    ties = [key == bound for key in keys(weights, masks)]
    num_below, num_ties = _counts.count_each(zip(below, ties, strict=True))
    tied = _counts.subtract(k, _counts.total(num_below))  # to be dropped of the ties
    dropped = _first(ties, tied, num_ties)
    return [m & ~(b | d) for m, b, d in zip(masks, below, dropped, strict=True)]


def _magnitude_key(
    weight: jax.Array, mask: jax.Array, wide: jax.typing.DTypeLike, num_zeros: int
) -> jax.Array:
    """Integers that order as |weight| does; pruned weights come last.

    They are the bit patterns in the float `wide`, to which all convert without loss,
    but for the last `num_zeros` bits.
    """
    dtype = jnp.int64 if wide == jnp.float64 else jnp.int32
    largest = jnp.array(jnp.iinfo(dtype).max, dtype)
    bits = lax.bitcast_convert_type(weight.astype(wide), dtype) & largest
    infinity = lax.bitcast_convert_type(jnp.array(jnp.inf, wide), dtype)
    nan = (infinity >> num_zeros) + 1  # all of them alike
    return jnp.where(mask, jnp.minimum(bits >> num_zeros, nan), largest)


def _kth_smallest(
    keys: Callable[..., Sequence[jax.Array]],
    inputs: tuple,
    k: Count,
    num_bits: int,
) -> jax.Array:
    """The largest number with fewer than `k` keys below it, or 0 if `k` is 0.

    Args:
        keys: returns arrays of integers, of one dtype, made of the `inputs`.
        inputs: anything that takes memory already.
        k: at most as many as there are keys of `num_bits` bits.
        num_bits: of the number.
    """
    dtype = jax.eval_shape(keys, *inputs)[0].dtype

    def add_digit(i, bound):
        # Keys are made anew for every digit: behind the barrier, or XLA would make
        # them once before the loop, and they would take as much memory as the weights.
        inputs_now, bound = lax.optimization_barrier((inputs, bound))
        shift = jnp.maximum(num_bits - _DIGIT * (i + 1), 0).astype(dtype)
        steps = [jnp.array(digit, dtype) << shift for digit in range(1, 2**_DIGIT)]
        num_below = _counts.count_all(
            [key < bound + step for step in steps] for key in keys(*inputs_now)
        )
        digit = jnp.sum(_counts.less(num_below, k), dtype=dtype)
        return bound + (digit << shift)

    # Nothing is searched for 0 of them, as among ties that are dropped all or none.
    num_digits = jnp.where(_counts.is_zero(k), 0, -(-num_bits // _DIGIT))
    start = 0 * k.low.astype(dtype)  # which varies between devices where `k` does
    return lax.fori_loop(0, num_digits, add_digit, start)


def _first(arrays: Sequence[jax.Array], n: Count, num_true: Count) -> list[jax.Array]:
    """The first `n` of the true elements, array by array and in row-major order.

    Args:
        arrays: boolean.
        n: at most as many as there are true elements.
        num_true: of each array.
    """
    up_to_here = lax.associative_scan(_counts.add, num_true)
    before_here = _counts.subtract(up_to_here, num_true)
    taken = _counts.minimum(_counts.subtract(n, before_here), num_true)
    whole = ~_counts.less(taken, num_true)
    cut = ~whole & ~_counts.is_zero(taken)  # which one array is at the most
    n = _counts.total(Count(*(jnp.where(cut, word, 0) for word in taken)))

    # In the array that is cut, up to the last of them: its row, then within the row.
    here = [x & is_cut for x, is_cut in zip(arrays, cut, strict=True)]
    first = [x & all_of_it for x, all_of_it in zip(arrays, whole, strict=True)]
    for level in zip(*(_counts.rows_and_columns(x.shape) for x in arrays), strict=True):
        if not any(level):
            continue

        def keys(here, level=level):
            return [
                jnp.where(x, _index(x, axes), ~jnp.uint32(0))
                for x, axes in zip(here, level, strict=True)
            ]

        sizes = [
            math.prod(x.shape[axis] for axis in axes)
            for x, axes in zip(here, level, strict=True)
        ]
        last = _kth_smallest(keys, (here,), n, max(sizes).bit_length())
        before = [x & (key < last) for x, key in zip(here, keys(here), strict=True)]
        here = [x & (key == last) for x, key in zip(here, keys(here), strict=True)]
        n = _counts.subtract(n, _counts.count_true_in(before))
        first = [x | b for x, b in zip(first, before, strict=True)]
    return [x | last_one for x, last_one in zip(first, here, strict=True)]


def _index(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The row-major index of every element of `x` along the given axes."""
    index = jnp.zeros_like(x, jnp.uint32)
    for axis in axes:
        along = lax.broadcasted_iota(
            jnp.uint32, x.shape, axis, out_sharding=jax.typeof(x).sharding
        )
        index = index * jnp.uint32(x.shape[axis]) + along
    return index
