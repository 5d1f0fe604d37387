"""LeNet-5 (431,080 parameters) on MNIST.

python -m experiments lenet5-mnist --data-dir DATA

Five seeds, each on one of two busy cores in 32 minutes: 99.72 % sparse at 0.73 % test
error (0.59 to 0.84), from a dense 0.58 %.

Training images are moved by up to a pixel. The learning rate is high and constant while
weights are pruned: on LeNet-300-100 (one seed, on validation), low or falling ones left
less accurate networks after the same prunes and fine-tuning. Such a rate makes the
accuracy worst while most weights are there, so that the bound is low, and the number of
prunes decides where it ends. Settings were chosen on the validation split, by a run of
another seed whose test accuracy was not looked at; three runs of other settings had
been tested before.
"""

from experiments.config import Config

CONFIG = Config(
    experiment="lenet5-mnist",
    dataset="mnist",
    network="lenet5",
    shift=1,
    strength=2e-4,
    scale=1.0,
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
