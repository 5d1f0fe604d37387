"""The control study: paired comparisons by hand, and a small study from end to end."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments import comparison, study, study_report, transfer, trials
from experiments.__main__ import main
from experiments.config import ExperimentError
from experiments.forms import Form
from experiments.results import insert

ROOT = Path(__file__).parents[1]


def runs(kept, **rest):
    """Returns rows of a comparison, seed by seed."""
    row = {
        **{"task": "digits", "stage": "comparison", "trial": "leaf", "control": "none"},
        **{"strength": 0.1, "scale": 1.0, "total": 1_000},
        **{"commit": "abc", "hardware": "1 x cpu"},
        **{"test_accuracy": 0.9, "dense_test_accuracy": 0.95, "validation_bound": 0.9},
    }
    return [
        {**row, "seed": seed, "kept": count, **rest} for seed, count in enumerate(kept)
    ]


FORM, OTHER = [50, 80, 20, 40, 60, 33, 47], [70, 90, 35, 50, 66, 31, 52]


def test_comparison_is_paired_and_on_logarithms():
    found = comparison.compare(runs(FORM), runs(OTHER)[::-1])
    differences = np.log(FORM) - np.log(OTHER)
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert found.ratio == pytest.approx(stats.gmean(FORM) / stats.gmean(OTHER))
    assert found.low == pytest.approx(math.exp(interval.low))
    assert found.high == pytest.approx(math.exp(interval.high))
    means = [
        np.mean(signs * differences)
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    no_larger = [mean <= differences.mean() + 1e-12 for mean in means]
    assert found.p_value == pytest.approx(np.mean(no_larger))
    assert comparison.compare(runs(OTHER), runs(FORM)).p_value > 0.5


def test_what_is_compared_with_itself_does_not_win():
    same = comparison.compare(runs(FORM), runs(FORM))
    assert (same.ratio, same.p_value) == (1.0, 1.0) and not same.wins


@pytest.mark.parametrize("number", [5, 6, 7])
def test_equal_differences_say_no_more_than_coins(number):
    half = comparison.compare(
        runs(FORM[:number]), runs([2 * kept for kept in FORM[:number]])
    )
    assert half.ratio == pytest.approx(0.5)
    assert half.p_value == pytest.approx(0.5**number)
    assert half.wins == (number == 7)


def test_many_pairs_are_tested_by_random_signs():
    kept = range(50, 70)
    half = comparison.compare(runs(kept), runs([2 * count for count in kept]))
    assert 0 < half.p_value < 0.001
    logs = np.random.default_rng(0).normal(-0.1, 1, len(kept))
    found = comparison.compare(runs(1e6 * np.exp(logs)), runs([1e6] * len(kept)))
    # The sum of so many random signs is nearly normal.
    normal = stats.norm.cdf(logs.sum() / math.sqrt(np.sum(logs**2)))
    assert found.p_value == pytest.approx(normal, abs=0.02)


def test_every_task_counts_alike():
    few, many = np.log([0.5, 0.6, 0.9]), np.log([1.1, 1.0, 0.9, 1.3, 0.8, 1.2])
    own, other = [], []
    for task, logs in (("digits", few), ("mnist", many)):
        own += runs(1e6 * np.exp(logs), task=task)
        other += runs([1e6] * len(logs), task=task)
    found = comparison.compare(own, other)
    # The tasks are the pairs, two of them.
    means = few.mean(), many.mean()
    assert math.log(found.ratio) == pytest.approx(np.mean(means))
    interval = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert math.log(found.high) == pytest.approx(interval.high)
    assert found.p_value == 0.5  # the signs ++ and -+ have larger means


def test_seeds_that_make_no_pairs_are_refused():
    with pytest.raises(ValueError, match="no pairs"):
        comparison.compare(runs(FORM), runs(OTHER[:4]))


def test_runs_that_pruned_at_different_bounds_are_refused():
    with pytest.raises(ValueError, match=r"no pairs: .* different bounds"):
        comparison.compare(runs(FORM), runs(OTHER, validation_bound=0.91))


BETTER = [40, 70, 15, 33, 50, 30, 40]


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
    again = [[{**row, "task": str(k)} for row in rows] for k in range(7)]
    said = study_report.together(again)
    assert ("| leaf | 7 |" in said) and ("these win: leaf." in said) == wins
    assert ("Of 1 forms, none wins." in said) != wins
    # Six pairs cannot reach the level, whatever they say.
    said = study_report.together(again[:6])
    assert "The forms have too few pairs to tell." in said and "win" not in said


def test_forms_with_too_few_pairs_are_not_counted_as_losers():
    tasks = []
    for name in map(str, range(7)):
        rows = runs(FORM, trial="l2")
        for trial in ("leaf", "network") if name != "6" else ("leaf",):
            rows += runs(BETTER, trial=trial)
            for control in ("permuted", "mean"):
                rows += runs(FORM, trial=trial, control=control)
        tasks.append([{**row, "task": name} for row in rows])
    said = study_report.together(tasks)
    assert "Of 1 forms, these win: leaf. 1 more have too few pairs to tell." in said


def test_forms_are_compared_with_their_own_reference():
    name = "relevance, strength decays"
    rows = [
        *runs(FORM, trial="l2"),
        *runs(OTHER, trial="l2, strength decays"),
        *runs(BETTER, trial=name),
        *runs(FORM, trial=name, control="permuted"),
        *runs(FORM, trial=name, control="mean"),
    ]
    results = {result.name: result for result in comparison.results_of(rows)}
    ratio = stats.gmean(BETTER) / stats.gmean(OTHER)
    assert results[name].comparisons["none"].ratio == pytest.approx(ratio)
    ratio = stats.gmean(OTHER) / stats.gmean(FORM)
    decaying = results["l2, strength decays"]
    assert decaying.comparisons["none"].ratio == pytest.approx(ratio)
    assert not decaying.is_form and results["l2"].comparisons == {}


def test_equal_differences_are_given_no_interval():
    half = comparison.compare(runs(FORM), runs([2 * kept for kept in FORM]))
    assert str(half) == "0.50, p = 0.008"
    some = comparison.compare(runs(BETTER), runs(FORM))
    assert str(some).startswith(f"{some.ratio:.2f} ({some.low:.2f} to {some.high:.2f})")


def test_test_errors_are_compared_in_percentage_points():
    l2 = [
        {**run, "test_accuracy": 0.91 + 0.01 * (run["seed"] % 2)} for run in runs(FORM)
    ]
    rows = [{**run, "trial": "l2"} for run in l2] + runs(FORM)
    by_name = {trial.name: trial for trial in comparison.results_of(rows)}
    mean, half = by_name["leaf"].worse
    assert mean == pytest.approx((4 * 1 + 3 * 2) / 7)
    interval = stats.ttest_1samp([1, 2, 1, 2, 1, 2, 1], 0).confidence_interval(0.95)
    assert half == pytest.approx((interval.high - interval.low) / 2)
    assert f"| +{mean:.2f} ± {half:.2f} |" in study_report.section(rows)


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
    best = study.best_of(settings, tuned)
    assert best == [(0.4, 1.0), (0.3, 1.0), (0.1, 1.0), (0.2, 1.0)]


def tuning(trial, *settings):
    """Returns rows of a tuning: strength, scale, and what is kept on seeds 0 and 1."""
    return [
        {**row, "stage": "tuning", "strength": strength, "scale": scale}
        for strength, scale, *kept in settings
        for row in runs(kept, trial=trial)
    ]


ONE = [
    *tuning("l2", (1, 1.0, 100, 300), (2, 1.0, 200, 120), (4, 1.0, 900, 40)),
    *tuning("leaf", (1, 0.3, 50, 900), (2, 0.3, 70, 60)),
]
TWO = [
    *tuning("l2", (1, 1.0, 400, 100), (2, 1.0, 300, 150)),
    *tuning("leaf", (1, 0.3, 90, 300), (2, 0.3, 80, 75), (2, 3.0, 1, 1)),
]


def test_one_setting_is_chosen_on_a_seed_and_judged_on_another():
    # On seed 0: sqrt(50 * 90) is below sqrt(70 * 80); l2 is best at 1, then at 2.
    there = transfer.transfer("leaf", [ONE, TWO], 0, 1)
    assert there.setting == (1, 0.3)
    assert there.ratio == pytest.approx(math.sqrt(900 / 300 * 300 / 150))
    # On seed 1: sqrt(60 * 75); l2 is best at 4, which was tried on one task, and at 1.
    back = transfer.transfer("leaf", [ONE, TWO], 1, 0)
    assert back.setting == (2, 0.3)
    assert back.ratio == pytest.approx(math.sqrt(70 / 900 * 80 / 400))
    own = transfer.transfer("l2", [ONE], 0, 1)
    assert own == ((1, 1.0), pytest.approx(1.0))


def test_report_says_what_was_chosen_on_either_seed(monkeypatch):
    monkeypatch.setattr(study_report, "FEW", ("none", "l2", "leaf"))
    tasks = [[*rows, *runs([1], trial="none")] for rows in (ONE, TWO)]
    said = study_report.one_setting(tasks)
    there, back = 900 / 300 * 300 / 150, 70 / 900 * 80 / 400
    ratio = (there * back) ** 0.25
    assert f"| leaf | 1, 0.3 | 2, 0.3 | {ratio:.2f} |" in said
    assert "| l2 | 1 | 2 |" in said and "| none |" not in said
    assert study_report.one_setting([ONE]) == ""


def test_report_lists_all_that_was_tried():
    rows = [*ONE, *runs([10, 1000], trial="none"), *runs([20], control="mean")]
    said = study_report.tried([rows])
    assert "| digits | l2 | none | 2 |  | 0 to 1 | 155 |" in said
    assert "| digits | leaf | none | 1 | 0.3 | 0 to 1 | 212 |" in said
    assert "| digits | none | none |  |  | 0 to 1 | 100 |" in said
    assert "| digits | leaf | mean | 0.1 | 1 | 0 to 0 | 20 |" in said


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
    study.make_trial(name, task.config, task.num_seeds, make)
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


@pytest.mark.parametrize(
    "name, strength, scale, beyond",
    [
        # Of 1e-4 to 1e-2, each 10 ** 0.25 times the one before.
        ("l2", 0.03, 1.0, [{(0.0178, 1.0)}, {(0.0317, 1.0)}, {(0.0565, 1.0)}]),
        ("l2", 0.9e-4, 1.0, [{(5.62e-05, 1.0)}]),
        # Of 0.001 to 0.01 and 0.3 to 3.
        ("leaf", 0.035, 1.0, [{(0.0333, 1.0)}, {(0.111, 1.0)}]),
        ("leaf", 0.003, 0.1, [{(0.003, 0.09)}, {(0.003, 0.027)}]),
        (
            *("leaf", 0.03, 9.0),
            [
                {(0.0333, 3.0), (0.01, 9.0), (0.0333, 9.0)},
                {(0.111, 9.0), (0.0333, 27.0), (0.111, 27.0)},
            ],
        ),
        # Of 0.01 to 0.2, shares, which cannot be more than 1.
        ("top", 0.001, 5.0, [{(0.001, 0.8)}]),
    ],
)
def test_tuning_goes_on_until_the_best_is_inside(name, strength, scale, beyond):
    config = dataclasses.replace(trials.DIGITS, **trials.TRIALS[name].changes)
    make = Recorder(strength, scale)
    best = study.tune(name, config, make)
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
    # Two at once, so that few programs are compiled.
    names = "none", "l2", "relevance"
    task = trials.Task("A small task.", config, names, num_seeds=2, at_once=2)
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
    main(command)
    path = small / "store" / "small.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    stages = [row["stage"] for row in rows]
    beyond, rest = divmod(stages.count("tuning") - 2 * (9 * 2 + 3 * 4), 6)
    assert beyond >= 0 == rest
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


def test_stored_rows_are_what_the_study_makes():
    assert study_report.read(study_report.STORE, trials.TASKS)
    study.check_stored(trials.TASKS)


def test_rows_of_other_trials_are_refused(tmp_path, monkeypatch):
    lines = (study_report.STORE / "digits-sgd.jsonl").read_text().splitlines()
    monkeypatch.setattr(study, "STORE", tmp_path)
    path = tmp_path / "digits-sgd.jsonl"
    path.write_text("\n".join(lines))
    study.check_stored(["digits-sgd", "digits"])
    renamed = lines[-1].replace('"config_id": "', '"config_id": "x')
    for wrong in (lines[:-1], lines[1:], [*lines, lines[0]], [*lines[:-1], renamed]):
        path.write_text("\n".join(wrong))
        with pytest.raises(ExperimentError, match="rows of 'digits-sgd' are not "):
            study.check_stored(["digits-sgd"])


def test_report_is_that_of_the_stored_rows():
    tasks = list(study_report.read(study_report.STORE, trials.TASKS).values())
    assert (ROOT / "experiments" / "STUDY.md").read_text() == study_report.report(tasks)
    readme = (ROOT / "README.md").read_text()
    assert insert(readme, "study", study_report.overview(tasks)) == readme
