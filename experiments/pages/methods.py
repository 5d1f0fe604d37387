"""The page of the comparison with other methods."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker

from experiments.comparing.methods import ARMS, METHODS, TASKS
from experiments.pages.tables import made, markdown, spread
from experiments.records import RESULTS
from experiments.running import figures

ROUNDING = 0.005  # of a sparsity, in %
LARGEST = 2  # error in a figure, as a multiple of the largest in the table

Points = list[tuple[float, float]]  # sparsities and test errors of a seed, in %


def methods(folder: Path) -> dict[str, str]:
    METHODS.check_stored()
    others: Any = pd.read_csv(RESULTS / "methods" / "published.csv")
    parts = []
    for name in TASKS:
        if METHODS.rows(name):
            runs = compared(name)
            draw(name, runs, others[others.task == name], folder / f"methods-{name}")
            parts.append(f"## {name}\n")
            parts.append(f"![Error and sparsity](figures/methods-{name}.png)\n")
            parts += [table(name, runs), describe(name, runs)]
    arms = "".join(f"- `{name}`: {arm.about}\n" for name, arm in ARMS.items())
    published = markdown(others.astype(str).to_dict("records"))
    return {"arms": arms, "tasks": "\n".join(parts), "published": published}


def compared(name: str) -> Any:
    """Returns a pandas table of the comparison on a task, with errors in %."""
    rows: Any = pd.DataFrame(METHODS.rows(name)).query("stage == 'comparison'")
    rows["sparsity"] *= 100
    rows["error"] = 100 * (1 - rows.test_accuracy)
    rows["dense_error"] = 100 * (1 - rows.dense_test_accuracy)
    return rows


def depth(sparsity: float) -> float:
    """Returns minus the logarithm of what is kept, over which frontiers are lines."""
    return -math.log(100 - sparsity)


def error_at(points: Points, sparsity: float) -> tuple[str, float]:
    """Returns the error at a sparsity, on straight lines between the points.

    Beyond the sparsest point it is not a number. Before the least sparse one it is at
    most the error there: then "≤ " comes first.
    """
    sparsities, errors = zip(*sorted(points), strict=True)
    # Methods that take a sparsity reach it up to one weight.
    if sparsity > sparsities[-1] + ROUNDING:
        return "", math.nan
    sign = "≤ " if sparsity < sparsities[0] - ROUNDING else ""
    return sign, float(np.interp(depth(sparsity), [*map(depth, sparsities)], errors))


def sparsity_at(points: Points, error: float) -> tuple[str, float]:
    """Returns the highest sparsity on those lines at which the error is not larger.

    If the error is larger everywhere it is not a number. If it is not larger at the
    sparsest point, the sparsity is at least that there: then "≥ " comes first.
    """
    points = sorted(points)
    if points[-1][1] <= error:
        return "≥ ", points[-1][0]
    for one, other in reversed(list(itertools.pairwise(points))):
        if one[1] <= error:
            ends = depth(one[0]), depth(other[0])
            return "", 100 - math.exp(-np.interp(error, (one[1], other[1]), ends))
    return "", math.nan


def cell(found: list[tuple[str, float]]) -> str:
    """Returns mean and spread over the seeds, if all of them have a value."""
    signs, values = zip(*found, strict=True)
    return max(signs) + spread(values) if all(map(math.isfinite, values)) else "-"


def table(name: str, runs: Any) -> str:
    table = []
    for arm, own in runs.groupby("arm", sort=False):
        (tuned,) = ARMS[arm].names
        value = own[tuned].iloc[0]
        seeds = [
            list(zip(one.sparsity, one.error, strict=True))
            for _, one in own.groupby("seed")
        ]
        line = {"method": arm, "tuned": f"{tuned.replace('_', ' ')} {value:g}"}
        line["seeds"] = str(len(seeds))
        for error in TASKS[name].errors:
            found = cell([sparsity_at(points, error) for points in seeds])
            line[f"sparsity, % at {error:g} % error"] = found
        for sparsity in TASKS[name].sparsities:
            found = cell([error_at(points, 100 * sparsity) for points in seeds])
            line[f"error, % at {100 * sparsity:g} % sparsity"] = found
        table.append(line)
    return markdown(table)


def describe(name: str, runs: Any) -> str:
    task, config = TASKS[name], TASKS[name].config
    dense = runs[~runs.arm.isin(["snip", "random"])].groupby("seed").dense_error.last()
    tuned = f" Tuned on `{task.tuned_on}`." if task.tuned_on else ""
    return (
        f"{config.dense_epochs} epochs of dense training, {config.epochs} of pruning "
        f"and {config.finetune_epochs} of fine-tuning, batches of {config.batch_size}. "
        f"The dense network has {spread(dense)} % error.{tuned} "
        f"{made(METHODS.rows(name))}\n"
    )


def draw(name: str, runs: Any, published: Any, path: Path) -> None:
    number = len(figures.COLOURS)
    handles: list[Any] = []  # in order; a legend would have error bars last
    with figures.figure(path, (5.2, 4.2)) as canvas:
        axes = canvas.add_subplot()
        for index, (method, own) in enumerate(runs.groupby("arm", sort=False)):
            points = own.groupby(["bound", "target_sparsity"])[["sparsity", "error"]]
            means, spreads = points.mean(), points.std()
            line = axes.errorbar(
                1 - means.sparsity / 100,
                means.error,
                xerr=spreads.sparsity / 100,
                yerr=spreads.error,
                color=figures.COLOURS[index % number],
                linestyle=("-", "--")[index // number % 2],
                marker="os"[index // number % 2],
                markersize=3,
                elinewidth=0.8,
                label=method,
            )
            handles.append(line)
        groups = published.groupby("method", sort=False)
        for place, (method, rows) in enumerate(groups):
            handles += axes.plot(
                1 - rows.sparsity / 100,
                rows.error,
                marker="sD^vPX*"[place % 7],
                markersize=4 + place % 3,  # or one would hide another
                markerfacecolor="none",
                color=figures.BLACK,
                linestyle="none",
                zorder=3,
                label=f"{method}, published",
            )
        figures.sparsity_axis(axes, 1 - runs.sparsity.max() / 100)
        axes.set_yscale("log")
        axes.set_ylim(top=LARGEST * max(TASKS[name].errors))
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
        axes.set_ylabel("test error (%)")
        canvas.legend(
            handles=handles,
            loc="outside lower center",
            ncols=2,
            handlelength=4,
            fontsize=6,
        )
