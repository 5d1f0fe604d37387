"""The relevance study: does sparing relevant weights beat shrinking all of them?

Strengths are multiples of that of the task, scales are in the unit of the form. Every
arm begins with nine settings. All runs of one seed start from the same dense network
and prune at the same bound, so that they make pairs.
"""

import dataclasses
import math
from typing import Any, get_args

from experiments.comparing.engine import Arm, Comparison, Task, Variant
from experiments.config import Control, Form, ImageConfig
from experiments.tasks import digits

STRENGTHS = 1.0, 3.0, 10.0
SCALES = 0.3, 1.0, 3.0
PAPER = 1e-4, 1e-3, 1e-2
APART = 300.0, 1000.0, 3000.0
FINE = tuple(round(10 ** (k / 4 - 1), 3) for k in range(9))  # 0.1 to 10


def arm(
    strengths: tuple[float, ...] = STRENGTHS,
    scales: tuple[float, ...] = (1.0,),
    counterpart: str = "l2",
    form: Form | None = None,
    **changes: Any,
) -> Arm:
    """Returns an arm that is tuned over all pairs of strengths and scales."""
    changes |= {"form": form or Form()}
    return Arm(
        lambda config: dataclasses.replace(config, **changes),
        ("strength", "scale"),
        lambda config: [(config.strength * x, y) for x in strengths for y in scales],
        counterpart=counterpart,
    )


def relative(
    strengths: tuple[float, ...] = STRENGTHS, unit: Any = "leaf", **form: Any
) -> Arm:
    """Returns the arm of a form whose unit is a root mean square."""
    return arm(strengths, SCALES, form=Form(unit=unit, **form))


def apart(unit: Any = "leaf", **form: Any) -> Arm:
    """Returns the same, decoupled from the preconditioning by Adam."""
    own = Form(unit=unit, memory=0.99, **form)
    return arm(APART, (0.1, 0.3, 1.0), "l2, decoupled", own, decoupled=True)


def spared(**form: Any) -> Arm:
    """Returns the arm of a form that spares a share of the weights altogether."""
    return arm((0.3, 1.0, 3.0), (0.01, 0.05, 0.2), form=Form(unit="quantile", **form))


def ranking(
    unit: Any = "leaf", strengths: tuple[float, ...] = (0.3, 1.0, 3.0), **changes: Any
) -> Arm:
    """Returns an arm whose pruning steps rank weights by relevance."""
    form = Form(unit=unit, memory=0.99)
    return arm(strengths, SCALES, form=form, criterion="relevance", **changes)


ARMS = {
    "none": arm((1.0,), regularizer="none"),
    "l2": arm(FINE, regularizer="l2"),
    "l2, strength decays": arm(FINE, regularizer="l2", strength_decay_epochs=5.0),
    "l2, decoupled": arm(
        tuple(100 * s for s in FINE), regularizer="l2", decoupled=True
    ),
    "l1": arm(tuple(0.1 * s for s in FINE), regularizer="l1"),
    # That of the paper.
    "relevance": arm(STRENGTHS, PAPER),
    "relevance, strength decays": arm(
        STRENGTHS, PAPER, "l2, strength decays", strength_decay_epochs=5.0
    ),
    # Relative to the size of the gradients.
    "leaf": relative(),
    "network": relative(unit="network"),
    "leaf, running": relative(memory=0.99),
    "network, running": relative(unit="network", memory=0.99),
    # Not divided by Adam, which by itself shrinks weights of small gradients more.
    "relevance, decoupled": arm(APART, PAPER, "l2, decoupled", decoupled=True),
    "leaf, running, decoupled": apart(),
    "network, running, decoupled": apart("network"),
    "saliency, running, decoupled": apart(measure="saliency"),
    "per-example": relative(measure="per-example"),
    "saliency": relative(measure="saliency"),
    "saliency, running": relative(measure="saliency", memory=0.99),
    # Only the most relevant few are spared.
    "top": spared(),
    "top, running": spared(memory=0.99),
    "top saliency, running": spared(measure="saliency", memory=0.99),
    # In the ranking at pruning steps, with all weights decaying alike, or in both.
    "ranking, running": ranking(regularizer="l2"),
    "ranking in network, running": ranking("network", regularizer="l2"),
    "ranking and decay, running": ranking(strengths=STRENGTHS),
}
PAPER_AND_RANKING = "none", "l2", "relevance", "ranking in network, running"
FEW = (
    *("none", "l2", "relevance", "leaf, running", "saliency, running"),
    *("top, running", "ranking, running", "ranking in network, running"),
)
# Short runs that remove much in one pruning step, so that the regularizer decides how
# sparse they get, and not the number of steps.
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
# Fewer images and shorter runs than those of the paper: there are a hundred to make.
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
        DIGITS,
        "LeNet-300-100 on the digits of scikit-learn.",
        # The gradients of single examples cost too much in batches of 32.
        tuple(name for name in ARMS if name != "per-example"),
        num_seeds=18,
    ),
    "digits-few-steps": Task(
        dataclasses.replace(DIGITS, fraction=0.3, interval=20, epochs=36),
        "Heavy pruning: 30 % at once, and only 20 updates to recover.",
        FEW,
        num_seeds=36,
    ),
    "digits-noise": Task(
        dataclasses.replace(DIGITS, label_noise=0.3),
        "30 % of the training images have a random label.",
        FEW,
        num_seeds=18,
    ),
    "digits-few-images": Task(
        dataclasses.replace(DIGITS, num_train=200, dense_epochs=300, epochs=1000),
        "200 training images.",
        FEW,
    ),
    "digits-sgd": Task(
        dataclasses.replace(DIGITS, optimizer="sgd", learning_rate=0.05),
        "SGD with momentum 0.9 instead of Adam, after dense training.",
        FEW,
    ),
    "digits-batches-of-8": Task(
        dataclasses.replace(DIGITS, batch_size=8, dense_epochs=15, epochs=46),
        "Small batches, and the gradients of single examples.",
        ("none", "l2", "relevance", "leaf", "per-example"),
    ),
    "digits-attention": Task(
        dataclasses.replace(DIGITS, network="pixel-transformer"),
        "A block of attention over embedded pixels, many of them rare.",
        ("none", "l2", "relevance", "leaf, running"),
    ),
    "mnist": Task(MNIST, "LeNet-300-100 on MNIST.", PAPER_AND_RANKING),
    "mnist-few-steps": Task(
        dataclasses.replace(MNIST, fraction=0.3, interval=20, epochs=2),
        "LeNet-300-100 on MNIST, with the heavy pruning of digits-few-steps.",
        PAPER_AND_RANKING,
    ),
    "fashion": Task(
        FASHION,
        "LeNet-5, with its convolutions, on 12,000 images of Fashion-MNIST.",
        ("none", "l2", "relevance"),
        at_once=1,
    ),
}


def controls(task: Task, config: ImageConfig) -> list[Variant]:
    del task
    by_relevance = "relevance" in (config.regularizer, config.criterion)
    those = get_args(Control) if by_relevance else ("none",)
    return [{"form": dataclasses.replace(config.form, control=x)} for x in those]


STUDY = Comparison(
    name="study",
    tasks=TASKS,
    arms=ARMS,
    rounds=(((0, 1), 3), ((2, 3, 4, 5), 1)),
    variants=controls,
    tuned_at=lambda variants: variants[0],
    size=lambda run, config: math.log(max(run["kept"], 1)),
)
