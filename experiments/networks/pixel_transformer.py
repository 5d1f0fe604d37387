"""A small transformer over pixels."""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.data.images import NUM_CLASSES


class PixelTransformer(nnx.Module):
    """One block of attention over pixels, each a token of its place and shade.

    Many rows of its embedding are rare in the data. 43,690 parameters on 8x8 images.
    """

    SHADES = 17
    FEATURES = 32

    def __init__(self, image_shape: tuple[int, int, int], rngs: nnx.Rngs):
        self.num_pixels = image_shape[0] * image_shape[1] * image_shape[2]
        size = self.FEATURES
        self.embedding = nnx.Embed(self.num_pixels * self.SHADES, size, rngs=rngs)
        self.norm1 = nnx.LayerNorm(size, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, size, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(size, rngs=rngs)
        self.hidden1 = nnx.Linear(size, 2 * size, rngs=rngs)
        self.hidden2 = nnx.Linear(2 * size, size, rngs=rngs)
        self.output = nnx.Linear(size, NUM_CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits `[B, 10]` of `images`, `[B, H, W, C]` in [0, 1]."""
        pixels = images.reshape(images.shape[0], -1)
        shades = jnp.round(pixels * (self.SHADES - 1)).astype(jnp.int32)
        x = self.embedding(jnp.arange(self.num_pixels) * self.SHADES + shades)
        x = x + self.attention(self.norm1(x))
        x = x + self.hidden2(nnx.relu(self.hidden1(self.norm2(x))))
        return self.output(x.mean(axis=1))
