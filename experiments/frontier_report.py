"""The tables and figures of the frontiers, from their stored rows alone.

    python -m experiments.frontier_report

writes them again, without making any run.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from experiments import figures
from experiments.config import ExperimentError
from experiments.methods import METHODS, TASKS
from experiments.results import README, STORE as RESULTS, insert

Row = dict[str, Any]

STORE = RESULTS / "frontiers"


class Point(NamedTuple):
    """What a method came to at one bound or sparsity: a value for each seed."""

    goal: str  # the bound or the sparsity, as text
    strength: float
    errors: list[float]  # on the test set, in %
    sparsities: list[float]  # in %


def read(path: Path) -> list[Row]:
    """Returns the rows of a task, none if there are none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def points_of(rows: list[Row]) -> dict[str, list[Point]]:
    """Returns the frontier of every method that has been made, in their order."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["stage"] == "frontier":
            gated = METHODS[row["method"]].changes.get("prune", "gated") == "gated"
            name = "bound" if gated else "target_sparsity"
            goal = f"{name.split('_')[-1]} {100 * row[name]:g} %"
            groups[row["method"], goal].append(row)
    frontiers: dict[str, list[Point]] = defaultdict(list)
    for (method, goal), runs in groups.items():
        frontiers[method].append(
            Point(
                goal,
                runs[0]["strength"],
                [100 * (1 - run["test_accuracy"]) for run in runs],
                [100 * run["sparsity"] for run in runs],
            )
        )
    return {name: frontiers[name] for name in METHODS if name in frontiers}


def table(name: str, rows: list[Row]) -> str:
    """Returns a Markdown table of a task, a row for each point of a frontier."""
    lines = [
        "| method | at | strength | seeds | error, % | sparsity, % |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method, points in points_of(rows).items():
        for point in points:
            cells = (
                *(method, point.goal),
                f"{point.strength:g}" if point.strength else "",
                str(len(point.errors)),
                spread(point.errors),
                spread(point.sparsities),
            )
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        f"| {method}, published | | | | {error:g} | {sparsity:g} |"
        for method, error, sparsity in TASKS[name].published
    ]
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Returns mean and standard deviation over the seeds."""
    text = f"{statistics.fmean(values):.2f}"
    return text + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def draw(name: str, rows: list[Row], path: Path) -> None:
    """Draws the frontiers of a task: test accuracy against sparsity."""
    config = TASKS[name].config
    least = 1.0
    with figures.figure(path, f"{config.network}, {config.dataset}") as axes:
        for index, (method, points) in enumerate(points_of(rows).items()):
            points = sorted(
                points, key=lambda point: statistics.fmean(point.sparsities)
            )
            kept = [1 - statistics.fmean(p.sparsities) / 100 for p in points]
            least = min(least, *kept)
            axes.errorbar(
                kept,
                [100 - statistics.fmean(point.errors) for point in points],
                yerr=[statistics.pstdev(point.errors) for point in points],
                xerr=[statistics.pstdev(point.sparsities) / 100 for point in points],
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
            parts.append(f"`{name}`:\n\n{table(name, rows)}")
            parts.append(
                f"![Frontiers of {name}](experiments/results/frontiers/{name}.png)\n"
            )
    tables = "\n".join(parts) or "No frontier has been made yet.\n"
    README.write_text(insert(README.read_text(), "frontiers", tables))


def check_readme() -> None:
    """Raises `ExperimentError` if the README has no place for the tables."""
    insert(README.read_text(), "frontiers", "")


if __name__ == "__main__":
    try:
        write(STORE)
    except ExperimentError as error:
        sys.exit(f"error: {error}")
