"""What is compared on the way to sparsity: methods, tasks, and what each is tried at.

Every method has the same number of updates, and the same fine-tuning at the end. Those
that wait for a validation accuracy come to what sparsity they can at each of some
bounds; those that are told a sparsity, to what accuracy.
"""

import dataclasses
from typing import Any, NamedTuple

from experiments.config import ImageConfig
from experiments.tasks import (
    lenet5_fashion,
    lenet5_mnist,
    lenet300_mnist,
    resnet32_cifar10,
)


class Method(NamedTuple):
    """A way to a sparse network, and the one number of it that is tuned.

    Attributes:
      changes: to the configuration of a task.
      tuned: that number, by its name in the configuration.
      factors: of its value in the task's configuration, what is tried first.
      what: it is, and where it is from.
    """

    changes: dict[str, Any]
    tuned: str
    factors: tuple[float, ...]
    what: str


class Published(NamedTuple):
    """What others came to, in %, and where that is written."""

    method: str
    error: float
    sparsity: float
    source: str


class Task(NamedTuple):
    """What is trained and pruned.

    Attributes:
      config: its budget, and whatever the methods leave alone.
      bounds: validation accuracies, for methods that wait for one.
      sparsities: for methods that are told one.
      errors: at which sparsities are told, in %, as errors at `sparsities` are.
      published: results of others.
      num_seeds: of each point of a frontier.
      tuned_on: the task whose tuning is taken, where there is none anew.
      accelerator: whether it takes one.
    """

    config: ImageConfig
    bounds: tuple[float, ...]
    sparsities: tuple[float, ...]
    errors: tuple[float, ...]
    published: tuple[Published, ...] = ()
    num_seeds: int = 5
    tuned_on: str | None = None
    accelerator: bool = False


STRENGTHS = "strength", (0.5, 1.5, 5.0)
SMALL = "strength", (0.05, 0.15, 0.5)
# Weights that nothing shrinks do not survive the rates at which the others are best.
RATES = "learning_rate", (1 / 6, 1 / 3, 2 / 3)
METHODS = {
    "relevance": Method(
        # At a scale of 1 no gradient makes a weight relevant, and this would be l2.
        {"scale": 1e-2},
        *STRENGTHS,
        "this method (Bonetta et al. 2022) with a scale of 0.01",
    ),
    "l2": Method(
        {"regularizer": "l2"}, *STRENGTHS, "weight decay through the optimizer"
    ),
    "l1": Method({"regularizer": "l1"}, *SMALL, "l1 through the optimizer"),
    "lobster": Method(
        {"regularizer": "lobster"},
        *SMALL,
        "the decay of LOBSTER (Tartaglione et al. 2020), pruned as the others are",
    ),
    "none": Method({"regularizer": "none"}, *RATES, "magnitude alone"),
    "gradual": Method(
        {"prune": "gradual", "regularizer": "none"},
        *RATES,
        "magnitude along a cubic schedule (Zhu and Gupta 2017), but over all layers",
    ),
    "gradual-l2": Method(
        {"prune": "gradual", "regularizer": "l2"}, *STRENGTHS, "the same with l2"
    ),
    "snip": Method(
        {"prune": "snip", "regularizer": "none"},
        *RATES,
        "sensitivity before the training (Lee et al. 2019)",
    ),
    "random": Method(
        {"prune": "random", "regularizer": "none"},
        *RATES,
        "masks drawn at random before the training",
    ),
}
SNIP, SWS = "arXiv:1810.02340", "arXiv:1702.04008"
LENET300 = (
    Published("Han et al. 2015", 1.59, 91.7, "arXiv:1506.02626"),
    Published("Dynamic network surgery 2016", 1.99, 98.2, SWS),
    Published("Soft weight sharing 2017", 1.94, 95.7, SWS),
    Published("Sparse variational dropout 2017", 1.92, 98.5, "arXiv:1701.05369"),
    Published("LC 2018", 3.2, 99.0, SNIP),
    Published("SNIP 2019", 1.6, 95.0, SNIP),
    Published("SNIP 2019", 2.4, 98.0, SNIP),
    Published("Dynamic sparse training 2020", 2.31, 97.52, "arXiv:2005.06870"),
)
LENET5 = (
    Published("Han et al. 2015", 0.77, 91.7, "arXiv:1506.02626"),
    Published("Dynamic network surgery 2016", 0.91, 99.1, SWS),
    Published("Soft weight sharing 2017", 0.97, 99.5, SWS),
    Published("Sparse variational dropout 2017", 0.75, 99.64, "arXiv:1701.05369"),
    Published("LC 2018", 1.1, 99.0, SNIP),
    Published("SNIP 2019", 0.8, 98.0, SNIP),
    Published("SNIP 2019", 1.1, 99.0, SNIP),
    Published("Dynamic sparse training 2020", 0.89, 98.36, "arXiv:2005.06870"),
)
# Five to eight minutes a run on one core.
LENET5_BUDGET = {
    "dense_epochs": 2,
    "epochs": 9,
    "interval": 86,
    "fraction": 0.14,
    "learning_rate": 2e-3,
    "finetune_epochs": 2,
    "finetune_learning_rate": 2e-3,
}
# The learning rate stays up while weights go: one that falls ends gated prunes early.
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
        published=LENET300,
    ),
    "lenet5-mnist": Task(
        dataclasses.replace(lenet5_mnist.CONFIG, **LENET5_BUDGET),
        bounds=(0.98, 0.987),
        sparsities=(0.99, 0.996),
        errors=(1.0, 1.5),
        published=LENET5,
        num_seeds=2,
        tuned_on="lenet300-mnist",
    ),
    "lenet5-fashion": Task(
        dataclasses.replace(lenet5_fashion.CONFIG, **LENET5_BUDGET),
        bounds=(0.865, 0.88),
        sparsities=(0.98, 0.99),
        errors=(10.5, 11.5),
        num_seeds=2,
        tuned_on="lenet300-mnist",
    ),
    # For an accelerator. Under SGD strengths are others than those of the rest.
    "resnet32-cifar10": Task(
        dataclasses.replace(
            resnet32_cifar10.CONFIG,
            bfloat16=True,
            fraction=0.05,
            dense_epochs=60,
            epochs=80,
            finetune_epochs=20,
        ),
        bounds=(0.04, 0.07),  # below the accuracy of the dense network
        sparsities=(0.9, 0.95),
        errors=(8.5, 10.0),
        num_seeds=3,
        accelerator=True,
    ),
}
