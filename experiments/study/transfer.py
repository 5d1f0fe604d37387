"""Whether a setting that is chosen for several tasks at once does for each of them."""

import statistics
from typing import NamedTuple

from experiments.records import Row
from experiments.running.tuning import Setting, log_kept

# The logarithm of the weights kept, by setting and seed.
Logs = dict[Setting, dict[int, float]]


class Transfer(NamedTuple):
    """A setting chosen on one seed, and judged on another."""

    setting: Setting
    logs: list[float]  # of the weights that it keeps in each of the tasks


def transfer(trial: str, tasks: list[list[Row]], seed: int, other: int) -> Transfer:
    """Chooses a trial's setting for all tasks on a seed, and judges it on another.

    For the best of many settings is in part the luckiest on its seed. Those are chosen
    from that were tried on every task.

    Args:
      trial: a trial that was made in all of the tasks.
      tasks: rows of tasks, with the tuning of the trial on both seeds.
      seed: what chooses.
      other: what judges.
    """
    tried = [tuning(rows, trial) for rows in tasks]
    chosen = min(
        set.intersection(*(set(logs) for logs in tried)),
        key=lambda setting: (
            statistics.fmean(logs[setting][seed] for logs in tried),
            setting,
        ),
    )
    return Transfer(chosen, [logs[chosen][other] for logs in tried])


def tuning(rows: list[Row], trial: str) -> Logs:
    """Returns what the settings tried of a trial keep in a task."""
    logs: Logs = {}
    for row in rows:
        if row["trial"] == trial and row["stage"] == "tuning":
            by_seed = logs.setdefault((row["strength"], row["scale"]), {})
            by_seed[row["seed"]] = log_kept(row)
    return logs
