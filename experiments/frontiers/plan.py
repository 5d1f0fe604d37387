"""Which runs the frontiers take of a method: those that tune it, and its points."""

import dataclasses
import math
from collections.abc import Callable, Container, Iterable
from pathlib import Path

from experiments.config import AT_INIT, ExperimentError, ImageConfig
from experiments.frontiers import points
from experiments.frontiers.methods import METHODS, TASKS, Method, Task
from experiments.records import Row, replays
from experiments.running.tuning import at, best_of, surround

# Makes the runs of a stage ("tuning" or "frontier").
Make = Callable[[str, list[ImageConfig]], list[Row]]

TUNING_SEEDS = 0, 1
FIRST_SEED = 10  # of those that frontiers are made on


def make_method(name: str, task: Task, make: Make) -> None:
    """Tunes a method, and makes its frontier."""
    config = dataclasses.replace(task.config, **METHODS[name].changes)
    if config.prune in AT_INIT:
        # Nothing is left of a dense training, so they get its epochs, all but the one
        # that a run has at the least.
        epochs = config.epochs + config.dense_epochs - 1
        config = dataclasses.replace(config, dense_epochs=1, epochs=epochs)
    value = tune(name, config, task, make)
    config = dataclasses.replace(config, **{METHODS[name].tuned: value})
    seeds = range(FIRST_SEED, FIRST_SEED + task.num_seeds)
    make("frontier", each(config, *goals(config, task), seeds))


def tune(name: str, config: ImageConfig, task: Task, make: Make) -> float:
    """Returns the best value of what is tuned of a method.

    It is the one that makes the most prunes at one of the bounds; among those that make
    as many, as all do if they are told a sparsity, the most accurate.
    """
    if task.tuned_on:
        return tuned_elsewhere(name, task.tuned_on)
    goal, values = goals(config, task)
    config = dataclasses.replace(config, **{goal: values[len(values) // 2]})
    method = METHODS[name]
    names = (method.tuned,)

    def size(run: Row) -> float:
        # Not by the weights: prunes leave some more or fewer in another order.
        return -num_prunes(run, config.fraction)

    tried = [(value,) for value in first_values(method, config)]
    runs = make("tuning", at(tried, config, TUNING_SEEDS, names))
    (best,) = surround(
        best_of(tried, runs, names, size)[0],
        tried,
        runs,
        config,
        make=lambda configs: make("tuning", configs),
        seeds=TUNING_SEEDS,
        names=names,
        size=size,
    )
    return best


def first_values(method: Method, config: ImageConfig) -> list[float]:
    """Returns what is tried first of the number that is tuned."""
    own = getattr(config, method.tuned)
    # Rounded, lest the last bits of a product name another run.
    return [float(f"{factor * own:.3g}") for factor in method.factors]


def num_prunes(run: Row, fraction: float) -> int:
    """Returns how many prunes of a fraction leave what is left after a run."""
    share = max(run["kept"], 1) / run["total"]
    return round(math.log(share) / math.log1p(-fraction))


def tuned_elsewhere(name: str, task: str) -> float:
    """Returns what a method was tuned to on another task.

    Raises:
      ExperimentError: that task has not been made.
    """
    frontiers = points.frontiers_of(points.read(points.STORE, task))
    if name not in frontiers:
        raise ExperimentError(
            f"{name} is tuned on {task}, which has not been made: add it to --tasks, "
            f"before."
        )
    return frontiers[name].value


def goals(config: ImageConfig, task: Task) -> tuple[str, tuple[float, ...]]:
    """Returns the setting by which a method goes along its frontier, and its values."""
    if config.prune == "gated":
        return "bound", task.bounds
    return "target_sparsity", task.sparsities


def each(
    config: ImageConfig, name: str, values: Iterable[float], seeds: Iterable[int]
) -> list[ImageConfig]:
    """Returns the runs with each of the values, on every seed."""
    return [
        dataclasses.replace(config, **{name: value, "seed": seed})
        for value in values
        for seed in seeds
    ]


def check_stored(
    store: Path, tasks: Container[str] = (), methods: Container[str] = ()
) -> None:
    """Raises `ExperimentError` if rows stored are not those of the present methods.

    They are not if methods or tasks have been changed since. Rows of those `methods` on
    those `tasks` are left aside, which are about to be made.
    """
    for task in TASKS:
        rows = points.read(store, task)
        for method in dict.fromkeys(row["method"] for row in rows):
            if task in tasks and method in methods:
                continue
            own = [row for row in rows if row["method"] == method]
            if not is_current(method, TASKS[task], own):
                raise ExperimentError(
                    f"the rows of {method} in {store / task}.jsonl are not those of "
                    f"the present methods: make them with --tasks {task} --methods "
                    f"{method}, or delete them."
                )


def is_current(name: str, task: Task, rows: list[Row]) -> bool:
    """Whether rows are of the runs that are made of a method, and in their order."""
    return name in METHODS and replays(
        lambda make: make_method(name, task, make), rows, ("stage", "config_id", "seed")
    )
