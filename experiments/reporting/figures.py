"""The figures of runs and sweeps, drawn from what is stored of them alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.metrics import metric_of
from experiments.records import Row
from experiments.reporting import kinds

# Okabe and Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
VERMILION, SKY, GREY, BLACK = "#D55E00", "#56B4E9", "#767676", "#000000"
LAYER_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY)

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
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
}
SPARSITY_TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)


def draw(rows: list[Row], summary: Row, folder: Path) -> None:
    """Draws all figures of a run into its folder, each as PNG and as PDF."""
    title = f"{summary['network']}, {summary['dataset']}, {summary['regularizer']}"
    sparse_rows = [row for row in rows if row["phase"] != "dense"]
    with figure(folder / metric_of(summary).key, title) as axes:
        draw_metric(axes, sparse_rows, summary)
    if kinds.known(summary):
        with figure(folder / "kinds", title) as axes:
            draw_kinds(axes, sparse_rows, summary)
    height = 0.2 * len(summary["layers"]) + 0.9
    with figure(folder / "layers", title, max(3.4, height)) as axes:
        draw_layers(axes, summary)
    with figure(folder / "relevance", title) as axes:
        draw_relevance(axes, sparse_rows)
    with figure(folder / "course", title) as axes:
        draw_course(axes, sparse_rows, summary)
    with figure(folder / "magnitudes", title) as axes:
        draw_magnitudes(axes, summary["magnitudes"])


def draw_overview(rows: list[Row], summary: Row, path: Path) -> None:
    """Draws what a run did in four panels of one figure, as PNG.

    The metric against sparsity, the share of each tensor, or kind of it, that is kept,
    the share of those that is relevant, and the magnitudes of weights before and after.
    """
    with mpl.rc_context(STYLE):
        canvas = FigureCanvasAgg(Figure(figsize=(9.6, 7.2), layout="constrained"))
        quarters: Any = canvas.figure.subfigures(2, 2)
        metric, course, relevance, sizes = (
            quarter.add_subplot() for quarter in quarters.flat
        )
        title = f"{summary['network']}, {summary['dataset']}, seed {summary['seed']}"
        set_title(metric, title)
        draw_metric(metric, rows, summary)
        draw = draw_kinds if kinds.known(summary) else draw_course
        draw(course, rows, summary)
        draw_relevance(relevance, rows)
        draw_magnitudes(sizes, summary["magnitudes"])
        canvas.figure.savefig(path.with_suffix(".png"), dpi=110)


@contextmanager
def figure(
    path: Path,
    title: str,
    height: float = 3.4,
    suffixes: Sequence[str] = (".png", ".pdf"),
) -> Iterator[Axes]:
    """Gives axes to draw in, `height` inches, and writes them in some formats."""
    with mpl.rc_context(STYLE):
        canvas = FigureCanvasAgg(Figure(figsize=(5.2, height), layout="constrained"))
        axes = canvas.figure.add_subplot()
        set_title(axes, title)
        yield axes
        for suffix in suffixes:
            canvas.figure.savefig(path.with_suffix(suffix))


@contextmanager
def panels(path: Path, heights: list[int]) -> Iterator[list[Axes]]:
    """Gives axes one below the other, `heights` lines high, and writes them as PNG."""
    with mpl.rc_context(STYLE):
        size = (6.4, 0.3 * sum(heights) + 0.4 * len(heights) + 0.4)
        canvas = FigureCanvasAgg(Figure(figsize=size, layout="constrained"))
        yield list(
            canvas.figure.subplots(
                len(heights), sharex=True, height_ratios=heights, squeeze=False
            )[:, 0]
        )
        canvas.figure.savefig(path.with_suffix(".png"), dpi=150)


def set_title(axes: Axes, title: str) -> None:
    """Puts a small grey title over the axes."""
    axes.set_title(title, fontsize=9, loc="left", color=GREY)


def draw_metric(axes: Axes, rows: list[Row], summary: Row) -> None:
    """Draws the validation metric against sparsity, one point a round."""
    metric = metric_of(summary)
    groups = (
        ("pruned", "o", BLUE, [r for r in rows if r["pruned"]]),
        (
            "not pruned",
            "x",
            ORANGE,
            [r for r in rows if not r["pruned"] and r["phase"] == "prune"],
        ),
        ("fine-tuning", "D", GREEN, [r for r in rows if r["phase"] == "finetune"]),
    )
    for label, marker, colour, group in groups:
        if group:
            axes.plot(
                [1 - row["sparsity"] for row in group],
                [metric.hundredths(row["metric"]) for row in group],
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
        if value > 0:  # nothing has to be met where a schedule prunes
            axes.axhline(
                metric.hundredths(value),
                color=GREY,
                linestyle=style,
                linewidth=1,
                label=label,
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
    sparsity_axis(axes, least=min(1 - row["sparsity"] for row in rows))
    axes.set_ylabel(f"validation {metric.axis}")
    axes.figure.legend(
        loc="outside lower center", ncols=6, handletextpad=0.3, columnspacing=1
    )


def sparsity_axis(axes: Axes, least: float) -> None:
    """Makes the x axis one of sparsity, where `least` is the smallest share kept."""
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


def draw_sweep(groups: dict[str, list[Row]], path: Path) -> None:
    """Draws validation accuracy against sparsity for each setting of a sweep.

    A line is the mean frontier over the seeds, as far as all of them came; the band is
    one standard deviation to both sides. The frontier of a run is the best accuracy at
    a sparsity or above.
    """
    first = next(iter(groups.values()))[0]
    least = 1.0
    with figure(path, f"{first['network']}, {first['dataset']}") as axes:
        for index, (name, runs) in enumerate(groups.items()):
            reached = min(max(run["pruning"]["sparsity"]) for run in runs)
            least = min(least, 1 - reached)
            kept = np.geomspace(1.0, 1 - reached, 200)
            frontiers = 100 * np.stack([frontier(run, 1 - kept) for run in runs])
            mean, spread = frontiers.mean(axis=0), frontiers.std(axis=0)
            colour = LAYER_COLOURS[index % len(LAYER_COLOURS)]
            style = ("-", "--", ":")[index // len(LAYER_COLOURS) % 3]
            axes.plot(kept, mean, color=colour, linestyle=style, label=name)
            axes.fill_between(
                kept, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0
            )
        sparsity_axis(axes, least)
        axes.set_ylabel("validation accuracy (%)")
        axes.figure.legend(loc="outside lower center", ncols=2, columnspacing=1)


def frontier(run: Row, sparsities: np.ndarray) -> np.ndarray:
    """Returns a run's best validation accuracy at each sparsity or above."""
    reached = np.asarray(run["pruning"]["sparsity"])
    metric = np.asarray(run["pruning"]["metric"])
    # The last sparsity asked for is the highest reached, but for rounding.
    at_least = reached >= np.minimum(sparsities, reached.max())[:, None]
    return np.where(at_least, metric, 0.0).max(axis=1)


