"""LeNet-300-100 and LeNet-5."""

import jax
from flax import nnx

from experiments.data.images import NUM_CLASSES
from experiments.networks.convolution import make_conv


def max_pool(x: jax.Array) -> jax.Array:
    """Returns the maximum of every 2x2 square of `[B, H, W, C]`.

    A reshape, because the gradient of `nnx.max_pool` is slow on CPU.
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
        self.conv1 = make_conv(channels, 20, 5, rngs)
        self.conv2 = make_conv(20, 50, 5, rngs)
        rows, columns = ((size - 4) // 2 for size in (height, width))
        rows, columns = ((size - 4) // 2 for size in (rows, columns))
        self.hidden = nnx.Linear(rows * columns * 50, 500, rngs=rngs)
        self.output = nnx.Linear(500, NUM_CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits `[B, 10]` of `images`, `[B, H, W, C]`."""
        # ReLU and maximum commute, and the smaller image is cheaper to clip.
        x = nnx.relu(max_pool(self.conv1(images)))
        x = nnx.relu(max_pool(self.conv2(x)))
        x = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return self.output(x)
