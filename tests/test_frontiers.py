"""Frontiers of methods: a small one from end to end, and piece by piece."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from experiments import digits, frontier_report, frontiers, methods
from experiments.__main__ import main
from experiments.config import ExperimentError
from experiments.results import README, insert

CONFIG = dataclasses.replace(
    digits.CONFIG,
    **{"dense_epochs": 3, "epochs": 6, "interval": 16, "finetune_epochs": 2},
    **{"batch_size": 64, "relative_bound": False, "fraction": 0.3},
)
TASK = methods.Task(
    CONFIG, (0.3, 0.6), (0.5, 0.8), (60.0,), (("Others 2020", 2.5, 70.0),), num_seeds=2
)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Frontiers of one small task, away from the stored ones."""
    for module in (methods, frontiers, frontier_report):
        monkeypatch.setattr(module, "TASKS", {"small": TASK})
    monkeypatch.setattr(frontiers, "STORE", tmp_path / "store")
    monkeypatch.setattr(frontier_report, "STORE", tmp_path / "store")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- frontiers: begin --><!-- frontiers: end -->")
    monkeypatch.setattr(frontier_report, "README", readme)
    return tmp_path


def test_frontiers_from_end_to_end(small):
    command = ["sweep", "frontiers", "--tasks", "small", "--out", str(small / "runs")]
    main([*command, "--methods", "l2", "random"])
    path = small / "store" / "small.jsonl"
    rows = frontier_report.read(path)
    stages = [(row["method"], row["stage"]) for row in rows]
    assert stages == (
        [("l2", "tuning")] * 8 + [("l2", "frontier")] * 4 + [("random", "frontier")] * 4
    )
    for row in rows:  # what is chosen is chosen without the test set
        assert ("test_accuracy" in row) == (row["stage"] == "frontier")
    chosen = frontiers.best_strength(rows[:8])
    assert {row["strength"] for row in rows[8:12]} == {chosen}
    assert [row["bound"] for row in rows[8:12]] == [0.3, 0.3, 0.6, 0.6]
    for row in rows[12:]:
        assert row["sparsity"] == pytest.approx(row["target_sparsity"], abs=1e-4)
    readme = (small / "README.md").read_text()
    assert "| sparsity, % at 60 % error | error, % at 50 % sparsity |" in readme
    assert readme.count(f"| l2 | {chosen:g} | 2 | ") == 1
    assert readme.count("| random |  | 2 | ") == 1
    assert "3 epochs of dense training, 6 of pruning, 2 of fine-tuning, " in readme
    assert "Published elsewhere: Others 2020 2.5 % error at 70 %.\n" in readme
    assert (small / "store" / "small.png").stat().st_size > 10_000

    # Another method joins, and nothing is made twice.
    before = {f: f.stat().st_mtime_ns for f in (small / "runs/small").iterdir()}
    main([*command, "--methods", "random", "snip"])
    after = {f: f.stat().st_mtime_ns for f in (small / "runs/small").iterdir()}
    assert before.items() <= after.items() and len(after) == len(before) + 4
    assert [row["method"] for row in frontier_report.read(path)] == (
        ["l2"] * 12 + ["random"] * 4 + ["snip"] * 4
    )


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_has_the_same_budget_and_tuning(name):
    made = {}

    def make(stage, configs):
        made[stage] = configs
        return [
            # The second strength keeps as few as the third, and is the more accurate.
            {
                "strength": config.strength,
                "kept": {0: 9, 1: 3, 2: 3, 3: 5}[strengths.index(config.strength)],
                "validation_accuracy": 1 - config.strength,
            }
            for config in configs
        ]

    strengths = methods.METHODS[name].strengths
    frontiers.make_method(name, TASK, make)
    tuned = len(strengths) > 1
    assert len(made.get("tuning", ())) == (4 * 2 if tuned else 0)
    assert len(made["frontier"]) == 2 * 2
    for configs in made.values():
        for config in configs:
            config.validate()
            for field in ("epochs", "dense_epochs", "finetune_epochs", "batch_size"):
                assert getattr(config, field) == getattr(CONFIG, field)
    for config in made["frontier"]:
        assert config.strength == strengths[tuned]
    seeds = {config.seed for config in made.get("tuning", ())}
    assert not seeds & {config.seed for config in made["frontier"]}


