"""Which runs the study makes of a trial, asked of it without making any."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from experiments.forms import Form
from experiments.running import tuning
from experiments.study import plan, trials


def test_settings_are_chosen_by_the_mean_logarithm_and_then_by_accuracy():
    tuned = [
        {"strength": strength, "scale": 1.0, "kept": kept, "validation_accuracy": right}
        for strength, pair, right in (
            (0.1, (10, 1000), 0.9),
            (0.2, (110, 110), 0.9),
            (0.3, (50, 150), 0.9),
            (0.4, (75, 100), 0.91),
        )
        for kept in pair
    ]
    settings = [(0.1, 1.0), (0.2, 1.0), (0.3, 1.0), (0.4, 1.0)]
    best = tuning.best_of(settings, tuned)
    assert best == [(0.4, 1.0), (0.3, 1.0), (0.1, 1.0), (0.2, 1.0)]
    tuned[-1]["diverged"] = True  # however few weights it says that it keeps
    best = tuning.best_of(settings, tuned)
    assert best == [(0.3, 1.0), (0.1, 1.0), (0.2, 1.0), (0.4, 1.0)]


class Recorder:
    """Makes no runs, but says which it was asked for; the nearest to a peak is best."""

    def __init__(self, strength, scale):
        self.peak = strength, scale
        self.asked = {"tuning": [], "comparison": []}

    def __call__(self, stage, trial, configs):
        self.asked[stage].append(configs)
        rows = []
        for config in configs:
            setting = config.strength, config.scale
            off = np.abs(np.log(setting) - np.log(self.peak)).sum()
            names = {"strength": config.strength, "scale": config.scale}
            rows.append({**names, "kept": 100 + 50 * off, "validation_accuracy": 0.9})
        return rows


@pytest.mark.parametrize("name", trials.TRIALS)
def test_trials_are_tuned_alike_and_compared_on_other_seeds(name):
    task, trial = trials.TASKS["digits"], trials.TRIALS[name]
    inside = task.config.strength * sorted(trial.strengths)[len(trial.strengths) // 2]
    make = Recorder(inside, sorted(trial.scales)[len(trial.scales) // 2])
    plan.make_trial(name, task.config, task.num_seeds, make)
    numbers = [len(set(configs)) for configs in make.asked["tuning"]]
    assert numbers == ([] if name == "none" else [9 * 2, 3 * 4])
    (compared,) = make.asked["comparison"]
    assert len(set(compared)) == len(compared)
    seeds = {config.seed for config in compared}
    assert len(seeds) == task.num_seeds >= 7
    assert not seeds & {run.seed for runs in make.asked["tuning"] for run in runs}
    controls = {config.form.control for config in compared}
    has_controls = compared[0].regularizer == "relevance"
    assert controls == ({"none", "permuted", "mean"} if has_controls else {"none"})
    assert {(config.strength, config.scale) for config in compared} == {make.peak}


def grid(strengths, scales):
    """Returns all settings of strengths and scales."""
    return set(itertools.product(strengths, scales))


DIGITS, LEAF = (0.001, 0.003, 0.01), (0.3, 1.0, 3.0)  # strengths, and scales of "leaf"


@pytest.mark.parametrize(
    "name, strength, scale, beyond",
    [
        # Of 1e-4 to 1e-2, each 10 ** 0.25 times the one before.
        ("l2", 0.03, 1.0, [grid((s,), (1.0,)) for s in (0.0178, 0.0317, 0.0565)]),
        ("l2", 0.9e-4, 1.0, [grid((5.62e-05,), (1.0,))]),
        # Of 0.001 to 0.01 and 0.3 to 3.
        ("leaf", 0.035, 1.0, [grid((0.0333,), LEAF), grid((0.111,), LEAF)]),
        ("leaf", 0.003, 0.1, [grid(DIGITS, (0.09,)), grid(DIGITS, (0.027,))]),
        (
            *("leaf", 0.03, 9.0),
            [
                grid((0.0333,), (1.0, 3.0, 9.0)) | grid((0.003, 0.01), (9.0,)),
                grid((0.111,), (3.0, 9.0, 27.0)) | grid((0.01, 0.0333), (27.0,)),
            ],
        ),
        # Of 0.01 to 0.2, shares, which cannot be more than 1.
        ("top", 0.001, 5.0, [grid((0.0003, 0.001, 0.003), (0.8,))]),
    ],
)
def test_tuning_goes_on_until_the_best_is_tried_on_all_sides(
    name, strength, scale, beyond
):
    config = dataclasses.replace(trials.DIGITS, **trials.TRIALS[name].changes)
    make = Recorder(strength, scale)
    best = plan.tune(name, config, make)
    _, _, *further = make.asked["tuning"]
    asked = [{(run.strength, run.scale) for run in runs} for runs in further]
    assert asked == beyond
    assert all({run.seed for run in runs} == set(range(6)) for runs in further)
    runs = [run for runs in make.asked["tuning"] for run in runs]
    distance = [
        abs(math.log(run.strength / strength)) + abs(math.log(run.scale / scale))
        for run in runs
    ]
    nearest = runs[int(np.argmin(distance))]
    assert best == (nearest.strength, nearest.scale)


def test_tuning_ends_where_nothing_makes_a_difference():
    asked = []

    def make(stage, trial, configs):
        asked.append(len(configs))
        same = {"kept": 0, "validation_accuracy": 0.9}
        return [
            {"strength": config.strength, "scale": config.scale, **same}
            for config in configs
        ]

    config = dataclasses.replace(trials.DIGITS, **trials.TRIALS["leaf"].changes)
    # The first of equals, at a corner of the grid, has five neighbours beyond it.
    assert plan.tune("leaf", config, make) == (0.001, 0.3)
    assert asked == [9 * 2, 3 * 4, 5 * 6]


@pytest.mark.parametrize("name", trials.TASKS)
def test_every_task_has_what_its_trials_are_compared_with(name):
    task = trials.TASKS[name]
    task.config.validate()
    assert {"none", "l2", "relevance"} <= set(task.trials) <= set(trials.TRIALS)
    assert {trials.TRIALS[trial].counterpart for trial in task.trials} <= set(
        task.trials
    )


def test_counterparts_are_driven_alike():
    for trial in trials.TRIALS.values():
        if trial.changes.get("regularizer", "relevance") == "relevance":
            l2 = trials.TRIALS[trial.counterpart].changes
            assert l2["regularizer"] == "l2"
            for name in ("decoupled", "strength_decay_epochs"):
                assert trial.changes.get(name) == l2.get(name)
    assert trials.TRIALS["relevance"].changes.get("form", Form()) == Form()


@pytest.fixture
def rows(monkeypatch):
    """The rows of a task of two trials."""
    names = "l2", "relevance"
    task = trials.Task("A task.", trials.DIGITS, names, num_seeds=2)
    monkeypatch.setattr(plan, "TASKS", {"task": task})
    made, number = [], itertools.count(100)

    def make(stage, trial, configs):
        runs = [
            {
                **{"stage": stage, "trial": trial, "control": config.form.control},
                **{"strength": config.strength, "scale": config.scale},
                **{"config_id": config.config_id, "seed": config.seed},
                **{"kept": next(number), "validation_accuracy": 0.9},
            }
            for config in configs
        ]
        made.extend(runs)
        return runs

    for trial in names:
        plan.make_trial(trial, task.config, task.num_seeds, make)
    return made


def test_rows_of_the_plan_are_current(rows):
    assert plan.is_current("task", rows)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: [],
        lambda rows: rows[1:],
        lambda rows: rows[:-1],
        lambda rows: [*rows, rows[0]],
        lambda rows: [rows[1], rows[0], *rows[2:]],
        lambda rows: [*rows[:-1], {**rows[-1], "config_id": "0"}],
        lambda rows: [*rows[:-1], {"seed": 0}],
        # Another setting is now the best of all, and its further runs are not there.
        lambda rows: [
            {**row, "kept": 0 if k in (8, 9) else 9} for k, row in enumerate(rows)
        ],
    ],
)
def test_other_rows_are_not_current(rows, change):
    assert not plan.is_current("task", change(rows))
