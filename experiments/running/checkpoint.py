"""Checkpoints that survive a kill at any moment and detect damaged files.

A checkpoint is a file NUMBER-SHA256.safetensors, which is written whole or not at all.
It has the arrays of a tree by name, and notes as JSON.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from experiments.records import Row, write_whole
from experiments.settings import ExperimentError

KEPT = 2  # number of checkpoints
NOTES = "notes"  # the name of their array


class Damaged(ExperimentError):
    """The file of a checkpoint is corrupted, or belongs to another run."""


class Checkpoints:
    """The latest checkpoints in a folder, for the run with this name."""

    def __init__(self, folder: Path, run: str):
        self._folder = folder
        self._run = run

    def files(self) -> dict[int, Path]:
        """Returns the files of all checkpoints, damaged ones too, in order."""
        paths = sorted(self._folder.glob("[0-9]*-*.safetensors"))
        return {int(path.name.partition("-")[0]): path for path in paths}

    def save(self, count: int, tree: Any, notes: Row) -> None:
        """Saves a tree of arrays and a few notes as checkpoint number `count`."""
        notes = {**notes, "run": self._run, "number": count}
        arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}
        arrays[NOTES] = np.frombuffer(json.dumps(notes).encode(), np.uint8)
        content = safetensors.numpy.save(arrays)
        name = f"{count:06}-{hashlib.sha256(content).hexdigest()}.safetensors"
        try:
            write_whole(self._folder / name, content)
        except OSError as error:
            raise ExperimentError(
                f"cannot save checkpoint {count} in {self._folder}: {error}. The same "
                "command resumes from the checkpoint before, if there is one."
            ) from error
        for path in [*self.files().values()][:-KEPT]:
            path.unlink()

    def read(self, count: int) -> tuple[Row, dict[str, np.ndarray]]:
        """Returns the notes and arrays of checkpoint `count`, or raises `Damaged`."""
        path = self.files()[count]
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.stem.partition("-")[2]:
            raise Damaged(f"{path} is damaged: its SHA-256 is not that of its name")
        arrays = safetensors.numpy.load(content)
        notes = json.loads(arrays.pop(NOTES).tobytes())
        run, number = notes["run"], notes["number"]
        if (run, number) != (self._run, count):
            raise Damaged(f"{path} is checkpoint {number} of {run}, not of this run")
        return notes, arrays

    def latest(
        self, warn: Callable[[str], None], digest: Callable[[int], str | None]
    ) -> int | None:
        """Returns the number of the last valid checkpoint, or None.

        Damaged checkpoints are renamed to NAME.damaged, and so are those whose rows are
        missing from the metrics, as `digest` shows. Raises an error if all lack rows.
        """
        for path in self._folder.glob("*.tmp"):  # left by a kill
            path.unlink()
        without_rows = []
        for count, path in reversed(self.files().items()):
            try:
                notes, _ = self.read(count)
            except Damaged as error:
                set_aside(path)
                warn(f"{error}; it is set aside.")
                continue
            if digest(count) == notes["metrics"]:
                for other in without_rows:
                    set_aside(other)
                    warn(f"{other} is set aside: metrics.jsonl does not match it.")
                return count
            without_rows.append(path)
        if without_rows:
            raise ExperimentError(
                f"metrics.jsonl does not match any checkpoint in {self._folder}; "
                "restore it, or delete the folder to start again."
            )
        return None

    def restore(self, count: int, target: Any, *parts: str) -> Any:
        """Returns a tree from checkpoint number `count`.

        It has the structure, shapes, dtypes and devices of `target`. If `parts` are
        given, only leaves whose names begin with one of them are restored.
        """
        saved = {
            name: array
            for name, array in self.read(count)[1].items()
            if not parts or name.startswith(parts)
        }
        wanted = named_leaves(target)
        for name in [*wanted, *saved]:
            there, here = (describe(tree.get(name)) for tree in (saved, wanted))
            if there != here:
                raise ExperimentError(
                    f"checkpoint {count} in {self._folder} has {there} at {name}, this "
                    f"version of the program has {here}; delete the folder of the run "
                    "to start again."
                )
        leaves = [jax.device_put(saved[name], wanted[name].sharding) for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(target), leaves)


def set_aside(path: Path) -> None:
    path.rename(path.with_name(path.name + ".damaged"))


def named_leaves(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def describe(array: Any) -> str:
    return "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
