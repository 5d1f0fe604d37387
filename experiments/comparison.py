"""What the study concludes from: pairs of runs that differ in one thing."""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.trials import TRIALS

Row = dict[str, Any]

LEVEL = 0.01
# What a trial is compared with, by the control in whose place it stands.
OPPONENTS = {"none": "l2", "permuted": "I permuted", "mean": "mean of I"}


class Comparison(NamedTuple):
    """Weights kept, as a multiple of what something else keeps, over paired seeds."""

    ratio: float  # geometric mean
    low: float  # 95 % confidence interval, two-sided
    high: float
    p_value: float  # one-sided, of a paired t-test on the logarithms

    @property
    def wins(self) -> bool:
        """Whether fewer are kept, beyond reasonable doubt."""
        return self.p_value < LEVEL

    def __str__(self) -> str:
        p = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        return f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f}), {p}"


def compare(runs: list[Row], others: list[Row]) -> Comparison:
    """Compares how many weights are kept, seed by seed.

    With several tasks among the runs each of them counts alike: means over the seeds of
    a task are averaged over the tasks, their errors add up by their squares, and the
    degrees of freedom are those of Welch and Satterthwaite.

    Raises:
      ValueError: the runs make no pairs.
    """
    one, other = log_kept(runs), log_kept(others)
    if one.keys() != other.keys():
        raise ValueError(f"no pairs: seeds {sorted(one)} and {sorted(other)}.")
    by_task: dict[str, list[float]] = {}
    for task, seed in one:
        by_task.setdefault(task, []).append(one[task, seed] - other[task, seed])
    differences = list(by_task.values())
    mean = np.mean([np.mean(values) for values in differences])
    squares = np.array([stats.sem(values) for values in differences]) ** 2
    if not squares.any():  # All differences are the same, and only signs are left.
        ratio = math.exp(mean)
        p_value = 0.5 ** len(one) if mean < 0 else 1.0
        return Comparison(ratio, ratio, ratio, p_value)
    freedom = [len(values) - 1 for values in differences]
    t = stats.t(df=squares.sum() ** 2 / np.sum(squares**2 / freedom))
    error = math.sqrt(squares.sum()) / len(squares)
    half = t.ppf(0.975) * error
    return Comparison(
        *(float(math.exp(x)) for x in (mean, mean - half, mean + half)),
        p_value=float(t.cdf(mean / error)),
    )


def log_kept(runs: list[Row]) -> dict[tuple[str, int], float]:
    """Returns the logarithm of the weights kept, by task and seed."""
    return {(run["task"], run["seed"]): math.log(max(run["kept"], 1)) for run in runs}


class Result(NamedTuple):
    """What a trial came to at its best setting."""

    name: str
    runs: list[Row]
    comparisons: dict[str, Comparison]  # by the keys of OPPONENTS
    at_edge: bool  # whether the best setting is an outermost one of those tried

    @property
    def wins(self) -> bool:
        """Whether it beats tuned l2 and both controls of equal dose."""
        return len(self.comparisons) == len(OPPONENTS) and all(
            comparison.wins for comparison in self.comparisons.values()
        )


def results_of(rows: list[Row]) -> list[Result]:
    """Returns the results of trials, in the order in which they were made.

    Args:
      rows: those of a task, or of several; a trial is compared on the tasks it is in.
    """
    runs: dict[tuple[str, str], list[Row]] = {}
    tuning: dict[str, list[Row]] = {}
    for row in rows:
        if row["stage"] == "comparison":
            runs.setdefault((row["trial"], row["control"]), []).append(row)
        else:
            tuning.setdefault(row["trial"], []).append(row)
    results = []
    for (name, control), own in runs.items():
        if control != "none":
            continue
        reference = TRIALS[name].reference
        tasks = {run["task"] for run in own}
        comparisons = {
            other: compare(own, [run for run in others if run["task"] in tasks])
            for other in OPPONENTS
            if (name, other) in runs and name != reference
            for others in [runs[reference if other == "none" else name, other]]
        }
        edge = at_edge(own[0], tuning.get(name, []))
        results.append(Result(name, own, comparisons, edge))
    return results


def at_edge(best: Row, tuning: list[Row]) -> bool:
    """Returns whether a setting is the largest or smallest of several tried."""
    return any(
        len(values) > 1 and best[name] in (min(values), max(values))
        for name in ("strength", "scale")
        for values in [{row[name] for row in tuning}]
    )
