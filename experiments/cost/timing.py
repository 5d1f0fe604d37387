"""Times that are compared, measured by turns: a busy machine is as slow to all."""

import random
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

    Every function is called once before, which compiles it. Each turn has an order of
    its own, because what comes after a large one finds nothing near.
    """
    every = [reference, *functions.values()]
    for function in every:
        seconds(function)
    order = random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(turns):
        places = order.sample(range(len(every)), len(every))
        times = {place: seconds(every[place]) for place in places}
        for place, name in enumerate(functions, start=1):
            found[name].append(times[place] / times[0])
    return {name: statistics.median(each) for name, each in found.items()}
