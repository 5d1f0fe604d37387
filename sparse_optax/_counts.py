"""Exact 64-bit counts without 64-bit types.

How many weights are kept decides how many are pruned, so counts may not be off by
one. JAX has no 64-bit integers unless the user asks for them, `float32` cannot hold
2^24 + 1 and `int32` overflows at 2^31, both less than networks have weights. A
`Count` is therefore a pair of `uint32` words, with the few operations that choosing
weights needs.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import get_abstract_mesh

_LONG = 16  # weights in a row
_HALF = 0xFFFF  # the lower 16 bits of a word
_WORD = 1 << 32


class Count(NamedTuple):
    """The number `high * 2^32 + low`, elementwise."""

    high: jax.Array  # uint32
    low: jax.Array  # uint32


def constant(n: int) -> Count:
    """The Python integer `n` as a `Count`."""
    return Count(jnp.uint32(n // _WORD), jnp.uint32(n % _WORD))


def add(a: Count, b: Count) -> Count:
    """`a + b`, which must be below 2^64."""
    low = a.low + b.low
    carry = (low < a.low).astype(jnp.uint32)
    return Count(a.high + b.high + carry, low)


def subtract(a: Count, b: Count) -> Count:
    """`a - b`, or 0 where `b` is the larger."""
    borrow = (a.low < b.low).astype(jnp.uint32)
    difference = Count(a.high - b.high - borrow, a.low - b.low)
    return where(less(a, b), constant(0), difference)


def less(a: Count, b: Count) -> jax.Array:
    """Whether `a < b`."""
    return (a.high < b.high) | ((a.high == b.high) & (a.low < b.low))


def where(condition: jax.Array, a: Count, b: Count) -> Count:
    """`a` where the condition is true, `b` elsewhere."""
    return Count(*(jnp.where(condition, x, y) for x, y in zip(a, b, strict=True)))


def minimum(a: Count, b: Count) -> Count:
    """The smaller of the two."""
    return where(less(a, b), a, b)


def is_zero(a: Count) -> jax.Array:
    """Whether `a == 0`."""
    return (a.high | a.low) == 0


def as_word(a: Count) -> jax.Array:
    """As `uint32`: 2^32 - 1 for all numbers above."""
    return jnp.where(a.high > 0, ~jnp.uint32(0), a.low)


def ratio(a: Count, b: Count) -> jax.Array:
    """The `float32` nearest to `a / b`, which is 0 if both are; for reporting only."""
    with jax.enable_x64(True):
        # Behind the barrier, or XLA would multiply by the inverse of a constant.
        b = lax.optimization_barrier(Count(*b))
        numerator, denominator = (
            n.high.astype(jnp.float64) * 2.0**32 + n.low.astype(jnp.float64)
            for n in (a, b)
        )
        result = numerator / jnp.maximum(denominator, 1.0)
        return result.astype(jnp.float32)


def count_true_in(leaves: Iterable[jax.Array]) -> Count:
    """How many elements of all these boolean arrays are true."""
    # A constant XLA would count while it compiles, but for the barrier.
    leaves = [lax.optimization_barrier(x) for x in leaves]
    if not leaves:
        return constant(0)
    # Of both kinds, because a pass with one count alone is slow: see `_words`.
    return count_all([x, ~x] for x in leaves)[0]


def count_true_in_each(leaves: Iterable[jax.Array]) -> Count:
    """The same array by array: a `Count` with an element for each."""
    return count_each([x, ~x] for x in leaves)[0]


def count_all(leaves: Iterable[Sequence[jax.Array]]) -> list[Count]:
    """How many are true over all leaves, for each kind.

    Args:
        leaves: each a number of boolean arrays of one shape: one of every kind.
    """
    words = [_words(arrays) for arrays in leaves]
    of_each_kind = [jnp.concatenate(kind) for kind in zip(*words, strict=True)]
    return [sum_words(kind) for kind in of_each_kind]


def count_each(leaves: Iterable[Sequence[jax.Array]]) -> list[Count]:
    """The same leaf by leaf: for each kind, a `Count` with an element for each leaf."""

    def of_leaf(arrays):
        if arrays[0].size >= _WORD:
            return [sum_words(w) for w in _words(arrays)]
        words = [jnp.sum(w, dtype=jnp.uint32) for w in _words(arrays)]
        return [Count(jnp.uint32(0), w) for w in words]

    return [stack(kind) for kind in zip(*map(of_leaf, leaves), strict=True)]


def _words(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """How many are true of each of the arrays, of one shape: as words to be summed."""
    shape = arrays[0].shape
    axes = _axes_within_a_word(shape)
    if _may_be_sharded(arrays[0]):
        # Sums, of which devices exchange but one number; of a single pass, all of them.
        return [jnp.sum(x, axis=axes, dtype=jnp.uint32).ravel() for x in arrays]
    # All in one pass over the weights, and that by rows, which XLA shares out between
    # the cores of a CPU: unless they are so short that their counts would take memory.
    if axes[:1] == (0,) and math.prod(shape[axis] for axis in axes[1:]) >= _LONG:
        axes = axes[1:]
    words = lax.reduce(
        [x.astype(jnp.uint32) for x in arrays],
        [jnp.uint32(0)] * len(arrays),
        lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
        axes,
    )
    # The barrier keeps the counts that nobody wants: what is left of a pass with one
    # count alone is made into windows on CPU, and takes 15 times as long.
    return [w.ravel() for w in lax.optimization_barrier(words)]


def _may_be_sharded(x: jax.Array) -> bool:
    """Whether devices might each have a part of it, as its type or the context says."""
    return not (jax.typeof(x).sharding.mesh.empty and get_abstract_mesh().empty)


def _axes_within_a_word(shape: Sequence[int]) -> tuple[int, ...]:
    """Axes along which a count of what is true is below 2^32: the longest ones."""
    chosen: list[int] = []
    size = 1
    for axis in sorted(range(len(shape)), key=lambda axis: -shape[axis]):
        if size * shape[axis] < _WORD:
            size *= shape[axis]
            chosen.append(axis)
    return tuple(sorted(chosen))


def rows_and_columns(shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes in two: leading ones, and the rest with less than 2^32 elements."""
    axis = 0
    while math.prod(shape[axis:]) >= _WORD:
        axis += 1
    axes = tuple(range(len(shape)))
    return axes[:axis], axes[axis:]


