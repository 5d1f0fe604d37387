"""Runs a sweep: every combination of some settings of a task, many runs at once.

Stored runs are not repeated: an interrupted sweep resumes, and a larger grid adds to a
smaller one. Runs are recognised by their settings, so delete the folder after changing
the code.
"""

import dataclasses
import functools
import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import track

from experiments import records
from experiments.config import Control, ImageConfig, Regularizer, changes
from experiments.data import images
from experiments.records import Row, read_json, write_json
from experiments.running import figures, terminal
from experiments.running.program import make, without_numbers
from experiments.settings import (
    ExperimentError,
    check_intervals,
    flag,
    has_effect,
    setting,
)
from experiments.tasks import IMAGE_TASKS
from experiments.training.devices import Devices

NUMBERS = "strength", "scale", "fraction"
GRID = "regularizer", *NUMBERS, "seed"  # settings with several values


class Diverged(ExperimentError):
    """Weights of a run are not finite."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A grid of runs: every combination of the given values."""

    base: tyro.conf.OmitArgPrefixes[ImageConfig]
    """Settings that all runs share. --out is runs/sweep-TASK by default."""
    regularizers: tuple[Regularizer, ...] = ()
    """Values of --regularizer."""
    seeds: tuple[int, ...] = ()
    """Values of --seed."""
    strengths: tuple[float, ...] = ()
    """Values of --strength."""
    scales: tuple[float, ...] = ()
    """Values of --scale."""
    fractions: tuple[float, ...] = ()
    """Values of --fraction."""
    controls: tuple[Control, ...] = ()
    """Values of --control."""
    at_once: int = setting(8, "[1, inf)")
    """Maximum number of runs at once. On CPU, this saves time for small networks."""
    test: bool = False
    """Also measure on the test set: to report chosen settings, not to choose them. Runs
    that were stored without test results are repeated."""

    @property
    def folder(self) -> Path:
        if self.base.out is not None:
            return self.base.out
        return Path("runs") / f"sweep-{self.base.experiment}"

    def validate(self) -> None:
        check_intervals(self)
        runs = self.runs()
        for config in runs:
            config.validate()
        default = IMAGE_TASKS[self.base.experiment]
        several = {"control": self.controls}
        several |= {name: vars(self)[f"{name}s"] for name in GRID}
        given = {flag(name) for name, values in several.items() if values}
        idle = set.intersection(*(set(run.without_effect()) for run in runs))
        for name in (*GRID, "form"):
            for changed in map(flag, changes(self.base, default, name)):
                if changed in given:
                    raise ExperimentError(f"{changed} has no effect with {changed}s.")
        alone = {"dense_from", "pruned_from", "checkpoint_every"}
        for name in sorted(idle | alone):
            found = {*map(flag, changes(self.base, default, name))}
            found |= given & {flag("control" if name == "form" else name)}
            for changed in sorted(found):
                raise ExperimentError(f"{changed} has no effect in any of the runs.")

    def runs(self) -> list[ImageConfig]:
        base, default = self.base, IMAGE_TASKS[self.base.experiment]
        grid = itertools.product(
            self.controls or (base.form.control,),
            *(vars(self)[f"{name}s"] or (getattr(base, name),) for name in GRID),
        )
        configs = []
        for control, *values in grid:
            config = dataclasses.replace(
                base,
                form=dataclasses.replace(base.form, control=control),
                **dict(zip(GRID, values, strict=True)),
            )
            # Settings without effect get their defaults, and so add no runs.
            idle = {name: getattr(default, name) for name in config.without_effect()}
            configs.append(dataclasses.replace(config, **idle))
        return list(dict.fromkeys(configs))


def main(settings: Sweep) -> None:
    console = Console(highlight=False)
    folder = settings.folder
    Devices.choose(settings.base)  # raises errors before anything is loaded
    load = functools.partial(images.load, settings.base)
    at_once, test = settings.at_once, settings.test
    runs = complete(settings.runs(), folder, load, console, at_once=at_once, test=test)
    groups = by_settings([run for run in runs if not run.get("diverged")])
    if groups:
        terminal.print_sweep(console, groups)
        figures.draw_sweep(groups, folder / "sweep")
        console.print(f"Runs, figure: {folder}", soft_wrap=True)
    check_finite(runs)


def complete(
    configs: list[ImageConfig],
    folder: Path,
    load: Callable[[], images.Dataset],
    console: Console,
    *,
    at_once: int,
    test: bool,
) -> list[Row]:
    """Returns the summaries of runs, after making those that are not stored.

    The data set is loaded only if needed. With `test`, summaries need test accuracies.
    """

    def path(config: ImageConfig) -> Path:
        return folder / f"{config.run_id}.json"

    def is_stored(config: ImageConfig) -> bool:
        found = read_json(path(config))
        if found is None or (test and "test_accuracy" not in found):
            return False
        settings = {name: found[name] for name in config.to_dict() if name in found}
        return not records.differences(settings, config)  # defaults may have changed

    missing = [config for config in configs if not is_stored(config)]
    console.print(f"Runs: {len(configs)}, missing: {len(missing)}.")
    if missing:
        records.check_writable(folder)  # before any run is made
        dataset = load()
        for batch in track(list(batches(missing, at_once)), "sweep", console=console):
            for config, summary in zip(batch, make(batch, dataset, test), strict=True):
                write_json(path(config), summary)
    return [run for config in configs if (run := read_json(path(config)))]


def batches(configs: list[ImageConfig], size: int) -> Iterator[list[ImageConfig]]:
    """Divides runs into even batches, each of which one program makes at once.

    Ten runs, at most eight at once, become five and five: one program to compile.
    """
    groups: dict[ImageConfig, list[ImageConfig]] = defaultdict(list)
    for config in configs:
        groups[without_numbers(config)].append(config)
    for group in groups.values():
        number = -(-len(group) // size)
        ends = [index * len(group) // number for index in range(number + 1)]
        yield from (group[start:end] for start, end in itertools.pairwise(ends))


def check_finite(runs: list[Row]) -> None:
    """Raises `Diverged` if runs diverged, and names them."""
    found = [
        f"{run['regularizer']} at strength {run['strength']:g}, learning rate "
        f"{run['learning_rate']:g} and seed {run['seed']}"
        for run in runs
        if run.get("diverged")
    ]
    if found:
        raise Diverged(
            f"training diverged: {'; '.join(found)}. A lower strength or learning rate "
            "may help."
        )


def by_settings(runs: list[Row]) -> dict[str, list[Row]]:
    """Groups runs by all settings except the seed, sparsest group first.

    Each group is named after its regularizer and the settings that differ by group.
    """

    def label(run: Row, name: str) -> str:
        return f"{name} {run[name]:.12g}" if has_effect(ImageConfig, name, run) else ""

    differing = [
        name for name in NUMBERS if len({label(run, name) for run in runs} - {""}) > 1
    ]

    def title(run: Row) -> str:
        control = run["form"]["control"]
        parts = [run["regularizer"], f"control {control}" if control != "none" else ""]
        parts += [label(run, name) for name in differing]
        return ", ".join(filter(None, parts))

    def sparsity(group: list[Row]) -> float:
        return statistics.fmean(run["sparsity"] for run in group)

    ordered = sorted(records.by_config(runs), key=sparsity, reverse=True)
    return {title(group[0]): group for group in ordered}
