"""Times that are compared, measured by turns: a busy machine is as slow to all."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def seconds(function: Callable[[], Any]) -> float:
    """Returns how long a call takes, until all it returns is computed."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def ratios(
    functions: dict[str, Callable[[], Any]], reference: Callable[[], Any], turns: int
) -> dict[str, float]:
    """Returns how many times longer than `reference` each takes, medians of turns.

    Every function is called once before, which compiles it.
    """
    for function in (reference, *functions.values()):
        seconds(function)
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(turns):
        unit = seconds(reference)
        for name, function in functions.items():
            found[name].append(seconds(function) / unit)
    return {name: statistics.median(each) for name, each in found.items()}
