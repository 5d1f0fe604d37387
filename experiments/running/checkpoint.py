"""Checkpoints that survive a kill at any moment, and damage to their files.

Orbax writes a checkpoint whole or not at all, but reads back damaged bytes, and arrays
of other dtypes than asked for, without a word. Here a manifest of all files, written
last and verified first, tells the one, and a comparison of all leaves the other.

The manifest tells damage, not malice: resume only from folders that you trust.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from experiments.config import ExperimentError
from experiments.records import write_json

MANIFEST = "manifest.json"


class Checkpoints:
    """The last two checkpoints of a run, each with a manifest of its files' hashes."""

    def __init__(self, folder: Path, run: str):
        """
        Args:
          folder: where they are.
          run: what tells the run from others.
        """
        if folder.exists() and not folder.is_dir():
            raise ExperimentError(f"{folder} is no folder; remove it.")
        self._folder = folder.resolve()
        self._run = run
        self._manager = ocp.CheckpointManager(
            self._folder,
            # Said beforehand, because metadata are asked for before anything is read.
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "notes": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,  # which a kill may have left
            ),
        )

    def save(self, count: int, state: Any, notes: dict[str, Any]) -> None:
        """Saves a tree of arrays and a few notes as checkpoint number `count`.

        Raises:
          ExperimentError: there is no room for it, say. Earlier ones are as they were.
        """
        folder = self._folder / str(count)
        try:
            with quiet():
                self._manager.save(
                    count,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(state),
                        notes=ocp.args.JsonSave(
                            {**notes, "run": self._run, "number": count}
                        ),
                    ),
                )
            write_json(folder / MANIFEST, file_hashes(folder))
        except (OSError, ValueError) as error:  # the second is TensorStore's
            for part in (folder, *self._folder.glob(f"{count}.*")):
                shutil.rmtree(part, ignore_errors=True)
            raise ExperimentError(
                f"cannot save checkpoint {count} in {self._folder}: {error} The same "
                "command goes on from the one before."
            ) from error

    def latest(self, tell: Callable[[str], None]) -> int | None:
        """Returns the number of the last sound checkpoint, or None.

        Args:
          tell: is told of any that are damaged. They are removed.
        """
        for count in reversed(self.numbers()):
            damage = self.damage(count)
            if damage is None:
                return count
            tell(f"Checkpoint {count} cannot be used: {damage}. It is removed.")
            self._manager.delete(count)
        return None

    def numbers(self) -> list[int]:
        """Returns the numbers of all checkpoints, damaged ones too, in order."""
        return sorted(self._manager.all_steps())

    def damage(self, count: int) -> str | None:
        """Returns what is wrong with a checkpoint, or None if nothing is."""
        folder = self._folder / str(count)
        try:
            text = (folder / MANIFEST).read_text()
        except FileNotFoundError:
            return f"it has no {MANIFEST}, which is written last"
        except (OSError, UnicodeError) as error:
            return f"{MANIFEST} cannot be read ({error})"
        try:
            found = file_hashes(folder)
        except OSError as error:
            return f"a file cannot be read ({error})"
        if text != json.dumps(found, indent=2) + "\n":
            return differences(text, found)
        notes = self.notes(count)
        # Those of earlier versions do not say.
        if notes.get("run", self._run) != self._run:
            return f"it is one of another run, {notes['run']}"
        if notes.get("number", count) != count:
            return f"it is number {notes['number']}"
        return None

    def notes(self, count: int) -> dict[str, Any]:
        """Returns the notes of checkpoint number `count`."""
        restored = self._manager.restore(
            count, args=ocp.args.Composite(notes=ocp.args.JsonRestore())
        )
        return restored["notes"]

    def restore(self, count: int, target: Any = None) -> Any:
        """Returns the tree of checkpoint number `count`.

        Args:
          count: the checkpoint's number.
          target: a tree with the same structure, shapes and dtypes; the arrays are put
            where those of the target are. Without one, they are put on the first
            device, into dicts and lists.

        Raises:
          ExperimentError: the checkpoint is of another tree; it names the first leaf.
        """
        metadata = self._manager.item_metadata(count)["state"].tree
        if target is None:
            here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            target = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
                metadata,
            )
        saved, wanted = leaf_types(metadata), leaf_types(target)
        for name in [*wanted, *saved]:
            if saved.get(name) != wanted.get(name):
                raise ExperimentError(
                    f"checkpoint {count} in {self._folder} has "
                    f"{saved.get(name, 'nothing')} at {name}, where this version of "
                    f"the program has {wanted.get(name, 'nothing')}; delete the run's "
                    "folder to start again."
                )
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            target,
        )
        restored = self._manager.restore(
            count, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )
        return restored["state"]


def file_hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file in a folder but the manifest, by path."""
    own = folder / MANIFEST
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in (own, own.with_suffix(".tmp")):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
            hashes[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return hashes


def differences(text: str, found: dict[str, str]) -> str:
    """Returns in which files a folder differs from its manifest."""
    try:
        wanted = dict(json.loads(text))
    except (ValueError, TypeError):
        return f"{MANIFEST} is damaged"
    names = [
        name
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    return f"not as it was written: {', '.join(names) or MANIFEST}"


def leaf_types(tree: Any) -> dict[str, str]:
    """Returns dtype and shape of every leaf by its name, as Orbax names it too."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{leaf.dtype}{list(leaf.shape)}"
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Orbax and TensorStore from telling at length what they raise as well."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    level = logger.level

    def without_closed_loops(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = without_closed_loops
    try:
        yield
        sys.unraisablehook = hook  # but after an error its threads go on for a while
    finally:
        logger.setLevel(level)