def draw_layers(axes: Axes, summary: Row) -> None:
    """Draws the final sparsity of each tensor and of them all."""
    layers = dict(summary["layers"])
    layers["total"] = {"kept": summary["kept"], "size": summary["total"]}
    shares = [100 * (1 - layer["kept"] / layer["size"]) for layer in layers.values()]
    colours = [BLUE] * (len(layers) - 1) + [VERMILION]
    axes.barh(list(layers), shares, color=colours, height=0.7)
    for place, (share, layer) in enumerate(zip(shares, layers.values(), strict=True)):
        kept = f"{layer['kept']:,} of {layer['size']:,} kept"
        axes.text(123, place, f"{share:.1f} %", ha="right", va="center", fontsize=8)
        axes.text(128, place, kept, va="center", fontsize=8)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    # Room for the labels beyond the bars.
    axes.set_xlim(0, 182)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("sparsity (%)", loc="left")


def draw_relevance(axes: Axes, rows: list[Row]) -> None:
    """Draws which share of the remaining weights is relevant, round by round.

    A share is that of one batch, and batches differ: the lines are running means.
    """
    by_leaf = {
        path: running_mean([row["relevant_by_leaf"][path] for row in rows])
        for path in rows[0]["relevant_by_leaf"]
    }
    draw_leaves(axes, by_leaf, running_mean([row["relevant"] for row in rows]))
    axes.set_ylabel("relevant weights (% of those kept)")
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))


