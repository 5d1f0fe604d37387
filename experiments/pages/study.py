"""The page of the relevance study."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import ticker

from experiments.comparing import statistics
from experiments.comparing.statistics import LEVEL, OPPONENTS, Frame, Result
from experiments.comparing.study import ARMS, STUDY, TASKS
from experiments.pages.tables import made, markdown
from experiments.records import Row
from experiments.running import figures

# The opponents of the form of the paper.
OPPONENT_COLOURS = {
    "l2": figures.BLUE,
    "permuted": figures.ORANGE,
    "mean": figures.GREEN,
}


def study(folder: Path) -> dict[str, str]:
    STUDY.check_stored()
    stored = {name: STUDY.rows(name) for name in TASKS}
    rows = pd.DataFrame([row for those in stored.values() for row in those])
    rows["log_kept"] = np.log(rows.kept.clip(lower=1))
    results = {
        str(task): statistics.results_of(own, ARMS)
        for task, own in rows.groupby("task", sort=False)
    }
    shared = [
        result
        for result in statistics.results_of(rows, ARMS)
        if result.ratios and result.runs.task.nunique() > 1
    ]
    papers = {task: by_name(those)["relevance"] for task, those in results.items()}
    papers["average"] = by_name(shared)["relevance"]
    draw(papers, folder / "study")
    return {
        "overview": overview(results, papers),
        "verdict": verdict(shared),
        "average": average(shared),
        "tasks": "\n".join(
            section(name, own, stored[name]) for name, own in results.items()
        ),
        "level": f"{LEVEL:g}",
    }


def by_name(results: list[Result]) -> dict[str, Result]:
    return {result.name: result for result in results}


def overview(results: dict[str, list[Result]], papers: dict[str, Result]) -> str:
    """Returns a table of what the form of the paper keeps on each task."""
    rows = []
    for task, paper in papers.items():
        row = {"task": task}
        if task in results:
            row["seeds"] = str(len(paper.runs))
            those = by_name(results[task])
            row |= {
                name: kept(those[name].runs) for name in ("none", "l2", "relevance")
            }
        rows.append(row | against(paper, OPPONENT_COLOURS, "relevance / "))
    return markdown(rows)


def against(result: Result, opponents: Iterable[str], heading: str = "to ") -> Row:
    return {
        heading + OPPONENTS[name]: str(result.ratios.get(name, ""))
        for name in opponents
    }


def kept(runs: Frame) -> str:
    return f"{np.exp(runs.log_kept.mean()):,.0f}"


def opponents_of(results: list[Result]) -> list[str]:
    return [name for name in OPPONENTS if any(name in r.ratios for r in results)]


def verdict(results: list[Result]) -> str:
    forms = [result for result in results if "permuted" in result.ratios]
    able = [result for result in forms if result.can_win]
    winners = ", ".join(result.name for result in able if result.wins) or "none"
    return f"Forms with enough pairs: {len(able)} of {len(forms)}; winners: {winners}."


def average(shared: list[Result]) -> str:
    opponents = opponents_of(shared)
    return markdown(
        {"arm": result.name, "tasks": str(result.runs.task.nunique())}
        | against(result, opponents)
        for result in shared
    )


def strength_and_scale(result: Result) -> str:
    """Returns both as text, where they have an effect."""
    first = result.runs.iloc[0]
    if result.name == "none":
        return ""
    if result.name.startswith(("l1", "l2")):
        return f"{first.strength:.3g}"
    return f"{first.strength:.3g}, {first.scale:.3g}"


def section(name: str, results: list[Result], rows: list[Row]) -> str:
    opponents = opponents_of(results)
    dense = np.mean(
        [row["dense_test_accuracy"] for row in rows if "test_accuracy" in row]
    )
    l2 = by_name(results)["l2"].runs
    table = []
    for result in results:
        runs, worse = result.runs, ""
        if result.name != "l2":
            found = statistics.differences(l2, runs, "test_accuracy")
            mean, half = statistics.interval(found)
            worse = f"{100 * mean:+.2f} ± {100 * half:.2f}"
        table.append(
            {
                "arm": result.name,
                "strength, scale": strength_and_scale(result),
                "kept": kept(runs),
                "test error, %": f"{100 * (1 - runs.test_accuracy.mean()):.2f}",
                "above that of l2": worse,
            }
            | against(result, opponents)
        )
    fraction = 100 * TASKS[name].config.fraction
    return (
        f"### {name}\n\n{TASKS[name].title} {len(l2)} seeds; {rows[0]['total']:,} "
        f"weights, {fraction:.0f} % removed per pruning step; dense test error "
        f"{100 * (1 - dense):.2f} %. {verdict(results)} {made(rows)}\n\n"
        f"{markdown(table)}"
    )


def draw(results: dict[str, Result], path: Path) -> None:
    with figures.figure(path, (6.4, 0.35 * len(results) + 1)) as canvas:
        axes = canvas.add_subplot()
        for index, (opponent, colour) in enumerate(OPPONENT_COLOURS.items()):
            ratios = [result.ratios[opponent] for result in results.values()]
            axes.errorbar(
                [found.ratio for found in ratios],
                np.arange(len(ratios)) + 0.22 * (index - 1),
                xerr=np.transpose(
                    [(x.ratio - x.low, x.high - x.ratio) for x in ratios]
                ),
                fmt="o",
                color=colour,
                markersize=3.5,
                elinewidth=1,
                label=f"relevance / {OPPONENTS[opponent]}",
            )
        axes.axvline(1, color=figures.GREY, linewidth=1)
        axes.set_yticks(range(len(results)), list(results))
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.FixedLocator([0.5, 0.7, 1, 1.4, 2]))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.set_xlabel("weights kept, as a multiple (95 % confidence interval)")
        canvas.legend(loc="outside lower center", ncols=3)
