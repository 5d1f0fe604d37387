"""The control study's report: the tables and the figure, from its stored rows alone."""

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from experiments import figures
from experiments.results import README, insert
from experiments.trials import TASKS, TRIALS

Row = dict[str, Any]

REPORT = Path(__file__).parent / "STUDY.md"
FIGURE = Path(__file__).parent / "results" / "study"
# A form wins if it beats all it is compared with at this level, one-sided.
LEVEL = 0.01
REFERENCE = "l2"
LABELS = {"none": REFERENCE, "permuted": "permuted", "mean": "mean of I"}


class Comparison(NamedTuple):
    """Weights kept, as multiples of what something else keeps, over paired seeds."""

    ratio: float  # geometric mean
    low: float  # 95 % confidence interval
    high: float
    p_value: float  # one-sided, of a paired t-test on the logarithms

    @property
    def wins(self) -> bool:
        return self.p_value < LEVEL

    def __str__(self) -> str:
        p = "< 0.001" if self.p_value < 0.001 else f"{self.p_value:.3f}"
        return f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f}), {p}"


def compare(runs: list[Row], others: list[Row]) -> Comparison:
    """Compares how many weights are kept, seed by seed."""
    one, other = log_kept(runs), log_kept(others)
    if one.keys() != other.keys():
        raise ValueError(f"no pairs: seeds {sorted(one)} and {sorted(other)}.")
    differences = np.array([one[seed] - other[seed] for seed in sorted(one)])
    mean, error = differences.mean(), stats.sem(differences)
    if error == 0:  # All differences are the same, and a sign test is all there is.
        p_value = 0.5 ** len(differences) if mean < 0 else 1.0
        ratio = math.exp(mean)
        return Comparison(ratio, ratio, ratio, p_value)
    t = stats.t(df=len(differences) - 1)
    half = t.ppf(0.975) * error
    return Comparison(
        *(float(math.exp(x)) for x in (mean, mean - half, mean + half)),
        p_value=float(t.cdf(mean / error)),
    )


def log_kept(runs: list[Row]) -> dict[int, float]:
    """Returns the logarithm of the weights kept, by seed."""
    return {run["seed"]: math.log(max(run["kept"], 1)) for run in runs}


class Trial(NamedTuple):
    """What a task's rows say of a trial at its best setting."""

    name: str
    runs: list[Row]
    comparisons: dict[str, Comparison]  # by control: "none" is that with tuned l2

    @property
    def wins(self) -> bool:
        """Whether it beats tuned l2 and both controls of equal dose."""
        return len(self.comparisons) == len(LABELS) and all(
            comparison.wins for comparison in self.comparisons.values()
        )


def trials_of(rows: list[Row]) -> list[Trial]:
    """Returns the trials of a task, in the order in which they were made."""
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["stage"] == "comparison":
            runs.setdefault((row["trial"], row["control"]), []).append(row)
    trials = []
    for (name, control), own in runs.items():
        if control != "none":
            continue
        reference = TRIALS[name].reference
        others = {
            other: runs[reference if other == "none" else name, other]
            for other in LABELS
            if (name, other) in runs and name != reference
        }
        trials.append(
            Trial(name, own, {key: compare(own, o) for key, o in others.items()})
        )
    return trials


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
    return HEADER + "".join(map(section, tasks)) + TRIED + tried(tasks)


