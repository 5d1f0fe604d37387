"""LeNet-300-100 (266,610 parameters) on MNIST.

python -m experiments lenet300-mnist --data-dir DATA

Seed 0, on two cores in about two and a half minutes: 98.31 % sparse at 1.93 % test
error, from a dense 1.87 %.
"""

from experiments.config import Config

CONFIG = Config(
    experiment="lenet300-mnist",
    dataset="mnist",
    network="lenet300",
    strength=1e-4,
    scale=1.0,
    fraction=0.04,
    bound=0.98,
    interval=107,
    epochs=200,
    batch_size=256,
    learning_rate=2e-3,
    schedule="cosine",
)
