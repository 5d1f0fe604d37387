"""The page of the comparison of penalties."""

from collections import Counter

import numpy as np
import pandas as pd

from experiments.comparing import statistics
from experiments.comparing.penalties import ARMS, COMPARISON, TASKS
from experiments.comparing.statistics import Frame
from experiments.pages.tables import made, markdown
from experiments.records import Row


def penalties() -> dict[str, str]:
    COMPARISON.check_stored()
    stored = {name: COMPARISON.rows(name) for name in TASKS}
    return {
        "together": together([row for rows in stored.values() for row in rows]),
        "tasks": "\n".join(section(*item) for item in stored.items() if item[1]),
    }


def together(stored: list[Row]) -> str:
    """Returns a table of the arms that ran on all tasks, with tasks as pairs."""
    runs = compared(stored)
    runs = {arm: own for arm, own in runs.items() if own.task.nunique() == len(TASKS)}
    means = {
        arm: own.groupby("task").log_kept.mean().mean() for arm, own in runs.items()
    }
    return markdown(
        {"arm": arm, "kept": f"{np.exp(means[arm]):,.0f}"}
        | ratios(arm, runs, "l1", "l2")
        for arm in sorted(runs, key=means.__getitem__)
    )


def compared(stored: list[Row]) -> dict[str, Frame]:
    """Returns the runs of the comparison, by arm."""
    rows = pd.DataFrame([row for row in stored if row["stage"] == "comparison"])
    rows["log_kept"] = np.log(rows.kept.clip(lower=1))
    return {str(arm): own for arm, own in rows.groupby("arm", sort=False)}


def ratios(arm: str, runs: dict[str, Frame], *others: str) -> dict[str, str]:
    """Returns the weights kept by an arm as multiples of those kept by others."""
    return {
        f"to {other}": str(statistics.compare(runs[arm], runs[other]))
        if other != arm
        else ""
        for other in others
        if other in runs
    }


def section(name: str, stored: list[Row]) -> str:
    """Returns a table of the arms on a task, those that keep fewest weights first."""
    tuning = Counter(row["arm"] for row in stored if row["stage"] == "tuning")
    runs = compared(stored)
    arms = sorted(runs, key=lambda arm: runs[arm].log_kept.mean())
    table = [line(name, arm, runs, tuning[arm]) for arm in arms]
    total, seeds = stored[0]["total"], TASKS[name].num_seeds
    return (
        f"### {name}\n\n{TASKS[name].title} {seeds} seeds; {total:,} weights. "
        f"{made(stored)}\n\n{markdown(table)}"
    )


def line(name: str, arm: str, runs: dict[str, Frame], num_tuning: int) -> Row:
    own = runs[arm]
    first = own.iloc[0]
    is_weighed = ARMS[arm].configure(TASKS[name].config).regularizer == "relevance"
    found = ratios(arm, runs, "l1", "l2")
    plain = ARMS[arm].counterpart
    if is_weighed and plain in runs.keys() - {"l1", "l2"}:
        found["to its plain form"] = ratios(arm, runs, plain)[f"to {plain}"]
    return {
        "arm": arm,
        "strength": f"{first.strength:.3g}" if num_tuning else "",
        "scale": f"{first.scale:.3g}" if is_weighed else "",
        "tuning runs": str(num_tuning),
        "kept": f"{np.exp(own.log_kept.mean()):,.0f}",
        "test error, %": f"{100 * (1 - own.test_accuracy.mean()):.2f}",
    } | found
