"""The control study's report: the tables and the figure, from its stored rows alone."""

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib import ticker
from matplotlib.axes import Axes

from experiments import figures
from experiments.comparison import LEVEL, OPPONENTS, Result, Row, log_kept, results_of
from experiments.results import README, insert
from experiments.trials import TASKS, TRIALS

REPORT = Path(__file__).parent / "STUDY.md"
FIGURE = Path(__file__).parent / "results" / "study"


def write(store: Path) -> None:
    """Writes report, figure and the table of the README from the rows in a folder."""
    tasks = read(store)
    draw(tasks, FIGURE)
    REPORT.write_text(report(tasks))
    README.write_text(insert(README.read_text(), "study", overview(tasks)))


def check_readme() -> None:
    """Raises `ExperimentError` if the README has no place for the overview."""
    insert(README.read_text(), "study", "")


def read(store: Path) -> list[list[Row]]:
    """Returns the rows of every task that has been made."""
    return [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (store / f"{name}.jsonl" for name in TASKS)
        if path.exists()
    ]


def report(tasks: list[list[Row]]) -> str:
    """Returns the whole report."""
    sections = together(tasks), *map(section, tasks)
    return HEADER + "".join(sections) + TRIED + tried(tasks)


def overview(tasks: list[list[Row]]) -> str:
    """Returns a table of what the paper's form keeps, a row for each task."""
    names = "none", "l2", "relevance"
    opponents = " | ".join(f"relevance to {name}" for name in OPPONENTS.values())
    lines = [
        f"| task | seeds | {' | '.join(names)} | {opponents} |",
        "| --- " * (2 + len(names) + len(OPPONENTS)) + "|",
    ]
    for rows in tasks:
        results = {result.name: result for result in results_of(rows)}
        cells = (
            rows[0]["task"],
            str(len(results["relevance"].runs)),
            *(f"{geometric_mean(results[name].runs):,.0f}" for name in names),
            *against(results["relevance"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    average = [against(result) for result in shared(tasks) if result.name == names[-1]]
    for cells in average:
        lines.append(f"| average | {'| ' * len(names)}| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


HEADER = f"""# Does sparing relevant weights help?

`python -m experiments sweep study` writes this file, from the rows of all runs in
[results/study](results/study).

- A **task** is a data set, a network and a course of training and pruning. A run prunes
  whenever the validation accuracy allows it; the fewer weights it keeps, the better.
- A **trial** is a way of driving weights to zero between the prunes: those are in
  [trials.py](trials.py). Most are a form of relevance, that is, of the irrelevance I in
  the decay `2 * strength * I * w`, see [forms.py](forms.py); `l2` is I = 1, `none` is
  I = 0.
- A trial is **tuned** over nine settings, where it has any, on two seeds. The best one
  has a star in the tables if it is an outermost one of those tried. It is made again on
  other seeds, and **compared**: with `l2`, tuned alike (where the strength decays after
  a prune, with the `l2` whose strength does too); and with two **controls** at the same
  setting that do not know which weights are relevant, namely the same values of I dealt
  out at random in each tensor, anew at every update, and the mean of I.
- A comparison, such as `0.90 (0.80 to 1.01), p = 0.040`, says that the trial kept 0.90
  times the weights of the other, the geometric mean over the seeds, with a 95 %
  confidence interval and the p-value of a one-sided paired t-test on the logarithms. A
  form **wins** if p is below {LEVEL} in all three. If it does not, the interval says
  what may still be.

Every task has one split of its data; seeds differ in initial weights and in the order
of the batches. Test errors are those of the networks that were kept, and had no part in
any choice.

![Weights kept, relative to l2 and to the controls](results/study.png)
"""


def shared(tasks: list[list[Row]]) -> list[Result]:
    """Returns the results over all tasks of the trials made in several of them."""
    return [
        result
        for result in results_of([row for rows in tasks for row in rows])
        if result.comparisons and len({run["task"] for run in result.runs}) > 1
    ]


def together(tasks: list[list[Row]]) -> str:
    """Returns the section that averages over the tasks."""
    results = shared(tasks)
    lines = [
        "\n## All tasks\n",
        "Averages over the tasks that a trial was made in, each of which counts alike. "
        f"{verdict(results)}",
        "",
        f"| trial | tasks | to {' | to '.join(OPPONENTS.values())} |",
        "| --- " * (2 + len(OPPONENTS)) + "|",
    ]
    for result in results:
        number = len({run["task"] for run in result.runs})
        cells = result.name, str(number), *against(result)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def verdict(results: list[Result]) -> str:
    """Returns which of the forms win, in a sentence."""
    forms = [result for result in results if len(result.comparisons) == len(OPPONENTS)]
    winners = [result.name for result in forms if result.wins]
    said = f"these win: {', '.join(winners)}" if winners else "none wins"
    return f"Of {len(forms)} forms, {said}."


def against(result: Result) -> list[str]:
    """Returns the cells of a table that hold a result's comparisons."""
    return [str(result.comparisons.get(control, "")) for control in OPPONENTS]


def section(rows: list[Row]) -> str:
    """Returns the section of a task."""
    results = results_of(rows)
    compared = [row for row in rows if row["stage"] == "comparison"]
    dense = statistics.fmean(row["dense_test_accuracy"] for row in compared)
    hashes = {str(row["commit"]).partition("-")[::2] for row in rows}
    commits = sorted(f"{name[:8]} {dirty}".strip() for name, dirty in hashes)
    name = rows[0]["task"]
    lines = [
        f"\n## {name}\n",
        f"{TASKS[name].title} {len(results[0].runs)} seeds; {compared[0]['total']:,} "
        f"weights; dense test error {100 * (1 - dense):.2f} %. {verdict(results)} "
        f"Made at {', '.join(commits)} on {compared[0]['hardware']}.",
        "",
        f"| trial | strength | scale | kept | test error, % | to "
        f"{' | to '.join(OPPONENTS.values())} |",
        "| --- " * (5 + len(OPPONENTS)) + "|",
    ]
    for result in results:
        error = 1 - statistics.fmean(run["test_accuracy"] for run in result.runs)
        strength, scale = setting(result.runs[0])
        cells = (
            result.name,
            strength + " *" * result.at_edge,
            scale,
            f"{geometric_mean(result.runs):,.0f}",
            f"{100 * error:.2f}",
            *against(result),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


TRIED = """
## Everything that was tried

One row for each setting; the weights kept are geometric means over the seeds.

| task | trial | control | strength | scale | seeds | kept |
| --- | --- | --- | --- | --- | --- | --- |
"""


def tried(tasks: list[list[Row]]) -> str:
    """Returns the rows of the table of all settings."""
    keys = "task", "trial", "control", "strength", "scale", "stage"
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in (row for rows in tasks for row in rows):
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    lines = []
    for group in groups.values():
        first = group[0]
        seeds = [row["seed"] for row in group]
        cells = (
            first["task"],
            first["trial"],
            first["control"],
            *setting(first),
            f"{min(seeds)} to {max(seeds)}",
            f"{geometric_mean(group):,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def setting(row: Row) -> tuple[str, str]:
    """Returns strength and scale as text, where they play a part."""
    has_scale = len(TRIALS[row["trial"]].scales) > 1
    return (
        "" if row["trial"] == "none" else f"{row['strength']:.3g}",
        f"{row['scale']:.3g}" if has_scale else "",
    )


def geometric_mean(runs: Iterable[Row]) -> float:
    """Returns the geometric mean of the weights kept."""
    return math.exp(statistics.fmean(log_kept(list(runs)).values()))


def draw(tasks: list[list[Row]], path: Path) -> None:
    """Draws all comparisons, a panel for each task."""
    panels = [("all tasks", shared(tasks))] + [
        (rows[0]["task"], [r for r in results_of(rows) if r.comparisons])
        for rows in tasks
    ]
    with figures.panels(path, [len(results) + 1 for _, results in panels]) as axes:
        for place, (task, results) in zip(axes, panels, strict=True):
            draw_task(place, task, results)
        axes[-1].set_xlabel("weights kept, as a multiple (95 % confidence interval)")
        handles = {
            label: handle
            for place in axes
            for handle, label in zip(*place.get_legend_handles_labels(), strict=True)
        }
        axes[0].figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=3
        )


def draw_task(axes: Axes, task: str, results: list[Result]) -> None:
    """Draws a task's comparisons: with l2, and with the two controls."""
    colours = {
        "none": figures.BLUE,
        "permuted": figures.ORANGE,
        "mean": figures.GREEN,
    }
    for place, result in enumerate(results):
        for shift, (control, comparison) in enumerate(result.comparisons.items()):
            ratio, low, high, _ = comparison
            axes.errorbar(
                ratio,
                place + 0.22 * (shift - 1),
                xerr=[[ratio - low], [high - ratio]],
                fmt="o",
                color=colours[control],
                markersize=3.5,
                elinewidth=1,
                label=f"to {OPPONENTS[control]}",
            )
    axes.axvline(1, color=figures.GREY, linewidth=1)
    axes.set_yticks(range(len(results)), [result.name for result in results])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.2, 5)
    axes.xaxis.set_major_locator(ticker.FixedLocator([0.25, 0.5, 0.7, 1, 1.4, 2, 4]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    figures.set_title(axes, task)
