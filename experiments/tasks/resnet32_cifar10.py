"""ResNet-32 (464,154 parameters) on CIFAR-10, with the usual augmentation.

For an accelerator; not yet run in full.
"""

from experiments.config import ImageConfig

CONFIG = ImageConfig(
    experiment="resnet32-cifar10",
    dataset="cifar10",
    network="resnet32",
    shift=4,
    mirror=True,
    batch_size=128,
    dense_optimizer="sgd",
    dense_learning_rate=0.1,
    dense_strength=1e-4,
    dense_epochs=160,
    optimizer="sgd",
    learning_rate=0.02,
    bound=0.1,
    relative_bound=True,
    fraction=0.0305,
    interval=351,
    epochs=98,
    finetune_epochs=60,
    finetune_learning_rate=0.05,
    finetune_schedule="cosine",
)
