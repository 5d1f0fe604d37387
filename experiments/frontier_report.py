"""The tables and figures of the frontiers, from their stored rows alone."""

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import figures
from experiments.methods import METHODS, TASKS
from experiments.records import read_rows
from experiments.results import README, STORE as RESULTS, insert

Row = dict[str, Any]

STORE = RESULTS / "frontiers"
ROUNDING = 0.005  # of a sparsity, in %


class Point(NamedTuple):
    """What a run came to, both in %."""

    sparsity: float
    error: float  # on the test set


class Frontier(NamedTuple):
    """What a method came to: of each seed a point for each bound or sparsity."""

    strength: float
    runs: list[list[Point]]  # one a seed; each from the least sparse point on


def read(path: Path) -> list[Row]:
    """Returns the rows of a task, none if there are none."""
    return read_rows(path) if path.exists() else []


def frontiers_of(rows: list[Row]) -> dict[str, Frontier]:
    """Returns the frontier of every method that has been made, in their order."""
    points: dict[str, dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
    strengths = {}
    for row in rows:
        if row["stage"] == "frontier":
            point = Point(100 * row["sparsity"], 100 * (1 - row["test_accuracy"]))
            points[row["method"]][row["seed"]].append(point)
            strengths[row["method"]] = row["strength"]
    return {
        name: Frontier(strengths[name], [sorted(run) for run in points[name].values()])
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
    depths = [depth(point.sparsity) for point in points]
    errors = [point.error for point in points]
    # What was told a sparsity has it but for a weight.
    wanted = depth(sparsity - ROUNDING)
    sign = "≤ " if sparsity < points[0].sparsity - ROUNDING else ""
    return sign, float(np.interp(wanted, depths, errors, right=math.nan))


def sparsity_at(points: list[Point], error: float) -> tuple[str, float]:
    """Returns the highest sparsity on those lines where the error is not larger.

    Not a number if it is larger everywhere. If it is not even at the sparsest point,
    the sparsity is at least that one's: then "≥ " comes first, and else nothing.
    """
    if points[-1].error <= error:
        return "≥ ", points[-1].sparsity
    for one, other in reversed(list(itertools.pairwise(points))):
        if one.error <= error:
            ends = depth(one.sparsity), depth(other.sparsity)
            found = np.interp(error, (one.error, other.error), ends)
            return "", 100 - math.exp(-found)
    return "", math.nan


def cell(found: list[tuple[str, float]]) -> str:
    """Returns mean and spread of what was found for the seeds, if all have it."""
    signs, values = zip(*found, strict=True)
    if not all(map(math.isfinite, values)):
        return "-"
    return max(signs) + spread(values)


def spread(values: Sequence[float]) -> str:
    """Returns mean and standard deviation over the seeds."""
    text = f"{statistics.fmean(values):.2f}"
    return text + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def table(name: str, rows: list[Row]) -> str:
    """Returns a Markdown table of a task: a row for each method."""
    task = TASKS[name]
    sparsities = [100 * sparsity for sparsity in task.sparsities]
    headings = (
        *("method", "strength", "seeds"),
        *(f"sparsity, % at {error:g} % error" for error in task.errors),
        *(f"error, % at {sparsity:g} % sparsity" for sparsity in sparsities),
    )
    lines = [f"| {' | '.join(headings)} |", "| --- " * len(headings) + "|"]
    for method, (strength, runs) in frontiers_of(rows).items():
        cells = (
            method,
            f"{strength:g}" if strength else "",
            str(len(runs)),
            *(cell([sparsity_at(run, e) for run in runs]) for e in task.errors),
            *(cell([error_at(run, s) for run in runs]) for s in sparsities),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def caption(name: str, rows: list[Row]) -> str:
    """Returns what the methods of a task were given, and what others published."""
    task, first = TASKS[name], rows[0]
    config = task.config
    text = (
        f"`{name}`: {config.dense_epochs} epochs of dense training, {config.epochs} of "
        f"pruning, {config.finetune_epochs} of fine-tuning, batches of "
        f"{config.batch_size}; on {first['hardware']}, commit {first['commit'][:8]}."
    )
    if task.tuned_on:
        text += f" Strengths are those tuned on `{task.tuned_on}`."
    if task.published:
        quoted = ", ".join(
            f"{method} {error:g} % error at {sparsity:g} %"
            for method, error, sparsity in task.published
        )
        text += f" Published elsewhere: {quoted}."
    return text + "\n"


def draw(name: str, rows: list[Row], path: Path) -> None:
    """Draws the frontiers of a task: test accuracy against sparsity."""
    config = TASKS[name].config
    least = 1.0
    with figures.figure(path, f"{config.network}, {config.dataset}") as axes:
        for index, (method, frontier) in enumerate(frontiers_of(rows).items()):
            runs = np.asarray(frontier.runs)  # [seed, point, (sparsity, error)]
            sparsities, errors = np.moveaxis(runs.mean(axis=0), -1, 0)
            kept = 1 - sparsities / 100
            least = min(least, *kept)
            axes.errorbar(
                kept,
                100 - errors,
                yerr=runs[..., 1].std(axis=0),
                xerr=runs[..., 0].std(axis=0) / 100,
                color=figures.LAYER_COLOURS[index % len(figures.LAYER_COLOURS)],
                linestyle=("-", "--")[index // len(figures.LAYER_COLOURS) % 2],
                marker="o",
                markersize=3,
                elinewidth=0.8,
                label=method,
            )
        for place, (method, error, sparsity) in enumerate(TASKS[name].published):
            axes.plot(
                *(1 - sparsity / 100, 100 - error),
                marker="sD^vP"[place % 5],
                color=figures.GREY,
                linestyle="none",
                label=f"{method}, published",
            )
        figures.sparsity_axis(axes, least)
        axes.set_ylabel("test accuracy (%)")
        axes.figure.legend(loc="outside right upper", fontsize=6)


def write(store: Path) -> None:
    """Writes the figures, and the tables of the README, from the rows in a folder."""
    parts = []
    for name in TASKS:
        if rows := read(store / f"{name}.jsonl"):
            draw(name, rows, store / name)
            (store / f"{name}.pdf").unlink()  # the README shows the other one
            parts += [caption(name, rows), table(name, rows)]
            parts.append(
                f"![Frontiers of {name}](experiments/results/frontiers/{name}.png)\n"
            )
    tables = "\n".join(parts) or "No frontier has been made yet.\n"
    README.write_text(insert(README.read_text(), "frontiers", tables))


def check_readme() -> None:
    """Raises `ExperimentError` if the README has no place for the tables."""
    insert(README.read_text(), "frontiers", "")
