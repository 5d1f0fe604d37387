"""What can be asked of runs that are finished."""

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
