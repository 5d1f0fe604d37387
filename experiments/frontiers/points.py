"""Frontiers: what a method came to, and what lies between the runs that were made."""

import itertools
import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.frontiers.methods import METHODS
from experiments.records import Row, check_names, read_rows
from experiments.reporting.results import STORE as RESULTS

STORE = RESULTS / "frontiers"
ROUNDING = 0.005  # of a sparsity, in %
# What is shown of a run, but for its accuracy on the test set, which few have.
NAMES = (
    *("method", "stage", "seed", "strength", "learning_rate", "sparsity"),
    *("hardware", "commit"),
)


class Point(NamedTuple):
    """What a run came to, both in %."""

    sparsity: float
    error: float  # on the test set


class Frontier(NamedTuple):
    """What a method came to."""

    value: float  # of the number that was tuned
    runs: list[list[Point]]  # one a seed: a point for each bound or sparsity


def read(store: Path, task: str) -> list[Row]:
    """Returns the rows that a folder has of a task, none if it has none."""
    path = store / f"{task}.jsonl"
    rows = read_rows(path) if path.exists() else []
    for row in rows:
        check_names(row, NAMES, path)
        if row["stage"] == "frontier":
            check_names(row, ("test_accuracy", "dense_test_accuracy"), path)
    return rows


def frontiers_of(rows: list[Row]) -> dict[str, Frontier]:
    """Returns the frontier of every method that has been made, in their order."""
    points: dict[str, dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
    values = {}
    for row in rows:
        if row["stage"] == "frontier":
            point = Point(100 * row["sparsity"], 100 * (1 - row["test_accuracy"]))
            points[row["method"]][row["seed"]].append(point)
            values[row["method"]] = row[METHODS[row["method"]].tuned]
    return {
        name: Frontier(values[name], list(points[name].values()))
        for name in METHODS
        if name in points
    }


def depth(sparsity: float) -> float:
    """Returns what frontiers are drawn over: minus the logarithm of what is kept."""
    return -math.log(100 - sparsity)


def error_at(points: list[Point], sparsity: float) -> tuple[str, float]:
    """Returns the error at a sparsity, on the straight lines between the points.

    Not a number beyond the sparsest point. Before the least sparse one, the error is
    at the most that one's: then "≤ " comes first, and else nothing.
    """
    points = sorted(points)
    depths = [depth(point.sparsity) for point in points]
    errors = [point.error for point in points]
    # What was told a sparsity has it but for a weight.
    first, last = points[0].sparsity - ROUNDING, points[-1].sparsity + ROUNDING
    if sparsity > last:
        return "", math.nan
    sign = "≤ " if sparsity < first else ""
    return sign, float(np.interp(depth(sparsity), depths, errors))


def sparsity_at(points: list[Point], error: float) -> tuple[str, float]:
    """Returns the highest sparsity on those lines where the error is not larger.

    Not a number if it is larger everywhere. If it is not even at the sparsest point,
    the sparsity is at least that one's: then "≥ " comes first, and else nothing.
    """
    points = sorted(points)
    if points[-1].error <= error:
        return "≥ ", points[-1].sparsity
    for one, other in reversed(list(itertools.pairwise(points))):
        if one.error <= error:
            ends = depth(one.sparsity), depth(other.sparsity)
            found = np.interp(error, (one.error, other.error), ends)
            return "", 100 - math.exp(-found)
    return "", math.nan
