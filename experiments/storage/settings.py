"""What can be asked of what is left on disk."""

import dataclasses
from pathlib import Path

import tyro

from experiments.config import check


@dataclasses.dataclass(frozen=True)
class Export:
    """Stores the sparse networks of finished runs as files, and tells their sizes.

    A run has done so at its end; this does it again, or for runs that are older.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs. Each gets the file network.safetensors, for
    sparse_optax.load_sparse, and its summary the sizes."""

    def validate(self) -> None:
        """Raises an `ExperimentError` if there is nothing to export."""
        check("runs", self.runs, bool(self.runs), "one or more folders")


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
