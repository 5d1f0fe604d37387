"""Sums of scores that do not depend on the order of addition.

Devices and compilers add floating-point numbers in different orders, which changes the
rounding, and scores that differ in the last bit may prune other units. So scores are
added as integers: as multiples of a power of two that fits the largest score.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sparse_optax import _counts


def sum_along(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The sum along the axes, as `float64` under x64; the axes remain, with length 1.

    The error is below 2^-38 of the largest number, for each of up to 2^24 numbers.
    """
    axes = tuple(axes)
    num = max(1, math.prod(x.shape[axis] for axis in axes))
    num_bits = 62 - num.bit_length()
    x = x.astype(jnp.float64)
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0)
    _, exponent = jnp.frexp(jnp.where(jnp.isfinite(largest), largest, 0))
    steps = jnp.round(jnp.ldexp(x, num_bits - exponent)).astype(jnp.int64)
    total = jnp.sum(steps, axis=axes, keepdims=True).astype(jnp.float64)
    finite = jnp.ldexp(total, exponent - num_bits)
    return jnp.where(
        jnp.isfinite(largest), finite, jnp.sum(x, axis=axes, keepdims=True)
    )


def mean_of_kept(scores: jax.Array, kept: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The mean of kept scores along the axes, as `float32`; 0 where nothing is kept.

    The axes remain, with length 1.
    """
    with _counts.exact_numbers():
        total = sum_along(jnp.where(kept, scores, 0), axes)
        num = jnp.sum(kept, axis=tuple(axes), keepdims=True, dtype=jnp.int64)
        mean = total / jnp.maximum(num, 1).astype(jnp.float64)
        return mean.astype(jnp.float32)


@jax.jit
def divide_by_norm(scores: jax.Array) -> jax.Array:
    """Scores divided by the norm of the finite ones, as `float32`."""
    with _counts.exact_numbers():
        wide = scores.astype(jnp.float64)
        finite = jnp.where(jnp.isfinite(wide), wide, 0)
        norm = jnp.sqrt(sum_along(jnp.square(finite), range(scores.ndim)))
        return (wide / jnp.where(norm > 0, norm, 1)).astype(jnp.float32)
