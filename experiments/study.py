"""The control study: does sparing the relevant weights beat shrinking all of them?

    python -m experiments sweep study --data-dir DATA

Every trial of a task is tuned on the same seeds over the same number of settings. What
is best there, by the validation split, is made again on other seeds, beside its two
controls of equal dose: its irrelevance permuted at random within each tensor, and the
mean of its irrelevance in place of it. All runs of one seed start from the same dense
network and prune at the same bound, so that they make pairs. Runs are stored, one by
one, and an interrupted study goes on.
"""

import dataclasses
import functools
import json
import math
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import data, study_report
from experiments.config import Config
from experiments.forms import Control
from experiments.records import write_whole
from experiments.sweep import complete
from experiments.trials import TASKS, TRIALS, Study, Task, Trial

STORE = Path(__file__).parent / "results" / "study"
TUNING_SEEDS = (0, 1)
FIRST_SEED = 10  # of those that the chosen settings are compared on
CONTROLS: tuple[Control, ...] = ("none", "permuted", "mean")
STORED = (
    *("seed", "strength", "scale", "kept", "total", "validation_bound"),
    *("dense_validation_accuracy", "validation_accuracy"),
    *("dense_test_accuracy", "test_accuracy", "hardware", "commit"),
)


def study(settings: Study, command: str) -> None:
    """Makes what is missing of the study, stores its rows and writes its report.

    Args:
      settings: valid settings.
      command: what the user typed, for messages to repeat.

    Raises:
      ExperimentError: the output folder or a data set cannot be used.
    """
    console = Console(highlight=False)
    study_report.check_readme()
    for name in settings.tasks:
        console.rule(name)
        rows = make_task(name, settings, command, console)
        STORE.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_whole(STORE / f"{name}.jsonl", lines)
        study_report.write(STORE)
    console.print(f"Report: {study_report.REPORT}", soft_wrap=True)


def make_task(
    name: str, settings: Study, command: str, console: Console
) -> list[dict[str, Any]]:
    """Returns all runs of a task, a row each."""
    task = TASKS[name]
    folder = settings.out / name
    config = dataclasses.replace(task.config, data_dir=settings.data_dir)
    load = functools.cache(lambda: data.load(config, command))
    rows = []

    def make(stage: str, trial: str, configs: list[Config]) -> list[dict[str, Any]]:
        runs = complete(
            configs,
            folder,
            load,
            console,
            at_once=settings.at_once,
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
        console.print(trial)
        tuned = make("tuning", trial, tuning_runs(config, TRIALS[trial]))
        best = best_setting(tuned)
        make("comparison", trial, comparison_runs(config, TRIALS[trial], task, *best))
    return rows


def tuning_runs(config: Config, trial: Trial) -> list[Config]:
    """Returns a trial at every one of its settings, on the seeds for tuning."""
    return [
        dataclasses.replace(
            config,
            **trial.changes,
            strength=config.strength * strength,
            scale=scale,
            seed=seed,
        )
        for strength in trial.strengths
        for scale in trial.scales
        for seed in TUNING_SEEDS
    ]


def best_setting(runs: list[dict[str, Any]]) -> tuple[float, float]:
    """Returns the strength and scale with the fewest weights left, on average."""
    kept: dict[tuple[float, float], list[float]] = {}
    for run in runs:
        setting = run["strength"], run["scale"]
        kept.setdefault(setting, []).append(math.log(max(run["kept"], 1)))
    return min(kept, key=lambda setting: statistics.fmean(kept[setting]))


def comparison_runs(
    config: Config, trial: Trial, task: Task, strength: float, scale: float
) -> list[Config]:
    """Returns a trial and its controls, if it has any, on the seeds for comparing."""
    config = dataclasses.replace(
        config, **trial.changes, strength=strength, scale=scale
    )
    has_controls = config.regularizer == "relevance"
    return [
        dataclasses.replace(
            config, form=dataclasses.replace(config.form, control=control), seed=seed
        )
        for control in (CONTROLS if has_controls else CONTROLS[:1])
        for seed in range(FIRST_SEED, FIRST_SEED + task.num_seeds)
    ]
