"""The comparison with other methods: sparsity against accuracy.

Every method has the same number of updates, and the same fine-tuning at the end. Those
that prune at a validation accuracy are compared at some bounds, the others at some
sparsities. One number of each is tuned: the strength, or without one the learning rate.
"""

import dataclasses
import functools
import math
from typing import Any

from experiments.comparing.engine import Arm, Comparison, Task, Variant
from experiments.config import AT_INIT, ImageConfig
from experiments.records import Row
from experiments.tasks import (
    lenet5_fashion,
    lenet5_mnist,
    lenet300_mnist,
    resnet20_cifar10,
)

# Multiples of the value of a task that are tried first.
STRENGTHS = "strength", (0.5, 1.5, 5.0)
SMALL = "strength", (0.05, 0.15, 0.5)
# Weights that nothing shrinks need lower learning rates than the others.
RATES = "learning_rate", (1 / 6, 1 / 3, 2 / 3)


def arm(about: str, tuned: str, factors: tuple[float, ...], **changes: Any) -> Arm:
    """Returns a method, one number of which is tuned."""

    def configure(config: ImageConfig) -> ImageConfig:
        config = dataclasses.replace(config, **changes)
        if config.prune not in AT_INIT:
            return config
        # They need no dense network, and get its epochs, except for one.
        epochs = config.epochs + config.dense_epochs - 1
        return dataclasses.replace(config, dense_epochs=1, epochs=epochs)

    def first(config: ImageConfig) -> list[tuple[float, ...]]:
        own = getattr(config, tuned)
        # Rounded: the last bits of a product would be another run.
        return [(float(f"{factor * own:.3g}"),) for factor in factors]

    return Arm(configure, (tuned,), first, about)


ARMS = {
    # At a scale of 1 no gradient makes a weight relevant, and this would be l2.
    "relevance": arm(
        "this method (Bonetta et al. 2022) with a scale of 0.01", *STRENGTHS, scale=1e-2
    ),
    "l2": arm("weight decay through the optimizer", *STRENGTHS, regularizer="l2"),
    "l1": arm("l1 through the optimizer", *SMALL, regularizer="l1"),
    "lobster": arm(
        "the decay of LOBSTER (Tartaglione et al. 2020), with the same pruning",
        *SMALL,
        regularizer="lobster",
    ),
    "none": arm("magnitude alone", *RATES, regularizer="none"),
    "gradual": arm(
        "magnitude on a cubic schedule (Zhu and Gupta 2017), over all layers",
        *RATES,
        prune="gradual",
        regularizer="none",
    ),
    "gradual-l2": arm(
        "the same with l2", *STRENGTHS, prune="gradual", regularizer="l2"
    ),
    "snip": arm(
        "sensitivity before the training (Lee et al. 2019)",
        *RATES,
        prune="snip",
        regularizer="none",
    ),
    "random": arm(
        "random masks before the training", *RATES, prune="static", regularizer="none"
    ),
}


# Five to eight minutes a run on one core.
budget = functools.partial(
    dataclasses.replace,
    dense_epochs=2,
    epochs=9,
    interval=86,
    fraction=0.14,
    learning_rate=2e-3,
    finetune_epochs=2,
    finetune_learning_rate=2e-3,
)
# The learning rate stays high while weights are pruned: one that decays ends gated
# pruning early.
TASKS = {
    "lenet300-mnist": Task(
        dataclasses.replace(
            lenet300_mnist.CONFIG,
            dense_epochs=4,
            epochs=28,
            learning_rate=3e-3,
            schedule="constant",
            fraction=0.11,
            finetune_epochs=4,
            finetune_learning_rate=3e-3,
        ),
        bounds=(0.96, 0.97, 0.975),
        sparsities=(0.98, 0.99, 0.995),
        errors=(2.5, 3.0),
        num_seeds=5,
        at_once=1,
    ),
    "lenet5-mnist": Task(
        budget(lenet5_mnist.CONFIG),
        bounds=(0.98, 0.987),
        sparsities=(0.99, 0.996),
        errors=(1.0, 1.5),
        num_seeds=2,
        at_once=1,
        tuned_on="lenet300-mnist",
    ),
    "lenet5-fashion": Task(
        budget(lenet5_fashion.CONFIG),
        bounds=(0.865, 0.88),
        sparsities=(0.98, 0.99),
        errors=(10.5, 11.5),
        num_seeds=2,
        at_once=1,
        tuned_on="lenet300-mnist",
    ),
    # Tuned by itself: strengths under SGD differ.
    "resnet20-cifar10": Task(
        dataclasses.replace(
            resnet20_cifar10.CONFIG,
            fraction=0.05,
            epochs=80,
            finetune_epochs=20,
        ),
        bounds=(0.04, 0.07),  # below the accuracy of the dense network
        sparsities=(0.9, 0.95),
        errors=(8.5, 10.0),
        num_seeds=3,
        at_once=1,
        needs_accelerator=True,
    ),
}


def goals(task: Task, config: ImageConfig) -> list[Variant]:
    if config.prune == "gated":
        return [{"bound": value} for value in task.bounds]
    return [{"target_sparsity": value} for value in task.sparsities]


def num_steps(run: Row, config: ImageConfig) -> int:
    """Returns the number of pruning steps after which a run has its weights.

    Weights themselves would not do: how fractions round depends on their order.
    """
    share = max(run["kept"], 1) / run["total"]
    return round(math.log(share) / math.log1p(-config.fraction))


METHODS = Comparison(
    name="methods",
    tasks=TASKS,
    arms=ARMS,
    rounds=(((0, 1), 1),),
    variants=goals,
    tuned_at=lambda variants: variants[len(variants) // 2],
    size=lambda run, config: -num_steps(run, config),
)
