"""The figure of the control study: its comparisons, with their intervals."""

from pathlib import Path

from matplotlib import ticker
from matplotlib.axes import Axes

from experiments.reporting import figures
from experiments.study.comparison import OPPONENTS, Result

COLOURS = figures.BLUE, figures.PURPLE, figures.ORANGE, figures.GREEN


def draw(results: dict[str, list[Result]], path: Path) -> None:
    """Draws all comparisons but those of no shrinking, a panel for each task.

    Args:
      results: by the title of their panel.
      path: of the figure, without its ending.
    """
    panels = {
        title: [r for r in those if r.comparisons and r.name != "none"]
        for title, those in results.items()
    }
    with figures.panels(path, [len(those) + 1 for those in panels.values()]) as axes:
        for place, (title, those) in zip(axes, panels.items(), strict=True):
            draw_panel(place, title, those)
        axes[-1].set_xlabel("weights kept, as a multiple (95 % confidence interval)")
        handles = {
            label: handle
            for place in axes
            for handle, label in zip(*place.get_legend_handles_labels(), strict=True)
        }
        axes[0].figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=4
        )


def draw_panel(axes: Axes, title: str, results: list[Result]) -> None:
    """Draws a panel's comparisons, each trial's below one another."""
    colours = dict(zip(OPPONENTS, COLOURS, strict=True))
    for place, result in enumerate(results):
        for shift, (opponent, comparison) in enumerate(result.comparisons.items()):
            axes.errorbar(
                comparison.ratio,
                place + 0.22 * (shift - (len(result.comparisons) - 1) / 2),
                xerr=[
                    [comparison.ratio - comparison.low],
                    [comparison.high - comparison.ratio],
                ],
                fmt="o",
                color=colours[opponent],
                markersize=3.5,
                elinewidth=1,
                label=f"to {OPPONENTS[opponent]}",
            )
    axes.axvline(1, color=figures.GREY, linewidth=1)
    axes.set_yticks(range(len(results)), [result.name for result in results])
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.FixedLocator([0.25, 0.5, 0.7, 1, 1.4, 2, 4]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    figures.set_title(axes, title)
