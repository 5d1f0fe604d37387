"""A convolution that is fast on every backend, also inside of a loop."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax


def make_conv(
    channels: int, features: int, size: int, rngs: nnx.Rngs, **settings: Any
) -> nnx.Conv:
    return nnx.Conv(
        channels,
        features,
        (size, size),
        padding="VALID",
        conv_general_dilated=conv,
        rngs=rngs,
        **settings,
    )


def conv(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str,
    *,
    precision: lax.PrecisionLike = None,
    **unused: Any,
) -> jax.Array:
    """Convolves `inputs`, `[B, H, W, C]`, with `kernel`, `[h, w, C, D]`, unpadded.

    A `conv_general_dilated` for `nnx.Conv`. XLA's convolution is some ten times slower
    inside of a `lax.scan` on CPU than one product with all patches, which replaces it
    there.
    """
    del unused
    assert padding == "VALID"
    by_backend = functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )

    def by_patches(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        height, width, channels, features = kernel.shape
        down, right = strides
        bottom = inputs.shape[1] - height + 1
        end = inputs.shape[2] - width + 1
        patches = jnp.concatenate(
            [
                inputs[:, i : i + bottom : down, j : j + end : right, :]
                for i in range(height)
                for j in range(width)
            ],
            axis=-1,
        )
        weights = kernel.reshape(height * width * channels, features)
        return jnp.matmul(patches, weights, precision=precision)

    return lax.platform_dependent(inputs, kernel, cpu=by_patches, default=by_backend)
