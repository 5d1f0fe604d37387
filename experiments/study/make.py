"""The control study: does sparing the relevant weights beat shrinking all of them?

    python -m experiments sweep study --data-dir DATA

Every trial of a task is tuned on the same seeds, over as many settings at first: all of
them on a few seeds, the best of those on more. Then what lies next to the best is tried
too, until it has been tried on all sides. What is best by the validation split is made
again on other seeds, beside its two controls of equal dose: its irrelevance permuted at
random within each tensor, and the mean of its irrelevance in place of it.
All runs of one seed start from the same dense network and prune at the same bound, so
that they make pairs. Runs are stored, one by one, and an interrupted study goes on.
"""

import dataclasses
import functools
import json

import jax
from rich.console import Console

from experiments import data
from experiments.config import ImageConfig
from experiments.records import Row, write_whole
from experiments.running.sweep import Diverged, check_finite, complete
from experiments.study import report
from experiments.study.plan import make_trial
from experiments.study.report import STORE
from experiments.study.settings import Study
from experiments.study.trials import TASKS

STORED = (
    *("config_id", "seed", "strength", "scale", "kept", "total", "at_once"),
    *("validation_bound", "dense_validation_accuracy", "validation_accuracy"),
    *("diverged", "dense_test_accuracy", "test_accuracy", "hardware", "commit"),
)


def study(settings: Study, command: str) -> None:
    """Makes what is missing of the study, stores its rows and writes its report.

    Args:
      settings: valid settings.
      command: what the user typed, for messages to repeat.

    Raises:
      ExperimentError: the output folder or a data set cannot be used, or the report
        cannot be written, because tasks stored before have other trials now.
      Diverged: runs did that were to be compared; told last, the rest is reported.
    """
    console = Console(highlight=False)
    report.check_readme()
    report.check_stored(STORE, (name for name in TASKS if name not in settings.tasks))
    sets = [TASKS[name].config.dataset for name in settings.tasks]
    data.check_there(sets, settings.data_dir, command)
    failed = []
    for name in settings.tasks:
        console.rule(name)
        try:
            rows = make_task(name, settings, command, console)
        except Diverged as error:
            failed.append(f"{name}: {error}")
            continue
        STORE.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_whole(STORE / f"{name}.jsonl", lines.encode())
    report.write(STORE)
    console.print(f"Report: {report.REPORT}", soft_wrap=True)
    if failed:
        raise Diverged(" ".join(failed))


def make_task(name: str, settings: Study, command: str, console: Console) -> list[Row]:
    """Returns all runs of a task, a row each."""
    task = TASKS[name]
    config = dataclasses.replace(task.config, data_dir=settings.data_dir)
    load = functools.cache(lambda: data.load(config, command))
    rows = []

    def make(stage: str, trial: str, configs: list[ImageConfig]) -> list[Row]:
        console.print(f"{trial}: {stage}")
        runs = complete(
            configs,
            settings.out / name,
            load,
            console,
            at_once=task.at_once,
            # What is being chosen does not see the test set.
            test=stage == "comparison",
        )
        if stage == "comparison":
            check_finite(runs)
        rows.extend(
            {
                **{"task": name, "stage": stage, "trial": trial},
                "control": run["form"]["control"],
                **{key: run[key] for key in STORED if key in run},
            }
            for run in runs
        )
        return runs

    for trial in task.trials:
        make_trial(trial, config, task.num_seeds, make)
        # Another trial is another program, and the memory for code is limited.
        jax.clear_caches()
    return rows
