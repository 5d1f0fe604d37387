"""Frontiers of methods: a small one from end to end, and piece by piece."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments import digits, frontier_report, frontiers, methods
from experiments.__main__ import main
from experiments.results import README, insert

CONFIG = dataclasses.replace(
    digits.CONFIG,
    **{"dense_epochs": 3, "epochs": 6, "interval": 16, "finetune_epochs": 2},
    **{"batch_size": 64, "relative_bound": False, "fraction": 0.3},
)
TASK = methods.Task(
    CONFIG, (0.3, 0.6), (0.5, 0.8), (("Others 2020", 2.5, 70.0),), num_seeds=2
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
    assert readme.count("| l2 | bound ") == 2
    assert readme.count("| random | sparsity ") == 2
    assert "| Others 2020, published | | | | 2.5 | 70 |" in readme
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


def test_points_are_means_over_seeds_with_their_spread():
    rows = [
        {
            **{"method": "gradual", "stage": "frontier", "strength": 0.0},
            **{"target_sparsity": 0.985, "sparsity": 0.985, "test_accuracy": accuracy},
        }
        for accuracy in (0.98, 0.97)
    ]
    rows.append({"method": "gradual", "stage": "tuning"})
    (point,) = frontier_report.points_of(rows)["gradual"]
    assert point.goal == "sparsity 98.5 %"
    assert frontier_report.spread(point.errors) == "2.50 ± 0.71"
    assert frontier_report.spread([1.0]) == "1.00"


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
