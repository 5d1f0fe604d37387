"""What the control study tries: on which tasks, which forms of relevance.

Strengths are multiples of that of the task, scales are in the unit of the form. Every
trial with something to tune has nine settings, be it nine strengths or three by three,
and as many more as it takes to have the best strength and scale inside of those tried.
"""

import dataclasses
from typing import Any, NamedTuple

from experiments.config import ImageConfig
from experiments.forms import Form
from experiments.tasks import digits


class Trial(NamedTuple):
    """A way to drive weights to zero, and the settings that are tried first."""

    changes: dict[str, Any]  # to the configuration of a task
    strengths: tuple[float, ...] = (1.0,)
    scales: tuple[float, ...] = (1.0,)
    # The l2 whose strength decays, or that is decoupled, as here.
    counterpart: str = "l2"


class Task(NamedTuple):
    """What is trained and pruned, and the trials made of it."""

    title: str
    config: ImageConfig
    trials: tuple[str, ...]
    num_seeds: int = 9
    # How many runs are trained at once. On wider matrices than those of the digits the
    # last bits of a dense network depend on it, and pairs must start from the same one.
    at_once: int = 3


# The seeds that settings are tried on, and how many of the best are left after it.
ROUNDS = ((0, 1), 3), ((2, 3, 4, 5), 1)
FIRST_SEED = 10  # of those that the chosen settings are compared on
STRENGTHS = 1.0, 3.0, 10.0
SCALES = 0.3, 1.0, 3.0
FINE = tuple(round(10 ** (k / 4 - 1), 3) for k in range(9))  # 0.1 to 10


def relative(**form: Any) -> Trial:
    """Returns the trial of a form whose unit is a measure's root mean square."""
    return Trial({"form": Form(**{"unit": "leaf", **form})}, STRENGTHS, SCALES)


def apart(**form: Any) -> Trial:
    """Returns the same, with the decay kept apart from Adam's division."""
    trial = relative(**form)
    return Trial(
        trial.changes | {"decoupled": True},
        (300.0, 1000.0, 3000.0),
        (0.1, 0.3, 1.0),
        counterpart="l2, decoupled",
    )


def spared(**form: Any) -> Trial:
    """Returns the trial of a form that spares a share of the weights altogether."""
    return Trial(
        {"form": Form(unit="quantile", **form)}, (0.3, 1.0, 3.0), (0.01, 0.05, 0.2)
    )


