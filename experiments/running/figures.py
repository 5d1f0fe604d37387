"""The figures of runs and sweeps, drawn from their stored results."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.metrics import metric_of
from experiments.networks import kinds
from experiments.records import Row

# The colours of Okabe and Ito, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
VERMILION, SKY, GREY, BLACK = "#D55E00", "#56B4E9", "#767676", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY)

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
}
SPARSITY_TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)


@contextmanager
def figure(
    path: Path, size: tuple[float, float], suffixes: Sequence[str] = (".png",)
) -> Iterator[Figure]:
    """Yields a figure of a size in inches, and saves it in the given formats."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        canvas = FigureCanvasAgg(Figure(figsize=size, layout="constrained"))
        yield canvas.figure
        for suffix in suffixes:
            canvas.figure.savefig(path.with_name(path.name + suffix), dpi=130)


def set_title(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left", color=GREY)


def draw_run(
    rounds: Any, summary: Row, path: Path, suffixes: Sequence[str] = (".png", ".pdf")
) -> None:
    """Draws a run in four panels, from a pandas table with a row for each round.

    The panels show the metric against sparsity, the kept fraction of each leaf or kind
    of layer, the relevant fraction of the kept weights, and magnitudes of weights.
    """
    rounds = rounds[rounds.phase != "dense"]
    with figure(path, (9.6, 7.2), suffixes) as canvas:
        quarters: Any = canvas.subfigures(2, 2)
        metric, course, relevance, sizes = (
            quarter.add_subplot() for quarter in quarters.flat
        )
        names = [str(summary[x]) for x in ("network", "dataset", "regularizer")]
        set_title(metric, ", ".join([*names, f"seed {summary['seed']}"]))
        draw_metric(metric, rounds, summary)
        draw_kept(course, rounds, summary)
        draw_relevance(relevance, rounds)
        draw_magnitudes(sizes, summary["magnitudes"])


def draw_metric(axes: Axes, rounds: Any, summary: Row) -> None:
    metric = metric_of(summary)
    finetuning = rounds.phase == "finetune"
    for label, marker, colour, which in (
        ("pruned", "o", BLUE, ~finetuning & rounds.pruned),
        ("not pruned", "x", ORANGE, ~finetuning & ~rounds.pruned),
        ("fine-tuning", "D", GREEN, finetuning),
    ):
        if which.any():
            axes.plot(
                1 - rounds.sparsity[which],
                metric.hundredths(rounds.metric[which]),
                marker,
                color=colour,
                markerfacecolor="none",
                markersize=4,
                label=label,
            )
    for label, style, value in (
        ("dense", "--", summary[f"dense_validation_{metric.key}"]),
        ("bound", ":", summary["validation_bound"]),
    ):
        if value > 0:  # there is no bound unless pruning is gated
            axes.axhline(
                metric.hundredths(value), color=GREY, linestyle=style, label=label
            )
    axes.plot(
        1 - summary["sparsity"],
        metric.hundredths(summary[f"validation_{metric.key}"]),
        "*",
        color=VERMILION,
        markeredgecolor=BLACK,
        markeredgewidth=0.6,
        markersize=10,
        label="result",
    )
    sparsity_axis(axes, least=1 - rounds.sparsity.max())
    axes.set_ylabel(f"validation {metric.axis}")
    axes.figure.legend(
        loc="outside lower center", ncols=6, handletextpad=0.3, columnspacing=1
    )


def sparsity_axis(axes: Axes, least: float) -> None:
    """Makes the x axis show sparsity, where `least` is the smallest kept fraction."""
    low, high = axes.dataLim.intervalx
    if np.isclose(low, high):  # all points are at one sparsity
        axes.set_xlim(0.9 * low, 1.1 * high)
    axes.set_xscale("log")
    axes.invert_xaxis()
    ticks = [s for s in SPARSITY_TICKS if 1 - s >= 0.9 * least]
    axes.xaxis.set_major_locator(ticker.FixedLocator([1 - s for s in ticks]))
    axes.xaxis.set_major_formatter(
        ticker.FuncFormatter(lambda kept, _: f"{100 * (1 - kept):.4g}")
    )
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel("sparsity (%), log scale of the weights kept")


def draw_kept(axes: Axes, rounds: Any, summary: Row) -> None:
    """Draws the kept fraction of each leaf, or kind of layer, after each round."""
    sizes = {path: layer["size"] for path, layer in summary["layers"].items()}
    kept = [*rounds.kept_by_leaf]
    if summary["network"] == "transformer":
        sizes, *kept = (
            {f"{kind.name}/{kind.side}": n for kind, n in kinds.by_kind(x).items()}
            for x in (sizes, *kept)
        )
    by_path = pd.DataFrame(kept)
    total = by_path.sum(axis=1) / summary["total"]
    draw_lines(axes, 100 * by_path / pd.Series(sizes), 100 * total)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda share, _: f"{share:g}"))
    axes.set_ylabel("weights kept (%)")


