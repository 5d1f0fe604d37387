"""What is stored, and the conclusions and pages that are made of it."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from short_runs import ROOT

from experiments.comparing import methods, penalties, statistics, study
from experiments.config import Form
from experiments.cost import latency_tables
from experiments.pages import (
    cifar10,
    methods as methods_page,
    pages,
    study as study_page,
)
from experiments.records import RESULTS, RunFolder
from experiments.running.checkpoint import Checkpoints
from experiments.settings import names
from experiments.tasks import TASKS

pytestmark = pytest.mark.quickly_compiled

STORED = sorted((RESULTS / "runs").glob("*.json"))


# ------------------------------------------------------------------------- stored rows


def test_every_stored_run_is_found_from_its_settings():
    """From the settings of its task, its identity is the stored one."""
    assert len(STORED) > 90
    for path in STORED:
        row = json.loads(path.read_text())
        task = TASKS[row["experiment"]]
        values = {}
        for field in dataclasses.fields(task):
            if field.name == "form":
                values["form"] = Form(**row.get("form", {}))
            elif field.name in row:
                values[field.name] = row[field.name]
            elif field.name not in names(task, place=True):  # newer than the run
                values[field.name] = field.default
        config = dataclasses.replace(task, **values)
        config.validate()
        config.check_effects(task)
        name = f"{task.experiment}-{config.regularizer}-{config.config_id}"
        assert path.name == f"{name}-seed{config.seed}.json"
        assert row["config_id"] == config.config_id


@pytest.mark.parametrize("plan", [study.STUDY, penalties.COMPARISON, methods.METHODS])
def test_every_stored_row_is_found_from_the_settings_of_its_task(plan):
    plan.check_stored()
    folder = RESULTS / plan.name
    stored = {path.stem for path in folder.glob("*.jsonl")}
    assert stored and stored <= plan.tasks.keys()


def test_the_penalties_that_go_on_follow_from_the_rows():
    """Rules 2 to 4 of the comparison of penalties."""
    plan = penalties.COMPARISON
    four = penalties.going_on(plan.rows("digits"))
    assert {*penalties.ALWAYS, *four} == {*penalties.GOING_ON}
    tasks = "digits", "digits-few-images", "digits-noise"
    stored = pd.DataFrame([row for task in tasks for row in plan.rows(task)])
    stored = stored[stored.stage == "comparison"]
    stored["log_kept"] = np.log(stored.kept)
    means = stored.groupby(["arm", "task"]).log_kept.mean().groupby("arm").mean()
    assert means[four].idxmin() == penalties.ONE_MORE
    runs = dict([*stored.groupby(["arm", "task"])])
    for arm in four:
        assert any(
            statistics.compare(runs[arm, task], runs[other, task]).low > 1
            for task in tasks[1:]
            for other in ("l1", "l2")
        )


def test_weight_decay_is_recommended_because_of_the_rows():
    """The numbers in the lead of the page of penalties."""
    plan = penalties.COMPARISON
    rows = pd.DataFrame([row for task in plan.tasks for row in plan.rows(task)])
    rows = rows[rows.stage == "comparison"]
    rows["log_kept"] = np.log(rows.kept)
    l1, l2 = (rows[rows.arm == arm] for arm in ("l1", "l2"))
    assert statistics.compare(l2, l1).low < 1 < statistics.compare(l2, l1).high
    of_l2, of_l1 = (x.groupby("task").log_kept.mean() for x in (l2, l1))
    worst_of_l2, worst_of_l1 = np.exp([(of_l2 - of_l1).max(), (of_l1 - of_l2).max()])
    assert (f"{worst_of_l2:.1f}", f"{worst_of_l1:.1f}") == ("1.7", "2.9")


@pytest.mark.parametrize(
    "stored", sorted((RESULTS / "dense").iterdir()), ids=lambda x: x.name
)
def test_stored_dense_training_can_go_on(stored):
    folder = RunFolder(stored)
    config = TASKS[folder.config()["experiment"]]
    folder.check(config)
    checkpoints = Checkpoints(folder.checkpoints, config.run_id)
    assert [*checkpoints.files()] == [checkpoints.latest(pytest.fail, folder.digest)]


def test_rounds_are_those_of_stored_runs():
    rounds = {path.name for path in (RESULTS / "rounds").glob("*.json")}
    assert {f"{name}.json" for name in pages.DRAWN} <= rounds
    assert rounds <= {path.name for path in STORED}


def test_pages_are_made_of_what_is_stored(tmp_path, monkeypatch):
    """And so are their figures."""
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    pages.main(pages.Settings())
    folder = ROOT / "docs" / "results"
    for own, there in ((tmp_path, folder), (tmp_path / "figures", folder / "figures")):
        made, stored = ({path.name for path in x.iterdir()} for x in (own, there))
        by_hand = {"index.md", "running.md"}
        assert made == stored - by_hand
    for path in tmp_path.glob("*.md"):
        assert path.read_text() == (folder / path.name).read_text(), path.name
        for link in path.read_text().split("](figures/")[1:]:
            assert (tmp_path / "figures" / link.split(")")[0]).is_file()


# -------------------------------------------------------------------- statistics

FORM, OTHER = [50, 80, 20, 40, 60, 33, 47], [70, 90, 35, 50, 66, 31, 52]
BETTER, BEST = [40, 70, 15, 33, 50, 30, 40], [39, 69, 14, 32, 49, 29, 39]


def rows(kept, arm="leaf", control="none", task="digits", bound=0.9):
    """Returns rows of a comparison, seed by seed."""
    return pd.DataFrame(
        {
            **{"task": task, "arm": arm, "stage": "comparison", "control": control},
            **{"seed": range(len(kept)), "log_kept": np.log(kept)},
            **{"validation_bound": bound, "test_accuracy": 0.9},
        }
    )


def test_comparisons_are_paired_and_on_logarithms():
    found = statistics.compare(rows(FORM), rows(OTHER)[::-1])
    differences = np.log(FORM) - np.log(OTHER)
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert found.ratio == pytest.approx(stats.gmean(FORM) / stats.gmean(OTHER))
    assert found.low == pytest.approx(math.exp(interval.low))
    assert found.high == pytest.approx(math.exp(interval.high))
    signs = np.array([*itertools.product((1, -1), repeat=len(differences))])
    no_larger = signs @ differences <= differences.sum() + 1e-12
    assert found.p_value == pytest.approx(np.mean(no_larger))
    assert statistics.compare(rows(OTHER), rows(FORM)).p_value > 0.5
    same = statistics.compare(rows(FORM), rows(FORM))
    assert (same.ratio, same.p_value) == (1.0, 1.0)


def test_many_pairs_are_tested_by_random_signs():
    logs = np.random.default_rng(0).normal(-0.1, 1, 20)
    found = statistics.compare(rows(1e6 * np.exp(logs)), rows([1e6] * 20))
    # The sum of so many random signs is nearly normal.
    normal = stats.norm.cdf(logs.sum() / math.sqrt(np.sum(logs**2)))
    assert found.p_value == pytest.approx(normal, abs=0.02)


def test_equal_pairs_say_nothing_about_who_wins():
    better = [0.5 * kept for kept in FORM]
    for number in range(8):
        some = statistics.compare(rows(better[:number] + FORM[number:]), rows(FORM))
        result = statistics.Result("leaf", rows(FORM), {"l2": some})
        assert result.can_win == result.wins == (number == 7)
        assert some.p_value == pytest.approx(0.5**number)
    assert str(some) == "0.50, p = 0.008"  # equal differences have no interval
    found = statistics.Ratio(0.94, 0.881, 0.997, 0.02, 9)
    assert str(found) == "0.94 (0.88 to 0.997), p = 0.020"


def test_every_task_has_the_same_weight():
    few, many = np.log([0.5, 0.6, 0.9]), np.log([1.1, 1.0, 0.9, 1.3, 0.8, 1.2])
    pairs = (("digits", few), ("mnist", many))
    own = pd.concat([rows(1e6 * np.exp(logs), task=task) for task, logs in pairs])
    other = pd.concat([rows([1e6] * len(logs), task=task) for task, logs in pairs])
    found = statistics.compare(own, other)
    means = few.mean(), many.mean()  # the tasks are the pairs, two of them
    assert math.log(found.ratio) == pytest.approx(np.mean(means))
    interval = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert math.log(found.high) == pytest.approx(interval.high)
    assert found.p_value == 0.5  # the signs ++ and -+ have larger means


def test_runs_that_make_no_pairs_are_refused():
    with pytest.raises(ValueError, match="no pairs"):
        statistics.compare(rows(FORM), rows(OTHER[:4]))
    with pytest.raises(ValueError, match=r"no pairs: .* different bounds"):
        statistics.compare(rows(FORM), rows(OTHER, bound=0.91))


@pytest.mark.parametrize("best", [None, "l2", "alike", "permuted", "mean"])
def test_a_form_wins_only_over_all_of_its_opponents(best):
    def other(name):
        return BEST if name == best else FORM

    name, alike = "relevance, decoupled", "l2, decoupled"
    controls = [rows(other(x), name, x) for x in ("permuted", "mean")]
    others = rows(other("l2"), "l2"), rows(other("alike"), alike)
    found = pd.concat([*others, rows(BETTER, name), *controls])
    results = {
        result.name: result for result in statistics.results_of(found, study.ARMS)
    }
    for opponent in ("l2", "alike", "permuted", "mean"):
        ratio = stats.gmean(BETTER) / stats.gmean(other(opponent))
        assert results[name].ratios[opponent].ratio == pytest.approx(ratio)
    assert results[name].wins == (best is None)
    assert results["l2"].ratios == {} and [*results[alike].ratios] == ["l2"]
    said = study_page.verdict([*results.values()])
    assert ("winners: none" in said) == (best is not None)
    # Six pairs cannot reach the level, whatever they say.
    few = statistics.results_of(found[found.seed < 6], study.ARMS)
    assert not any(result.wins for result in few if result.name == name)


# ------------------------------------------------------------------------ comparisons


def test_comparisons_by_hand():
    # Kept are 4 %, 2 % and 1 %: each half of the one before.
    points = [(99, 4), (96, 1), (98, 2)]
    middle = 100 - 2**0.5  # between 2 % and 1 %, by the logarithm
    for sparsity, sign, error in (
        *((96, "", 1), (98, "", 2), (middle, "", 3), (99, "", 4)),
        *((90, "≤ ", 1), (95.996, "", 1), (99.004, "", 4)),
    ):
        found = methods_page.error_at(points, sparsity)
        assert found == (sign, pytest.approx(error, rel=1e-6))
    assert math.isnan(methods_page.error_at(points, 99.1)[1])
    on_lines = (1, "", 96), (2, "", 98), (3, "", middle)
    for error, sign, sparsity in (*on_lines, (5, "≥ ", 99), (4, "≥ ", 99)):
        found = methods_page.sparsity_at(points, error + 1e-9)
        assert found == (sign, pytest.approx(sparsity, abs=0.01))
    assert math.isnan(methods_page.sparsity_at(points, 0.9)[1])
    # Where the error falls again, the higher sparsity counts.
    points = [(90, 1), (96, 3), (98, 2)]
    assert methods_page.sparsity_at(points, 2.0) == ("≥ ", 98)
    sign, sparsity = methods_page.sparsity_at(points, 1.5)
    assert not sign and 90 < sparsity < 96


def test_cells_are_means_over_seeds_with_their_spread():
    assert methods_page.cell([("", 2.0), ("", 3.0)]) == "2.50 ± 0.71"
    assert methods_page.cell([("", 2.0), ("≤ ", 3.0)]) == "≤ 2.50 ± 0.71"
    # A mean over the seeds that have a value would flatter.
    assert methods_page.cell([("", 1.0), ("", math.nan)]) == "-"


def test_the_latency_in_the_readme_is_that_of_stored_rows():
    files = sorted((RESULTS / "latency").glob("*.json"))
    runs = latency_tables.runs_of([json.loads(path.read_text()) for path in files])
    rows = [latency_tables.compacted_row(run) for run in runs if run["trained"]]
    found = {(row["network"], row["pruned"]): row for row in rows}
    text = " ".join((ROOT / "README.md").read_text().split())
    lenet = found["lenet300, mnist", "weights, relevance"]
    assert (
        f"takes {lenet['time, batch 256']} of the time of the dense network, with an "
        f"accuracy of {lenet['pruned, %']} % instead of {lenet['dense, %']} %" in text
    )


def test_missing_runs_of_cifar10_are_named():
    run = {"network": "resnet20", "structure": "unstructured", "prune": "gated"}
    run |= {"dense_test_accuracy": 0.9123, "test_accuracy": 0.9, "regularizer": "l1"}
    runs = [run | {"sparsity": 0.9001}, run | {"sparsity": 0.62}]
    runs.append(run | {"sparsity": 0.8, "structure": "units"})
    lines = cifar10.ways_table(runs).splitlines()
    assert "| l1 | not run | 10.00 % (+1.23) | not run |" in lines
    assert "| l2, RigL |  | not run |  |" in lines
