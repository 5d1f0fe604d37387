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
    return Count(a.high + b.high + (low < a.low), low)


def subtract(a: Count, b: Count) -> Count:
    """`a - b`, or 0 where `b` is the larger."""
    difference = Count(a.high - b.high - (a.low < b.low), a.low - b.low)
    negative = less(a, b)
    return Count(*(jnp.where(negative, jnp.uint32(0), word) for word in difference))


def less(a: Count, b: Count) -> jax.Array:
    """Whether `a < b`."""
    return (a.high < b.high) | ((a.high == b.high) & (a.low < b.low))


def minimum(a: Count, b: Count) -> Count:
    """The smaller of the two."""
    smaller = less(a, b)
    return Count(*(jnp.where(smaller, x, y) for x, y in zip(a, b, strict=True)))


def is_zero(a: Count) -> jax.Array:
    """Whether `a == 0`."""
    return (a.high | a.low) == 0


def as_float(a: Count) -> jax.Array:
    """The nearest `float32`, for reporting only."""
    return a.high.astype(jnp.float32) * 2.0**32 + a.low.astype(jnp.float32)


def count_true(x: jax.Array) -> Count:
    """How many elements of the boolean array `x` are true."""
    x = lax.optimization_barrier(x)  # a constant XLA would count while it compiles
    return count_each([x, ~x])[0]


def count_each(arrays: Sequence[jax.Array]) -> list[Count]:
    """How many elements of each of these boolean arrays, of one shape, are true."""
    *rows, axes = axes_within_words(arrays[0].shape)
    if jax.typeof(arrays[0]).sharding.mesh.empty:
        # All in one pass, rows first, which XLA shares out between the cores of a CPU.
        # The barrier keeps the counts that nobody wants: what is left of a pass with
        # one count alone is made into windows on CPU, and takes 15 times as long.
        words = _sum_each(_sum_each(arrays, axes[1:]), axes[:1])
        words = lax.optimization_barrier(words)
    else:  # sums, of which devices exchange but one number: of a pass they gather all
        words = [jnp.sum(x, axis=axes, dtype=jnp.uint32) for x in arrays]
    return [sum_words(w) if rows else Count(jnp.uint32(0), w) for w in words]


def _sum_each(arrays: Sequence[jax.Array], axes: Sequence[int]) -> list[jax.Array]:
    return lax.reduce(
        [x.astype(jnp.uint32) for x in arrays],
        [jnp.uint32(0)] * len(arrays),
        lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
        axes,
    )


def axes_within_words(shape: Sequence[int]) -> list[tuple[int, ...]]:
    """All axes; of arrays of 2^32 elements or more the leading ones apart.

    Along those of the last part there are fewer.
    """
    axis = 0
    while math.prod(shape[axis:]) >= _WORD:
        axis += 1
    axes = tuple(range(len(shape)))
    return [axes[:axis], axes[axis:]] if axis else [axes]


def count_true_in(leaves: Iterable[jax.Array]) -> Count:
    """How many elements of all these boolean arrays are true."""
    return total(stack([constant(0), *map(count_true, leaves)]))


def sum_words(words: jax.Array) -> Count:
    """The sum of at most 2^24 `uint32` numbers."""
    if words.size > 1 << 24:
        raise ValueError(
            f"cannot count a leaf of {words.size} rows of up to 2^32 weights: its "
            "leading axes are too long"
        )
    result = constant(0)
    for shift in (0, 8, 16, 24):  # byte by byte, of which sums do not overflow
        part = jnp.sum((words >> shift) & 0xFF, dtype=jnp.uint32)
        carry = part >> (32 - shift) if shift else jnp.uint32(0)
        result = add(result, Count(carry, part << shift))
    return result


def stack(counts: Sequence[Count]) -> Count:
    """One `Count`, with an element of the first axis for each."""
    return Count(*(jnp.stack(words) for words in zip(*counts, strict=True)))


def unstack(counts: Count) -> list[Count]:
    """The elements of the first axis."""
    return [Count(*words) for words in zip(*counts, strict=True)]


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
    shift = (150 - exponent).astype(jnp.int32)

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
