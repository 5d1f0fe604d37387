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
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from sparse_optax import _counts
from sparse_optax._counts import Count

_DIGIT = 2  # bits: a longer one takes fewer passes, each of twice as many counts


@jax.jit  # so that outside of jit too the loops below are compiled once
def drop_smallest(
    weights: Sequence[jax.Array],
    masks: Sequence[jax.Array],
    k: Count,
    most: Count | None = None,
) -> list[jax.Array]:
    """Returns `masks` without the `k` weights smallest in magnitude among the kept.

    Args:
        weights: floating arrays, of any shapes and dtypes.
        masks: boolean arrays of the same shapes, True where a weight is still kept.
        k: how many to drop, at most as many as are kept.
        most: for each array, how many of it may go, at most as many as are kept; if all
            may, None. In total at least `k`. Of an array that has lost so many none
            goes any more, and larger ones of others go instead.

    Among equal magnitudes the earlier goes first: by position in the list, then by
    row-major index. Zeros of either sign are equal, infinities are larger than any
    number, and NaNs larger still and equal to one another.
    """
    if not weights:
        return []
    keys, num_bits = _magnitude_keys(weights)

    def count_those_that_may_go(leaves):
        if most is None:
            return _counts.count_all(leaves)
        each_kind = _counts.count_each(leaves)
        return [_counts.total(_counts.minimum(n, most)) for n in each_kind]

    bound = _kth_smallest(keys, (weights, masks), k, num_bits, count_those_that_may_go)
    below, ties, num_below, num_ties = _at(bound, keys(weights, masks))
    n, up_to = num_below, _counts.add(num_below, num_ties)  # to drop of each array
    if most is not None:
        n, up_to = _counts.minimum(n, most), _counts.minimum(up_to, most)
    tied = _counts.subtract(k, _counts.total(n))
    n = _counts.add(n, _in_order(tied, _counts.subtract(up_to, n)))
    if most is not None:
        # Where more than may go are below the bound, a bound of their own.
        is_over = _counts.less(most, num_below)
        own_n = _counts.where(is_over, n, _counts.constant(0))
        own = _kth_smallest(keys, (weights, masks), own_n, num_bits, _counts.count_each)
        bound = jnp.where(is_over, own, bound)
        below, ties, num_below, num_ties = _at(bound, keys(weights, masks))
    return _without(masks, below, ties, _counts.subtract(n, num_below), num_ties)


@jax.jit
def drop_smallest_of_each(
    weights: Sequence[jax.Array], masks: Sequence[jax.Array], ks: Count
) -> list[jax.Array]:
    """The same array by array, with a number to drop for each."""
    if not weights:
        return []
    keys, num_bits = _magnitude_keys(weights)
    bounds = _kth_smallest(keys, (weights, masks), ks, num_bits, _counts.count_each)
    below, ties, num_below, num_ties = _at(bounds, keys(weights, masks))
    return _without(masks, below, ties, _counts.subtract(ks, num_below), num_ties)


def _magnitude_keys(
    weights: Sequence[jax.Array],
) -> tuple[Callable[..., list[jax.Array]], int]:
    """A function from weights and masks to integers, and how many bits these have.

    They order as magnitudes do, and pruned weights come last. They are the bit patterns
    in a float to which all convert without loss, but for the zeros that those of
    narrower ones end in, which need not be searched.
    """
    wide = jnp.float64 if any(w.dtype == jnp.float64 for w in weights) else jnp.float32
    dtype = jnp.int64 if wide == jnp.float64 else jnp.int32
    num_zeros = jnp.finfo(wide).nmant - max(jnp.finfo(w.dtype).nmant for w in weights)
    largest = jnp.array(jnp.iinfo(dtype).max, dtype)
    infinity = lax.bitcast_convert_type(jnp.array(jnp.inf, wide), dtype)
    nan = (infinity >> num_zeros) + 1  # all of them alike

    def key(weight, mask):
        bits = lax.bitcast_convert_type(weight.astype(wide), dtype) & largest
        return jnp.where(mask, jnp.minimum(bits >> num_zeros, nan), largest)

    def keys(weights, masks):
        return [key(w, m) for w, m in zip(weights, masks, strict=True)]

    return keys, jnp.finfo(wide).bits - 1 - num_zeros  # the sign bit is never set


