"""A small study from end to end, and the rows that are stored of the large one."""

import dataclasses
import json
from pathlib import Path

import pytest
from study_rows import runs

from experiments.__main__ import main
from experiments.config import ExperimentError
from experiments.reporting.results import insert
from experiments.study import (
    comparison,
    make as study,
    plan,
    report as study_report,
    settings,
    trials,
)

ROOT = Path(__file__).parents[1]
NUMBERS = "four", "five", "six", "seven", "eight", "nine", "ten"


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
    for module in (plan, study, study_report, trials, settings):
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


@pytest.mark.parametrize("text", ["", json.dumps(runs([5])[0]) + "\n"])
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


def test_readme_draws_the_conclusions_of_the_stored_rows():
    said = " ".join((ROOT / "README.md").read_text().split())
    tasks = study_report.read(study_report.STORE, trials.TASKS)
    results = {
        task: {result.name: result for result in comparison.results_of(rows)}
        for task, rows in tasks.items()
    }
    words = dict(zip(range(4, 11), NUMBERS, strict=True))

    (average,) = (
        result.comparisons
        for result in study_report.shared(list(tasks.values()))
        if result.name == "relevance"
    )
    ratio, low, high, p, _ = average["l2"]
    assert f"On the average over {words[len(tasks)]} tasks the paper's form" in said
    assert (
        f"{ratio:.2f} times the weights of `l2` ({low:.2f} to {high:.2f}, p = {p:.3f})"
        in said
    )
    assert p > comparison.LEVEL
    for control in ("permuted", "mean"):
        ratio, *_, p, _ = average[control]
        assert f"Against either control it is {ratio:.2f} with p = {p:.3f}" in said
        assert p < comparison.LEVEL

    won = {
        (task, name)
        for task, those in results.items()
        for name, result in those.items()
        if result.wins
    }
    assert won == {("digits-few-steps", "ranking in network, running")}
    unable = [task for task in tasks if not results[task]["relevance"].can_win]
    assert f"on {words[len(unable)]} of the {words[len(tasks)]} so many" in said

    gains = {task: those["relevance"].comparisons for task, those in results.items()}
    most = min(gains, key=lambda task: gains[task]["l2"].ratio)
    assert f"Where it gains most on `l2`, on `{most}`, the controls keep about" in said
    for control in ("permuted", "mean"):
        assert 0.9 < gains[most][control].ratio < 1.1

    digits = results["digits"]
    ratio, low, high, *_ = digits["relevance, decoupled"].comparisons["alike"]
    assert f"{ratio:.2f} times the weights ({low:.2f} to {high:.2f}) of an" in said
    assert digits["l2, decoupled"].comparisons["l2"].low > 1
    decoupled = [name for name in digits if "running, decoupled" in name]
    assert decoupled
    for name in (*decoupled, "relevance, decoupled"):
        assert digits[name].comparisons["l2"].ratio > 1
        assert digits[name].comparisons["alike"].wins

    against_none = {
        task: those["none"].comparisons["l2"] for task, those in results.items()
    }
    assert min(found.ratio for found in against_none.values()) > 1
    unclear = [task for task, found in against_none.items() if found.low <= 1]
    assert f"clearly so on all but {' and '.join(f'`{t}`' for t in unclear)}." in said


def test_damaged_rows_are_told_in_one_line(tmp_path):
    path = tmp_path / "digits-sgd.jsonl"
    for text in ("{bad\n", "5\n", '{"task": "digits-sgd"}\n'):
        path.write_text(text)
        with pytest.raises(ExperimentError, match=r"digits-sgd\.jsonl is damaged"):
            study_report.read(tmp_path, ["digits-sgd"])


def test_a_task_with_a_run_that_diverged_is_left_out(small, monkeypatch):
    def diverging(*_):
        raise study.Diverged("training diverged: a run.")

    monkeypatch.setattr(study, "make_task", diverging)
    monkeypatch.setattr(study_report, "write", lambda store: made.append(store))
    made = []
    with pytest.raises(SystemExit, match=r"error: small: training diverged: a run\."):
        main(["sweep", "study", "--tasks", "small", "--out", str(small / "runs")])
    assert made == [small / "store"]  # the report is written all the same
    assert not (small / "store/small.jsonl").exists()
