"""Exact counts beyond 2^31, and exact fractions of them.

The number of kept weights decides how many are removed, so counts must be exact.
`float32` cannot represent 2^24 + 1 and `int32` overflows at 2^31, and networks can have
more weights than that. So counts are `int64`: call functions of this file that take or
return an `int64` inside `with exact_numbers()`. States use types that JAX has without
it: a `Count` of two words.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import get_abstract_mesh

_LONG = 16  # weights in a row
_WORD = 1 << 32


@contextlib.contextmanager
def exact_numbers() -> Iterator[None]:
    """Enables `int64` and `float64` in a block, whatever the user has set.

    Dtypes are promoted in the standard way, even if the user's setting is strict.
    """
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


class Count(NamedTuple):
    """The number `high * 2^32 + low`, for a state."""

    high: jax.Array  # uint32
    low: jax.Array  # uint32


def to_words(n: jax.Array) -> Count:
    """An `int64` as a `Count`."""
    return Count((n >> 32).astype(jnp.uint32), n.astype(jnp.uint32))


def to_uint32(n: jax.Array) -> jax.Array:
    """An `int64` as `uint32`, at most 2^32 - 1."""
    return jnp.minimum(n, _WORD - 1).astype(jnp.uint32)


def less(a: Count, b: Count) -> jax.Array:
    """Whether `a < b`."""
    return (a.high < b.high) | ((a.high == b.high) & (a.low < b.low))


def ratio(a: jax.Array, b: int) -> jax.Array:
    """The `float32` nearest to `a / b`, or 0 if both are 0; for reporting only."""
    # Without the barrier, XLA would multiply by the inverse of a constant.
    divisor = lax.optimization_barrier(jnp.float64(max(b, 1)))
    return (a.astype(jnp.float64) / divisor).astype(jnp.float32)


def count_true_in(leaves: Iterable[jax.Array]) -> jax.Array:
    """How many elements of all these boolean arrays are true: `int64`."""
    counts = [count_with_complement(x, range(x.ndim)) for x in leaves]
    return sum((n.astype(jnp.int64) for n in counts), jnp.int64(0))


def count_with_complement(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """How many elements of one array are true along the axes, as in `count_true`."""
    # Without the first barrier, XLA would count a constant at compile time. The second
    # prevents dead-code elimination of the unused count.
    x = lax.optimization_barrier(x)
    return lax.optimization_barrier(count_true([x, ~x], axes))[0]


def count_true(arrays: Sequence[jax.Array], axes: Sequence[int]) -> list[jax.Array]:
    """Counts the true elements along the axes, of several arrays of one shape.

    It makes one pass over all of them.

    Args:
        arrays: boolean, at least two: for a single count, XLA on CPU uses windows,
            which take 15 times as long.
        axes: the last axes of the arrays.

    Returns:
        For each array, the counts without these axes: `uint32`, or `int64` if they may
        be too large for that.
    """
    shape = [arrays[0].shape[axis] for axis in axes]
    dtype = jnp.uint32 if math.prod(shape) < _WORD else jnp.int64
    # Count by rows, which XLA distributes over the cores of a CPU, unless rows are so
    # short that their counts would take much memory.
    num_outer = 1 if math.prod(shape[1:]) >= _LONG else 0
    if _may_be_sharded(arrays[0]):
        num_outer = 0
    while math.prod(shape[num_outer:]) >= _WORD:
        num_outer += 1
    inner, outer = axes[num_outer:], axes[:num_outer]
    if _may_be_sharded(arrays[0]):
        # Separate sums: devices then exchange single numbers. For several sums in one
        # reduction, they would exchange everything that each has counted.
        words = [jnp.sum(x, axis=tuple(inner), dtype=jnp.uint32) for x in arrays]
    else:
        words = _sum([x.astype(jnp.uint32) for x in arrays], inner)
    return _sum([x.astype(dtype) for x in words], outer)


def _sum(arrays: Sequence[jax.Array], axes: Sequence[int]) -> list[jax.Array]:
    """Sums of several arrays along the axes, in one pass."""
    if not axes:
        return list(arrays)
    zeros = [jnp.zeros([], x.dtype) for x in arrays]
    sums = lax.reduce(
        list(arrays),
        zeros,
        lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
        tuple(axes),
    )
    return list(sums)


def _may_be_sharded(x: jax.Array) -> bool:
    """Whether `x` may be sharded over devices, judging by its type and the context."""
    return not (jax.typeof(x).sharding.mesh.empty and get_abstract_mesh().empty)


def fraction_of(fraction: jax.typing.ArrayLike, n: Any) -> jax.Array:
    """`float32(fraction) * n`, rounded half to even, with no other rounding.

    `fraction` is clamped to [0, 1] (NaN to 0): Python numbers out of range raise
    earlier, where they are given, but traced values cannot. `n` is below 2^38.
    """
    fraction = jnp.asarray(fraction, jnp.float32)
    fraction = jnp.where(fraction > 0, jnp.minimum(fraction, 1), 0)
    # fraction = mantissa * 2^-shift, with a mantissa of 24 bits and 23 <= shift < 150.
    bits = lax.bitcast_convert_type(fraction, jnp.int32).astype(jnp.int64)
    exponent = jnp.maximum(bits >> 23, 1)
    mantissa = (bits & 0x7FFFFF) | jnp.where(bits >> 23 > 0, 1 << 23, 0)
    shift = jnp.minimum(150 - exponent, 63)  # the product is below 2^63: all is rest
    product = mantissa * n
    floor = product >> shift
    rest, half = product - (floor << shift), jnp.int64(1) << (shift - 1)
    return floor + ((rest > half) | ((rest == half) & (floor & 1 == 1)))