def sum_words(words: jax.Array) -> Count:
    """The sum of a vector of `uint32` numbers."""
    if words.size > 1 << 24:
        half = words.size // 2
        return add(sum_words(words[:half]), sum_words(words[half:]))
    result = constant(0)
    for shift in (0, 8, 16, 24):  # byte by byte, of which sums do not overflow
        part = jnp.sum((words >> shift) & 0xFF, dtype=jnp.uint32)
        carry = part >> (32 - shift) if shift else jnp.uint32(0)
        result = add(result, Count(carry, part << shift))
    return result


def stack(counts: Sequence[Count]) -> Count:
    """One `Count`, with an element of the first axis for each."""
    return Count(*(jnp.stack(words) for words in zip(*counts, strict=True)))


def total(counts: Count) -> Count:
    """The sum along the first axis."""

    # Not one after the other: of a chain of sums XLA makes exponentially many.
    def plus(a, b):
        return add(Count(*a), Count(*b))

    return Count(*lax.reduce(counts, constant(0), plus, [0]))


def fraction_of(fraction: jax.typing.ArrayLike, n: Count) -> Count:
    """`float32(fraction) * n`, rounded half to even, with no other rounding.

    `fraction` is clamped to [0, 1] (NaN to 0): Python numbers out of range are refused
    earlier, where they are given, and traced values cannot be.
    """
    fraction = jnp.asarray(fraction, jnp.float32)
    fraction = jnp.where(fraction > 0, jnp.minimum(fraction, 1), 0)

    # fraction = mantissa * 2^-shift, with a mantissa of 24 bits and 23 <= shift < 150.
    bits = lax.bitcast_convert_type(fraction, jnp.uint32)
    exponent = jnp.maximum(bits >> 23, 1)
    mantissa = (bits & 0x7FFFFF) | jnp.where(bits >> 23 > 0, jnp.uint32(1 << 23), 0)
    shift = (jnp.uint32(150) - exponent).astype(jnp.int32)

    # mantissa * n by hand, in digits of 16 bits: no product or carry exceeds a word.
    a = [mantissa & _HALF, mantissa >> 16]
    b = [n.low & _HALF, n.low >> 16, n.high & _HALF, n.high >> 16]
    product = [jnp.uint32(0)] * (len(a) + len(b))
    for i, x in enumerate(a):
        carry = jnp.uint32(0)
        for j, y in enumerate(b):
            digit = product[i + j] + x * y + carry
            product[i + j], carry = digit & _HALF, digit >> 16
        product[i + len(b)] = carry

    # The product bit by bit, shifted right: bits from `shift` on are the result, the
    # one below decides the rounding, together with any below that.
    bit = (jnp.stack(product)[:, None] >> jnp.arange(16, dtype=jnp.uint32)[None]) & 1
    bit = bit.reshape(-1)
    place = jnp.arange(bit.size) - shift

    def word(start: int) -> jax.Array:
        inside = (start <= place) & (place < start + 32)
        amount = jnp.where(inside, place - start, 0).astype(jnp.uint32)
        return jnp.sum(jnp.where(inside, bit << amount, 0), dtype=jnp.uint32)

    floor = Count(high=word(32), low=word(0))
    half = jnp.any((place == -1) & (bit == 1))
    rest = jnp.any((place < -1) & (bit == 1))
    round_up = half & (rest | (floor.low & 1 == 1))
    return add(floor, Count(jnp.uint32(0), round_up.astype(jnp.uint32)))
