"""A sweep: many runs of one experiment, trained at once.

    python -m experiments sweep digits --regularizers relevance l2 --seeds 0 1 2 3 4

makes every combination of the values given, stores each run as a file of the output
folder, and draws sparsity against accuracy. Runs that are there already are not made
again: an interrupted sweep goes on, and a larger grid adds to a smaller one. A run is
recognised by its settings: after a change of the code that it should follow, remove the
folder.

    python -m experiments sweep study

makes the sweeps of the control study, which experiments/STUDY.md reports, and

    python -m experiments sweep frontiers

those that compare the method with others.
"""

import dataclasses
import itertools
import statistics
from pathlib import Path

import tyro

from experiments.config import (
    PARTS,
    ExperimentError,
    ImageConfig,
    Regularizer,
    check,
    flag,
    plays_part,
)
from experiments.forms import Control, Form
from experiments.records import Row
from experiments.tasks import DEFAULTS

NUMBERS = "strength", "scale", "fraction"  # of which a sweep has several values


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A grid of runs: every combination of the values given."""

    base: tyro.conf.OmitArgPrefixes[ImageConfig]
    """What the runs have in common. Here --out is runs/sweep-EXPERIMENT by default, and
    --checkpoint-every plays no part: a run is stored when it is finished."""
    regularizers: tuple[Regularizer, ...] = ()
    """Values in place of that of --regularizer."""
    seeds: tuple[int, ...] = ()
    """Values in place of that of --seed."""
    strengths: tuple[float, ...] = ()
    """Values in place of that of --strength."""
    scales: tuple[float, ...] = ()
    """Values in place of that of --scale, for regularizers that have one."""
    fractions: tuple[float, ...] = ()
    """Values in place of that of --fraction."""
    controls: tuple[Control, ...] = ()
    """Values in place of that of --control, for regularizers that have one."""
    at_once: int = 8
    """How many runs are trained at once, at the most. On a CPU that saves time with
    small networks only."""
    test: bool = False
    """Measure the networks on the test set as well: to report settings that have been
    chosen, not to choose them. Runs that were stored without are made again."""

    @property
    def folder(self) -> Path:
        """Where the runs are stored."""
        if self.base.out is not None:
            return self.base.out
        return Path("runs") / f"sweep-{self.base.experiment}"

    @property
    def numbers(self) -> dict[str, tuple[float, ...]]:
        """Values in place of those of the base, by the settings' names."""
        values = self.strengths, self.scales, self.fractions
        return dict(zip(NUMBERS, values, strict=True))

    def validate(self) -> None:
        """Raises `ExperimentError` for the first value that makes no sense."""
        check("at_once", self.at_once, self.at_once >= 1, "1 or more")
        runs = self.runs()
        for config in runs:
            config.validate()
        default = DEFAULTS[self.base.experiment]
        for name in PARTS:
            changed = getattr(self.base, name) != getattr(default, name)
            given = changed or self.numbers.get(name)
            if given and not any(plays_part(name, vars(run)) for run in runs):
                raise ExperimentError(f"{flag(name)} plays no part in any of the runs.")

    def runs(self) -> list[ImageConfig]:
        """Returns the configurations of all runs, each once."""
        base = self.base
        numbers = self.numbers.items()
        grid = itertools.product(
            self.regularizers or (base.regularizer,),
            self.controls or (base.form.control,),
            *(values or (getattr(base, name),) for name, values in numbers),
            self.seeds or (base.seed,),
        )
        configs = []
        for regularizer, control, *values, seed in grid:
            form = dataclasses.replace(base.form, control=control)
            if regularizer != "relevance":
                form = Form()
            config = dataclasses.replace(
                base, regularizer=regularizer, form=form, seed=seed
            )
            given = dict(zip(NUMBERS, values, strict=True))
            # What plays no part is the default, and makes no further run.
            idle = {
                name: getattr(DEFAULTS[base.experiment], name)
                for name in PARTS
                if not plays_part(name, vars(config))
            }
            configs.append(dataclasses.replace(config, **given | idle))
        return list(dict.fromkeys(configs))


def by_settings(runs: list[Row]) -> dict[str, list[Row]]:
    """Groups runs that differ in their seeds alone, under what sets the groups apart.

    The groups come sparsest first.
    """
    groups: dict[str, list[Row]] = {}
    for run in runs:
        groups.setdefault(run["config_id"], []).append(run)
    names = [
        name
        for name in NUMBERS
        if len({run[name] for run in runs if plays_part(name, run)}) > 1
    ]
    named = {}
    for group in sorted(groups.values(), key=mean_sparsity, reverse=True):
        first = group[0]
        values = [
            f"{name} {first[name]:.12g}" for name in names if plays_part(name, first)
        ]
        if first["form"]["control"] != "none":
            values.insert(0, f"control {first['form']['control']}")
        named[", ".join([first["regularizer"], *values])] = group
    return named


def mean_sparsity(runs: list[Row]) -> float:
    """Returns the mean sparsity of runs."""
    return statistics.fmean(run["sparsity"] for run in runs)
