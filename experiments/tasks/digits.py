"""LeNet-300-100 on the scanned digits of scikit-learn.

Bundled data; less than a minute on one core.
"""

# `running/run.py` makes the run, in the phases of `training/phases.py`. The training
# loop, which makes the updates of a round, is `make_train` in `training/loop.py`.

from experiments.config import ImageConfig

CONFIG = ImageConfig(
    experiment="digits",
    dataset="digits",
    network="lenet300",
    strength=1e-3,
    scale=1e-2,
    fraction=0.1,
    bound=0.02,
    relative_bound=True,
    interval=200,
    epochs=1300,
    batch_size=128,
    learning_rate=2e-3,
    dense_epochs=200,
    finetune_epochs=250,
    finetune_learning_rate=1e-3,
)
