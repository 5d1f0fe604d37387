"""Stores the sparse networks of finished runs as files, and prints their sizes."""

import dataclasses
import gzip
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tyro
from flax import traverse_util
from rich.console import Console

import sparse_optax
from experiments.networks.functional import Variables
from experiments.records import Row, RunFolder, run_id
from experiments.running import compaction, terminal
from experiments.running.checkpoint import Checkpoints, named_leaves
from experiments.running.environment import commit
from experiments.settings import ExperimentError

FILE = "network.safetensors"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Stores the sparse networks of finished runs as files, and prints their sizes.

    A run does this at its end; this command repeats it.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs. Writes network.safetensors, for
    sparse_optax.load_sparse, to each folder, and the sizes to its summary."""
    compact: bool = False
    """Also write the smaller dense network without the units that nothing reads:
    compacted.safetensors, its weights and their indices, and compacted.stablehlo, a
    program from inputs to logits for jax.export.deserialize."""

    def validate(self) -> None:
        if not self.runs:
            raise ExperimentError("export needs the folders of one or more runs.")
        if self.compact:
            compaction.check_can_write()


def main(settings: Settings) -> None:
    """Writes the files of finished runs, or none if one of the runs is unusable."""
    folders = [RunFolder(path) for path in settings.runs]
    networks = [networks_of(folder) for folder in folders]
    runnables = [
        compaction.runnable(summary, network) if settings.compact else None
        for summary, _, network in networks
    ]
    compacted = [x if x is None else compaction.compact(x) for x in runnables]
    summaries, console = [], Console(highlight=False)
    for folder, (summary, _, network), whole, smaller in zip(
        folders, networks, runnables, compacted, strict=True
    ):
        summary["bytes"] = write(folder.path, network)
        if whole is not None and smaller is not None:
            found = compaction.write(folder.path, whole, smaller)
            summary["compacted"] = compaction.sizes(smaller) | {"bytes": found}
        folder.finish(summary)
        summaries.append(summary)
    terminal.print_files(console, summaries)
    if settings.compact:
        for folder, summary in zip(folders, summaries, strict=True):
            terminal.print_compacted(console, summary["compacted"])
            for file, size in summary["compacted"]["bytes"].items():
                console.print(f"{folder.path / file}: {size:,} bytes", soft_wrap=True)


def networks_of(folder: RunFolder) -> tuple[Row, Variables, Variables]:
    """Returns the summary, dense network and sparse network of a finished run."""
    summary = folder.finished()
    checkpoints = Checkpoints(folder.checkpoints, run_id(summary))
    last = max(checkpoints.files(), default=None)
    if last is None:
        raise ExperimentError(f"there is no checkpoint in {folder.checkpoints}.")
    notes, arrays = checkpoints.read(last)
    if folder.digest(last) != notes["metrics"] or folder.digest(last + 1):
        raise ExperimentError(
            f"checkpoint {last} in {folder.checkpoints} is not that of the end of the "
            "run; delete summary.json, and the command of the run resumes from there."
        )
    # As in a run: on a device, and sorted by name.
    arrays = {name: jnp.asarray(arrays[name]) for name in sorted(arrays)}
    tree: Any = traverse_util.unflatten_dict(arrays, sep="/")
    dense, sparse = (
        Variables(found["params"], found.get("statistics", {}))
        for found in (tree["dense"], tree["pruning"]["best"])
    )
    return summary, dense, sparse


def write(folder: Path, network: Variables) -> Row:
    """Writes the sparse file of a network; returns file sizes and the commit."""
    for unfinished in folder.glob(".*.tmp"):  # left by a kill
        unfinished.unlink()
    return {**file_sizes(folder / FILE, network._asdict()), "commit": commit()}


def file_sizes(path: Path, tree: Any) -> dict[str, int]:
    """Writes the sparse file of a tree; returns its size and others, in bytes.

    `dense` is the size of a safetensors file of the same arrays, including zeros;
    `gzipped` is the size of that file compressed.
    """
    sparse_optax.save_sparse(path, tree)
    arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}
    dense = safetensors.numpy.save(arrays)
    return {
        "dense": len(dense),
        "gzipped": len(gzip.compress(dense, mtime=0)),
        "sparse": path.stat().st_size,
    }
