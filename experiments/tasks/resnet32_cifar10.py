r"""ResNet-32 (464,154 parameters) on CIFAR-10, with the usual augmentation.

python -m experiments resnet32-cifar10 --data-dir DATA

Meant for an accelerator, where --bfloat16 should be faster, and not yet made on one. As
on MNIST, the learning rate does not fall while weights go, and the number of prunes
decides where it ends: at 95 %; with --fraction 0.0235, at 90 %. It goes on after an
interruption, so that it can be made in pieces.

A reduced run, to see on a CPU that it prunes and recovers. Seed 0, on one of two busy
cores in 70 minutes: 85.77 % sparse at 29.63 % test error, from a dense network that 12
epochs had not trained to the end, 44.57 %.

python -m experiments resnet32-cifar10 --num-train 5000 --batch-size 32 \
    --dense-learning-rate 0.05 --dense-epochs 12 --epochs 16 --interval 156 \
    --fraction 0.13 --finetune-epochs 5 --data-dir DATA
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
    strength=1e-4,
    scale=1.0,
    bound=0.1,
    relative_bound=True,
    fraction=0.0305,
    interval=351,
    epochs=98,
    finetune_epochs=60,
    finetune_learning_rate=0.05,
    finetune_schedule="cosine",
)
