"""Checkpoints that survive a kill at any moment, and damage to their files.

Orbax writes a checkpoint whole or not at all, but reads back damaged bytes, and arrays
of other dtypes than asked for, without a word. Here a manifest of all files, written
last and verified before Orbax reads any of them, tells the one, and a comparison of all
leaves the other.

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
KEPT = 2  # checkpoints, at the most


class Checkpoints:
    """The last checkpoints of a run, each with a manifest of its files' hashes."""

    def __init__(self, folder: Path, run: str):
        """
        Args:
          folder: where they are, or will be.
          run: what tells the run from others.
        """
        if folder.exists() and not folder.is_dir():
            raise ExperimentError(f"{folder} is no folder; remove it.")
        self._folder = folder.resolve()
        self._run = run

    def _path(self, count: int) -> Path:
        return self._folder / str(count)

    def numbers(self) -> list[int]:
        """Returns the numbers of all checkpoints, damaged ones too, in order."""
        if not self._folder.exists():
            return []
        names = [path.name for path in self._folder.iterdir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def save(self, count: int, state: Any, notes: dict[str, Any]) -> None:
        """Saves a tree of arrays and a few notes as checkpoint number `count`.

        Older ones than the last but one are removed when it is complete.

        Raises:
          ExperimentError: there is no room for it, say. Earlier ones are as they were.
        """
        path = self._path(count)
        if path.exists():
            raise ExperimentError(f"there is a checkpoint {path} already.")
        notes = {**notes, "run": self._run, "number": count}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            with quiet(after_errors=True), self._checkpointer() as checkpointer:
                checkpointer.save(
                    path,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(state),
                        notes=ocp.args.JsonSave(notes),
                    ),
                )
            write_json(path / MANIFEST, file_hashes(path))
        except (OSError, ValueError) as error:  # the second is TensorStore's
            with contextlib.suppress(OSError):
                self._remove_unfinished()
                shutil.rmtree(path, ignore_errors=True)
            reason = str(error).rstrip(".")
            raise ExperimentError(
                f"cannot save checkpoint {count} in {self._folder}: {reason}. The same "
                "command goes on from the checkpoint before, if there is one."
            ) from error
        for old in self.numbers()[:-KEPT]:
            shutil.rmtree(self._path(old), ignore_errors=True)

    def _remove_unfinished(self) -> None:
        """Removes what a kill has left of a checkpoint that Orbax was writing."""
        for path in self._folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path)

    def _checkpointer(self) -> ocp.Checkpointer:
        return ocp.Checkpointer(ocp.CompositeCheckpointHandler("state", "notes"))

    def latest(
        self, tell: Callable[[str], None], digest: Callable[[int], str | None]
    ) -> int | None:
        """Returns the number of the last sound checkpoint, or None.

        Args:
          tell: is told of any that are damaged. They are put aside, under other names.
          digest: returns that of the rows up to a checkpoint, or None if some lack.

        Raises:
          ExperimentError: there are sound ones, but none whose rows are there; or one
            that cannot be read.
        """
        without_rows = []
        for count in reversed(self.numbers()):
            if self._is_unfinished(count):
                shutil.rmtree(self._path(count))
                tell(f"Checkpoint {count} was not finished, and is removed.")
                continue
            if damage := self.damage(count):
                self._put_aside(count)
                tell(f"Checkpoint {count} cannot be used, and is put aside: {damage}.")
                continue
            rows = digest(count)
            # Those of earlier versions do not say.
            if rows is None or self.notes(count).get("metrics", rows) != rows:
                without_rows.append(count)
                continue
            for later in without_rows:
                self._put_aside(later)
                tell(
                    f"Checkpoint {later} cannot be used, and is put aside: "
                    "metrics.jsonl has not the rows that it was saved with."
                )
            return count
        if without_rows:
            raise ExperimentError(
                f"metrics.jsonl has not the rows that any checkpoint in {self._folder} "
                "was saved with; put it back, or delete the folder to start again."
            )
        return None

    def _put_aside(self, count: int) -> None:
        """Gives a checkpoint a name that is no number."""
        aside = self._path(count).with_name(f"{count}.damaged")
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)
        self._path(count).rename(aside)

    def _is_unfinished(self, count: int) -> bool:
        """Whether a kill came between Orbax's last file and the manifest."""
        path = self._path(count)
        is_of_orbax = (path / "_CHECKPOINT_METADATA").exists()
        return is_of_orbax and not (path / MANIFEST).exists()

    def damage(self, count: int) -> str | None:
        """Returns what is wrong with a checkpoint, or None if nothing is.

        Raises:
          ExperimentError: it cannot be read, which need not be so for ever.
        """
        path = self._path(count)
        if not path.is_dir() or path.is_symlink():
            return "it is no folder"
        try:
            text = (path / MANIFEST).read_text()
            found = file_hashes(path)
        except FileNotFoundError:
            return f"it has no {MANIFEST}, which is written last"
        except UnicodeError:
            return f"{MANIFEST} is damaged"
        except OSError as error:
            raise ExperimentError(f"cannot read a checkpoint: {error}.") from error
        if text != json.dumps(found, indent=2) + "\n":
            return differences(text, found)
        try:
            notes = dict(self.notes(count))
        except (OSError, ValueError, TypeError, KeyError):
            return "it has no notes of a run"
        # Those of earlier versions do not say.
        if notes.get("run", self._run) != self._run:
            return f"it is one of another run, {notes['run']}"
        if notes.get("number", count) != count:
            return f"it is number {notes['number']}"
        return None

    def notes(self, count: int) -> dict[str, Any]:
        """Returns the notes of checkpoint number `count`."""
        with quiet(), self._checkpointer() as checkpointer:
            restored = checkpointer.restore(
                self._path(count), args=ocp.args.Composite(notes=ocp.args.JsonRestore())
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
        path = self._path(count) / "state"
        with quiet(), ocp.StandardCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(path).item_metadata
            assert metadata is not None  # there is a manifest with all files
            if target is None:
                here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
                target = jax.tree.map(
                    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
                    metadata.tree,
                )
            saved, wanted = leaf_types(metadata.tree), leaf_types(target)
            for name in [*wanted, *saved]:
                if saved.get(name) != wanted.get(name):
                    raise ExperimentError(
                        f"checkpoint {count} in {self._folder} has "
                        f"{saved.get(name, 'nothing')} at {name}, where this version "
                        f"of the program has {wanted.get(name, 'nothing')}; delete the "
                        "run's folder to start again."
                    )
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                target,
            )
            return checkpointer.restore(path, abstract)


def file_hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file in a folder but the manifest, by path.

    Of what is neither a file nor a folder, and what is linked, it has the kind.
    """
    own = folder / MANIFEST
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path in (own, own.with_suffix(".tmp")):
            continue
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            hashes[name] = "a link"
        elif path.is_file():
            with path.open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
        elif not path.is_dir():
            hashes[name] = "no file"
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
def quiet(*, after_errors: bool = False) -> Iterator[None]:
    """Keeps Orbax and TensorStore from telling at length what they raise as well.

    Args:
      after_errors: whether to go on so after an error, because their threads do, for a
        while; and the program ends.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook

    def without_closed_loops(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = without_closed_loops
    failed = True
    try:
        yield
        failed = False
    finally:
        if not (failed and after_errors):
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            sys.unraisablehook = hook
