"""What all measurements share: settings, ratios of times, and storage of results."""

import dataclasses
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from experiments.pages.tables import markdown, short
from experiments.records import RESULTS, Row, check_writable, write_json
from experiments.settings import check_intervals


@dataclasses.dataclass(frozen=True)
class Measurement:
    out: Path | None = None
    """Folder for the results; by default one in experiments/results, which `pages`
    shows."""

    def validate(self) -> None:
        check_intervals(self)

    def store(self, name: str, measure: Callable[[], Row], of: str = "") -> None:
        """Measures, and stores the results in a file named after the backend."""
        folder = self.out or RESULTS / name
        check_writable(folder)  # before anything is measured in vain
        found = measure()
        path = folder / f"{found['backend']}{of}.json"
        write_json(path, found)
        print(f"Written: {path}")


def table(found: Row, rows: list[Row]) -> str:
    """Returns rows of a measurement as a table, after what it was made on."""
    return f"{made_on(found)}\n\n{markdown(rows)}"


def made_on(found: Row) -> str:
    """Returns the hardware, versions and commit of a measurement."""
    versions = [f"{name} {number}" for name, number in found["versions"].items()]
    where = [found["hardware"], *versions, f"commit {short(found['commit'])}"]
    return f"On {', '.join(where)}:"


def seconds(function: Callable[[], Any]) -> float:
    """Returns how long a call takes, until all that it returns is computed."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def ratios(
    functions: dict[str, Callable[[], Any]], reference: Callable[[], Any], turns: int
) -> dict[str, float]:
    """Returns the times of functions, relative to `reference`: medians over turns.

    Functions are timed in turn, so that a busy machine slows down all of them. A first
    call compiles. The order changes with each turn, because it affects caches.
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
