"""The control study: does sparing the relevant weights beat shrinking all of them?

    python -m experiments sweep study --data-dir DATA

Every trial of a task is tuned on the same seeds over the same number of settings: all
of them on a few seeds, the best of those on more. While the best is an outermost one,
what lies beyond it is tried too. What is best by the validation split is made again on
other seeds, beside its two controls of equal dose: its irrelevance permuted at random
within each tensor, and the mean of its irrelevance in place of it.
All runs of one seed start from the same dense network and prune at the same bound, so
that they make pairs. Runs are stored, one by one, and an interrupted study goes on.
"""

import dataclasses
import functools
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import jax
from rich.console import Console

from experiments import data, study_report
from experiments.comparison import OPPONENTS, Row
from experiments.config import Config, ExperimentError
from experiments.records import write_whole
from experiments.study_report import STORE
from experiments.sweep import complete
from experiments.trials import FIRST_SEED, ROUNDS, TASKS, TRIALS, Study

STORED = (
    *("config_id", "seed", "strength", "scale", "kept", "total", "at_once"),
    *("validation_bound", "dense_validation_accuracy", "validation_accuracy"),
    *("dense_test_accuracy", "test_accuracy", "hardware", "commit"),
)

Setting = tuple[float, float]  # strength and scale
Summary = dict[str, Any]
# Makes the runs of a stage ("tuning" or "comparison") of a trial.
Make = Callable[[str, str, list[Config]], list[Summary]]


def study(settings: Study, command: str) -> None:
    """Makes what is missing of the study, stores its rows and writes its report.

    Args:
      settings: valid settings.
      command: what the user typed, for messages to repeat.

    Raises:
      ExperimentError: the output folder or a data set cannot be used, or the report
        cannot be written.
    """
    console = Console(highlight=False)
    study_report.check_readme()
    check_stored(name for name in TASKS if name not in settings.tasks)
    for name in settings.tasks:
        console.rule(name)
        rows = make_task(name, settings, command, console)
        STORE.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_whole(STORE / f"{name}.jsonl", lines)
    study_report.write(STORE)
    console.print(f"Report: {study_report.REPORT}", soft_wrap=True)


def check_stored(names: Iterable[str]) -> None:
    """Checks that the rows stored of tasks are those that the study makes of them.

    Raises:
      ExperimentError: they are not, for trials or tasks have been changed since.
    """
    for name, rows in study_report.read(STORE, names).items():
        keys = "stage", "trial", "control", "config_id", "seed"
        by_run = {tuple(row[key] for key in keys): row for row in rows}
        found: list[Row] = []

        def find(
            stage: str, trial: str, configs: list[Config], by_run=by_run, found=found
        ) -> list[Row]:
            runs = [
                by_run[stage, trial, config.form.control, config.config_id, config.seed]
                for config in configs
            ]
            found.extend(runs)
            return runs

        task = TASKS[name]
        try:
            for trial in task.trials:
                make_trial(trial, task.config, task.num_seeds, find)
        except KeyError:
            found.clear()
        if found != rows:
            raise ExperimentError(
                f"the stored rows of {name!r} are not those of its trials: make them "
                f"again, with --tasks {name}, or delete {STORE / name}.jsonl"
            )


def make_task(
    name: str, settings: Study, command: str, console: Console
) -> list[dict[str, Any]]:
    """Returns all runs of a task, a row each."""
    task = TASKS[name]
    config = dataclasses.replace(task.config, data_dir=settings.data_dir)
    load = functools.cache(lambda: data.load(config, command))
    rows = []

    def make(stage: str, trial: str, configs: list[Config]) -> list[Summary]:
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


def make_trial(name: str, config: Config, num_seeds: int, make: Make) -> None:
    """Tunes a trial, if there is anything to tune, and makes it at its best setting."""
    config = dataclasses.replace(config, **TRIALS[name].changes)
    best = tune(name, config, make)
    controls = tuple(OPPONENTS) if config.regularizer == "relevance" else ("none",)
    forms = [dataclasses.replace(config.form, control=control) for control in controls]
    seeds = range(FIRST_SEED, FIRST_SEED + num_seeds)
    make(
        "comparison",
        name,
        [
            run
            for form in forms
            for run in at([best], dataclasses.replace(config, form=form), seeds)
        ],
    )


def tune(name: str, config: Config, make: Make) -> Setting:
    """Returns the best setting of a trial."""
    trial = TRIALS[name]
    best = tried = [
        (config.strength * strength, scale)
        for strength in trial.strengths
        for scale in trial.scales
    ]
    runs = []
    for seeds, number in ROUNDS:
        if len(best) > number:
            runs += make("tuning", name, at(best, config, seeds))
            best = best_of(best, runs)[:number]
    all_seeds = [seed for seeds, _ in ROUNDS for seed in seeds]
    while beyond := [
        (strength, scale)
        for strength, scale in outside(best[0], tried)
        if config.form.unit != "quantile" or scale < 1  # being a share
    ]:
        runs += make("tuning", name, at(beyond, config, all_seeds))
        tried = tried + beyond
        best = best_of(best + beyond, runs)[:1]
    return best[0]


def outside(best: Setting, tried: list[Setting]) -> list[Setting]:
    """Returns what else to try if the best is an outermost one of those tried.

    A step further, in strength or in scale or in both, by the factor between the
    outermost two.
    """
    values: list[list[float]] = []
    for index, value in enumerate(best):
        values.append([value])
        ordered = sorted({setting[index] for setting in tried})
        if len(ordered) > 1:
            neighbours = {ordered[0]: ordered[1], ordered[-1]: ordered[-2]}
            if value in neighbours:
                # Rounded, lest the last bits of a product name another run.
                values[-1].append(float(f"{value * value / neighbours[value]:.3g}"))
    return [(s, a) for s, a in itertools.product(*values) if (s, a) != best]


def at(settings: list[Setting], config: Config, seeds: Iterable[int]) -> list[Config]:
    """Returns the runs at every one of the settings, on every seed."""
    return [
        dataclasses.replace(config, strength=strength, scale=scale, seed=seed)
        for strength, scale in settings
        for seed in seeds
    ]


def best_of(settings: list[Setting], runs: list[Summary]) -> list[Setting]:
    """Returns settings in the order of the weights that they keep, the fewest first.

    It is the mean logarithm that counts, over the seeds; among equals, and a prune
    moves the weights kept in large steps, the mean validation accuracy.
    """

    def merit(setting: Setting) -> tuple[float, float]:
        own = [run for run in runs if (run["strength"], run["scale"]) == setting]
        return (
            # Rounded, lest the order of a sum decides.
            round(statistics.fmean(math.log(max(run["kept"], 1)) for run in own), 9),
            -statistics.fmean(run["validation_accuracy"] for run in own),
        )

    return sorted(settings, key=merit)
