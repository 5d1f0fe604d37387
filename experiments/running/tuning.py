"""Tuning: which numbers a method is best at, and which of them to try next."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from experiments.config import ImageConfig
from experiments.records import Row

Setting = tuple[float, ...]  # the values of what is tuned
NAMES = "strength", "scale"  # that, unless others are given


def log_kept(run: Row) -> float:
    """Returns the logarithm of the weights kept; of one, if there is none."""
    return math.log(max(run["kept"], 1))


def surround(
    best: Setting,
    tried: list[Setting],
    runs: list[Row],
    config: ImageConfig,
    make: Callable[[list[ImageConfig]], list[Row]],
    seeds: Iterable[int],
    names: Sequence[str] = NAMES,
    size: Callable[[Row], float] = log_kept,
) -> Setting:
    """Tries what lies next to the best setting until that is tried on all sides.

    Args:
      best: the best of those tried.
      tried: settings.
      runs: those made at them.
      config: the runs, but for setting and seed.
      make: makes runs.
      seeds: of the runs to be made; the best was made on all of them, too.
      names: of what is tuned, in the configuration.
      size: of what a run is left with; by default the logarithm of its weights.

    Returns:
      The setting that is then the best.
    """
    seeds = list(seeds)
    # It ends: the best of equals is the first, and none keeps less than one weight.
    while beyond := [
        setting
        for setting in neighbours(best, tried)
        if setting not in tried and is_possible(setting, config, names)
    ]:
        runs = runs + make(at(beyond, config, seeds, names))
        tried = tried + beyond
        best = best_of([best, *beyond], runs, names, size)[0]
    return best


def neighbours(best: Setting, tried: list[Setting]) -> list[Setting]:
    """Returns the settings next to the best one, in one of its numbers or in several.

    Between those tried, the next one; beyond them, a step further by the factor between
    the outermost two. Of numbers that were not varied, there is nothing next.
    """
    choices = []
    for index, value in enumerate(best):
        values = sorted({setting[index] for setting in tried})
        if len(values) > 1:
            # Rounded, lest the last bits of a product name another run.
            below = float(f"{values[0] * values[0] / values[1]:.3g}")
            above = float(f"{values[-1] * values[-1] / values[-2]:.3g}")
            values = [below, *values, above]
        place = values.index(value)
        choices.append(values[max(place - 1, 0) : place + 2])
    return [setting for setting in itertools.product(*choices) if setting != best]


def is_possible(setting: Setting, config: ImageConfig, names: Sequence[str]) -> bool:
    """Whether a scale that is a share of the weights is less than all of them."""
    values = dict(zip(names, setting, strict=True))
    return config.form.unit != "quantile" or values.get("scale", config.scale) < 1


def at(
    settings: list[Setting],
    config: ImageConfig,
    seeds: Iterable[int],
    names: Sequence[str] = NAMES,
) -> list[ImageConfig]:
    """Returns the runs at every one of the settings, on every seed."""
    return [
        dataclasses.replace(config, **dict(zip(names, setting, strict=True)), seed=seed)
        for setting in settings
        for seed in seeds
    ]


def best_of(
    settings: list[Setting],
    runs: list[Row],
    names: Sequence[str] = NAMES,
    size: Callable[[Row], float] = log_kept,
) -> list[Setting]:
    """Returns settings in the order of the weights that they keep, the fewest first.

    It is the mean of `size` that counts, over the seeds; among equals, and a prune
    moves the weights kept in large steps, the mean validation accuracy. Those come last
    of which a run diverged.
    """

    def merit(setting: Setting) -> tuple[bool, float, float]:
        own = [run for run in runs if tuple(run[name] for name in names) == setting]
        return (
            any(run.get("diverged", False) for run in own),
            # Rounded, lest the order of a sum decides.
            round(statistics.fmean(size(run) for run in own), 9),
            -statistics.fmean(run["validation_accuracy"] for run in own),
        )

    return sorted(settings, key=merit)
