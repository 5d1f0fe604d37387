"""What can be asked of the measurements of cost."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from experiments.config import check


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Measures what the method costs, and writes it into the README.

    It takes some fifteen minutes on two cores, and a few GB of memory.
    """

    sizes: tuple[int, ...] = (10_000_000,)
    """Numbers of weights, in 30 matrices, of which an update and a prune are timed."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Types of weights and gradients for which an update is measured."""
    rivals: tuple[int, ...] = (1_000_000, 10_000_000)
    """Numbers of weights at which a prune is compared with a sort and with a top_k."""
    growth: tuple[int, ...] = (1_000_000, 10_000_000, 100_000_000, 300_000_000)
    """Numbers of weights, in 10 matrices, at which a prune is compared with updates."""
    leaves: tuple[int, ...] = (30, 100, 300)
    """Numbers of matrices for which a prune is compiled."""
    turns: int = 21
    """How often times are compared."""
    out: Path | None = None
    """Folder for what is measured; by default that of the repository, which its README
    shows."""

    def validate(self) -> None:
        """Raises an `ExperimentError` where a number makes no sense."""
        check("turns", self.turns, self.turns >= 1, "1 or more")
        for name, least in (
            ("sizes", 1000),
            ("rivals", 10),
            ("growth", 10),
            ("leaves", 1),
        ):
            numbers = getattr(self, name)
            sound = min(numbers, default=0) >= least
            check(name, numbers, sound, f"numbers of {least} or more")
        check("dtypes", self.dtypes, bool(self.dtypes), "one or more")


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Tells what a prune of large networks would take of many devices.

    It compiles the programs, and writes what XLA says of them into the README.
    """

    devices: tuple[int, ...] = (8, 512)
    """Numbers of devices."""
    out: Path | None = None
    """Folder for what is found; by default that of the repository, which its README
    shows."""

    def validate(self) -> None:
        """Raises an `ExperimentError` where a number makes no sense."""
        numbers = self.devices
        sound = bool(numbers) and all(
            n in (1, 2, 4) or (n % 8 == 0 and 0 < n <= 2048) for n in numbers
        )
        check("devices", numbers, sound, "1, 2, 4 or multiples of 8, up to 2048")


@dataclasses.dataclass(frozen=True)
class Latency:
    """Measures how fast pruned LeNets are, dense and sparse, for the README."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs."""
    turns: int = 21
    """How often times are compared."""
    out: Path | None = None
    """Folder for what is measured; by default that of the repository, which its README
    shows."""

    def validate(self) -> None:
        """Raises an `ExperimentError` where there is nothing to measure."""
        check("runs", self.runs, bool(self.runs), "one or more folders")
        check("turns", self.turns, self.turns >= 1, "1 or more")


@dataclasses.dataclass(frozen=True)
class Storage:
    """Measures files of random masks, and writes it into the README.

    It takes a minute or two on two cores, and a few GB of memory.
    """

    size: int = 1_000_000
    """Weights of a network of which files are measured: at least 10,000."""
    large: int = 100_000_000
    """Weights of one that is written and read."""
    turns: int = 5
    """How often times are compared."""
    out: Path | None = None
    """Folder for what is measured; by default that of the repository, which its README
    shows."""

    def validate(self) -> None:
        """Raises an `ExperimentError` where a number makes no sense."""
        check("size", self.size, self.size >= 10_000, "10,000 or more")
        check("large", self.large, self.large >= 1, "1 or more")
        check("turns", self.turns, self.turns >= 1, "1 or more")
