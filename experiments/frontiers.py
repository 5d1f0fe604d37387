"""Frontiers: how sparse a network each method makes, at how much accuracy.

    python -m experiments sweep frontiers --data-dir DATA

A method with a strength is tuned first, by the same rule for all: some strengths at the
middle one of its bounds or sparsities, on seeds of their own; the validation split
chooses. Where that would take too long, the strength is the one tuned on another task.
Then it is made at every bound or sparsity, on the seeds of the comparison. Runs are
stored, one by one; an interrupted command goes on.
"""

import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import jax
from rich.console import Console

from experiments import data, frontier_report
from experiments.config import Config, ExperimentError
from experiments.frontier_report import STORE
from experiments.methods import METHODS, TASKS, Frontiers, Task
from experiments.records import write_whole
from experiments.sweep import complete

Row = dict[str, Any]
# Makes the runs of a stage ("tuning" or "frontier").
Make = Callable[[str, list[Config]], list[Row]]

TUNING_SEEDS = 0, 1
FIRST_SEED = 10  # of those that frontiers are made on
STORED = (
    *("config_id", "seed", "strength", "bound", "target_sparsity", "kept", "total"),
    *("validation_accuracy", "dense_validation_accuracy", "sparsity"),
    *("dense_test_accuracy", "test_accuracy", "hardware", "commit"),
)


def frontiers(settings: Frontiers, command: str) -> None:
    """Makes what is missing, stores the rows and writes tables and figures.

    Args:
      settings: valid settings.
      command: what the user typed, for messages to repeat.

    Raises:
      ExperimentError: the output folder or a data set cannot be used, or the README has
        no place for the tables.
    """
    console = Console(highlight=False)
    frontier_report.check_readme()
    for name in settings.tasks:
        console.rule(name)
        make_task(name, settings, command, console)
    frontier_report.write(STORE)
    console.print(f"Tables: {frontier_report.README}", soft_wrap=True)


def make_task(name: str, settings: Frontiers, command: str, console: Console) -> None:
    """Makes the methods of a task, and stores the rows of each when it is done."""
    task = TASKS[name]
    config = dataclasses.replace(task.config, data_dir=settings.data_dir)
    load = functools.cache(lambda: data.load(config, command))
    path = STORE / f"{name}.jsonl"
    for method in settings.methods:
        rows: list[Row] = []

        def make(
            stage: str,
            configs: list[Config],
            method: str = method,
            rows: list[Row] = rows,
        ) -> list[Row]:
            console.print(f"{method}: {stage}")
            runs = complete(
                *(configs, settings.out / name, load, console),
                at_once=task.at_once,
                # What is being chosen does not see the test set.
                test=stage == "frontier",
            )
            for run in runs:
                values = {key: run[key] for key in STORED if key in run}
                rows.append({"method": method, "stage": stage, **values})
            return runs

        make_method(method, task._replace(config=config), make)
        others = [row for row in frontier_report.read(path) if row["method"] != method]
        STORE.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(json.dumps(row) + "\n" for row in others + rows))
        # Another method is another program, and the memory for code is limited.
        jax.clear_caches()


def make_method(name: str, task: Task, make: Make) -> None:
    """Tunes a method, if there is anything to tune, and makes its frontier."""
    config = dataclasses.replace(task.config, **METHODS[name].changes)
    config = dataclasses.replace(config, strength=strength_of(name, config, task, make))
    seeds = range(FIRST_SEED, FIRST_SEED + task.num_seeds)
    make("frontier", each(config, *goals(config, task), seeds))


def strength_of(name: str, config: Config, task: Task, make: Make) -> float:
    """Returns the strength of a method: its only one, or that which tuning chooses."""
    strengths = METHODS[name].strengths
    if len(strengths) == 1:
        return strengths[0]
    if task.tuned_on:
        return tuned_strength(name, task.tuned_on)
    goal, values = goals(config, task)
    middle = dataclasses.replace(config, **{goal: values[len(values) // 2]})
    return best_strength(
        make("tuning", each(middle, "strength", strengths, TUNING_SEEDS))
    )


def tuned_strength(name: str, task: str) -> float:
    """Returns the strength of a method that was tuned on another task.

    Raises:
      ExperimentError: that task has not been made.
    """
    frontiers = frontier_report.frontiers_of(
        frontier_report.read(STORE / f"{task}.jsonl")
    )
    if name not in frontiers:
        raise ExperimentError(
            f"the strength of {name} is that tuned on {task}, which has not been made: "
            f"add it to --tasks, before."
        )
    return frontiers[name].strength


def goals(config: Config, task: Task) -> tuple[str, tuple[float, ...]]:
    """Returns the setting by which a method goes along its frontier, and its values."""
    if config.prune == "gated":
        return "bound", task.bounds
    return "target_sparsity", task.sparsities


def each(
    config: Config, name: str, values: Iterable[float], seeds: Iterable[int]
) -> list[Config]:
    """Returns the runs with each of the values, on every seed."""
    return [
        dataclasses.replace(config, **{name: value, "seed": seed})
        for value in values
        for seed in seeds
    ]


def best_strength(runs: list[Row]) -> float:
    """Returns the strength that keeps the fewest weights, the mean logarithm counting.

    Among those that keep as many, as they all do if they were told to, that of the best
    validation accuracy.
    """

    def merit(strength: float) -> tuple[float, float]:
        own = [run for run in runs if run["strength"] == strength]
        return (
            # Rounded, lest the order of a sum decides.
            round(statistics.fmean(math.log(max(run["kept"], 1)) for run in own), 9),
            -statistics.fmean(run["validation_accuracy"] for run in own),
        )

    return min(dict.fromkeys(run["strength"] for run in runs), key=merit)
