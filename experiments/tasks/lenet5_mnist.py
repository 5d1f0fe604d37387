"""LeNet-5 (431,080 parameters) on MNIST.

Half an hour on one core.
"""

from experiments.config import ImageConfig

CONFIG = ImageConfig(
    experiment="lenet5-mnist",
    dataset="mnist",
    network="lenet5",
    shift=1,
    strength=2e-4,
    fraction=0.0345,
    bound=0.97,
    interval=143,
    dense_epochs=6,
    epochs=56,
    batch_size=128,
    learning_rate=5e-3,
    finetune_epochs=12,
    finetune_learning_rate=5e-3,
    finetune_schedule="cosine",
)