def rows_of(method, *runs):
    """Returns rows of runs, each some (sparsity, error) in %."""
    return [
        {
            **{"method": method, "stage": "frontier", "strength": 0.5, "seed": seed},
            **{"sparsity": sparsity / 100, "test_accuracy": 1 - error / 100},
        }
        for seed, run in enumerate(runs)
        for sparsity, error in run
    ]


def test_frontiers_by_hand():
    # Kept are 4 %, 2 % and 1 %: each half of the one before.
    rows = rows_of("l1", [(99, 4), (96, 1), (98, 2)], [(96, 1), (98, 3), (99, 5)])
    rows += [{**row, "stage": "tuning"} for row in rows_of("l1", [(50, 50)])]
    rows += rows_of("l2", [(90, 9)])
    frontiers = frontier_report.frontiers_of(rows)
    assert list(frontiers) == ["l2", "l1"]  # in the order of the methods
    strength, (points, _) = frontiers["l1"]
    assert strength == 0.5
    assert [point.error for point in points] == pytest.approx([1, 2, 4])

    half_way = 100 - 2**0.5  # between 2 % and 1 %, by the logarithm
    for sparsity, sign, error in [
        *[(96, "", 1), (98, "", 2), (half_way, "", 3), (99, "", 4)],
        *[(90, "≤ ", 1), (99.004, "", 4)],
    ]:
        found = frontier_report.error_at(points, sparsity)
        assert found == (sign, pytest.approx(error, abs=0.02))
    assert math.isnan(frontier_report.error_at(points, 99.1)[1])
    for error, sign, sparsity in [
        *[(1, "", 96), (2, "", 98), (3, "", half_way), (5, "≥ ", 99)],
        (4, "≥ ", 99),
    ]:
        found = frontier_report.sparsity_at(points, error + 1e-9)
        assert found == (sign, pytest.approx(sparsity, abs=0.01))
    assert math.isnan(frontier_report.sparsity_at(points, 0.9)[1])


def test_where_the_error_falls_again_the_higher_sparsity_counts():
    points = [frontier_report.Point(*values) for values in [(90, 1), (96, 3), (98, 2)]]
    assert frontier_report.sparsity_at(points, 2.0) == ("≥ ", 98)
    sign, sparsity = frontier_report.sparsity_at(points, 1.5)
    assert not sign and 90 < sparsity < 96


def test_tables_give_means_over_seeds_with_their_spread():
    assert frontier_report.cell([("", 2.0), ("", 3.0)]) == "2.50 ± 0.71"
    assert frontier_report.cell([("", 2.0), ("≤ ", 3.0)]) == "≤ 2.50 ± 0.71"
    assert frontier_report.cell([("", 1.0)]) == "1.00"
    # A mean over those seeds alone that came so far would flatter.
    assert frontier_report.cell([("", 1.0), ("", math.nan)]) == "-"


def test_strengths_can_be_those_of_another_task(small, monkeypatch):
    tasks = {"small": TASK, "large": TASK._replace(tuned_on="small")}
    monkeypatch.setattr(frontiers, "TASKS", tasks)
    with pytest.raises(ExperimentError, match="l2 is that tuned on small, which has"):
        frontiers.strength_of("l2", CONFIG, tasks["large"], pytest.fail)
    (small / "store").mkdir()
    rows = rows_of("l2", [(90, 9)])
    (small / "store" / "small.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert frontiers.strength_of("l2", CONFIG, tasks["large"], pytest.fail) == 0.5
    assert frontiers.strength_of("none", CONFIG, tasks["large"], pytest.fail) == 0.0


@pytest.mark.parametrize("flag", ["--tasks", "--methods"])
def test_what_is_unknown_is_refused(flag):
    with pytest.raises(SystemExit, match=f"error: {flag} must be of .*; got 'huge'"):
        main(["sweep", "frontiers", flag, "huge"])


def test_tables_in_the_readme_are_those_of_the_stored_rows(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(README.read_text())
    monkeypatch.setattr(frontier_report, "README", readme)
    monkeypatch.setattr(frontier_report, "draw", lambda *_: None)
    monkeypatch.setattr(Path, "unlink", lambda self: None)
    frontier_report.write(frontier_report.STORE)
    assert readme.read_text() == README.read_text()
    for path in frontier_report.STORE.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            assert "-dirty" not in json.loads(line)["commit"]
    assert insert(readme.read_text(), "frontiers", "")