def _kth_smallest(
    keys: Callable[..., Sequence[jax.Array]],
    inputs: tuple,
    k: Count,
    num_bits: int,
    count: Callable[[Iterable[Sequence[jax.Array]]], list[Count]],
) -> jax.Array:
    """The largest number with fewer than `k` keys below it, or 0 if `k` is 0.

    Args:
        keys: returns arrays of integers, of one dtype, made of the `inputs`.
        inputs: anything that takes memory already.
        k: at most as many as there are keys of `num_bits` bits; or one for each array.
        num_bits: of the number.
        count: counts what is true, of several kinds in each array: for each kind a
            `Count`, or one for each array.

    Returns:
        A number, or one for each array.
    """
    dtype = jax.eval_shape(keys, *inputs)[0].dtype

    def add_digit(i, bound):
        # Keys are made anew for every digit: behind the barrier, or XLA would make
        # them once before the loop, and they would take as much memory as the weights.
        inputs_now, bound = lax.optimization_barrier((inputs, bound))
        shift = jnp.maximum(num_bits - _DIGIT * (i + 1), 0).astype(dtype)
        steps = [jnp.array(digit, dtype) << shift for digit in range(1, 2**_DIGIT)]
        num_below = count(
            [key < b + step for step in steps]
            for key, b in _with_each(keys(*inputs_now), bound)
        )
        digit = sum(_counts.less(n, k).astype(dtype) for n in num_below)
        return bound + (digit << shift)

    # Nothing is searched for 0 of them, as among ties that are dropped all or none.
    nothing = jnp.all(_counts.is_zero(k))
    num_digits = jnp.where(nothing, 0, -(-num_bits // _DIGIT))
    start = 0 * k.low.astype(dtype)  # which varies between devices where `k` does
    return lax.fori_loop(0, num_digits, add_digit, start)


def _at(
    bound: jax.Array, keys: Sequence[jax.Array]
) -> tuple[list[jax.Array], list[jax.Array], Count, Count]:
    """What is below a bound and what is equal to it, and how many of each array."""
    below = [key < b for key, b in _with_each(keys, bound)]
    ties = [key == b for key, b in _with_each(keys, bound)]
    num_below, num_ties = _counts.count_each(zip(below, ties, strict=True))
    return below, ties, num_below, num_ties


def _without(
    masks: Sequence[jax.Array],
    below: Sequence[jax.Array],
    ties: Sequence[jax.Array],
    tied: Count,
    num_ties: Count,
) -> list[jax.Array]:
    """Masks without what is below a bound, and the first `tied` of what is equal."""
    dropped = _first(ties, tied, num_ties)
    return [m & ~(b | d) for m, b, d in zip(masks, below, dropped, strict=True)]


def _in_order(n: Count, available: Count) -> Count:
    """How many to take of each array, where all of one are taken before the next."""
    up_to_here = lax.associative_scan(_counts.add, available)
    before_here = _counts.subtract(up_to_here, available)
    return _counts.minimum(_counts.subtract(n, before_here), available)


def _first(arrays: Sequence[jax.Array], n: Count, num_true: Count) -> list[jax.Array]:
    """The first `n` of the true elements of each array, in row-major order.

    Args:
        arrays: boolean.
        n: for each, at most as many as there are true elements.
        num_true: of each array.
    """
    is_whole = ~_counts.less(n, num_true)
    is_cut = ~is_whole & ~_counts.is_zero(n)
    n = _counts.where(is_cut, n, _counts.constant(0))

    # In an array that is cut, up to the last of them: its row, then within the row.
    here = [x & cut for x, cut in _with_each(arrays, is_cut)]
    first = [x & whole for x, whole in _with_each(arrays, is_whole)]
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
        num_bits = max(sizes).bit_length()
        last = _kth_smallest(keys, (here,), n, num_bits, _counts.count_each)
        pairs = [
            (x & (key < b), x & (key == b))
            for x, (key, b) in zip(here, _with_each(keys(here), last), strict=True)
        ]
        before, here = ([pair[i] for pair in pairs] for i in range(2))
        n = _counts.subtract(n, _counts.count_true_in_each(before))
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


def _with_each(
    arrays: Sequence[jax.Array], values: jax.Array
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """The arrays, each with its value: one of a vector, or the one that there is."""
    each = list(values) if values.ndim else [values] * len(arrays)
    return zip(arrays, each, strict=True)
