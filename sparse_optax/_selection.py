"""Removes exactly the k lowest scores of a tree, without sorting.

The bits of a float, read as an integer, sort in the same order as the float. So the
upper bound of the k lowest scores is found digit by digit from the top: each pass
counts the scores below every value that the digit may take. If the bound falls among
equal scores, the last position to remove is found in the same way. Counting is a sum
and needs no gather, so it works for any sharding over devices, and is one pass over the
scores on every backend.

All of this is one loop. Everything except the counting is done for all layers at once,
so hundreds of leaves compile in seconds.

Only this file decides which units are removed; all others decide how many.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparse_optax import _counts

_DIGIT = 2  # bits: a longer one takes fewer passes, each of twice as many counts
_CHOICES = np.arange(1, 2**_DIGIT)[:, None]  # of a digit, besides 0


class Units(NamedTuple):
    """The units of one leaf, each of which is kept or removed as a whole.

    Attributes:
        scores: floating; lower ones are removed first.
        kept: of the same shape, False for units that are already removed.
        removable: of the same shape, True for kept units that may be removed; None if
            all may be.
    """

    scores: jax.Array
    kept: jax.Array
    removable: jax.Array | None = None


class Removal(NamedTuple):
    """What `remove_lowest` returns.

    Attributes:
        kept: for each leaf, which units are kept now.
        total: how many units are removed, `int64`, except those beyond the `most` of a
            layer; less if more than `k` were removed before.
    """

    kept: list[jax.Array]
    total: jax.Array


@functools.partial(jax.jit, static_argnames=("layers", "by_magnitude", "by_layer"))
def remove_lowest(
    leaves: Sequence[Units],
    most: jax.Array,
    k: jax.Array,
    *,
    layers: tuple[int, ...],
    by_magnitude: bool = False,
    by_layer: bool = False,
) -> Removal:
    """Removes units in the order of their scores, until `k` are removed.

    Units removed before count as lowest. Among equal scores, the earlier unit is
    removed first: by position in the list, then by row-major index. Zeros of either
    sign are equal. NaNs are equal to each other and above everything else, infinity
    included.

    Args:
        leaves: the units, of any shapes and dtypes.
        most: how many units of each layer may be removed, `int64`. Once a layer has
            lost this many, higher units of other layers are removed instead.
        k: how many units to remove, including those removed before, `int64`.
        layers: for each leaf, the number of stacked layers along its first axis; 0 if
            it is a single layer, without such an axis.
        by_magnitude: rank units by the absolute values of the scores.
        by_layer: remove units until each layer has lost `most`, whatever `k` is.

    Returns:
        A `Removal`; fewer units are removed if there are not enough.
    """
    keys = _Keys.of(leaves, by_magnitude)
    layer_counts = [n or 1 for n in layers]
    sizes = [x.kept.size // n for x, n in zip(leaves, layer_counts, strict=True)]
    sizes = np.repeat(np.array(sizes, np.int64), layer_counts)
    starts, ends = np.cumsum(sizes) - sizes, np.cumsum(layer_counts)
    # For each leaf, its first column in both halves of the result of `limits_of`.
    columns = np.stack([ends - layer_counts, ends - layer_counts + len(sizes)], axis=1)
    columns = columns.astype(np.uint32)
    num_key_digits = -(-keys.num_bits // _DIGIT)
    num_digits = num_key_digits + -(-int(sizes.sum()).bit_length() // _DIGIT)

    def step_of(i):
        last = jnp.where(i < num_key_digits, num_key_digits, num_digits) - 1
        return jnp.int64(1) << (_DIGIT * (last - i))

    def limits_of(i, alone, bound, place):
        """What pass `i` compares with, if by key and if by position."""

        def before(place):  # in a leaf
            return jnp.maximum(place - jnp.where(alone, 0, starts), 0)

        steps = _CHOICES * step_of(i)
        found = bound[None], before(place)[None]
        by_key = jnp.concatenate([bound + steps, *found])
        by_place = jnp.concatenate([before(place + steps), *found])
        return _clip(jnp.concatenate([by_key, by_place], axis=1), keys.dtype)

    def add_digit(carry):
        i, is_done, alone, bound, place, most, count, limits = carry
        # Keys are recomputed for every digit. Without the barrier, XLA would compute
        # them once before the loop, and they would take as much memory as the scores.
        now, limits = lax.optimization_barrier((leaves, limits))
        by_place = i >= num_key_digits
        counts = [
            _count(leaf, limits, column, by_place, keys, num_layers)
            for leaf, column, num_layers in zip(now, columns, layers, strict=True)
        ]
        counts = jnp.stack([jnp.concatenate(n) for n in zip(*counts, strict=True)])
        counts = counts.astype(jnp.int64)
        in_all = jnp.sum(jnp.minimum(counts, most), axis=1, keepdims=True)
        digit = jnp.sum(jnp.where(alone, counts <= most, in_all <= k), axis=0)
        count = jnp.max(jnp.where(digit >= _CHOICES, counts, count), axis=0)
        bound = bound + jnp.where(by_place, 0, digit * step_of(i))
        place = place + jnp.where(by_place, digit * step_of(i), 0)

        together = jnp.sum(jnp.minimum(count, most))
        is_exact = jnp.where(alone, jnp.all(count == most), together == k)
        i = i + 1
        is_done = (i == num_digits) | ((i == num_key_digits) & is_exact)
        # If more units of a layer are below the bound than may be removed, each layer
        # gets a bound of its own.
        again = is_done & jnp.any(count > most)
        most = jnp.where(again, jnp.minimum(count, most), most)
        i, is_done, alone = jnp.where(again, 0, i), is_done & ~again, alone | again
        bound = jnp.where(again, keys.lowest, bound)
        place, count = (jnp.where(again, 0, x) for x in (place, count))
        limits = limits_of(i, alone, bound, place)
        return i, is_done, alone, bound, place, most, count, limits

    def is_unfinished(carry):
        # Depends on the number of the pass too. Otherwise XLA tries to predict the last
        # pass, which is slow to compile.
        i, is_done, *_ = carry
        return ~is_done & (i < num_digits)

    # These vary between devices if the units do, from the first pass on.
    zero = 0 * jnp.sum(most) + 0 * k
    zeros = 0 * most + zero
    no = zero == 1
    start = no | by_layer, zeros + keys.lowest, zeros
    carry = zero, no, *start, most + zero, zeros, limits_of(zero, *start)
    carry = lax.while_loop(is_unfinished, add_digit, carry)
    i, *_, most, count, limits = carry
    return Removal(
        [
            _kept(leaf, limits, column, i >= num_key_digits, keys, num_layers)
            for leaf, column, num_layers in zip(leaves, columns, layers, strict=True)
        ],
        jnp.sum(jnp.minimum(count, most)),
    )


class _Keys(NamedTuple):
    """Maps scores to integers, in the same way for all leaves, so that they compare."""

    float: Any  # dtype, to which all scores convert without loss
    dtype: Any  # of keys and of positions
    num_zeros: int  # zero bits at the end of the significands of narrower floats
    by_magnitude: bool

    @classmethod
    def of(cls, leaves: Sequence[Units], by_magnitude: bool) -> "_Keys":
        floats = [jnp.dtype(leaf.scores.dtype) for leaf in leaves]
        wide = jnp.dtype("float64" if "float64" in floats else "float32")
        num_zeros = jnp.finfo(wide).nmant - max(jnp.finfo(f).nmant for f in floats)
        longest = max(leaf.kept.size for leaf in leaves)
        is_long = wide == jnp.float64 or longest > jnp.iinfo(jnp.int32).max
        dtype = jnp.dtype(jnp.int64 if is_long else jnp.int32)
        return cls(wide, dtype, num_zeros, by_magnitude)

    @property
    def num_bits(self) -> int:
        return jnp.finfo(self.float).bits - self.num_zeros

    @property
    def lowest(self) -> int:  # of units that are already removed
        return -(1 << (self.num_bits - 1))

    def __call__(self, leaf: Units) -> jax.Array:
        integer = jnp.dtype(f"int{jnp.finfo(self.float).bits}")
        bits = lax.bitcast_convert_type(leaf.scores.astype(self.float), integer)
        size = (bits & jnp.iinfo(integer).max) >> self.num_zeros
        inf = lax.bitcast_convert_type(self.float.type(jnp.inf), integer)
        nan = (inf >> self.num_zeros) + 1
        if self.by_magnitude:
            key = jnp.minimum(size, nan)
        else:
            key = jnp.where(size >= nan, nan, jnp.where(bits < 0, -size, size))
        return jnp.where(leaf.kept, key, self.lowest).astype(self.dtype)


@functools.partial(jax.jit, static_argnames=("keys", "num_layers"))
def _count(leaf, limits, column, by_place, keys, num_layers):
    """How many units of each layer each choice of the digit removes."""
    *tried, bound, _ = _limits_of_leaf(leaf, limits, column, by_place, num_layers)
    ranks = jnp.where(by_place, _places(leaf, bound, keys, num_layers), keys(leaf))
    if leaf.removable is not None:
        never = jnp.iinfo(ranks.dtype).max
        ranks = jnp.where(leaf.kept & ~leaf.removable, never, ranks)
    axes = range(1 if num_layers else 0, ranks.ndim)
    counts = _counts.count_true([ranks < limit for limit in tried], axes)
    return [n.reshape(num_layers or 1) for n in counts]


@functools.partial(jax.jit, static_argnames=("keys", "num_layers"))
def _kept(leaf, limits, column, by_place, keys, num_layers):
    """The units that are kept in the end."""
    *_, bound, before = _limits_of_leaf(leaf, limits, column, by_place, num_layers)
    removed = _places(leaf, bound, keys, num_layers) < before
    if leaf.removable is not None:
        removed &= leaf.removable
    return leaf.kept & ~removed


def _limits_of_leaf(leaf, limits, column, by_place, num_layers):
    """The limits of a leaf: numbers, or vectors along its first axis."""
    # Look up the column at run time, so that it is not a constant of the program: XLA
    # compiles one program for all leaves of one shape.
    start = lax.dynamic_index_in_dim(
        column, by_place.astype(jnp.uint32), keepdims=False
    )
    sizes = len(limits), num_layers or 1
    own = lax.dynamic_slice(limits, (jnp.zeros_like(start), start), sizes)
    shape = (num_layers, *[1] * (leaf.kept.ndim - 1)) if num_layers else ()
    return [limit.reshape(shape) for limit in own]


def _places(leaf, bound, keys, num_layers):
    """The positions of units equal to the bound; -1 for units below it."""
    key = keys(leaf)
    place = jnp.zeros_like(key)
    for axis in range(1 if num_layers else 0, key.ndim):
        index = lax.broadcasted_iota(key.dtype, key.shape, axis)
        place = place * key.shape[axis] + index
    above = jnp.iinfo(key.dtype).max
    return jnp.where(key < bound, -1, jnp.where(key == bound, place, above))


def _clip(x, dtype):
    limits = jnp.iinfo(dtype)
    return jnp.clip(x, limits.min, limits.max).astype(dtype)
