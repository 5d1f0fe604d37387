"""A convolution that is fast on every backend, inside of a loop too."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def conv(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    precision: lax.PrecisionLike = None,
    **unused: Any,
) -> jax.Array:
    """Convolves channels-last images without padding.

    Takes the arguments of `jax.lax.conv_general_dilated` that `nnx.Conv` passes. On a
    CPU that runs some ten times slower inside of a `lax.scan` than one matrix product
    over all patches of the image, which is what is done there.

    Args:
      inputs: images, `[B, H, W, C]`.
      kernel: weights, `[h, w, C, D]`.
      strides: rows and columns between two patches.
      padding: must be "VALID".
      precision: that of the products.
      **unused: the arguments of `conv_general_dilated` that play no part here.

    Returns:
      The images' features, `[B, (H - h) // rows + 1, (W - w) // columns + 1, D]`.
    """
    del unused
    if padding != "VALID":
        raise ValueError(f"conv knows no padding but VALID; got {padding!r}.")

    def by_backend(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            *(inputs, kernel, strides, padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision,
        )

    def by_patches(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        return product_with_patches(inputs, kernel, strides, precision)

    return lax.platform_dependent(inputs, kernel, cpu=by_patches, default=by_backend)


def product_with_patches(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    precision: lax.PrecisionLike,
) -> jax.Array:
    """Convolves by one matrix product, as `conv` does on a CPU."""
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
