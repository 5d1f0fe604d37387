"""What is compared on the way to sparsity: methods, tasks, and what each is tried at.

Every method has the same dense training, the same number of updates to prune in, and
the same fine-tuning. Those that wait for a validation accuracy come to what sparsity
they can at each of some bounds; those that are told a sparsity, to what accuracy.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from experiments import (
    digits,
    lenet5_fashion,
    lenet5_mnist,
    lenet300_mnist,
    resnet32_cifar10,
)
from experiments.config import Config, check


class Method(NamedTuple):
    """A way to a sparse network.

    Attributes:
      changes: to the configuration of a task.
      strengths: what is tried of --strength; a single one is not tuned.
      source: where the method is from.
    """

    changes: dict[str, Any]
    strengths: tuple[float, ...]
    source: str


class Task(NamedTuple):
    """What is trained and pruned.

    Attributes:
      config: its budget, and whatever the methods leave alone.
      bounds: validation accuracies, for methods that wait for one.
      sparsities: for methods that are told one.
      errors: at which sparsities are told, in %, as errors at `sparsities` are.
      published: results of others, (method, error in %, sparsity in %).
      num_seeds: of each point of a frontier.
      at_once: how many runs are trained at once, at the most.
      tuned_on: the task whose strengths are taken, where they are not tuned anew.
    """

    config: Config
    bounds: tuple[float, ...]
    sparsities: tuple[float, ...]
    errors: tuple[float, ...]
    published: tuple[tuple[str, float, float], ...] = ()
    num_seeds: int = 5
    at_once: int = 5
    tuned_on: str | None = None


STRENGTHS = 3e-5, 1e-4, 3e-4, 1e-3
METHODS = {
    "relevance": Method({}, STRENGTHS, "Bonetta et al. 2022, scale 1"),
    "l2": Method({"regularizer": "l2"}, STRENGTHS, "weight decay through Adam"),
    "l1": Method(
        {"regularizer": "l1"}, tuple(0.1 * s for s in STRENGTHS), "l1 through Adam"
    ),
    "lobster": Method(
        {"regularizer": "lobster"},
        tuple(0.1 * s for s in STRENGTHS),
        "Tartaglione et al. 2020, pruned as the others are",
    ),
    "none": Method({"regularizer": "none"}, (0.0,), "iterative magnitude pruning"),
    "gradual": Method(
        {"prune": "gradual", "regularizer": "none"}, (0.0,), "Zhu and Gupta 2017"
    ),
    "gradual, l2": Method(
        {"prune": "gradual", "regularizer": "l2"}, STRENGTHS, "the same with l2"
    ),
    "snip": Method({"prune": "snip", "regularizer": "none"}, (0.0,), "Lee et al. 2019"),
    "random": Method(
        {"prune": "random", "regularizer": "none"}, (0.0,), "masks drawn at random"
    ),
}
# As quoted by the papers that are named in the README.
LENET300 = (
    ("Dynamic network surgery 2016", 1.99, 98.2),
    ("Soft weight sharing 2017", 1.94, 95.7),
    ("Sparse variational dropout 2017", 1.92, 98.5),
    ("SNIP 2019", 2.4, 98.0),
    ("Dynamic sparse training 2020", 2.31, 97.52),
)
LENET5 = (
    ("Dynamic network surgery 2016", 0.91, 99.1),
    ("Soft weight sharing 2017", 0.97, 99.5),
    ("Sparse variational dropout 2017", 0.75, 99.64),
    ("SNIP 2019", 1.1, 99.0),
    ("Dynamic sparse training 2020", 0.89, 98.36),
)
TASKS = {
    "digits": Task(
        dataclasses.replace(
            digits.CONFIG,
            dense_epochs=100,
            epochs=600,
            interval=100,
            finetune_epochs=100,
            relative_bound=False,
        ),
        bounds=(0.94, 0.96, 0.975),
        sparsities=(0.98, 0.99, 0.995),
        errors=(4.0, 5.0),
    ),
    "lenet300-mnist": Task(
        dataclasses.replace(
            lenet300_mnist.CONFIG,
            dense_epochs=10,
            epochs=60,
            schedule="constant",  # falling rates stop gated prunes too early
            fraction=0.06,
            finetune_epochs=10,
        ),
        bounds=(0.97, 0.975, 0.98),
        sparsities=(0.97, 0.98, 0.99),
        errors=(2.0, 2.5),
        published=LENET300,
    ),
    "lenet5-mnist": Task(
        dataclasses.replace(
            lenet5_mnist.CONFIG,
            dense_epochs=5,
            epochs=20,
            fraction=0.09,
            finetune_epochs=5,
        ),
        bounds=(0.982, 0.987),
        sparsities=(0.99, 0.995),
        errors=(1.0, 1.5),
        published=LENET5,
        num_seeds=2,
        at_once=1,
        tuned_on="lenet300-mnist",
    ),
    "lenet5-fashion": Task(
        dataclasses.replace(
            lenet5_fashion.CONFIG,
            dense_epochs=5,
            epochs=20,
            fraction=0.09,
            finetune_epochs=5,
        ),
        bounds=(0.895, 0.91),
        sparsities=(0.98, 0.99),
        errors=(9.5, 10.5),
        num_seeds=2,
        at_once=1,
        tuned_on="lenet300-mnist",
    ),
    # For an accelerator. Under SGD strengths are others than those of the rest.
    "resnet32-cifar10": Task(
        dataclasses.replace(
            resnet32_cifar10.CONFIG,
            bfloat16=True,
            dense_epochs=60,
            epochs=80,
            finetune_epochs=20,
        ),
        bounds=(0.01, 0.025),  # below the accuracy of the dense network
        sparsities=(0.9, 0.95),
        errors=(8.5, 10.0),
        num_seeds=1,
        at_once=1,
    ),
}


@dataclasses.dataclass(frozen=True)
class Frontiers:
    """Makes the frontiers of all methods, or goes on with it, and tabulates them."""

    tasks: tuple[str, ...] = tuple(name for name in TASKS if "resnet" not in name)
    """Tasks by name; by default all but resnet32-cifar10, which takes an
    accelerator."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Methods by name; by default all of them."""
    out: Path = Path("runs/frontiers")
    """Folder of the runs, one folder a task."""
    data_dir: Path | None = None
    """Folder of the TFDS data sets; by default that of TFDS itself."""

    def validate(self) -> None:
        """Raises `ExperimentError` for the first value that makes no sense."""
        for field, known in (("tasks", TASKS), ("methods", METHODS)):
            for name in getattr(self, field):
                check(field, name, name in known, "of " + ", ".join(map(repr, known)))
