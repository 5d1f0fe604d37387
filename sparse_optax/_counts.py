"""Exact 64-bit counts without 64-bit types.

How many weights are kept decides how many are pruned, so counts may not be off by
one. JAX has no 64-bit integers unless the user asks for them, `float32` cannot hold
2^24 + 1 and `int32` overflows at 2^31, both less than networks have weights. A
`Count` is therefore a pair of `uint32` words, with the few operations that choosing
weights needs.
"""

import functools
import math
from collections.abc import Iterable
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
    # The leading axes that stay, so that what is summed within a word fits in it.
    axis = 0
    while math.prod(x.shape[axis:]) >= _WORD:
        axis += 1
    rows = jnp.sum(x, axis=tuple(range(axis, x.ndim)), dtype=jnp.uint32)
    return Count(jnp.uint32(0), rows) if axis == 0 else sum_words(rows)


def count_true_in(leaves: Iterable[jax.Array]) -> Count:
    """How many elements of all these boolean arrays are true."""
    return functools.reduce(add, map(count_true, leaves), constant(0))


def sum_words(words: jax.Array) -> Count:
    """The sum of at most 2^24 `uint32` numbers."""
    if words.size > 1 << 24:
        raise ValueError(
            f"cannot count a leaf of {words.size} rows of up to 2^32 weights: its "
            "leading axes are too long"
        )
    total = constant(0)
    for shift in (0, 8, 16, 24):  # byte by byte, of which sums do not overflow
        part = jnp.sum((words >> shift) & 0xFF, dtype=jnp.uint32)
        carry = part >> (32 - shift) if shift else jnp.uint32(0)
        total = add(total, Count(carry, part << shift))
    return total


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
