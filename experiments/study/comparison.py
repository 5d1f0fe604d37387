"""What the study concludes from: pairs of runs that differ in one thing."""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.records import Row
from experiments.running.tuning import log_kept
from experiments.study.trials import TRIALS

LEVEL = 0.01
# What a trial is compared with, and what that is called. "Alike" is the l2 whose
# strength decays, or that is decoupled, as the trial is.
OPPONENTS = {
    "l2": "l2",
    "alike": "l2 alike",
    "permuted": "I permuted",
    "mean": "mean of I",
}


class Comparison(NamedTuple):
    """Weights kept, as a multiple of what something else keeps, over pairs of runs."""

    ratio: float  # geometric mean
    low: float  # 95 % confidence interval, two-sided, of Student's t on the logarithms
    high: float
    p_value: float  # one-sided, of the sign-flip test on the logarithms
    num_unequal: int  # pairs with a difference at all

    @property
    def can_win(self) -> bool:
        """Whether the test could reach the level, were all differences below zero."""
        return 0.5**self.num_unequal < LEVEL

    @property
    def wins(self) -> bool:
        """Whether fewer are kept, beyond reasonable doubt."""
        return self.p_value < LEVEL

    def __str__(self) -> str:
        p = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        if math.isclose(self.low, self.high):
            # Equal differences have no spread to make an interval of.
            return f"{self.ratio:.2f}, {p}"
        low, high = map(bound, (self.low, self.high))
        return f"{self.ratio:.2f} ({low} to {high}), {p}"


def bound(x: float) -> str:
    """Returns the end of an interval as text, from which one can tell if it holds 1."""
    return f"{x:.3f}" if f"{x:.2f}" == "1.00" else f"{x:.2f}"


def compare(runs: list[Row], others: list[Row]) -> Comparison:
    """Compares how many weights are kept: seed by seed, or task by task.

    If nothing but chance told a run from its partner, every difference of their
    logarithms could as well have had the other sign. The p-value is the share of all
    choices of signs whose mean is no larger than what was found; beyond 14 pairs, of a
    random sample of them.

    Args:
      runs: those of a task, whose seeds then are the pairs; or those of several, and
        then the pairs are the tasks, with the mean over their seeds.
      others: the same of something else.

    Raises:
      ValueError: the runs make no pairs.
    """
    values = paired(runs, others, log_kept)
    if {key(run): run["validation_bound"] for run in runs} != {
        key(run): run["validation_bound"] for run in others
    }:
        raise ValueError("no pairs: runs of the same seed had different bounds.")
    test = stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        alternative="less",
        n_resamples=2**14,
        rng=0,
    )
    mean, half = interval(values)
    return Comparison(
        *(math.exp(x) for x in (mean, mean - half, mean + half)),
        p_value=float(test.pvalue),
        num_unequal=sum(abs(value) > 1e-9 for value in values),
    )


def key(run: Row) -> tuple[str, int]:
    """Returns what the runs of a pair have in common."""
    return run["task"], run["seed"]


def paired(
    runs: list[Row], others: list[Row], measure: Callable[[Row], float]
) -> list[float]:
    """Returns the differences of a task's seeds, or of several tasks' means."""
    one, other = ({key(run): measure(run) for run in those} for those in (runs, others))
    if one.keys() != other.keys():
        raise ValueError(f"no pairs: seeds {sorted(one)} and {sorted(other)}.")
    by_task: dict[str, list[float]] = {}
    for task, seed in one:
        by_task.setdefault(task, []).append(one[task, seed] - other[task, seed])
    if len(by_task) == 1:
        return by_task.popitem()[1]
    return [statistics.fmean(differences) for differences in by_task.values()]


def interval(values: list[float]) -> tuple[float, float]:
    """Returns the mean and half the width of its 95 % confidence interval."""
    half = stats.t(len(values) - 1).ppf(0.975) * stats.sem(values)
    return statistics.fmean(values), float(half)


class Result(NamedTuple):
    """What a trial came to at its best setting."""

    name: str
    runs: list[Row]
    comparisons: dict[str, Comparison]  # by the keys of OPPONENTS
    # Percentage points of test error above those of l2: mean and half the width of its
    # 95 % confidence interval. None for l2 itself.
    worse: tuple[float, float] | None

    @property
    def is_form(self) -> bool:
        """Whether it is a form of relevance, which has controls."""
        return {"permuted", "mean"} <= self.comparisons.keys()

    @property
    def can_win(self) -> bool:
        """Whether there are pairs enough that differ."""
        return all(comparison.can_win for comparison in self.comparisons.values())

    @property
    def wins(self) -> bool:
        """Whether it is a form that beats all of its opponents."""
        return self.is_form and all(
            comparison.wins for comparison in self.comparisons.values()
        )


def results_of(rows: list[Row]) -> list[Result]:
    """Returns the results of trials, in the order in which they were made.

    Args:
      rows: those of a task, or of several; a trial is compared on the tasks it is in.
    """
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["stage"] == "comparison":
            runs.setdefault((row["trial"], row["control"]), []).append(row)
    return [result_of(name, runs) for name, control in runs if control == "none"]


def result_of(name: str, runs: dict[tuple[str, str], list[Row]]) -> Result:
    """Returns the result of one trial, from all runs by trial and control."""
    own = runs[name, "none"]
    if name == "l2":
        return Result(name, own, {}, None)
    counterpart = TRIALS[name].counterpart
    opponents = {"l2": ("l2", "none")}
    if counterpart != "l2":
        opponents["alike"] = (counterpart, "none")
    opponents |= {
        control: (name, control)
        for control in ("permuted", "mean")
        if (name, control) in runs
    }
    tasks = {run["task"] for run in own}
    others = {
        opponent: [run for run in runs[made] if run["task"] in tasks]
        for opponent, made in opponents.items()
    }
    comparisons = {opponent: compare(own, those) for opponent, those in others.items()}
    return Result(
        name, own, comparisons, interval(paired(own, others["l2"], test_error))
    )


def test_error(run: Row) -> float:
    """Returns the test error in percent."""
    return 100 * (1 - run["test_accuracy"])
