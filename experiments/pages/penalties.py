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
    return {"tasks": "\n".join(section(*item) for item in stored.items() if item[1])}


def section(name: str, stored: list[Row]) -> str:
    """Returns a table of the arms on a task, those that keep fewest weights first."""
    rows = pd.DataFrame(stored)
    rows["log_kept"] = np.log(rows.kept.clip(lower=1))
    tuning = Counter(row["arm"] for row in stored if row["stage"] == "tuning")
    runs = {
        str(arm): own
        for arm, own in rows[rows.stage == "comparison"].groupby("arm", sort=False)
    }
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
    opponents = {"to l1": "l1", "to l2": "l2"}
    is_weighed = ARMS[arm].configure(TASKS[name].config).regularizer == "relevance"
    if is_weighed and ARMS[arm].counterpart not in opponents.values():
        opponents["to its plain form"] = ARMS[arm].counterpart
    return {
        "arm": arm,
        "strength": f"{first.strength:.3g}" if num_tuning else "",
        "scale": f"{first.scale:.3g}" if is_weighed else "",
        "tuning runs": str(num_tuning),
        "kept": f"{np.exp(own.log_kept.mean()):,.0f}",
        "test error, %": f"{100 * (1 - own.test_accuracy.mean()):.2f}",
    } | {
        heading: str(statistics.compare(own, runs[other])) if other != arm else ""
        for heading, other in opponents.items()
        if other in runs
    }
