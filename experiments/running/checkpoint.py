"""Checkpoints that survive a kill at any moment, and damage to their files.

The manifest tells damage, not malice: resume only from folders that you trust.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from experiments.config import ExperimentError
from experiments.records import write_json

MANIFEST = "manifest.json"


class Checkpoints:
    """The last two checkpoints of a run, each with a manifest of its files' hashes.

    Orbax writes a checkpoint whole or not at all, but reads back damaged bytes without
    a word; the manifest, written after everything else, is what tells.
    """

    def __init__(self, folder: Path):
        self._folder = folder.resolve()
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2, enable_async_checkpointing=False
            ),
        )

    def save(self, count: int, state: Any, notes: dict[str, Any]) -> None:
        """Saves a tree of arrays and a few notes as checkpoint number `count`."""
        self._manager.save(
            count,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                notes=ocp.args.JsonSave(notes),
            ),
        )
        folder = self._folder / str(count)
        write_json(folder / MANIFEST, file_hashes(folder))

    def latest(self) -> int | None:
        """Returns the number of the last sound checkpoint; drops any damaged ones."""
        for count in sorted(self._manager.all_steps(), reverse=True):
            folder = self._folder / str(count)
            try:
                manifest = json.loads((folder / MANIFEST).read_text())
            except (OSError, ValueError):
                manifest = None
            if manifest == file_hashes(folder):
                return count
            self._manager.delete(count)
        return None

    def notes(self, count: int) -> dict[str, Any]:
        """Returns the notes of checkpoint number `count`."""
        restored = self._manager.restore(
            count, args=ocp.args.Composite(notes=ocp.args.JsonRestore())
        )
        return restored["notes"]

    def restore(self, count: int, target: Any) -> Any:
        """Returns the tree of checkpoint number `count`.

        Args:
          count: the checkpoint's number.
          target: a tree with the same structure, shapes and dtypes; the arrays are put
            where those of the target are.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            target,
        )
        try:
            restored = self._manager.restore(
                count,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)),
            )
        except ValueError as error:
            raise ExperimentError(
                f"the checkpoints in {self._folder} do not fit this version of the "
                "program; delete the run's folder to start again."
            ) from error
        return restored["state"]


def file_hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file in a folder but the manifest, by path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, "manifest.tmp")
    }
