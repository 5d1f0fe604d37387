"""ResNet-32 (464,154 parameters) on CIFAR-10, with the usual augmentation.

python -m experiments resnet32-cifar10 --data-dir DATA

Meant for an accelerator, where --bfloat16 is faster. It goes on after an interruption,
so that it can be made in pieces.
"""

from experiments.config import Config

CONFIG = Config(
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
    learning_rate=0.05,
    schedule="cosine",
    strength=1e-4,
    scale=1.0,
    bound=0.015,
    relative_bound=True,
    fraction=0.05,
    interval=351,
    epochs=200,
    finetune_epochs=40,
    finetune_learning_rate=0.02,
    finetune_schedule="cosine",
)
