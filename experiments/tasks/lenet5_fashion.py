r"""LeNet-5 (431,080 parameters) on Fashion-MNIST.

python -m experiments lenet5-fashion --data-dir DATA

Five seeds, in 20 to 36 minutes each, on two cores or one: 99.31 % sparse at 8.51 % test
error (8.22 to 8.71), from a dense 7.71 %. That is 0.8 points more, where the validation
split, which chooses the best of 36 rounds of fine-tuning and so flatters it, says 0.4.

As on MNIST, the learning rate is high while weights go, and the number of prunes
decides where it ends. The fraction was chosen by validation accuracies, to be within
half a point of the dense network on the mean: of 0.0395 (99.55 %) those of seeds 0 and
3 were 1.1 and 0.4 points below, of 0.0385 (99.48 %) and 0.041 (99.63 %) that of seed
100 was 0.2 and 0.6; 0.0365 is less, for a margin. Of the five seeds with it two are 0.6
points below. Tested before were seed 0 with 0.0355 (99.21 % at 8.02 %) and those two
with 0.0395 (8.53 and 9.00 %).

Within half a point of the dense network on the test set, too: with smaller prunes and
longer fine-tuning, five seeds, in 43 to 60 minutes each on one of two busy cores:
98.31 % sparse at 7.94 % test error (7.89 to 8.02), from a dense 7.76 %, by

python -m experiments lenet5-fashion --fraction 0.03 --finetune-epochs 24 \
    --data-dir DATA

This was chosen when the loss of the runs above was known, and before any run with it.

The settings of the paper, seed 0, on one of two busy cores in 37 minutes: 99.25 %
sparse at 9.30 % test error, from a dense 8.19 %, by

python -m experiments lenet5-fashion --shift 0 --strength 1e-3 \
    --strength-decay-epochs 1 --fraction 0.04 --bound 0.905 --interval 250 \
    --epochs 75 --batch-size 100 --learning-rate 1e-3 --finetune-epochs 0 \
    --finetune-learning-rate 3e-4 --finetune-schedule constant --data-dir DATA
"""

from experiments.config import ImageConfig

CONFIG = ImageConfig(
    experiment="lenet5-fashion",
    dataset="fashion_mnist",
    network="lenet5",
    shift=1,
    strength=2e-4,
    scale=1.0,
    fraction=0.0365,
    bound=0.85,
    interval=143,
    dense_epochs=20,
    epochs=45,
    batch_size=128,
    learning_rate=5e-3,
    finetune_epochs=12,
    finetune_learning_rate=5e-3,
    finetune_schedule="cosine",
)