def overview(tasks: list[list[Row]]) -> str:
    """Returns a table of what the paper's form keeps, a row for each task."""
    lines = [
        "| task | seeds | weights kept: none | l2 | relevance | relevance to l2 "
        "| to I permuted | to mean of I |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for rows in tasks:
        trials = {trial.name: trial for trial in trials_of(rows)}
        paper = trials["relevance"]
        cells = (
            rows[0]["task"],
            str(len(paper.runs)),
            *(
                f"{geometric_mean(trials[name].runs):,.0f}"
                for name in ("none", REFERENCE, "relevance")
            ),
            *(str(paper.comparisons[control]) for control in LABELS),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


HEADER = f"""# Does sparing relevant weights beat weight decay?

This file is written by `python -m experiments sweep study`, from the rows of all runs
in [results/study](results/study); [study.py](study.py) says how the study is made,
[trials.py](trials.py) what is tried, [forms.py](forms.py) what the forms are.

A run prunes whenever the validation accuracy allows it; the fewer weights it keeps, the
better. A trial is tuned over nine settings on two seeds and compared, at the best of
them, on other seeds: with `l2` tuned alike, and with two controls that decay as much as
the trial but do not know which weights are relevant, namely with its irrelevance I
permuted at random in its tensor, anew at every update, and with the mean of I. In the
last three columns stands what the trial keeps as a multiple of what the other keeps,
with a 95 % confidence interval, and the p-value of a one-sided paired t-test on the
logarithms. A form wins if all three are below {LEVEL}. Test errors, of the networks
that were kept, had no part in any choice.

![Weights kept relative to l2, by task and trial](results/study.png)
"""


def section(rows: list[Row]) -> str:
    """Returns the section of a task."""
    trials = trials_of(rows)
    winners = [trial.name for trial in trials if trial.wins]
    dense = statistics.fmean(
        row["dense_test_accuracy"] for row in rows if row["stage"] == "comparison"
    )
    name = rows[0]["task"]
    lines = [
        f"\n## {name}\n",
        f"{TASKS[name].title} {len(trials[0].runs)} seeds, dense test error "
        f"{100 * (1 - dense):.2f} %. "
        + (f"Wins: {', '.join(winners)}." if winners else "No form wins."),
        "",
        "| trial | strength | scale | weights kept | sparsity, % | test error, % "
        "| to l2 | to I permuted | to mean of I |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for trial in trials:
        first = trial.runs[0]
        kept = geometric_mean(trial.runs)
        error = 1 - statistics.fmean(run["test_accuracy"] for run in trial.runs)
        cells = (
            trial.name,
            *setting(first),
            f"{kept:,.0f} of {first['total']:,}",
            f"{100 * (1 - kept / first['total']):.2f}",
            f"{100 * error:.2f}",
            *(str(trial.comparisons.get(control, "")) for control in LABELS),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


TRIED = """
## Everything that was tried

One row for each setting; the weights kept are geometric means over the seeds.

| task | trial | control | strength | scale | seeds | weights kept | of it |
| --- | --- | --- | --- | --- | --- | --- | --- |
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
            f"{first['total']:,}",
        )
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def setting(row: Row) -> tuple[str, str]:
    """Returns strength and scale as text."""
    return f"{row['strength']:.3g}", f"{row['scale']:.3g}"


def geometric_mean(runs: Iterable[Row]) -> float:
    """Returns the geometric mean of the weights kept."""
    return math.exp(statistics.fmean(log_kept(list(runs)).values()))


def draw(tasks: list[list[Row]], path: Path) -> None:
    """Draws what every trial keeps relative to tuned l2, a panel for each task."""
    panels = [(rows[0]["task"], trials_of(rows)) for rows in tasks]
    heights = [len(trials) + 1 for _, trials in panels]
    with figures.panels(path, heights) as axes:
        for place, (task, trials) in zip(axes, panels, strict=True):
            draw_task(place, task, [t for t in trials if t.name != REFERENCE])
        axes[-1].set_xlabel("weights kept, as a multiple (95 % confidence interval)")
        handles = {
            label: handle
            for place in axes
            for handle, label in zip(*place.get_legend_handles_labels(), strict=True)
        }
        axes[0].figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=3
        )


def draw_task(axes: Axes, task: str, trials: list[Trial]) -> None:
    """Draws a task's comparisons: to l2, and to the two controls."""
    markers = {
        "none": ("o", figures.BLUE),
        "permuted": ("s", figures.ORANGE),
        "mean": ("^", figures.GREEN),
    }
    for place, trial in enumerate(trials):
        for shift, (control, comparison) in enumerate(trial.comparisons.items()):
            marker, colour = markers[control]
            axes.errorbar(
                comparison.ratio,
                place + 0.22 * (shift - 1),
                xerr=[
                    [comparison.ratio - comparison.low],
                    [comparison.high - comparison.ratio],
                ],
                fmt=marker,
                color=colour,
                markersize=3.5,
                elinewidth=1,
                label=f"to {LABELS[control]}",
            )
    axes.axvline(1, color=figures.GREY, linewidth=1)
    axes.set_yticks(range(len(trials)), [trial.name for trial in trials])
    axes.invert_yaxis()
    axes.set_xscale("log")
    figures.set_title(axes, task)
