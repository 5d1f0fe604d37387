"""Frontiers: how sparse a network each method makes, at how much accuracy.

    python -m experiments sweep frontiers --data-dir DATA

A method with a strength is tuned first, by the same rule for all: some strengths at one
of its bounds or sparsities, on seeds of their own, and then stronger and weaker ones
until the best has been tried on both sides; the validation split chooses. Where that
would take too long, the strength is the one tuned on another task. Then the method is
made at every bound or sparsity, on the seeds of the comparison. Runs are stored, one by
one; an interrupted command goes on after the last that was finished.
"""

import dataclasses
import functools
import json

import jax
from rich.console import Console

from experiments import data
from experiments.config import Config
from experiments.frontiers import points, report
from experiments.frontiers.methods import METHODS, TASKS, Frontiers
from experiments.frontiers.plan import check_stored, make_method, tuned_strength
from experiments.frontiers.points import Row
from experiments.records import write_whole
from experiments.sweep import complete

STORED = (
    *("config_id", "seed", "strength", "scale", "bound", "target_sparsity"),
    *("kept", "total", "validation_accuracy", "dense_validation_accuracy", "sparsity"),
    *("dense_test_accuracy", "test_accuracy", "hardware", "commit"),
)


def frontiers(settings: Frontiers, command: str) -> None:
    """Makes what is missing, stores the rows and writes tables and figures.

    Args:
      settings: valid settings.
      command: what the user typed, for messages to repeat.

    Raises:
      ExperimentError: the output folder or a data set cannot be used, a strength is to
        be that of a task that has not been made, or the README has no place for the
        tables, or not those of the present methods.
    """
    console = Console(highlight=False)
    report.check_readme()
    check_stored(points.STORE, (n for n in TASKS if n not in settings.tasks))
    check_strengths(settings)
    for name in settings.tasks:
        console.rule(name)
        make_task(name, settings, command, console)
    report.write(points.STORE)
    console.print(f"Tables: {report.README}", soft_wrap=True)


def check_strengths(settings: Frontiers) -> None:
    """Raises `ExperimentError` if a strength is missing that will not be tuned."""
    for task in settings.tasks:
        source = TASKS[task].tuned_on
        if source and source not in settings.tasks:
            for method in settings.methods:
                if len(METHODS[method].strengths) > 1:
                    tuned_strength(method, source)


def make_task(name: str, settings: Frontiers, command: str, console: Console) -> None:
    """Makes the methods of a task, and stores the rows of each when it is done."""
    task = TASKS[name]
    config = dataclasses.replace(task.config, data_dir=settings.data_dir)
    load = functools.cache(lambda: data.load(config, command))
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
                # A gradual prune of many runs at once would be computed, and for the
                # most part discarded, at every update.
                at_once=1,
                # What is being chosen does not see the test set.
                test=stage == "frontier",
            )
            for run in runs:
                values = {key: run[key] for key in STORED if key in run}
                rows.append({"method": method, "stage": stage, **values})
            return runs

        make_method(method, task._replace(config=config), make)
        stored = points.read(points.STORE, name)
        others = [row for row in stored if row["method"] != method]
        points.STORE.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in others + rows)
        write_whole(points.STORE / f"{name}.jsonl", lines)
        # Another method is another program, and the memory for code is limited.
        jax.clear_caches()
