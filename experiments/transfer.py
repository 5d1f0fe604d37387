"""Whether a setting that is chosen for several tasks at once does for each of them."""

import math
import statistics
from typing import NamedTuple

from experiments.comparison import Row

Setting = tuple[float, float]  # strength and scale
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

    For the best of many settings is in part the luckiest on its seed.

    Args:
      trial: a trial that was made in all of the tasks.
      tasks: rows of tasks, with the tuning of the trial and of l2 on both seeds.
      seed: what chooses.
      other: what judges.
    """
    own = [tuning(rows, trial) for rows in tasks]
    # Beyond the grid, settings were tried on some tasks only.
    everywhere = [key for key in own[0] if all(key in logs for logs in own)]

    def on_seed(setting: Setting) -> float:
        return statistics.fmean(logs[setting][seed] for logs in own)

    chosen = min(everywhere, key=on_seed)
    differences = []
    for rows, logs in zip(tasks, own, strict=True):
        l2 = tuning(rows, "l2").values()
        best = min(l2, key=lambda by_seed: by_seed[seed])
        differences.append(logs[chosen][other] - best[other])
    return Transfer(chosen, math.exp(statistics.fmean(differences)))


def tuning(rows: list[Row], trial: str) -> Logs:
    """Returns what the settings tried of a trial keep in a task."""
    logs: Logs = {}
    for row in rows:
        if row["trial"] == trial and row["stage"] == "tuning":
            by_seed = logs.setdefault((row["strength"], row["scale"]), {})
            by_seed[row["seed"]] = math.log(max(row["kept"], 1))
    return logs
