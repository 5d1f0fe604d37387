"""Comparisons: which runs are made of an arm, and from these to rows and pages."""

import dataclasses
import json
import math

import numpy as np
import pytest
from short_runs import Small, error_line, quick_compilation, read_lines

from experiments import networks
from experiments.__main__ import main
from experiments.comparing import compare, engine, methods, penalties, study, tuning
from experiments.comparing.engine import Task
from experiments.config import AT_INIT
from experiments.data import images
from experiments.settings import ExperimentError
from experiments.tasks import digits

pytestmark = pytest.mark.quickly_compiled

CONFIG = dataclasses.replace(
    digits.CONFIG,
    **{"dense_epochs": 2, "epochs": 4, "interval": 16, "finetune_epochs": 0},
    **{"batch_size": 64, "relative_bound": False, "fraction": 0.3, "bound": 0.05},
)
SMALL = {
    "study": Task(CONFIG, arms=("none", "l2", "relevance"), num_seeds=2, at_once=2),
    "methods": Task(
        CONFIG,
        **{"arms": ("l2", "gradual-l2"), "num_seeds": 2, "at_once": 2},
        **{"bounds": (0.05, 0.1), "sparsities": (0.5, 0.8), "errors": (60.0,)},
    ),
}


@pytest.fixture(autouse=True)
def stored(tmp_path, monkeypatch):
    """Comparisons of small tasks, which store their rows elsewhere."""
    monkeypatch.setattr(engine, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(networks.NETWORKS, "lenet300", Small)
    for name, task in SMALL.items():
        plan = dataclasses.replace(compare.COMPARISONS[name], tasks={"small": task})
        monkeypatch.setitem(compare.COMPARISONS, name, plan)
    return tmp_path / "results"


@pytest.fixture
def made(monkeypatch):
    """Makes up the outcome of runs; returns a list of all that are asked for.

    Those with l1 diverge where they are compared.
    """
    asked = []

    def complete(configs, *_, test, **__):
        asked.extend(configs)
        return [
            outcome(config, test) | {"diverged": test and config.regularizer == "l1"}
            for config in configs
        ]

    monkeypatch.setattr(compare, "complete", complete)
    return asked


def log_kept(run):
    return math.log(max(run["kept"], 1))


def outcome(config, test=True, kept=None):
    """Returns a run that keeps fewest weights at a strength of 0.01."""
    if kept is None:
        kept = round(100 * math.cosh(math.log(max(config.strength, 1e-9) / 0.01)))
    tested = {"test_accuracy": 0.9, "dense_test_accuracy": 0.95}
    return {
        **config.to_dict(),
        **{"config_id": config.config_id, "kept": kept, "total": 10_000},
        **{"validation_accuracy": 0.9, "dense_validation_accuracy": 0.95},
        **{"sparsity": 1 - kept / 10_000, "validation_bound": config.bound},
        **{"hardware": "none", "commit": None, "at_once": 1, "wall_seconds": 1.0},
        **(tested if test else {}),
    }


def test_the_best_setting_keeps_least_and_is_the_most_accurate_of_equals():
    pairs = {0.1: (10, 1000), 0.2: (110, 110), 0.3: (50, 150), 0.4: (75, 100)}
    runs = [
        {"strength": x, "kept": kept, "validation_accuracy": 0.91 if x > 0.3 else 0.9}
        for x, pair in pairs.items()
        for kept in pair
    ]

    settings = [(strength,) for strength in pairs]
    for diverged, best in ((False, [0.4, 0.3, 0.1, 0.2]), (True, [0.3, 0.1, 0.2, 0.4])):
        runs[-1]["diverged"] = diverged
        found = tuning.best_of(settings, runs, ["strength"], log_kept)
        assert [strength for (strength,) in found] == best


def tuned(arm, *peak):
    """Returns the best setting of an arm, and those of each round of tuning.

    The setting nearest to the peak is the best; without a peak, all are equal.
    """
    _, names, first, *_ = study.ARMS[arm]
    config = study.ARMS[arm].configure(study.DIGITS)
    asked = []

    def kept(config):
        off = np.log([config.strength, config.scale]) - np.log(peak or 1.0)
        return 100 + 50 * np.abs(off).sum() if peak else 0

    def make(configs):
        asked.append({(config.strength, config.scale) for config in configs})
        return [outcome(config, kept=kept(config)) for config in configs]

    rounds = study.STUDY.rounds
    best = tuning.tune(config, names, first(config), rounds, log_kept, make)
    return best, asked


@pytest.mark.parametrize(
    ("arm", "peak", "beyond"),
    [
        # Of 1e-4 to 1e-2, each 10 ** 0.25 times the one before.
        ("l2", (0.03, 1), [{(s, 1)} for s in (0.0178, 0.0317, 0.0565)]),
        ("l2", (0.9e-4, 1), [{(5.62e-05, 1)}]),
        # Of 0.001 to 0.01 and 0.3 to 3.
        (
            *("leaf", (0.003, 0.1)),
            [{(s, x) for s in (0.001, 0.003, 0.01)} for x in (0.09, 0.027)],
        ),
        (
            *("leaf", (0.03, 9)),
            [
                {(0.0333, 1), (0.0333, 3), (0.0333, 9), (0.003, 9), (0.01, 9)},
                {(0.111, 3), (0.111, 9), (0.111, 27), (0.01, 27), (0.0333, 27)},
            ],
        ),
        # Of 0.01 to 0.2, shares, which cannot be more than 1.
        ("top", (0.001, 5), [{(s, 0.8) for s in (0.0003, 0.001, 0.003)}]),
    ],
)
def test_tuning_ends_when_the_best_is_tried_on_all_sides(arm, peak, beyond):
    best, asked = tuned(arm, *peak)
    assert asked[2:] == beyond
    tried = set().union(*asked)
    assert best == min(tried, key=lambda x: np.abs(np.log(x) - np.log(peak)).sum())
    # The first of equals, at a corner of the grid, has five neighbours beyond it.
    best, asked = tuned("leaf")
    assert best == (0.001, 0.3)
    assert [len(settings) for settings in asked] == [9, 3, 5]


@pytest.mark.parametrize(
    ("plan", "task"),
    [
        (study.STUDY, "digits"),
        (study.STUDY, "digits-batches-of-8"),
        (penalties.COMPARISON, "digits"),
        (penalties.COMPARISON, "mnist"),
        (methods.METHODS, "lenet300-mnist"),
    ],
)
def test_arms_are_tuned_alike_and_compared_on_other_seeds(plan, task):
    for arm in plan.arms_of(task):
        asked = {"tuning": [], "comparison": []}

        def make(stage, configs, asked=asked):
            asked[stage] += configs
            return [outcome(config) for config in configs]

        plan.make_arm(task, arm, make)
        base = plan.tasks[task].config
        for config in asked["tuning"] + asked["comparison"]:
            config.validate()
            epochs = base.dense_epochs + base.epochs
            assert config.dense_epochs + config.epochs == epochs
            assert config.prune in AT_INIT or config.epochs == base.epochs
            for name in ("finetune_epochs", "batch_size", "interval"):
                assert getattr(config, name) == getattr(base, name)
        seeds = {config.seed for config in asked["comparison"]}
        number = plan.tasks[task].num_seeds
        first = plan.tasks[task].first_seed
        assert seeds == set(range(first, first + number))
        assert all(config.seed < first for config in asked["tuning"])
        names = plan.arms[arm].names
        (best,) = {tuple(getattr(x, n) for n in names) for x in asked["comparison"]}
        if len(plan.arms[arm].first(base)) > 1:
            tried = {tuple(getattr(x, n) for n in names) for x in asked["tuning"]}
            assert best in tried and len(tried) >= 3
        controls = {config.form.control for config in asked["comparison"]}
        by_relevance = "relevance" in (config.regularizer, config.criterion)
        has_controls = plan is study.STUDY and by_relevance
        assert controls == ({"none", "permuted", "mean"} if has_controls else {"none"})


def test_penalties_are_tuned_alike_on_seeds_of_their_own():
    plan = penalties.COMPARISON
    assert len(plan.arms) == 1 + 4 * 3 * 2
    for name, arm in plan.arms.items():
        config = arm.configure(study.DIGITS)
        assert len(set(arm.first(config))) == (1 if name == "none" else 9)
        plain = name.removesuffix(", leaf").removesuffix(", relevance")
        assert arm.counterpart == (plain if plain != name else "l2")
    for name, task in plan.tasks.items():
        before = study.TASKS[name]
        seen = range(before.first_seed, before.first_seed + before.num_seeds)
        assert task.first_seed not in seen


def test_four_arms_go_on_at_most_two_with_one_penalty():
    kept = {
        **{"l1": 1, "root, leaf": 40, "root": 2, "root, proximal": 50, "none": 3},
        **{"log": 60, "l2": 4, "l2, leaf": 90, "log, leaf": 5, "l1, leaf": 70},
    }
    rows = [
        {"arm": arm, "stage": stage, "kept": share * number}
        for arm, number in kept.items()
        for stage, share in (("tuning", 1 / number), ("comparison", 2))
    ]
    rows.append({"arm": "log, leaf", "stage": "tuning", "kept": 1, "diverged": True})
    assert penalties.going_on(rows) == ["root", "root, leaf", "log", "l1, leaf"]


def test_rows_of_another_plan_are_noticed(made, stored):
    main(["compare", "study", "--arms", "l2"])
    rows = read_lines(stored / "study" / "small.jsonl")
    plan = compare.COMPARISONS["study"]
    assert plan.is_current("small", "l2", rows)
    first, second, *others = rows
    # In the last one another setting is the best, and its further runs are missing.
    for changed in (
        *(rows[1:], rows[:-1], [*rows, first], [second, first, *others]),
        [{**first, "config_id": "0"}, second, *others],
        [{**first, "kept": 1}, {**second, "kept": 1}, *others],
    ):
        assert not plan.is_current("small", "l2", changed)


@pytest.mark.parametrize("name", SMALL)
def test_a_comparison_stores_the_rows_of_its_plan(name, made, stored):
    first, *others = SMALL[name].arms
    main(["compare", name, "--arms", first])
    path = stored / name / "small.jsonl"
    before, number = read_lines(path), len(made)
    assert len(before) == number and {row["arm"] for row in before} == {first}
    main(["compare", name, "--arms", *others])
    rows = read_lines(path)
    assert rows[: len(before)] == before and len(rows) == len(made)
    assert [*dict.fromkeys(row["arm"] for row in rows)] == [first, *others]
    for row in rows:  # what is chosen is chosen without the test set
        assert ("test_accuracy" in row) == (row["stage"] == "comparison")
    compared = [row for row in rows if row["stage"] == "comparison"]
    assert len(compared) == 2 * ((1 + 1 + 3) if name == "study" else 2 * 2)
    compare.COMPARISONS[name].check_stored()
    # Rows of other settings are an error before any run is made.
    changed = SMALL[name]._replace(config=dataclasses.replace(CONFIG, epochs=5))
    compare.COMPARISONS[name].tasks["small"] = changed
    message = error_line(["compare", name, "--arms", first])
    assert f"the rows of {others[0]} in {path} do not match the" in message
    assert len(made) == len(rows)


def test_a_task_may_be_tuned_on_another(made):
    tasks = compare.COMPARISONS["methods"].tasks
    tasks["large"] = SMALL["methods"]._replace(tuned_on="small")
    message = error_line(["compare", "methods", "--tasks", "large"])
    assert "l2 is tuned on small, which has not been run" in message and not made
    main(["compare", "methods", "--tasks", "large", "small", "--arms", "l2"])
    rows = compare.COMPARISONS["methods"].rows("large")
    (strength,) = {row["strength"] for row in rows}
    assert {row["stage"] for row in rows} == {"comparison"}
    small = compare.COMPARISONS["methods"].rows("small")
    assert strength in {row["strength"] for row in small if row["stage"] == "tuning"}


def test_an_arm_that_diverged_is_left_out(made, stored):
    plan = compare.COMPARISONS["study"]
    plan.tasks["small"] = SMALL["study"]._replace(arms=("l1", "none"))
    message = error_line(["compare", "study"])
    assert "small, l1: training diverged: l1 at" in message
    rows = read_lines(stored / "study" / "small.jsonl")
    assert {row["arm"] for row in rows} == {"none"}


def test_user_errors_come_before_any_run(made, stored, monkeypatch, tmp_path):
    for flag in ("--tasks", "--arms"):
        message = error_line(["compare", "study", flag, "huge"])
        assert f"{flag} must be of '" in message and "got 'huge'" in message
    message = error_line(["compare", "study", "--tasks", "small", "--arms", "l1"])
    assert "--arms 'l1': not on --tasks small" in message

    def builder(name, *_):
        raise ExperimentError(f"no {name}")

    monkeypatch.setattr(images, "prepared_builder", builder)
    config = dataclasses.replace(CONFIG, dataset="mnist")
    tasks = compare.COMPARISONS["study"].tasks
    tasks["large"] = SMALL["study"]._replace(config=config)
    assert "no mnist" in error_line(["compare", "study"])
    stored.joinpath("study").mkdir(parents=True)
    (stored / "study" / "small.jsonl").write_text("{bad\n")
    assert "small.jsonl is damaged" in error_line(["compare", "study"])
    assert not made


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_comparison_makes_its_runs_once(name, tmp_path, stored):
    """With real runs: they are made once, and one that is lost is made again."""
    command = ["compare", name, "--out", str(tmp_path / "runs")]
    with quick_compilation(tmp_path / "xla"):
        main(command)
        path = stored / name / "small.jsonl"
        rows = read_lines(path)
        files = sorted((tmp_path / "runs" / "small").glob("*.json"))
        # Some settings of the comparison may be tuned with the same seeds.
        assert len(files) == len({(row["config_id"], row["seed"]) for row in rows})
        lost = json.loads(files[0].read_text())
        files[0].unlink()
        before = {file: file.stat().st_mtime_ns for file in files[1:]}
        main(command)
    assert {file: file.stat().st_mtime_ns for file in files[1:]} == before
    assert json.loads(files[0].read_text())["kept"] == lost["kept"]
    # How many are made at once, and how long they take, is that of the second time.
    assert [row["kept"] for row in read_lines(path)] == [row["kept"] for row in rows]
