"""Which runs the study makes of a trial: those that tune it, and those compared."""

import dataclasses
from collections.abc import Callable
from typing import get_args

from experiments.config import ImageConfig
from experiments.forms import Control
from experiments.records import Row, replays
from experiments.running.tuning import Setting, at, best_of, surround
from experiments.study.trials import FIRST_SEED, ROUNDS, TASKS, TRIALS

# Makes the runs of a stage ("tuning" or "comparison") of a trial.
Make = Callable[[str, str, list[ImageConfig]], list[Row]]


def make_trial(name: str, config: ImageConfig, num_seeds: int, make: Make) -> None:
    """Tunes a trial, if there is anything to tune, and makes it at its best setting."""
    config = dataclasses.replace(config, **TRIALS[name].changes)
    best = tune(name, config, make)
    controls = get_args(Control) if config.regularizer == "relevance" else ("none",)
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


def tune(name: str, config: ImageConfig, make: Make) -> Setting:
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
    return surround(
        best[0], tried, runs, config, lambda runs: make("tuning", name, runs), all_seeds
    )


def is_current(name: str, rows: list[Row]) -> bool:
    """Whether rows are of the runs that the study makes of a task, and in their order.

    They are not if trials or tasks have been changed since.
    """
    task = TASKS[name]

    def make_all(make: Make) -> None:
        for trial in task.trials:
            make_trial(trial, task.config, task.num_seeds, make)

    return replays(make_all, rows, ("stage", "trial", "config_id", "seed"))
