"""The networks the experiments train: two LeNets, a ResNet, a small transformer."""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments import convolution
from experiments.data import NUM_CLASSES
from experiments.resnet import ResNet32


def max_pool(x: jax.Array) -> jax.Array:
    """Halves height and width: the maximum of every 2x2 square of `[B, H, W, C]`.

    Written as a reshape because the gradient of a windowed reduction, which is what
    `nnx.max_pool` compiles to, is slow on a CPU.
    """
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


class LeNet300(nnx.Module):
    """LeNet-300-100: two hidden layers, 266,610 parameters on 28x28 images."""

    def __init__(self, image_shape: tuple[int, int, int], rngs: nnx.Rngs):
        height, width, channels = image_shape
        self.hidden1 = nnx.Linear(height * width * channels, 300, rngs=rngs)
        self.hidden2 = nnx.Linear(300, 100, rngs=rngs)
        self.output = nnx.Linear(100, NUM_CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits `[B, 10]` of `images`, `[B, H, W, C]`."""
        x = images.reshape(images.shape[0], -1)
        x = nnx.relu(self.hidden1(x))
        x = nnx.relu(self.hidden2(x))
        return self.output(x)


class LeNet5(nnx.Module):
    """LeNet-5 in its 20-50-500 form: 431,080 parameters on 28x28 images."""

    def __init__(self, image_shape: tuple[int, int, int], rngs: nnx.Rngs):
        height, width, channels = image_shape

        def conv(channels: int, features: int) -> nnx.Conv:
            return nnx.Conv(
                channels,
                features,
                kernel_size=(5, 5),
                padding="VALID",
                conv_general_dilated=convolution.conv,
                rngs=rngs,
            )

        self.conv1 = conv(channels, 20)
        self.conv2 = conv(20, 50)
        rows, columns = ((size - 4) // 2 for size in (height, width))
        rows, columns = ((size - 4) // 2 for size in (rows, columns))
        self.hidden = nnx.Linear(rows * columns * 50, 500, rngs=rngs)
        self.output = nnx.Linear(500, NUM_CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits `[B, 10]` of `images`, `[B, H, W, C]`."""
        # ReLU and maximum commute, and the smaller image is the cheaper one to clip.
        x = nnx.relu(max_pool(self.conv1(images)))
        x = nnx.relu(max_pool(self.conv2(x)))
        x = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return self.output(x)


class PixelTransformer(nnx.Module):
    """One block of attention over the pixels, each a token of its place and shade.

    A small network with what the others lack: attention, norms, and an embedding many
    of whose rows are rare in the data. 43,690 parameters on 8x8 images.
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


NETWORKS = {
    "lenet300": LeNet300,
    "lenet5": LeNet5,
    "resnet32": ResNet32,
    "pixel-transformer": PixelTransformer,
}
