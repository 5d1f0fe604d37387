"""Frontiers of methods: a small one from end to end, and piece by piece."""

import dataclasses
import json
import math
import re

import pytest

from experiments import data
from experiments.__main__ import main
from experiments.config import ExperimentError
from experiments.frontiers import (
    make as frontiers,
    methods,
    plan,
    points,
    report,
    settings,
)
from experiments.reporting.results import README, insert
from experiments.tasks import digits

TRAINING_SET = {
    "mnist": 55_000,
    "fashion_mnist": 55_000,
    "cifar10": 45_000,
}
CONFIG = dataclasses.replace(
    digits.CONFIG,
    **{"dense_epochs": 3, "epochs": 6, "interval": 16, "finetune_epochs": 2},
    **{"batch_size": 64, "relative_bound": False, "fraction": 0.3},
)
TASK = methods.Task(
    *(CONFIG, (0.3, 0.6), (0.5, 0.8), (60.0,)),
    published=(methods.Published("Others 2020", 2.5, 70.0, "arXiv:2001.00001"),),
    num_seeds=2,
)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Frontiers of one small task, away from the stored ones."""
    for module in (frontiers, plan, report, settings):
        monkeypatch.setattr(module, "TASKS", {"small": TASK})
    monkeypatch.setattr(points, "STORE", tmp_path / "store")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- frontiers: begin --><!-- frontiers: end -->")
    monkeypatch.setattr(report, "README", readme)
    return tmp_path


def test_frontiers_from_end_to_end(small, monkeypatch):
    command = ["sweep", "frontiers", "--tasks", "small", "--out", str(small / "runs")]
    # All are tuned by their strength: with another learning rate goes another program.
    first = ["l2", "gradual-l2"]
    main([*command, "--methods", *first])
    rows = points.read(small / "store", "small")
    tuning = [row for row in rows if row["stage"] == "tuning"]
    rest = [row for row in rows if row["stage"] == "frontier"]
    for method in first:
        assert len([row for row in tuning if row["method"] == method]) >= 3 * 2
    assert [row["method"] for row in rest] == ["l2"] * 4 + ["gradual-l2"] * 4
    for row in rows:  # what is chosen is chosen without the test set
        assert ("test_accuracy" in row) == (row["stage"] == "frontier")
    (chosen,) = {row["strength"] for row in rest[:4]}
    assert chosen in {row["strength"] for row in tuning}
    assert [row["bound"] for row in rest[:4]] == [0.3, 0.3, 0.6, 0.6]
    for row in rest[4:]:
        assert row["sparsity"] == pytest.approx(row["target_sparsity"], abs=1e-4)
    readme = (small / "README.md").read_text()
    assert "| sparsity, % at 60 % error | error, % at 50 % sparsity |" in readme
    assert readme.count(f"| l2 | strength {chosen:g} | 2 | ") == 1
    assert len(re.findall(r"\| gradual-l2 \| strength \S+ \| 2 \| ", readme)) == 1
    assert "- `l2`: weight decay through the optimizer\n" in readme
    assert "3 epochs of dense training, 6 of pruning and 2 of fine-tuning, " in readme
    assert (
        "Published elsewhere: Others 2020 2.5 % error at 70 % sparsity "
        "(arXiv:2001.00001).\n"
    ) in readme
    assert (small / "store" / "small.png").stat().st_size > 10_000

    # Another method joins, and nothing is made twice.
    before = {f: f.stat().st_mtime_ns for f in (small / "runs/small").iterdir()}
    main([*command, "--methods", "gradual-l2", "l1"])
    after = {f: f.stat().st_mtime_ns for f in (small / "runs/small").iterdir()}
    assert before.items() <= after.items()
    now = points.read(small / "store", "small")
    assert now[: len(rows)] == rows
    assert len(after) - len(before) == len(now) - len(rows) >= 3 * 2 + 4
    assert {row["method"] for row in now[len(rows) :]} == {"l1"}

    # What other settings have made is not shown as if it were of the present ones.
    changed = TASK._replace(config=dataclasses.replace(CONFIG, epochs=7))
    monkeypatch.setattr(plan, "TASKS", {"small": changed})
    with pytest.raises(ExperimentError, match=r"rows of l2 in .* --methods l2, or"):
        report.write(small / "store")
    # That is told before anything is made.
    with pytest.raises(SystemExit, match=r"rows of gradual-l2 in .* are not those of"):
        main([*command, "--methods", "l2"])
    assert set((small / "runs/small").iterdir()) == after.keys()


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_has_the_same_budget_and_tuning(name):
    made = {"tuning": [], "frontier": []}

    def make(stage, configs):
        made[stage] += configs
        return [
            {
                method.tuned: (value := getattr(config, method.tuned)),
                "kept": 1_000 * math.cosh(math.log(value / best)),
                "total": 100_000,
                "validation_accuracy": 0.9,
            }
            for config in configs
        ]

    method = methods.METHODS[name]
    *_, less, most = plan.first_values(method, CONFIG)
    best = most * (most / less) ** 2  # two steps beyond what is tried first
    plan.make_method(name, TASK, make)
    # The first three; one beyond them; the best; and one beyond that.
    assert len(made["tuning"]) == 2 * (3 + 3)
    assert len(made["frontier"]) == 2 * 2
    config = dataclasses.replace(CONFIG, **method.changes)
    for config in made["tuning"] + made["frontier"]:
        config.validate()
        assert (
            config.dense_epochs + config.epochs == CONFIG.dense_epochs + CONFIG.epochs
        )
        if config.prune not in ("snip", "random"):
            assert config.epochs == CONFIG.epochs
        for field in ("finetune_epochs", "batch_size"):
            assert getattr(config, field) == getattr(CONFIG, field)
    for config in made["frontier"]:
        assert getattr(config, method.tuned) == pytest.approx(best, rel=0.01)
    seeds = {config.seed for config in made["tuning"]}
    assert not seeds & {config.seed for config in made["frontier"]}


def test_among_values_with_as_many_prunes_the_most_accurate_is_chosen():
    """Fewer weights after as many prunes are a matter of how their numbers round."""
    values = plan.first_values(methods.METHODS["l2"], CONFIG)
    kept = dict(zip(values, (240, 241, 344), strict=True))  # of 1,000, at 30 % a prune
    accuracy = dict(zip(values, (0.90, 0.95, 0.99), strict=True))

    def make(_, configs):
        found = [config.strength for config in configs]
        return [
            {
                **{"strength": value, "total": 1_000, "kept": kept.get(value, 1_000)},
                "validation_accuracy": accuracy.get(value, 0.5),
            }
            for value in found
        ]

    config = dataclasses.replace(CONFIG, regularizer="l2")
    assert plan.tune("l2", config, TASK, make) == values[1]


@pytest.mark.parametrize("name", methods.TASKS)
def test_budgets_let_gated_methods_go_beyond_what_is_asked_for(name):
    """One prune a round, and the last is never known to have been allowed."""
    task = methods.TASKS[name]
    config = task.config
    config.validate()
    updates = config.epochs * (TRAINING_SET[config.dataset] // config.batch_size)
    least = (1 - config.fraction) ** (updates // config.interval - 1)
    highest = max(task.sparsities + tuple(p.sparsity / 100 for p in task.published))
    assert least < (1 - highest) / 2


def rows_of(method, *runs):
    """Returns rows of runs, each some (sparsity, error) in %."""
    return [
        {
            **{"method": method, "stage": "frontier", "strength": 0.5, "seed": seed},
            **{"sparsity": sparsity / 100, "test_accuracy": 1 - error / 100},
            **{"dense_test_accuracy": 0.9, "hardware": "none", "commit": "none"},
            "learning_rate": 0.25,
        }
        for seed, run in enumerate(runs)
        for sparsity, error in run
    ]


def test_frontiers_by_hand():
    # Kept are 4 %, 2 % and 1 %: each half of the one before.
    rows = rows_of("l1", [(99, 4), (96, 1), (98, 2)], [(96, 1), (98, 3), (99, 5)])
    rows += [{**row, "stage": "tuning"} for row in rows_of("l1", [(50, 50)])]
    rows += rows_of("l2", [(90, 9)])
    frontiers = points.frontiers_of(rows)
    assert list(frontiers) == ["l2", "l1"]  # in the order of the methods
    value, (run, _) = frontiers["l1"]
    assert value == 0.5
    assert [point.error for point in run] == pytest.approx([4, 1, 2])

    half_way = 100 - 2**0.5  # between 2 % and 1 %, by the logarithm
    for sparsity, sign, error in [
        *[(96, "", 1), (98, "", 2), (half_way, "", 3), (99, "", 4)],
        *[(90, "≤ ", 1), (95.996, "", 1), (99.004, "", 4)],
    ]:
        found = points.error_at(run, sparsity)
        assert found == (sign, pytest.approx(error, rel=1e-6))
    assert math.isnan(points.error_at(run, 99.1)[1])
    for error, sign, sparsity in [
        *[(1, "", 96), (2, "", 98), (3, "", half_way), (5, "≥ ", 99)],
        (4, "≥ ", 99),
    ]:
        found = points.sparsity_at(run, error + 1e-9)
        assert found == (sign, pytest.approx(sparsity, abs=0.01))
    assert math.isnan(points.sparsity_at(run, 0.9)[1])


def test_where_the_error_falls_again_the_higher_sparsity_counts():
    run = [points.Point(*values) for values in [(90, 1), (96, 3), (98, 2)]]
    assert points.sparsity_at(run, 2.0) == ("≥ ", 98)
    sign, sparsity = points.sparsity_at(run, 1.5)
    assert not sign and 90 < sparsity < 96


def test_tables_give_means_over_seeds_with_their_spread():
    assert report.cell([("", 2.0), ("", 3.0)]) == "2.50 ± 0.71"
    assert report.cell([("", 2.0), ("≤ ", 3.0)]) == "≤ 2.50 ± 0.71"
    assert report.cell([("", 1.0)]) == "1.00"
    # A mean over those seeds alone that came so far would flatter.
    assert report.cell([("", 1.0), ("", math.nan)]) == "-"


def test_tables_say_what_was_tuned():
    rows = rows_of("none", [(60, 1)]) + rows_of("l1", [(99, 4)])
    table = report.table("lenet300-mnist", rows)
    assert "| none | learning rate 0.25 | 1 | " in table
    assert "| l1 | strength 0.5 | 1 | " in table


def test_tuning_can_be_that_of_another_task(small, monkeypatch):
    tasks = {"small": TASK, "large": TASK._replace(tuned_on="small")}
    for module in (frontiers, settings):
        monkeypatch.setattr(module, "TASKS", tasks)
    (small / "store").mkdir()

    def store(*rows):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (small / "store" / "small.jsonl").write_text(text)

    of_none, of_l2 = rows_of("none", [(80, 9)]), rows_of("l2", [(90, 9)])
    store(*of_none)
    monkeypatch.setattr(frontiers, "check_stored", lambda *_: None)
    command = ["sweep", "frontiers", "--tasks", "large", "--out", str(small / "runs")]
    with pytest.raises(SystemExit, match="error: l2 is tuned on small, which"):
        main([*command, "--methods", "none", "l2"])
    assert not (small / "runs").exists()  # `none` was not made in vain before
    store(*of_none, *of_l2)
    for name, value in (("l2", 0.5), ("none", 0.25)):
        assert plan.tune(name, CONFIG, tasks["large"], pytest.fail) == value


def test_tasks_that_others_are_tuned_on_come_first(small, monkeypatch):
    tasks = {"small": TASK, "large": TASK._replace(tuned_on="small")}
    for module in (frontiers, settings):
        monkeypatch.setattr(module, "TASKS", tasks)
    made = []

    def make_task(name, *_):
        made.append(name)
        return []

    monkeypatch.setattr(frontiers, "make_task", make_task)
    main(["sweep", "frontiers", "--tasks", "large", "small", "--out", str(small)])
    assert made == ["small", "large"]


def test_a_method_of_which_a_run_diverged_is_left_out(small, monkeypatch):
    def complete(configs, *_, **__):
        return [
            {
                **config.to_dict(),
                **{"config_id": config.config_id, "kept": 1, "total": 100},
                **{"validation_accuracy": 0.9, "sparsity": 0.99},
                **{"test_accuracy": 0.9, "dense_test_accuracy": 0.95},
                **{"hardware": "none", "commit": None},
                "diverged": config.regularizer == "l2" and config.seed >= 10,
            }
            for config in configs
        ]

    monkeypatch.setattr(frontiers, "complete", complete)
    command = ["sweep", "frontiers", "--tasks", "small", "--out", str(small / "runs")]
    with pytest.raises(SystemExit, match=r"error: small, l2: training diverged: l2 at"):
        main([*command, "--methods", "l2", "l1"])
    rows = points.read(small / "store", "small")
    assert {row["method"] for row in rows} == {"l1"}
    # It is told of runs, too, whose commit is not known.
    assert "commit unknown." in (small / "README.md").read_text()


@pytest.mark.parametrize(
    "words",
    [("frontiers", "lenet300-mnist", "lenet5-fashion"), ("study", "digits", "fashion")],
)
def test_missing_data_is_told_before_any_run_is_made(words, tmp_path, monkeypatch):
    def builder(name, *_):
        if name == "fashion_mnist":
            raise ExperimentError("no fashion_mnist")

    monkeypatch.setattr(data, "prepared_builder", builder)
    name, *tasks = words
    with pytest.raises(SystemExit, match="error: no fashion_mnist"):
        main(["sweep", name, "--out", str(tmp_path / "runs"), "--tasks", *tasks])
    assert not (tmp_path / "runs").exists()


def test_damaged_rows_are_told_in_one_line(tmp_path):
    (row,) = rows_of("l1", [(99, 4)])
    for name in (None, "sparsity", "test_accuracy"):
        held = {key: value for key, value in row.items() if key != name}
        (tmp_path / "small.jsonl").write_text(json.dumps(held) + "\n")
        if name is None:
            assert points.read(tmp_path, "small") == [row]
            continue
        with pytest.raises(ExperimentError, match=rf"small\.jsonl .*no '{name}'"):
            points.read(tmp_path, "small")


@pytest.mark.parametrize("flag", ["--tasks", "--methods"])
def test_what_is_unknown_is_refused(flag):
    with pytest.raises(SystemExit, match=f"error: {flag} must be of .*; got 'huge'"):
        main(["sweep", "frontiers", flag, "huge"])
    with pytest.raises(SystemExit, match=f"error: {flag} must be one or more"):
        main(["sweep", "frontiers", flag])


def test_tables_in_the_readme_are_those_of_the_stored_rows(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(README.read_text())
    monkeypatch.setattr(report, "README", readme)
    monkeypatch.setattr(report, "draw", lambda *_: None)
    report.write(points.STORE)
    assert readme.read_text() == README.read_text()
    for name in methods.TASKS:
        for row in points.read(points.STORE, name):
            assert "-dirty" not in row["commit"]
    assert insert(readme.read_text(), "frontiers", "")
