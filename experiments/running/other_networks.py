"""Loads the networks of other runs, from which a run may start.

Runs that differ only in pruning settings have bit-identical dense networks. The rows of
dense training have shares of relevant weights at the scale of the run that trained it.
"""

from pathlib import Path

import sparse_optax
from experiments.config import Config
from experiments.networks.functional import Variables
from experiments.records import Row, RunFolder, differences, read_rows, run_id
from experiments.running.checkpoint import Checkpoints, Damaged
from experiments.running.export import FILE
from experiments.settings import ExperimentError, names
from experiments.training.problem import Problem


def dense(
    config: Config, problem: Problem, num_rounds: int
) -> tuple[Variables, list[Row], list[str | None]]:
    """Returns the dense network of `--dense-from`, trained in `num_rounds` rounds.

    Also returns the rows of these rounds, and the commits that produced them, in order.
    """

    def error(message: str) -> ExperimentError:
        return ExperimentError(f"--dense-from {config.dense_from}: {message}.")

    assert config.dense_from is not None
    folder = RunFolder(config.dense_from)
    found = folder.config()
    if found is None:
        raise error("there is no run")
    if different := differences(found, config, names(config, dense=False)):
        raise error(f"its dense training differs ({'; '.join(different)})")
    checkpoints = Checkpoints(folder.checkpoints, run_id(found))
    for number in reversed(checkpoints.files()):
        if number < num_rounds:
            break
        try:
            notes, _ = checkpoints.read(number)
        except Damaged:
            continue
        if folder.digest(number) != notes["metrics"]:
            raise error("its metrics are damaged")
        if notes["problem"] != problem.digest:
            raise error("it was trained on other texts")
        parts = "dense/params/", "dense/statistics/"
        target = {"dense": problem.variables}
        variables = checkpoints.restore(number, target, *parts)["dense"]
        rows = read_rows(folder.metrics, num_rounds)
        return variables, rows, notes["commits"]
    raise error("it has no valid checkpoint after dense training")


def pruned(config: Config, problem: Problem) -> Variables | None:
    """Returns the sparse network of `--pruned-from`, or None without it."""
    if config.pruned_from is None:
        return None
    folder = RunFolder(Path(config.pruned_from))
    folder.finished()
    like = problem.variables._asdict()
    try:
        network = sparse_optax.load_sparse(folder.path / FILE, like=like)
    except (OSError, ValueError) as error:
        raise ExperimentError(f"--pruned-from {folder.path}: {error}") from error
    return problem.devices.replicate(Variables(**network))
