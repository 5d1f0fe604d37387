r"""LeNet-5 (431,080 parameters) on MNIST.

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

The settings of the paper, seed 0, on one of two busy cores in 55 minutes: 99.89 %
sparse at 1.95 % test error, from a dense 0.70 %, by

python -m experiments lenet5-mnist --shift 0 --strength 1e-3 \
    --strength-decay-epochs 1 --fraction 0.04 --bound 0.98 --interval 250 \
    --epochs 120 --batch-size 100 --learning-rate 1e-3 --finetune-epochs 0 \
    --finetune-learning-rate 3e-4 --finetune-schedule constant --data-dir DATA
"""

from experiments.config import ImageConfig

CONFIG = ImageConfig(
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
