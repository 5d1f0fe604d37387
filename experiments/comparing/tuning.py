"""Tuning: the settings at which an arm is tried, and the best of them."""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Sequence

from experiments.config import ImageConfig
from experiments.records import Row

Setting = tuple[float, ...]  # the values of what is tuned


def tune(
    config: ImageConfig,
    names: Sequence[str],
    first: list[Setting],
    rounds: Sequence[tuple[Sequence[int], int]],
    size: Callable[[Row], float],
    make: Callable[[list[ImageConfig]], list[Row]],
) -> Setting:
    """Returns the best setting.

    In each round the settings, values of `names` in the configuration, are tried on
    more seeds, and some number of the best are kept. Then those next to the best one
    are tried, until it has been tried on all sides.
    """

    def at(settings: list[Setting], seeds: Sequence[int]) -> list[ImageConfig]:
        return [
            dataclasses.replace(
                config, **dict(zip(names, setting, strict=True)), seed=seed
            )
            for setting in settings
            for seed in seeds
        ]

    best, tried, runs = first, first, []
    for seeds, number in rounds:
        if len(best) > number:
            runs = runs + make(at(best, seeds))
            best = best_of(best, runs, names, size)[:number]
    seeds = [seed for seeds, _ in rounds for seed in seeds]
    # A scale that is a share of the weights is less than all of them.
    is_share = config.form.unit == "quantile" and "scale" in names
    # It ends: the best of equals is the first, and none keeps less than one weight.
    while beyond := [
        setting
        for setting in neighbours(best[0], tried)
        if setting not in tried
        and not (is_share and setting[names.index("scale")] >= 1)
    ]:
        runs = runs + make(at(beyond, seeds))
        tried = tried + beyond
        best = best_of([best[0], *beyond], runs, names, size)
    return best[0]


def neighbours(best: Setting, tried: list[Setting]) -> list[Setting]:
    """Returns the settings next to the best one, in one or several of its numbers.

    They are the next ones tried, or beyond those one step further, by the factor
    between the outermost two. Numbers that were not varied have no neighbours.
    """
    choices = []
    for index, value in enumerate(best):
        values = sorted({setting[index] for setting in tried})
        if len(values) > 1:
            # Rounded: the last bits of a product would be another run.
            below = float(f"{values[0] * values[0] / values[1]:.3g}")
            above = float(f"{values[-1] * values[-1] / values[-2]:.3g}")
            values = [below, *values, above]
        place = values.index(value)
        choices.append(values[max(place - 1, 0) : place + 2])
    return [setting for setting in itertools.product(*choices) if setting != best]


def best_of(
    settings: list[Setting],
    runs: list[Row],
    names: Sequence[str],
    size: Callable[[Row], float],
) -> list[Setting]:
    """Returns settings from the smallest mean size over the seeds to the largest.

    Among equals, the most accurate on the validation split come first. Settings of
    which a run diverged come last.
    """

    def merit(setting: Setting) -> tuple[bool, float, float]:
        own = [run for run in runs if tuple(run[name] for name in names) == setting]
        return (
            any(run.get("diverged", False) for run in own),
            # Rounded: the order of a sum must not decide.
            round(statistics.fmean(size(run) for run in own), 9),
            -statistics.fmean(run["validation_accuracy"] for run in own),
        )

    return sorted(settings, key=merit)
