"""The control study's report: the tables and the figure, from its stored rows alone."""

import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.config import ExperimentError
from experiments.records import Row, check_names, read_rows
from experiments.reporting.results import README, STORE as RESULTS, commit, insert
from experiments.running.tuning import log_kept
from experiments.study.comparison import LEVEL, OPPONENTS, Result, results_of
from experiments.study.figure import draw
from experiments.study.plan import is_current
from experiments.study.transfer import transfer
from experiments.study.trials import FEW, ROUNDS, TASKS, TRIALS

STORE = RESULTS / "study"
FIGURE = RESULTS / "study"  # and its ending
# What is shown of a run, but for its accuracy on the test set, which few have.
NAMES = (
    *("task", "stage", "trial", "control", "seed", "strength", "scale"),
    *("kept", "total", "hardware", "commit"),
)
HEADER = Path(__file__).parent / "header.md"
REPORT = RESULTS.parent / "STUDY.md"


def write(store: Path) -> None:
    """Writes report, figure and the table of the README from the rows in a folder.

    Raises:
      ExperimentError: they are not those of the present tasks and trials.
    """
    check_stored(store, TASKS)
    tasks = list(read(store, TASKS).values())
    panels = {rows[0]["task"]: results_of(rows) for rows in tasks}
    if averages := shared(tasks):
        panels = {"all tasks": averages} | panels
    draw(panels, FIGURE)
    REPORT.write_text(report(tasks))
    README.write_text(insert(README.read_text(), "study", overview(tasks)))


def check_readme() -> None:
    """Raises `ExperimentError` if the README has no place for the overview."""
    insert(README.read_text(), "study", "")


def check_stored(store: Path, names: Iterable[str]) -> None:
    """Raises `ExperimentError` if rows stored of these tasks are not current."""
    stale = [
        name for name, rows in read(store, names).items() if not is_current(name, rows)
    ]
    if stale:
        raise ExperimentError(
            f"the rows of {', '.join(stale)} in {store} are not those of the present "
            f"trials: make them with --tasks {' '.join(stale)}, or delete them"
        )


def read(store: Path, names: Iterable[str]) -> dict[str, list[Row]]:
    """Returns the rows of those tasks that have been made, by the name of the task."""
    tasks = {}
    for name in names:
        path = store / f"{name}.jsonl"
        if path.exists():
            tasks[name] = read_rows(path)
            for row in tasks[name]:
                check_names(row, NAMES, path)
    return tasks


def report(tasks: list[list[Row]]) -> str:
    """Returns the whole report."""
    sections = together(tasks), one_setting(tasks), *map(section, tasks), tried(tasks)
    return HEADER.read_text().format(level=LEVEL) + "".join(sections)


