"""Frontiers: how sparse a network each method makes, at how much accuracy.

    python -m experiments sweep frontiers --data-dir DATA

One number of a method is tuned first, by the same rule for all: its strength, or if it
has none, the learning rate. Three values of it are tried at one of the method's bounds
or sparsities, on seeds of their own, and then larger and smaller ones until the best
lies between two others; the validation split chooses. Where that would take too long,
the value is the one tuned on another task. Then the method is
made at every bound or sparsity, on the seeds of the comparison. Runs are stored, one by
one; an interrupted command goes on after the last that was finished.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
from rich.console import Console

from experiments import data
from experiments.config import ImageConfig
from experiments.frontiers import points, report
from experiments.frontiers.methods import TASKS, Task
from experiments.frontiers.plan import check_stored, make_method, tuned_elsewhere
from experiments.frontiers.settings import Frontiers
from experiments.records import Row, write_whole
from experiments.running.sweep import Diverged, check_finite, complete

STORED = (
    *("config_id", "seed", "strength", "scale", "learning_rate"),
    *("bound", "target_sparsity"),
    *("kept", "total", "validation_accuracy", "dense_validation_accuracy", "sparsity"),
    *("diverged", "dense_test_accuracy", "test_accuracy"),
    *("hardware", "commit", "wall_seconds"),
)


def frontiers(settings: Frontiers, command: str) -> None:
    """Makes what is missing, stores the rows and writes tables and figures.

    Args:
      settings: valid settings.
      command: what the user typed, for messages to repeat.

    Raises:
      ExperimentError: the output folder or a data set cannot be used, a task has not
        been made that another is tuned on, or the README has no place for the
        tables, or not those of the present methods.
      Diverged: runs did that were to be compared; told last, the rest is reported.
    """
    console = Console(highlight=False)
    report.check_readme()
    check_stored(points.STORE, settings.tasks, settings.methods)
    check_tuned(settings)
    sets = [TASKS[name].config.dataset for name in settings.tasks]
    data.check_there(sets, settings.data_dir, command)
    failed = []
    for name in TASKS:  # in their order: some are tuned on others
        if name in settings.tasks:
            console.rule(name)
            failed += make_task(name, settings, command, console)
    report.write(points.STORE)
    console.print(f"Tables: {report.README}", soft_wrap=True)
    if failed:
        raise Diverged(" ".join(failed))


def check_tuned(settings: Frontiers) -> None:
    """Raises `ExperimentError` if a task has not been made that others are tuned on."""
    for task in settings.tasks:
        source = TASKS[task].tuned_on
        if source and source not in settings.tasks:
            for method in settings.methods:
                tuned_elsewhere(method, source)


def make_task(
    name: str, settings: Frontiers, command: str, console: Console
) -> list[str]:
    """Makes the methods of a task, and stores the rows of each when it is done.

    Returns:
      Why methods are left out: a run that was to be compared diverged.
    """
    config = dataclasses.replace(TASKS[name].config, data_dir=settings.data_dir)
    task = TASKS[name]._replace(config=config)
    load = functools.cache(lambda: data.load(config, command))
    failed = []
    for method in settings.methods:
        try:
            rows = make_rows(method, task, settings.out / name, load, console)
        except Diverged as error:
            failed.append(f"{name}, {method}: {error}")
        else:
            store(name, method, rows)
        # Another method is another program, and the memory for code is limited.
        jax.clear_caches()
    return failed


def store(task: str, method: str, rows: list[Row]) -> None:
    """Stores the runs of a method in place of what is stored of it."""
    stored = points.read(points.STORE, task)
    others = [row for row in stored if row["method"] != method]
    points.STORE.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in others + rows)
    write_whole(points.STORE / f"{task}.jsonl", lines.encode())


def make_rows(
    method: str,
    task: Task,
    folder: Path,
    load: Callable[[], data.Dataset],
    console: Console,
) -> list[Row]:
    """Returns all runs of a method, a row each."""
    rows: list[Row] = []

    def make(stage: str, configs: list[ImageConfig]) -> list[Row]:
        console.print(f"{method}: {stage}")
        runs = complete(
            configs,
            folder,
            load,
            console,
            # A gradual prune of many runs at once would be computed, and for the most
            # part discarded, at every update.
            at_once=1,
            # What is being chosen does not see the test set.
            test=stage == "frontier",
        )
        if stage == "frontier":
            check_finite(runs)
        for run in runs:
            values = {key: run[key] for key in STORED if key in run}
            rows.append({"method": method, "stage": stage, **values})
        return runs

    make_method(method, task, make)
    return rows
