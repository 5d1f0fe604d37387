"""Completes runs: those that are stored count, the others are made, many at once."""

import itertools
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track

from experiments import data
from experiments.config import ExperimentError, ImageConfig
from experiments.records import Row, differences, read_json, write_json
from experiments.reporting import figures, terminal
from experiments.running.grid import Sweep, by_settings
from experiments.running.program import make, without_numbers
from experiments.training.devices import Devices


class Diverged(ExperimentError):
    """Weights of a run are no longer finite."""


def batches(configs: list[ImageConfig], size: int) -> Iterator[list[ImageConfig]]:
    """Divides runs into those that one program makes at once, evenly.

    Ten runs, eight at the most, are five and five: one program to compile, not two.
    """
    groups: dict[ImageConfig, list[ImageConfig]] = defaultdict(list)
    for config in configs:
        groups[without_numbers(config)].append(config)
    for group in groups.values():
        number = -(-len(group) // size)
        ends = [index * len(group) // number for index in range(number + 1)]
        for start, end in itertools.pairwise(ends):
            yield group[start:end]


def complete(
    configs: list[ImageConfig],
    folder: Path,
    load: Callable[[], data.Dataset],
    console: Console,
    *,
    at_once: int,
    test: bool,
) -> list[Row]:
    """Returns the summaries of runs, those that are stored and those it has to make.

    Args:
      configs: the runs.
      folder: where each of them is stored when it is finished.
      load: returns the data set; called only if a run has to be made.
      console: where to show the progress.
      at_once: how many runs to make at once, at the most.
      test: whether the summaries are to hold test accuracies. A run that is stored
        without them is made again, as is one of other settings: defaults may change.

    Raises:
      ExperimentError: the folder or the data set cannot be used.
    """

    def path(config: ImageConfig) -> Path:
        return folder / f"{config.config_id}-seed{config.seed}.json"

    def there(config: ImageConfig) -> bool:
        found = read_json(path(config))
        if found is None or (test and "test_accuracy" not in found):
            return False
        settings = {name: found[name] for name in config.to_dict() if name in found}
        return not differences(settings, config)

    missing = [config for config in configs if not there(config)]
    console.print(f"Runs: {len(configs)}, to be made: {len(missing)}.")
    if missing:
        dataset = load()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass  # now, rather than when the first runs are made
        except OSError as error:
            raise ExperimentError(
                f"cannot write to {folder}: {error.strerror}"
            ) from error
        for batch in track(list(batches(missing, at_once)), "sweep", console=console):
            for config, summary in zip(batch, make(batch, dataset, test), strict=True):
                write_json(path(config), summary)
    return [run for config in configs if (run := read_json(path(config)))]


def check_finite(runs: list[Row]) -> None:
    """Raises `Diverged` if runs did, and names them."""
    names = [
        f"{run['regularizer']} at strength {run['strength']:g}, learning rate "
        f"{run['learning_rate']:g} and seed {run['seed']}"
        for run in runs
        if run.get("diverged")
    ]
    if names:
        raise Diverged(f"training diverged: {'; '.join(names)}. Lower may help.")


def sweep(settings: Sweep, command: str) -> None:
    """Makes what is missing of a sweep, and reports all of it.

    Args:
      settings: a valid sweep.
      command: what the user typed, for messages to repeat.

    Raises:
      ExperimentError: the output folder or the data set cannot be used.
      Diverged: runs did; told last, below the report of the others.
    """
    console = Console(highlight=False)
    folder = settings.folder
    Devices.choose(settings.base)  # or an error, before anything is loaded
    runs = complete(
        settings.runs(),
        folder,
        lambda: data.load(settings.base, command),
        console,
        at_once=settings.at_once,
        test=settings.test,
    )
    groups = by_settings([run for run in runs if not run.get("diverged")])
    if groups:
        terminal.print_sweep(console, groups)
        figures.draw_sweep(groups, folder / "frontiers")
        console.print(f"Runs, figure: {folder}", soft_wrap=True)
    check_finite(runs)
