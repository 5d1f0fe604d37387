"""The control study: paired comparisons by hand, and a small study from end to end."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments import comparison, study, study_report, trials
from experiments.__main__ import main
from experiments.forms import Form
from experiments.results import insert

ROOT = Path(__file__).parents[1]


def runs(kept, **rest):
    """Returns rows of a comparison, seed by seed."""
    row = {
        **{"task": "digits", "stage": "comparison", "trial": "leaf", "control": "none"},
        **{"strength": 0.1, "scale": 1.0, "total": 1_000},
        **{"commit": "abc", "hardware": "1 x cpu"},
        **{"test_accuracy": 0.9, "dense_test_accuracy": 0.95},
    }
    return [
        {**row, "seed": seed, "kept": count, **rest} for seed, count in enumerate(kept)
    ]


FORM, OTHER = [50, 80, 20, 40, 60], [70, 90, 35, 50, 66]


def test_comparison_is_a_paired_t_test_on_logarithms():
    found = comparison.compare(runs(FORM), runs(OTHER)[::-1])
    logs = np.log(FORM), np.log(OTHER)
    expected = stats.ttest_rel(*logs, alternative="less")
    interval = stats.ttest_rel(*logs).confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.ratio == pytest.approx(stats.gmean(FORM) / stats.gmean(OTHER))
    assert found.low == pytest.approx(math.exp(interval.low))
    assert found.high == pytest.approx(math.exp(interval.high))
    assert comparison.compare(runs(OTHER), runs(FORM)).p_value > 0.5


def test_what_is_compared_with_itself_does_not_win():
    same = comparison.compare(runs(FORM), runs(FORM))
    assert (same.ratio, same.p_value) == (1.0, 1.0) and not same.wins
    # All that five equal differences can say is what five coins can.
    half = comparison.compare(runs(FORM[:5]), runs([2 * kept for kept in FORM[:5]]))
    assert half.ratio == pytest.approx(0.5)
    assert half.p_value == pytest.approx(1 / 32, abs=0.032)


def test_every_task_counts_alike():
    few, many = np.log([0.5, 0.6, 0.9]), np.log([1.1, 1.0, 0.9, 1.3, 0.8, 1.2])
    own, other = [], []
    for task, logs in (("digits", few), ("mnist", many)):
        own += runs(1e6 * np.exp(logs), task=task)
        other += runs([1e6] * len(logs), task=task)
    found = comparison.compare(own, other)
    assert math.log(found.ratio) == pytest.approx((few.mean() + many.mean()) / 2)
    # Welch's test of the difference of two means is that of the sum of one and minus
    # the other: the same degrees of freedom.
    welch = stats.ttest_ind(few, -many, equal_var=False)
    low, high = welch.confidence_interval(0.95)
    assert math.log(found.low) == pytest.approx(low / 2)
    assert math.log(found.high) == pytest.approx(high / 2)
    one_sided = stats.ttest_ind(few, -many, equal_var=False, alternative="less")
    assert found.p_value == pytest.approx(one_sided.pvalue)


def test_seeds_that_make_no_pairs_are_refused():
    with pytest.raises(ValueError, match="no pairs"):
        comparison.compare(runs(FORM), runs(OTHER[:4]))


BETTER = [40, 70, 15, 33, 50]


@pytest.mark.parametrize(
    "l2, permuted, mean, wins",
    [
        (FORM, FORM, FORM, True),
        (BETTER, FORM, FORM, False),
        (FORM, BETTER, FORM, False),
        (FORM, FORM, BETTER, False),
    ],
)
def test_a_form_wins_only_over_l2_and_both_controls(l2, permuted, mean, wins):
    rows = [
        *runs(l2, trial="l2"),
        *runs(BETTER),
        *runs(permuted, control="permuted"),
        *runs(mean, control="mean"),
    ]
    by_name = {trial.name: trial for trial in comparison.results_of(rows)}
    assert by_name["leaf"].wins == wins
    assert not by_name["l2"].wins
    said = study_report.section(rows)
    assert ("these win: leaf." in said) == wins
    assert ("Of 1 forms, none wins." in said) != wins
    # Over all tasks only what was made in several of them is compared.
    assert "| leaf |" not in study_report.together([rows])
    again = [{**row, "task": "mnist"} for row in rows]
    said = study_report.together([rows, again])
    assert ("| leaf | 2 |" in said) and ("these win: leaf." in said) == wins


def test_settings_are_chosen_by_the_mean_logarithm():
    tuned = [
        {"strength": strength, "scale": 1.0, "kept": kept}
        for strength, pair in ((0.1, (10, 1000)), (0.2, (110, 110)), (0.3, (50, 150)))
        for kept in pair
    ]
    assert study.best_setting(tuned) == (0.3, 1.0)


def test_trials_are_tuned_alike():
    for name, trial in trials.TRIALS.items():
        configs = study.tuning_runs(trials.DIGITS, trial)
        assert len(set(configs)) == len(configs)
        assert len(configs) == (1 if name == "none" else 9) * len(study.TUNING_SEEDS)


def test_comparisons_are_on_other_seeds_and_with_both_controls():
    task = trials.TASKS["digits"]
    for trial in trials.TRIALS.values():
        configs = study.comparison_runs(task.config, trial, task, 0.1, 2.0)
        seeds = {config.seed for config in configs}
        assert len(seeds) == task.num_seeds >= 5
        assert not seeds & set(study.TUNING_SEEDS)
        controls = {config.form.control for config in configs}
        if configs[0].regularizer == "relevance":
            assert controls == {"none", "permuted", "mean"}
        else:
            assert controls == {"none"}
        assert {(config.strength, config.scale) for config in configs} == {(0.1, 2.0)}


@pytest.mark.parametrize("name", trials.TASKS)
def test_every_task_has_its_reference(name):
    task = trials.TASKS[name]
    task.config.validate()
    assert {"none", "l2", "relevance"} <= set(task.trials) <= set(trials.TRIALS)
    assert trials.TRIALS["relevance"].changes.get("form", Form()) == Form()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A study of one small task, away from the stored one."""
    config = dataclasses.replace(
        trials.DIGITS,
        **{"dense_epochs": 4, "epochs": 8, "interval": 16, "bound": 0.3},
    )
    task = trials.Task(
        "A small task.", config, ("none", "l2", "relevance"), num_seeds=2
    )
    for module in (study, study_report, trials):
        monkeypatch.setattr(module, "TASKS", {"small": task})
    monkeypatch.setattr(study, "STORE", tmp_path / "store")
    monkeypatch.setattr(study_report, "REPORT", tmp_path / "STUDY.md")
    monkeypatch.setattr(study_report, "FIGURE", tmp_path / "study")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- study: begin --><!-- study: end -->")
    monkeypatch.setattr(study_report, "README", readme)
    return tmp_path