def draw_relevance(axes: Axes, rounds: Any) -> None:
    """Draws the fraction of relevant weights, as running means over noisy rounds."""
    shares: Any = pd.DataFrame([*rounds.relevant_by_leaf])
    shares["total"] = [*rounds.relevant]
    shares = shares.astype(float)  # None, where no weight is left, becomes NaN
    means = shares.rolling(11, center=True, min_periods=1).mean().where(shares.notna())
    draw_lines(axes, 100 * means.drop(columns="total"), 100 * means.total)
    axes.set_ylabel("relevant weights (% of those kept)")
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))


def draw_lines(axes: Axes, by_path: Any, total: Any) -> None:
    """Draws a line for each column, coloured by layer, and one for the total.

    Columns are grey if there are more layers than colours.
    """
    numbers = range(1, len(total) + 1)
    layers = list(dict.fromkeys(path.rpartition("/")[0] for path in by_path))
    has_colours = len(layers) <= len(COLOURS)
    styles = {"bias": ":", "encoder": "--", "decoder": ":"}
    for path, values in by_path.items():
        layer, _, leaf = path.rpartition("/")
        axes.plot(
            numbers,
            values,
            color=COLOURS[layers.index(layer)] if has_colours else "#bbbbbb",
            linestyle=styles.get(leaf, "-"),
            label=path if has_colours else None,
        )
    axes.plot(numbers, total, color=BLACK, linewidth=2, label="total")
    axes.set_xlabel("round")
    axes.margins(x=0.02)
    axes.figure.legend(loc="outside lower center", ncols=3, columnspacing=1.2)


def draw_magnitudes(axes: Axes, magnitudes: dict[str, list[float]]) -> None:
    for name, colour in (("dense", BLUE), ("sparse", VERMILION)):
        bars = magnitudes[name], magnitudes["edges"]
        axes.stairs(*bars, color=colour, fill=True, alpha=0.25)
        axes.stairs(*bars, color=colour, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("magnitude of a nonzero weight")
    axes.set_ylabel("weights")
    axes.legend()


def draw_sweep(groups: dict[str, list[Row]], path: Path) -> None:
    runs = [run for group in groups.values() for run in group]
    with figure(path, (5.2, 3.4), (".png", ".pdf")) as canvas:
        axes = canvas.add_subplot()
        set_title(axes, f"{runs[0]['network']}, {runs[0]['dataset']}")
        for index, (name, group) in enumerate(groups.items()):
            axes.plot(
                [max(run["kept"], 1) / run["total"] for run in group],
                [100 * run["validation_accuracy"] for run in group],
                "osD^v"[index // len(COLOURS) % 5],
                color=COLOURS[index % len(COLOURS)],
                markersize=4,
                label=name,
            )
        sparsity_axis(axes, min(max(run["kept"], 1) / run["total"] for run in runs))
        axes.set_ylabel("validation accuracy (%)")
        canvas.legend(loc="outside lower center", ncols=2, columnspacing=1)
