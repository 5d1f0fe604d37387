"""LeNet-300-100 (266,610 parameters) on MNIST.

Ten minutes on one core.
"""

from experiments.config import ImageConfig

CONFIG = ImageConfig(
    experiment="lenet300-mnist",
    dataset="mnist",
    network="lenet300",
    shift=1,
    strength=2e-4,
    fraction=0.02,
    interval=107,
    epochs=350,
    batch_size=256,
    learning_rate=2e-3,
    schedule="cosine",
    finetune_epochs=50,
    finetune_learning_rate=1e-3,
    finetune_schedule="cosine",
)
