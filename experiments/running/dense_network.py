"""The dense network of another run, from which a run may start.

Runs that differ only in settings of pruning have the same one, bit for bit. The shares
of relevant weights in its rows are at the scale of the run that trained it.
"""

from experiments.config import Config
from experiments.networks.functional import Variables
from experiments.records import Row, RunFolder, differences, read_rows, run_id
from experiments.running.checkpoint import Checkpoints, Damaged
from experiments.settings import ExperimentError, names
from experiments.training.problem import Problem


def take(
    config: Config, problem: Problem, num_rounds: int
) -> tuple[Variables, list[Row], list[str | None]]:
    """Returns the dense network of `--dense-from`, trained in `num_rounds` rounds.

    Also the rows of its rounds, and the commits that made it, the last one last.
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
            raise error("it learnt from other texts")
        parts = "dense/params/", "dense/statistics/"
        target = {"dense": problem.variables}
        variables = checkpoints.restore(number, target, *parts)["dense"]
        rows = read_rows(folder.metrics, num_rounds)
        return variables, rows, notes["commits"]
    raise error("it has no sound checkpoint after dense training")
