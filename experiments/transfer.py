"""Whether a setting that is chosen for several tasks at once does for each of them."""

import math
import statistics
from typing import NamedTuple

from experiments.comparison import Row, log_kept
from experiments.plan import Setting

# The logarithm of the weights kept, by setting and seed.
Logs = dict[Setting, dict[int, float]]


class Transfer(NamedTuple):
    """A setting chosen on one seed, and judged on another."""

    setting: Setting
    # Geometric mean over the tasks of what it keeps, as a multiple of what l2 keeps at
    # the setting chosen on the same seed for each task.
    ratio: float


def transfer(trial: str, tasks: list[list[Row]], seed: int, other: int) -> Transfer:
    """Chooses a trial's setting for all tasks on a seed, and judges it on another.

    For the best of many settings is in part the luckiest on its seed. Those are chosen
    from that were tried on every task, for l2 as well.

    Args:
      trial: a trial that was made in all of the tasks.
      tasks: rows of tasks, with the tuning of the trial and of l2 on both seeds.
      seed: what chooses.
      other: what judges.
    """
    own, l2 = (
        everywhere([tuning(rows, name) for rows in tasks]) for name in (trial, "l2")
    )
    chosen = min(
        own[0],
        key=lambda setting: statistics.fmean(logs[setting][seed] for logs in own),
    )
    differences = []
    for logs, reference in zip(own, l2, strict=True):
        best = min(reference.values(), key=lambda by_seed: by_seed[seed])
        differences.append(logs[chosen][other] - best[other])
    return Transfer(chosen, math.exp(statistics.fmean(differences)))


def everywhere(tasks: list[Logs]) -> list[Logs]:
    """Returns the same without the settings that were not tried on every task."""
    common = set.intersection(*(set(logs) for logs in tasks))
    return [
        {setting: logs[setting] for setting in logs if setting in common}
        for logs in tasks
    ]


def tuning(rows: list[Row], trial: str) -> Logs:
    """Returns what the settings tried of a trial keep in a task."""
    logs: Logs = {}
    for row in rows:
        if row["trial"] == trial and row["stage"] == "tuning":
            by_seed = logs.setdefault((row["strength"], row["scale"]), {})
            by_seed[row["seed"]] = log_kept(row)
    return logs
