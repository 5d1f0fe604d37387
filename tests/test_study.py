"""A small study from end to end, and the rows that are stored of the large one."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments import plan, study, study_report, trials
from experiments.__main__ import main
from experiments.config import ExperimentError
from experiments.results import insert

ROOT = Path(__file__).parents[1]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A study of one small task, away from the stored one."""
    config = dataclasses.replace(
        trials.DIGITS,
        **{"dense_epochs": 4, "epochs": 8, "interval": 16, "bound": 0.3},
    )
    # Two at once, so that few programs are compiled.
    names = "none", "l2", "relevance"
    task = trials.Task("A small task.", config, names, num_seeds=2, at_once=2)
    tasks = {"small": task}
    for module in (plan, study, study_report, trials):
        monkeypatch.setattr(module, "TASKS", tasks)
    monkeypatch.setattr(study, "STORE", tmp_path / "store")
    monkeypatch.setattr(study_report, "REPORT", tmp_path / "STUDY.md")
    monkeypatch.setattr(study_report, "FIGURE", tmp_path / "study")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- study: begin --><!-- study: end -->")
    monkeypatch.setattr(study_report, "README", readme)
    return tmp_path


def test_study_from_end_to_end(small):
    command = ["sweep", "study", "--tasks", "small", "--out", str(small / "r")]
    main(command)
    path = small / "store" / "small.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    stages = [row["stage"] for row in rows]
    beyond, rest = divmod(stages.count("tuning") - 2 * (9 * 2 + 3 * 4), 6)
    assert beyond >= 0 and rest == 0
    assert stages.count("comparison") == 2 * (1 + 1 + 3)
    # What is chosen is chosen without the test set.
    for row in rows:
        assert ("test_accuracy" in row) == (row["stage"] == "comparison")
    report = (small / "STUDY.md").read_text()
    tried = report.split("## Everything that was tried")[1]
    assert tried.count("| small |") == 9 + 9 + beyond + 1 + 1 + 3
    assert (small / "study.png").stat().st_size > 10_000
    assert "| small | 2 |" in (small / "README.md").read_text()

    # Nothing is made twice, and what is lost is made again.
    stored = sorted((small / "r" / "small").glob("*.json"))
    assert len(stored) == len(rows)
    lost = stored[0].read_text()
    stored[0].unlink()
    before = {file: file.stat().st_mtime_ns for file in stored[1:]}
    main(command)
    assert {file: file.stat().st_mtime_ns for file in stored[1:]} == before
    again = json.loads(stored[0].read_text())
    assert again["kept"] == json.loads(lost)["kept"]
    assert (small / "STUDY.md").read_text() == report


def test_tasks_that_there_are_not_are_refused_in_one_line():
    with pytest.raises(SystemExit) as info:
        main(["sweep", "study", "--tasks", "digit"])
    assert str(info.value.code).startswith("error: --tasks must be of 'digits'")


@pytest.mark.parametrize("text", ["", '{"seed": 1}\n'])
def test_rows_of_other_trials_are_told_before_any_run_is_made(small, text):
    for name in ("one", "two"):
        trials.TASKS[name] = trials.TASKS["small"]
        path = small / "store" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    with pytest.raises(SystemExit, match=r"rows of one, two .* --tasks one two, or"):
        main(["sweep", "study", "--tasks", "small", "--out", str(small / "r")])
    assert not (small / "r").exists()
    with pytest.raises(ExperimentError, match="rows of one, two "):
        study_report.write(small / "store")
    assert not (small / "STUDY.md").exists()


def test_stored_rows_are_those_of_the_trials():
    assert study_report.read(study_report.STORE, trials.TASKS)
    study_report.check_stored(study_report.STORE, trials.TASKS)


def test_report_is_that_of_the_stored_rows():
    tasks = list(study_report.read(study_report.STORE, trials.TASKS).values())
    assert (ROOT / "experiments" / "STUDY.md").read_text() == study_report.report(tasks)
    readme = (ROOT / "README.md").read_text()
    assert insert(readme, "study", study_report.overview(tasks)) == readme
    # The average is said in the text as well.
    ratio, low, high, *_ = next(
        result.comparisons["none"]
        for result in study_report.shared(tasks)
        if result.name == "relevance"
    )
    said = f"keeps {ratio:.2f} times the weights of `l2` ({low:.2f} to {high:.2f})"
    assert said in " ".join(readme.split())