def draw_course(axes: Axes, rows: list[Row], summary: Row) -> None:
    """Draws which share of each tensor is kept after each round."""
    sizes = {path: layer["size"] for path, layer in summary["layers"].items()}
    by_leaf = {
        path: np.asarray([100 * row["kept_by_leaf"][path] / size for row in rows])
        for path, size in sizes.items()
    }
    kept = [sum(row["kept_by_leaf"].values()) for row in rows]
    total = 100 * np.asarray(kept) / summary["total"]
    draw_leaves(axes, by_leaf, total)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda share, _: f"{share:g}"))
    axes.set_ylabel("weights kept (%)")


def draw_kinds(axes: Axes, rows: list[Row], summary: Row) -> None:
    """Draws which share of each kind of tensor is kept after each round.

    Encoder and decoder have lines of their own, and one colour for a kind.
    """
    sizes = {path: layer["size"] for path, layer in summary["layers"].items()}
    totals = kinds.by_kind(sizes)
    kept = [kinds.by_kind(row["kept_by_leaf"]) for row in rows]
    names = list(dict.fromkeys(kind.name for kind in totals))
    styles = {kinds.SHARED: "-", "encoder": "--", "decoder": ":"}
    numbers = range(1, len(rows) + 1)
    for kind, total in totals.items():
        axes.plot(
            numbers,
            [100 * sums[kind] / total for sums in kept],
            color=LAYER_COLOURS[names.index(kind.name)],
            linestyle=styles[kind.side],
            label=f"{kind.side} {kind.name}",
        )
    all_kept = [100 * sum(sums.values()) / summary["total"] for sums in kept]
    axes.plot(numbers, all_kept, color=BLACK, linewidth=2, label="total")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda share, _: f"{share:g}"))
    axes.set_xlabel("round")
    axes.set_ylabel("weights kept (%)")
    axes.margins(x=0.02)
    axes.figure.legend(loc="outside lower center", ncols=3, columnspacing=1.2)


def draw_magnitudes(axes: Axes, magnitudes: dict[str, list[float]]) -> None:
    """Draws how many weights there are of each magnitude, dense and sparse."""
    for name, colour in (("dense", BLUE), ("sparse", VERMILION)):
        axes.stairs(
            magnitudes[name], magnitudes["edges"], color=colour, fill=True, alpha=0.25
        )
        axes.stairs(magnitudes[name], magnitudes["edges"], color=colour, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("magnitude of a weight that is not zero")
    axes.set_ylabel("weights")
    axes.legend()


def draw_leaves(axes: Axes, by_leaf: dict[str, np.ndarray], total: np.ndarray) -> None:
    """Draws a line for each tensor, round by round, and a thick one for all of them.

    Where there are more layers than colours, all are grey.
    """
    numbers = range(1, len(total) + 1)
    layers = list(dict.fromkeys(path.rpartition("/")[0] for path in by_leaf))
    named = len(layers) <= len(LAYER_COLOURS)
    for path, values in by_leaf.items():
        layer, _, kind = path.rpartition("/")
        axes.plot(
            numbers,
            values,
            color=LAYER_COLOURS[layers.index(layer)] if named else "#bbbbbb",
            linestyle=":" if kind == "bias" else "-",
            label=path if named else None,
        )
    axes.plot(numbers, total, color=BLACK, linewidth=2, label="total")
    axes.set_xlabel("round")
    axes.margins(x=0.02)
    axes.figure.legend(loc="outside lower center", ncols=4, columnspacing=1.2)


def running_mean(shares: list[float | None], width: int = 11) -> np.ndarray:
    """Returns percentages averaged over `width` rounds; NaN where there are none."""
    values = np.asarray(shares, float)
    there = np.isfinite(values)
    ones = np.ones(min(width, len(values)))
    sums = np.convolve(np.where(there, values, 0.0), ones, mode="same")
    counts = np.convolve(there, ones, mode="same")
    means = np.divide(sums, counts, out=np.full(len(values), np.nan), where=there)
    return 100 * means
