"""ResNet-20 for CIFAR."""

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
    """Two convolutions, and a shortcut around them.

    With more features, the first convolution and the shortcut halve the image.
    """

    def __init__(self, channels: int, features: int, rngs: nnx.Rngs):
        more = features > channels
        stride = 2 if more else 1
        self.conv1 = conv3(channels, features, stride, rngs)
        self.norm1 = Norm(features, rngs)
        self.conv2 = conv3(features, features, 1, rngs)
        self.norm2 = Norm(features, rngs)
        self.projects = more
        if more:
            self.project = make_conv(
                channels, features, 1, rngs, strides=stride, use_bias=False
            )
            self.project_norm = Norm(features, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, H, W, features]`, or half of the height and width."""
        y = nnx.relu(self.norm1(self.conv1(pad(x))))
        y = self.norm2(self.conv2(pad(y)))
        if self.projects:
            x = self.project_norm(self.project(x))
        return nnx.relu(x + y)


class ResNet20(nnx.Module):
    """ResNet-20 for 32x32 images, with 272,474 parameters.

    That of He et al. 2016, section 4.2, except where the number of features changes:
    shortcuts project them with a convolution and a norm, and do not pad with zeros.
    """

    def __init__(self, image_shape: tuple[int, int, int], rngs: nnx.Rngs):
        self.conv = conv3(image_shape[-1], 16, 1, rngs)
        self.norm = Norm(16, rngs)
        sizes = [16] * 4 + [32] * 3 + [64] * 3
        self.blocks = nnx.Dict(  # of names, so that params are dicts of dicts
            {
                str(place): Block(*pair, rngs)
                for place, pair in enumerate(itertools.pairwise(sizes))
            }
        )
        self.output = nnx.Linear(64, NUM_CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits `[B, 10]` of `images`, `[B, 32, 32, 3]` in [0, 1]."""
        x = nnx.relu(self.norm(self.conv(pad(images))))
        for name in sorted(self.blocks):
            x = self.blocks[name](x)
        return self.output(x.mean((1, 2)))
