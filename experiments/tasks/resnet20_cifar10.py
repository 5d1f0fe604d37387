"""ResNet-20 (272,474 parameters) on CIFAR-10, with the usual augmentation.

On one core, six hours of dense training, and four of pruning and fine-tuning.
"""

from experiments.config import ImageConfig

CONFIG = ImageConfig(
    experiment="resnet20-cifar10",
    dataset="cifar10",
    network="resnet20",
    shift=4,
    mirror=True,
    batch_size=128,
    dense_optimizer="sgd",
    dense_learning_rate=0.1,
    dense_strength=2.5e-4,
    dense_epochs=60,
    optimizer="sgd",
    strength=2.5e-4,
    learning_rate=0.05,
    fraction=0.1424,  # 90 % by the 15 pruning steps between 16 epochs
    bound=0.15,
    relative_bound=True,
    interval=351,
    epochs=16,
    finetune_epochs=24,
    finetune_learning_rate=0.05,
    finetune_schedule="cosine",
    checkpoint_every=1,
)
