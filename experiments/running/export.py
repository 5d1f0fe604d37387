"""The network of a finished run as a sparse file, and how large that is.

    python -m experiments export RUN ...

A run makes it at its end; this makes it again, or of a run that is older than that.
"""

import gzip
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from rich.console import Console

import sparse_optax
from experiments.config import ExperimentError
from experiments.networks.functional import Variables
from experiments.records import Row, RunFolder
from experiments.reporting import terminal
from experiments.running.checkpoint import Checkpoints
from experiments.running.environment import commit
from experiments.running.settings import Export

FILE = "network.safetensors"


def export(settings: Export) -> None:
    """Writes the files of finished runs, and tells about them.

    Raises:
      ExperimentError: a folder holds no finished run, or its checkpoint is damaged;
        then nothing is written at all.
    """
    folders = [RunFolder(path) for path in settings.runs]
    networks = [networks_of(folder) for folder in folders]  # or an error, before any
    for folder, (summary, _, network) in zip(folders, networks, strict=True):
        folder.finish({**summary, "bytes": write(folder.path, network)})
    summaries = [summary for folder in folders if (summary := folder.summary())]
    terminal.print_files(Console(highlight=False), summaries)


def networks_of(folder: RunFolder) -> tuple[Row, Variables, Variables]:
    """Returns the summary of a finished run, its dense and its sparse network.

    Raises:
      ExperimentError: the run is not finished, or its last checkpoint is not there.
    """
    summary = folder.summary()
    if summary is None:
        raise ExperimentError(f"{folder.path} holds no finished run.")
    run = f"{summary['config_id']}-seed{summary['seed']}"
    checkpoints = Checkpoints(folder.checkpoints, run)
    last = max(checkpoints.numbers(), default=None)
    if last is None:
        raise ExperimentError(f"there is no checkpoint in {folder.checkpoints}.")
    if damage := checkpoints.damage(last):
        raise ExperimentError(
            f"checkpoint {last} in {folder.checkpoints} cannot be used: {damage}."
        )
    rows = folder.digest(last)
    if rows is None or checkpoints.notes(last).get("metrics", rows) != rows:
        raise ExperimentError(
            f"the rows of the metrics in {folder.path} are not those that checkpoint "
            f"{last} was saved with."
        )
    if folder.digest(last + 1) is not None:
        raise ExperimentError(
            f"checkpoint {last} in {folder.checkpoints} is not that of the end of the "
            "run; without summary.json, the run's own command goes on from there."
        )
    restored = checkpoints.restore(last)
    dense, sparse = (
        Variables(found["params"], found.get("statistics") or {})
        for found in (restored["dense"], restored["pruning"]["best"])
    )
    return summary, dense, sparse


def write(folder: Path, network: Variables) -> Row:
    """Writes the file of a network; returns its size, and that of others, in bytes.

    The dense file is one of safetensors too, and has the same network, zeros included;
    so has the gzipped one.
    """
    for unfinished in folder.glob(".*.tmp"):  # of a run that was killed here
        unfinished.unlink()
    path = folder / FILE
    sparse_optax.save_sparse(path, network._asdict())
    dense = dense_file(network)
    return {
        "dense": len(dense),
        "gzipped": len(gzip.compress(dense, mtime=0)),
        "sparse": path.stat().st_size,
        "commit": commit(),
    }


def dense_file(tree: Any) -> bytes:
    """Returns all arrays of a tree as the content of a file of safetensors."""
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return safetensors.numpy.save(arrays)
