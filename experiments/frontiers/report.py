"""The tables and figures of the frontiers, from their stored rows alone."""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import ticker

from experiments.config import AT_INIT
from experiments.frontiers import points
from experiments.frontiers.methods import METHODS, TASKS
from experiments.frontiers.plan import check_stored
from experiments.frontiers.points import Point, error_at, frontiers_of, sparsity_at
from experiments.records import Row
from experiments.reporting import figures
from experiments.reporting.results import README, commit, insert

LARGEST = 2  # error in a figure, in units of the largest that sparsities are told at


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
        *("method", "tuned", "seeds"),
        *(f"sparsity, % at {error:g} % error" for error in task.errors),
        *(f"error, % at {sparsity:g} % sparsity" for sparsity in sparsities),
    )
    lines = [f"| {' | '.join(headings)} |", "| --- " * len(headings) + "|"]
    for method, (value, runs) in frontiers_of(rows).items():
        cells = (
            method,
            f"{METHODS[method].tuned.replace('_', ' ')} {value:g}",
            str(len(runs)),
            *(cell([sparsity_at(run, e) for run in runs]) for e in task.errors),
            *(cell([error_at(run, s) for run in runs]) for s in sparsities),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def caption(name: str, rows: list[Row]) -> str:
    """Returns what the methods of a task were given, and what others published."""
    task = TASKS[name]
    config = task.config
    # Of what is pruned at initialisation, the dense training is cut short.
    dense = {
        row["seed"]: 100 * (1 - row["dense_test_accuracy"])
        for row in rows
        if row["stage"] == "frontier"
        and METHODS[row["method"]].changes.get("prune") not in AT_INIT
    }
    hardware = ", ".join(distinct(row["hardware"] for row in rows))
    commits = ", ".join(distinct(map(commit, rows)))
    text = (
        f"`{name}`: {config.dense_epochs} epochs of dense training, {config.epochs} of "
        f"pruning and {config.finetune_epochs} of fine-tuning, batches of "
        f"{config.batch_size}; on {hardware}, commit {commits}. The figure ends at "
        f"{top(name):g} % error"
    )
    hidden = [
        f"`{method}`"
        for method, (_, runs) in frontiers_of(rows).items()
        if not in_sight(runs, name)
    ]
    text += f", below {' and '.join(hidden)}." if hidden else "."
    if dense:
        text += f" The dense network has {spread(list(dense.values()))} % error."
    if task.tuned_on:
        text += f" Tuned on `{task.tuned_on}`."
    if task.published:
        text += " Published elsewhere: " + ", ".join(
            f"{method} {error:g} % error at {sparsity:g} % sparsity ({source})"
            for method, error, sparsity, source in task.published
        )
        if config.shift:
            text += "; as far as we know, without the shifts by a pixel that ours get"
        text += "."
    return text + "\n"


def distinct(values: Iterable[str]) -> list[str]:
    """Returns what there is of different values, in their order."""
    return list(dict.fromkeys(values))


def top(name: str) -> float:
    """Returns the error at which the figure of a task ends, in %."""
    return LARGEST * max(TASKS[name].errors)


def in_sight(runs: list[list[Point]], name: str) -> bool:
    """Whether the figure of a task shows some point of a method, and not at its rim."""
    return min(np.mean(runs, axis=0)[:, 1]) < 0.9 * top(name)


def draw(name: str, rows: list[Row], path: Path) -> None:
    """Draws the frontiers of a task: test error against sparsity, both logarithmic."""
    config = TASKS[name].config
    least = 1.0
    title = f"{config.network}, {config.dataset}"
    # Of the legend, which would have what has error bars last.
    handles: list[Any] = []
    with figures.figure(path, title, height=4.2, suffixes=(".png",)) as axes:
        for index, (method, (_, runs)) in enumerate(frontiers_of(rows).items()):
            if not in_sight(runs, name):
                continue
            values = np.asarray(runs)  # [seed, point, (sparsity, error)]
            sparsities, errors = values.mean(axis=0).T
            spreads = values.std(axis=0, ddof=min(1, len(runs) - 1)).T
            kept = 1 - sparsities / 100
            least = min(least, *kept)
            line = axes.errorbar(
                kept,
                errors,
                xerr=spreads[0] / 100,
                yerr=spreads[1],
                color=figures.LAYER_COLOURS[index % len(figures.LAYER_COLOURS)],
                linestyle=("-", "--")[index // len(figures.LAYER_COLOURS) % 2],
                marker="os"[index // len(figures.LAYER_COLOURS) % 2],
                markersize=3,
                linewidth=1.2,
                elinewidth=0.8,
                label=method,
            )
            handles.append(line)
        published = TASKS[name].published
        for place, method in enumerate(distinct(result.method for result in published)):
            own = [result for result in published if result.method == method]
            handles += axes.plot(
                [1 - result.sparsity / 100 for result in own],
                [result.error for result in own],
                marker="sD^vPX*"[place % 7],
                markersize=4 + place % 3,  # lest one hides another
                markerfacecolor="none",
                color=figures.BLACK,
                linestyle="none",
                zorder=3,
                label=f"{method}, published",
            )
        figures.sparsity_axis(axes, least)
        axes.set_yscale("log")
        axes.set_ylim(top=top(name))
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
        axes.set_ylabel("test error (%)")
        axes.figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=2,
            handlelength=4,
            fontsize=6,
        )


def write(store: Path) -> None:
    """Writes the figures, and the tables of the README, from the rows in a folder.

    Raises:
      ExperimentError: they are not those of the present tasks and methods.
    """
    check_stored(store)
    parts = []
    for name in TASKS:
        if rows := points.read(store, name):
            draw(name, rows, store / name)
            parts += [caption(name, rows), table(name, rows)]
            parts.append(
                f"![Frontiers of {name}](experiments/results/frontiers/{name}.png)\n"
            )
    if parts:
        lines = (f"- `{name}`: {method.what}\n" for name, method in METHODS.items())
        parts.insert(0, "".join(lines))
    tables = "\n".join(parts) or "No frontier has been made yet.\n"
    README.write_text(insert(README.read_text(), "frontiers", tables))


def check_readme() -> None:
    """Raises `ExperimentError` if the README has no place for the tables."""
    insert(README.read_text(), "frontiers", "")