TRIALS = {
    "none": Trial({"regularizer": "none"}),
    "l2": Trial({"regularizer": "l2"}, FINE),
    "l2, strength decays": Trial(
        {"regularizer": "l2", "strength_decay_epochs": 5.0}, FINE
    ),
    "l2, decoupled": Trial(
        {"regularizer": "l2", "decoupled": True}, tuple(100 * s for s in FINE)
    ),
    "l1": Trial({"regularizer": "l1"}, tuple(0.1 * s for s in FINE)),
    # The paper's.
    "relevance": Trial({}, STRENGTHS, (1e-4, 1e-3, 1e-2)),
    "relevance, strength decays": Trial(
        {"strength_decay_epochs": 5.0},
        STRENGTHS,
        (1e-4, 1e-3, 1e-2),
        counterpart="l2, strength decays",
    ),
    # Relative to the gradients' own size.
    "leaf": relative(),
    "network": relative(unit="network"),
    "leaf, running": relative(memory=0.99),
    "network, running": relative(unit="network", memory=0.99),
    # Not divided by Adam, which shrinks weights of small gradients more by itself.
    "relevance, decoupled": Trial(
        {"decoupled": True},
        (300.0, 1000.0, 3000.0),
        (1e-4, 1e-3, 1e-2),
        counterpart="l2, decoupled",
    ),
    "leaf, running, decoupled": apart(memory=0.99),
    "network, running, decoupled": apart(unit="network", memory=0.99),
    "saliency, running, decoupled": apart(measure="saliency", memory=0.99),
    "per-example": relative(measure="per-example"),
    "saliency": relative(measure="saliency"),
    "saliency, running": relative(measure="saliency", memory=0.99),
    # Only the most relevant few are spared.
    "top": spared(),
    "top, running": spared(memory=0.99),
    "top saliency, running": spared(measure="saliency", memory=0.99),
    # In the ranking of a prune, with all weights decaying alike, or in both.
    "ranking, running": relative(memory=0.99, acts_on="ranking")._replace(
        strengths=(0.3, 1.0, 3.0)
    ),
    "ranking in network, running": relative(
        unit="network", memory=0.99, acts_on="ranking"
    )._replace(strengths=(0.3, 1.0, 3.0)),
    "ranking and decay, running": relative(memory=0.99, acts_on="both"),
}
PAPER_AND_RANKING = "none", "l2", "relevance", "ranking in network, running"
FEW = (
    *("none", "l2", "relevance", "leaf, running", "saliency, running"),
    *("top, running", "ranking, running", "ranking in network, running"),
)
# Short runs, which drop much at a prune, so that the regularizer and not the number of
# prunes decides how far they come.
DIGITS = dataclasses.replace(
    digits.CONFIG,
    dense_epochs=60,
    epochs=182,
    interval=100,
    fraction=0.15,
    batch_size=32,
    learning_rate=1e-3,
    finetune_epochs=0,
)
MNIST = ImageConfig(
    experiment="lenet300-mnist",
    dataset="mnist",
    network="lenet300",
    dense_epochs=5,
    epochs=20,
    interval=110,
    fraction=0.1,
    bound=0.005,
    relative_bound=True,
    schedule="cosine",
)
# Fewer images and shorter runs than the paper's, for there are a hundred to make.
FASHION = ImageConfig(
    experiment="lenet5-fashion",
    dataset="fashion_mnist",
    network="lenet5",
    num_train=12_000,
    dense_epochs=2,
    epochs=6,
    interval=100,
    fraction=0.2,
    batch_size=16,
    bound=0.01,
    relative_bound=True,
)
TASKS = {
    "digits": Task(
        "LeNet-300-100 on scikit-learn's digits.",
        DIGITS,
        # The gradients of single examples cost too much in batches of 32.
        tuple(name for name in TRIALS if name != "per-example"),
        num_seeds=18,
    ),
    "digits-few-steps": Task(
        "Heavy pruning: 30 % at once, and only 20 updates to recover.",
        dataclasses.replace(DIGITS, fraction=0.3, interval=20, epochs=36),
        FEW,
        num_seeds=36,
    ),
    "digits-noise": Task(
        "30 % of the training images have a label drawn at random.",
        dataclasses.replace(DIGITS, label_noise=0.3),
        FEW,
        num_seeds=18,
    ),
    "digits-few-images": Task(
        "200 training images.",
        dataclasses.replace(DIGITS, num_train=200, dense_epochs=300, epochs=1000),
        FEW,
    ),
    "digits-sgd": Task(
        "SGD with momentum 0.9 in place of Adam, from the pruning on.",
        dataclasses.replace(DIGITS, optimizer="sgd", learning_rate=0.05),
        FEW,
    ),
    "digits-batches-of-8": Task(
        "Small batches, and the gradients of single examples.",
        dataclasses.replace(DIGITS, batch_size=8, dense_epochs=15, epochs=46),
        ("none", "l2", "relevance", "leaf", "per-example"),
    ),
    "digits-attention": Task(
        "A block of attention over embedded pixels, many of them rare.",
        dataclasses.replace(DIGITS, network="pixel-transformer"),
        ("none", "l2", "relevance", "leaf, running"),
    ),
    "mnist": Task("LeNet-300-100 on MNIST.", MNIST, PAPER_AND_RANKING),
    "mnist-few-steps": Task(
        "LeNet-300-100 on MNIST, with the heavy pruning of digits-few-steps.",
        dataclasses.replace(MNIST, fraction=0.3, interval=20, epochs=2),
        PAPER_AND_RANKING,
    ),
    "fashion": Task(
        "LeNet-5, with its convolutions, on 12,000 images of Fashion-MNIST.",
        FASHION,
        ("none", "l2", "relevance"),
        at_once=1,
    ),
}
