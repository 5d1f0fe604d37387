"""The dense network of a run, from which others may go on instead of training it again.

What comes after the dense training has no influence on it: runs that differ in that
alone have the same one, bit for bit. Only the shares of relevant weights that its
rounds tell are those at the scale of the run that trained it.
"""

from pathlib import Path
from typing import NamedTuple

import jax

import sparse_optax
from experiments.config import AFTER_DENSE, Config, ExperimentError
from experiments.networks.functional import Variables
from experiments.records import Row, RunFolder, differences, read_json, read_rows
from experiments.running.checkpoint import Checkpoints
from experiments.training.problem import Problem

FILE = "dense.safetensors"


class DenseNetwork(NamedTuple):
    """The outcome of a dense training.

    Attributes:
      variables: the network.
      rows: what its rounds came to.
      commits: the code that made it, the last one last.
    """

    variables: Variables
    rows: list[Row]
    commits: list[str | None]


def write(folder: Path, variables: Variables) -> None:
    """Stores the dense network of a run in its folder."""
    sparse_optax.save_sparse(folder / FILE, variables._asdict())


def take(
    folder: Path, config: Config, problem: Problem, num_rounds: int
) -> DenseNetwork:
    """Returns the dense network of another run.

    Args:
      folder: that of the other run.
      config: of the run that it is for.
      problem: what that run is about.
      num_rounds: rounds of dense training.

    Raises:
      ExperimentError: there is none yet, or the same training would not have made it.
    """
    found = read_json(folder / "config.json")
    if found is None or not (folder / FILE).exists():
        raise ExperimentError(
            f"--dense-from {folder}: there is no run whose dense training is finished."
        )
    if different := differences(found, config, AFTER_DENSE):
        raise ExperimentError(
            f"--dense-from {folder}: its dense training was another "
            f"({'; '.join(different)})."
        )
    checkpoints = Checkpoints(
        folder / "checkpoints", f"{found['config_id']}-seed{found['seed']}"
    )
    # The latest may be in the making.
    later = [n for n in reversed(checkpoints.numbers()) if n >= num_rounds]
    number = next((n for n in later if not checkpoints.damage(n)), None)
    if number is None:
        raise ExperimentError(f"--dense-from {folder}: it has no sound checkpoint.")
    notes = checkpoints.notes(number)
    if RunFolder(folder).digest(number) != notes["metrics"]:
        raise ExperimentError(f"--dense-from {folder}: its metrics are damaged.")
    rows = read_rows(folder / "metrics.jsonl", num_rounds)
    if notes["problem"] != problem.digest:
        raise ExperimentError(f"--dense-from {folder}: it was trained on other texts.")
    try:
        variables = Variables(**sparse_optax.load_sparse(folder / FILE))
    except (ValueError, TypeError) as error:
        raise ExperimentError(f"--dense-from {folder}: {error}") from error
    wanted, there = (
        jax.tree.map(jax.typeof, x) for x in (problem.variables, variables)
    )
    if wanted != there:
        raise ExperimentError(
            f"--dense-from {folder}: it was made by code whose networks differ."
        )
    return DenseNetwork(variables, rows, notes["commits"])