def overview(tasks: list[list[Row]]) -> str:
    """Returns a table of what the paper's form keeps, a row for each task."""
    names = "none", "l2", "relevance"
    opponents = [name for name in OPPONENTS if name != "alike"]
    headings = " | ".join(f"relevance / {OPPONENTS[name]}" for name in opponents)
    lines = [
        f"| task | seeds | {' | '.join(names)} | {headings} |",
        "| --- " * (2 + len(names) + len(opponents)) + "|",
    ]
    for rows in tasks:
        results = {result.name: result for result in results_of(rows)}
        cells = (
            rows[0]["task"],
            str(len(results["relevance"].runs)),
            *(f"{geometric_mean(results[name].runs):,.0f}" for name in names),
            *against(results["relevance"], opponents),
        )
        lines.append(f"| {' | '.join(cells)} |")
    if len(tasks) > 1:
        results = {result.name: result for result in shared(tasks)}
        compared = against(results["relevance"], opponents)
        cells = "average", *[""] * (1 + len(names)), *compared
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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
    if not results:
        return ""
    opponents = opponents_of(results)
    lines = [
        "\n## All tasks\n",
        "Averages over the tasks that a trial was made in. Here the tasks make the "
        f"pairs, by the means over their seeds. {verdict(results)}",
        "",
        f"| trial | tasks | {titles(opponents)} |",
        "| --- " * (2 + len(opponents)) + "|",
    ]
    for result in results:
        number = len({run["task"] for run in result.runs})
        cells = result.name, str(number), *against(result, opponents)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def one_setting(tasks: list[list[Row]]) -> str:
    """Returns the section on settings that are to do for several tasks at once."""
    tasks = [rows for rows in tasks if set(FEW) <= {row["trial"] for row in rows}]
    if not tasks:
        return ""
    (one, other), _ = ROUNDS[0]
    ways = (one, other), (other, one)
    lines = [
        "\n## One setting for all\n",
        "Does one setting, strength and scale, do for several tasks? The best for "
        f"{', '.join(rows[0]['task'] for rows in tasks)} together is chosen on seed "
        f"{one}, and judged on seed {other}; then the seeds are exchanged. It is "
        "compared with the setting of l2 that is chosen alike: geometric mean, lowest "
        "and highest ratio over the tasks and both ways, a run each. So few runs do "
        "not tell the trials apart. Only settings that were tried on every one of the "
        "tasks take part.",
        "",
        f"| trial | chosen on seed {one} | chosen on seed {other} | kept, to l2's |",
        "| --- " * 4 + "|",
    ]
    l2 = [transfer("l2", tasks, *way) for way in ways]
    for trial in FEW:
        if trial != "none":
            made = [transfer(trial, tasks, *way) for way in ways]
            ratios = [
                math.exp(kept - reference)
                for own, others in zip(made, l2, strict=True)
                for kept, reference in zip(own.logs, others.logs, strict=True)
            ]
            cells = (
                trial,
                *(
                    ", ".join(filter(None, shown(trial, *way.setting)[1:]))
                    for way in made
                ),
                f"{statistics.geometric_mean(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def verdict(results: list[Result]) -> str:
    """Returns which of the forms win, in a sentence or two."""
    forms = [result for result in results if result.is_form]
    able = [result for result in forms if result.can_win]
    winners = [result.name for result in able if result.wins]
    said = f"these win: {', '.join(winners)}" if winners else "none wins"
    number = "1 form" if len(able) == 1 else f"{len(able)} forms"
    sentences = [f"Of {number}, {said}."] if able else []
    if more := len(forms) - len(able):
        those = f"{more} more {'has' if more == 1 else 'have'}" if able else "All have"
        sentences.append(f"{those} too few pairs that differ to tell.")
    return " ".join(sentences)


def opponents_of(results: list[Result]) -> list[str]:
    """Returns the opponents that any of the results is compared with."""
    return [name for name in OPPONENTS if any(name in r.comparisons for r in results)]


def titles(opponents: list[str]) -> str:
    """Returns the titles of the columns of a table that hold comparisons."""
    return " | ".join(f"to {OPPONENTS[name]}" for name in opponents)


def against(result: Result, opponents: list[str]) -> list[str]:
    """Returns the cells of these columns."""
    return [str(result.comparisons.get(name, "")) for name in opponents]


def section(rows: list[Row]) -> str:
    """Returns the section of a task."""
    results = results_of(rows)
    opponents = opponents_of(results)
    compared = [row for row in rows if row["stage"] == "comparison"]
    dense = statistics.fmean(row["dense_test_accuracy"] for row in compared)
    commits = sorted(set(map(commit, rows)))
    hardware = {row["hardware"] for row in rows}
    name = rows[0]["task"]
    lines = [
        f"\n## {name}\n",
        f"{TASKS[name].title} {len(results[0].runs)} seeds; {compared[0]['total']:,} "
        f"weights, of which a prune drops {100 * TASKS[name].config.fraction:.0f} %; "
        f"dense test error {100 * (1 - dense):.2f} %. {verdict(results)} Made at "
        f"{', '.join(commits)} on {' and '.join(sorted(hardware))}.",
        "",
        "| trial | strength | scale | kept | test error, % | above l2's | "
        f"{titles(opponents)} |",
        "| --- " * (6 + len(opponents)) + "|",
    ]
    for result in results:
        error = 1 - statistics.fmean(run["test_accuracy"] for run in result.runs)
        best = result.runs[0]
        cells = (
            *shown(result.name, best["strength"], best["scale"]),
            f"{geometric_mean(result.runs):,.0f}",
            f"{100 * error:.2f}",
            "{:+.2f} ± {:.2f}".format(*result.worse) if result.worse else "",
            *against(result, opponents),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def tried(tasks: list[list[Row]]) -> str:
    """Returns the section with all settings of all tasks."""
    keys = "task", "trial", "control", "strength", "scale", "stage"
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in (row for rows in tasks for row in rows):
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    lines = [
        "\n## Everything that was tried\n",
        "One row for each setting; the weights kept are geometric means over the "
        "seeds. Strengths are multiplied by 2 in the decay, as everywhere in this "
        "library.",
        "",
        "| task | trial | control | strength | scale | seeds | kept |",
        "| --- " * 7 + "|",
    ]
    for group in groups.values():
        first = group[0]
        seeds = [row["seed"] for row in group]
        name, *numbers = shown(first["trial"], first["strength"], first["scale"])
        cells = (
            first["task"],
            name,
            first["control"],
            *numbers,
            f"{min(seeds)} to {max(seeds)}",
            "diverged"
            if any(row.get("diverged") for row in group)
            else f"{geometric_mean(group):,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shown(trial: str, strength: float, scale: float) -> tuple[str, str, str]:
    """Returns trial, strength and scale as text, the last where they play a part."""
    has_scale = len(TRIALS[trial].scales) > 1
    return (
        trial,
        "" if trial == "none" else f"{strength:.3g}",
        f"{scale:.3g}" if has_scale else "",
    )


def geometric_mean(runs: Iterable[Row]) -> float:
    """Returns the geometric mean of the weights kept."""
    return math.exp(statistics.fmean(log_kept(run) for run in runs))
