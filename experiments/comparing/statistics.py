"""What the study concludes from: pairs of runs that differ in one thing."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.comparing.engine import Arm

Frame = Any  # a pandas.DataFrame, whose types pyright cannot follow
LEVEL = 0.01
# What an arm is compared with, and its name. "Alike" is the l2 that decays, or is
# decoupled, as the arm is.
OPPONENTS = {
    "l2": "l2",
    "alike": "l2 alike",
    "permuted": "I permuted",
    "mean": "mean of I",
}


class Ratio(NamedTuple):
    """Weights kept by runs, as a multiple of those kept by their partners."""

    ratio: float  # geometric mean
    low: float  # 95 % confidence interval, of Student's t on the logarithms
    high: float
    p_value: float  # one-sided, of the sign-flip test on the logarithms
    num_unequal: int  # pairs that differ at all

    def __str__(self) -> str:
        p = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        if math.isclose(self.low, self.high):  # equal differences have no interval
            return f"{self.ratio:.2f}, {p}"
        # With a third decimal where it decides whether the interval contains 1.
        low, high = (
            f"{x:.3f}" if f"{x:.2f}" == "1.00" else f"{x:.2f}"
            for x in (self.low, self.high)
        )
        return f"{self.ratio:.2f} ({low} to {high}), {p}"


def compare(runs: Frame, others: Frame) -> Ratio:
    """Compares the weights kept over pairs: seeds of one task, or several tasks.

    The test gives each difference of logarithms a random sign, in all ways, or for more
    than 14 pairs in a random sample of them.
    """
    if any(differences(runs, others, "validation_bound")):
        raise ValueError("no pairs: runs of the same seed had different bounds.")
    values = differences(runs, others, "log_kept")
    test = stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        alternative="less",
        n_resamples=2**14,
        rng=0,
    )
    mean, half = interval(values)
    return Ratio(
        *(math.exp(x) for x in (mean, mean - half, mean + half)),
        p_value=float(test.pvalue),
        num_unequal=sum(abs(value) > 1e-9 for value in values),
    )


def differences(runs: Frame, others: Frame, column: str) -> list[float]:
    """Returns the differences of pairs: of the seeds of a task, or means of tasks."""
    one, other = (x.set_index(["task", "seed"])[column] for x in (runs, others))
    if set(one.index) != set(other.index):
        raise ValueError(f"no pairs: {sorted(one.index)} and {sorted(other.index)}.")
    found = one - other.reindex(one.index)
    if runs.task.nunique() > 1:
        found = found.groupby("task", sort=False).mean()
    return found.tolist()


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and half the width of its 95 % confidence interval."""
    half = stats.t(len(values) - 1).ppf(0.975) * stats.sem(values)
    return float(np.mean(values)), float(half)


class Result(NamedTuple):
    name: str
    runs: Frame
    ratios: dict[str, Ratio]  # by the keys of OPPONENTS

    @property
    def can_win(self) -> bool:
        """Whether the tests could reach the level, were all differences below zero."""
        return all(0.5**ratio.num_unequal < LEVEL for ratio in self.ratios.values())

    @property
    def wins(self) -> bool:
        """Whether it beats all of its opponents."""
        return all(ratio.p_value < LEVEL for ratio in self.ratios.values())


def results_of(rows: Frame, arms: Mapping[str, Arm]) -> list[Result]:
    """Returns the results of the arms in rows, each on the tasks that it is in."""
    rows = rows[rows.stage == "comparison"]
    results = []
    for name in rows.arm.unique():
        shared = rows[rows.task.isin(rows[rows.arm == name].task)]
        runs = {key: own for key, own in shared.groupby(["arm", "control"])}
        others = {"l2": runs["l2", "none"]} if name != "l2" else {}
        if (counterpart := arms[name].counterpart) not in (name, "l2"):
            others["alike"] = runs[counterpart, "none"]
        for control in ("permuted", "mean"):
            if (name, control) in runs:
                others[control] = runs[name, control]
        own = runs[name, "none"]
        ratios = {key: compare(own, those) for key, those in others.items()}
        results.append(Result(name, own, ratios))
    return results
