"""What the study concludes from its rows, against results by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from study_rows import BEST, BETTER, FORM, OTHER, runs, tuning

from experiments.study import comparison, report as study_report, transfer


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


@pytest.mark.parametrize(
    "l2, permuted, mean, wins",
    [
        (FORM, FORM, FORM, True),
        (BEST, FORM, FORM, False),
        (FORM, BEST, FORM, False),
        (FORM, FORM, BEST, False),
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
    assert ("Of 1 form, none wins." in said) != wins
    # Over all tasks only what was made in several of them is compared.
    assert "| leaf |" not in study_report.together([rows])
    again = [[{**row, "task": str(k)} for row in rows] for k in range(7)]
    said = study_report.together(again)
    assert ("| leaf | 7 |" in said) and ("these win: leaf." in said) == wins
    assert ("Of 1 form, none wins." in said) != wins
    # Six pairs cannot reach the level, whatever they say.
    said = study_report.together(again[:6])
    assert "All have too few pairs that differ to tell." in said and "win" not in said


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
    assert (
        "Of 1 form, these win: leaf. 1 more has too few pairs that differ to tell."
        in said
    )


@pytest.mark.parametrize("l2, alike, wins", [(FORM, FORM, True), (BEST, FORM, False)])
@pytest.mark.parametrize(
    "counterpart, name",
    [
        ("l2, strength decays", "relevance, strength decays"),
        ("l2, decoupled", "network, running, decoupled"),
    ],
)
def test_forms_are_compared_with_the_l2_alike_as_well(
    l2, alike, wins, counterpart, name
):
    rows = [
        *runs(l2, trial="l2"),
        *runs(alike, trial=counterpart),
        *runs(BETTER, trial=name),
        *runs(FORM, trial=name, control="permuted"),
        *runs(FORM, trial=name, control="mean"),
    ]
    results = {result.name: result for result in comparison.results_of(rows)}
    found = results[name]
    for opponent, kept in (("l2", l2), ("alike", alike)):
        ratio = stats.gmean(BETTER) / stats.gmean(kept)
        assert found.comparisons[opponent].ratio == pytest.approx(ratio)
    assert found.wins == wins
    ratio = stats.gmean(alike) / stats.gmean(l2)
    (own,) = results[counterpart].comparisons.values()
    assert own.ratio == pytest.approx(ratio)
    assert not results[counterpart].is_form and results["l2"].comparisons == {}
    said = study_report.section(rows)
    assert "| to l2 | to l2 alike | to I permuted | to mean of I |" in said
    assert str(found.comparisons["alike"]) in said


def test_a_form_that_lacks_its_counterpart_is_no_result():
    rows = [*runs(FORM, trial="l2"), *runs(BETTER, trial="relevance, decoupled")]
    with pytest.raises(KeyError, match="l2, decoupled"):
        comparison.results_of(rows)


def test_equal_pairs_say_nothing_about_who_wins():
    better = [0.5 * kept for kept in FORM]
    for number in range(7):
        some = comparison.compare(
            runs(better[:number] + FORM[number:]), runs(FORM[:number] + FORM[number:])
        )
        assert not some.can_win and not some.wins
        assert some.p_value == pytest.approx(0.5**number)
    assert comparison.compare(runs(better), runs(FORM)).wins


def test_equal_differences_are_given_no_interval():
    half = comparison.compare(runs(FORM), runs([2 * kept for kept in FORM]))
    assert str(half) == "0.50, p = 0.008"
    some = comparison.compare(runs(BETTER), runs(FORM))
    assert str(some).startswith(f"{some.ratio:.2f} ({some.low:.2f} to {some.high:.2f})")


@pytest.mark.parametrize("high, said", [(0.997, "0.997"), (1.002, "1.002")])
def test_one_can_tell_whether_an_interval_holds_1(high, said):
    found = comparison.Comparison(0.94, 0.881, high, 0.02, 9)
    assert str(found) == f"0.94 (0.88 to {said}), p = 0.020"


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


ONE = [
    *tuning("l2", (1, 1.0, 100, 300), (2, 1.0, 200, 120), (4, 1.0, 900, 40)),
    *tuning("leaf", (1, 0.3, 50, 900), (2, 0.3, 70, 60)),
]
TWO = [
    *tuning("l2", (1, 1.0, 400, 100), (2, 1.0, 300, 150)),
    *tuning("leaf", (1, 0.3, 90, 300), (2, 0.3, 80, 75), (2, 3.0, 1, 1)),
]


def test_one_setting_is_chosen_on_a_seed_and_judged_on_another():
    # On seed 0: sqrt(50 * 90) is below sqrt(70 * 80).
    there = transfer.transfer("leaf", [ONE, TWO], 0, 1)
    assert there.setting == (1, 0.3)
    assert there.logs == pytest.approx(np.log([900, 300]))
    # On seed 1: sqrt(60 * 75).
    back = transfer.transfer("leaf", [ONE, TWO], 1, 0)
    assert back == ((2, 0.3), pytest.approx(np.log([70, 80])))
    # The best of l2 on one of the tasks was not tried on the other.
    assert transfer.transfer("l2", [ONE, TWO], 1, 0).setting == (2, 1.0)


def test_report_says_what_was_chosen_on_either_seed(monkeypatch):
    monkeypatch.setattr(study_report, "FEW", ("none", "l2", "leaf"))
    tasks = [[*rows, *runs([1], trial="none")] for rows in (ONE, TWO)]
    said = study_report.one_setting(tasks)
    # l2 is best at 1 on seed 0, and at 2 on seed 1.
    ratios = 900 / 300, 300 / 100, 70 / 200, 80 / 300
    cell = f"{stats.gmean(ratios):.2f} ({80 / 300:.2f} to 3.00)"
    assert f"| leaf | 1, 0.3 | 2, 0.3 | {cell} |" in said
    assert "| l2 | 1 | 2 | 1.00 (1.00 to 1.00) |" in said and "| none |" not in said
    assert study_report.one_setting([ONE]) == ""


def test_report_lists_all_that_was_tried():
    rows = [*ONE, *runs([10, 1000], trial="none"), *runs([20], control="mean")]
    said = study_report.tried([rows])
    assert "| digits | l2 | none | 2 |  | 0 to 1 | 155 |" in said
    assert "| digits | leaf | none | 1 | 0.3 | 0 to 1 | 212 |" in said
    assert "| digits | none | none |  |  | 0 to 1 | 100 |" in said
    assert "| digits | leaf | mean | 0.1 | 1 | 0 to 0 | 20 |" in said