def test_study_from_end_to_end(small):
    command = ["sweep", "study", "--tasks", "small", "--out", str(small / "r")]
    command += ["--at-once", "2"]  # so that few programs are compiled
    main(command)
    path = small / "store" / "small.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    stages = [row["stage"] for row in rows]
    assert stages.count("tuning") == 2 * (1 + 9 + 9)
    assert stages.count("comparison") == 2 * (1 + 1 + 3)
    # What is chosen is chosen without the test set.
    for row in rows:
        assert ("test_accuracy" in row) == (row["stage"] == "comparison")
    report = (small / "STUDY.md").read_text()
    tried = report.split("## Everything that was tried")[1]
    assert tried.count("| small |") == 1 + 9 + 9 + 1 + 1 + 3
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


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--tasks", "digit"), "--tasks must be of 'digits'"),
        (("--at-once", "0"), "--at-once must be 1 or more; got 0"),
    ],
)
def test_mistakes_are_told_in_one_line(flags, message):
    with pytest.raises(SystemExit) as info:
        main(["sweep", "study", *flags])
    assert str(info.value.code).startswith("error: ") and message in info.value.code


def test_report_is_that_of_the_stored_rows():
    tasks = study_report.read(study.STORE)
    assert tasks
    assert (ROOT / "experiments" / "STUDY.md").read_text() == study_report.report(tasks)
    readme = (ROOT / "README.md").read_text()
    assert insert(readme, "study", study_report.overview(tasks)) == readme
