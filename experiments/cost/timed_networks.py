"""Networks that are timed and not trained: a ResNet-32 and a small language model."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.networks import NUM_CLASSES, patches_conv


class Timed(NamedTuple):
    """A flax network in functional form, whose inputs need no scaling."""

    graphdef: Any
    statistics: Any  # all variables that are no parameters

    def loss(self, params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns the mean cross-entropy of `labels`, one for each row of logits."""
        network = nnx.merge(self.graphdef, params, self.statistics, copy=True)
        logits = network(inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def split(network: nnx.Module) -> tuple[Timed, Any]:
    """Returns a network in functional form, and its params, a dict."""
    graphdef, params, statistics = nnx.split(network, nnx.Param, ...)
    return Timed(graphdef, statistics), nnx.to_pure_dict(params)


def conv3(channels: int, features: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    """Returns a 3x3 convolution of images that are padded by one pixel already."""
    return nnx.Conv(
        *(channels, features, (3, 3), stride),
        padding="VALID",
        use_bias=False,
        conv_general_dilated=patches_conv,
        rngs=rngs,
    )


def pad(x: jax.Array) -> jax.Array:
    """Puts a black pixel around every image of `[B, H, W, C]`."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


class Block(nnx.Module):
    """Two convolutions beside a shortcut; the first of them may halve the image."""

    def __init__(self, channels: int, features: int, rngs: nnx.Rngs):
        self.more = features - channels
        self.stride = 2 if self.more else 1
        self.conv1 = conv3(channels, features, self.stride, rngs)
        self.norm1 = nnx.BatchNorm(features, use_running_average=False, rngs=rngs)
        self.conv2 = conv3(features, features, 1, rngs)
        self.norm2 = nnx.BatchNorm(features, use_running_average=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, H / stride, W / stride, features]`."""
        y = nnx.relu(self.norm1(self.conv1(pad(x))))
        y = self.norm2(self.conv2(pad(y)))
        # The shortcut without parameters, filled up with zeros.
        x = x[:, :: self.stride, :: self.stride]
        return nnx.relu(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.more))) + y)


class ResNet32(nnx.Module):
    """ResNet-32 for 32x32 images (He et al. 2016, section 4.2): 464,154 parameters."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = conv3(3, 16, 1, rngs)
        self.norm = nnx.BatchNorm(16, use_running_average=False, rngs=rngs)
        sizes = [16] * 6 + [32] * 5 + [64] * 5
        self.blocks = nnx.List(Block(*pair, rngs) for pair in itertools.pairwise(sizes))
        self.output = nnx.Linear(64, NUM_CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits `[B, 10]` of `images`, `[B, 32, 32, 3]`."""
        x = nnx.relu(self.norm(self.conv(pad(images))))
        for block in self.blocks:
            x = block(x)
        return self.output(x.mean((1, 2)))


class Layer(nnx.Module):
    """A layer of a transformer: causal attention, and a hidden layer."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.hidden1 = nnx.Linear(width, 4 * width, rngs=rngs)
        self.hidden2 = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, T, width]`."""
        x = x + self.attention(self.norm1(x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.hidden2(nnx.relu(self.hidden1(self.norm2(x))))


class LanguageModel(nnx.Module):
    """A transformer of two layers over a small vocabulary: 3.6 million parameters."""

    VOCABULARY, WIDTH = 8_000, 256

    def __init__(self, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(self.VOCABULARY, self.WIDTH, rngs=rngs)
        self.layers = nnx.List(Layer(self.WIDTH, rngs) for _ in range(2))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns the logits of the token after each of `tokens`, `[B, T]`."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.embedding.attend(x)
