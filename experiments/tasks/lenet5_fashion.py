"""LeNet-5 (431,080 parameters) on Fashion-MNIST.

Half an hour on one core.
"""

from experiments.config import ImageConfig

CONFIG = ImageConfig(
    experiment="lenet5-fashion",
    dataset="fashion_mnist",
    network="lenet5",
    shift=1,
    strength=2e-4,
    fraction=0.0365,
    bound=0.85,
    interval=143,
    epochs=45,
    batch_size=128,
    learning_rate=5e-3,
    finetune_epochs=12,
    finetune_learning_rate=5e-3,
    finetune_schedule="cosine",
)
