"""ResNet-32 for CIFAR."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.data.images import NUM_CLASSES
from experiments.networks.convolution import make_conv

MEMORY = 0.9  # momentum of the running statistics of the norms


def conv3(channels: int, features: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    """Returns a 3x3 convolution for images that are padded by one pixel."""
    return make_conv(channels, features, 3, rngs, strides=stride, use_bias=False)


class Norm(nnx.BatchNorm):
    """A batch norm whose output has the dtype of its input."""

    def __init__(self, features: int, rngs: nnx.Rngs):
        super().__init__(features, momentum=MEMORY, rngs=rngs)

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        return super().__call__(x, *args, **kwargs).astype(x.dtype)


def pad(x: jax.Array) -> jax.Array:
    """Pads every image of `[B, H, W, C]` by a black pixel."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


class Block(nnx.Module):
    """Two convolutions and a shortcut; the first may halve the image."""

    def __init__(self, channels: int, features: int, rngs: nnx.Rngs):
        self.more = features - channels
        self.stride = 2 if self.more else 1
        self.conv1 = conv3(channels, features, self.stride, rngs)
        self.norm1 = Norm(features, rngs)
        self.conv2 = conv3(features, features, 1, rngs)
        self.norm2 = Norm(features, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, H / stride, W / stride, features]`."""
        y = nnx.relu(self.norm1(self.conv1(pad(x))))
        y = self.norm2(self.conv2(pad(y)))
        # The shortcut has no parameters, and is padded with zeros.
        x = x[:, :: self.stride, :: self.stride]
        return nnx.relu(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.more))) + y)


class ResNet32(nnx.Module):
    """ResNet-32 for 32x32 images (He et al. 2016, section 4.2): 464,154 parameters."""

    def __init__(self, image_shape: tuple[int, int, int], rngs: nnx.Rngs):
        self.conv = conv3(image_shape[-1], 16, 1, rngs)
        self.norm = Norm(16, rngs)
        sizes = [16] * 6 + [32] * 5 + [64] * 5
        self.blocks = nnx.List(Block(*pair, rngs) for pair in itertools.pairwise(sizes))
        self.output = nnx.Linear(64, NUM_CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits `[B, 10]` of `images`, `[B, 32, 32, 3]` in [0, 1]."""
        x = nnx.relu(self.norm(self.conv(pad(images))))
        for block in self.blocks:
            x = block(x)
        return self.output(x.mean((1, 2)))
