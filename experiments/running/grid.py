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

from experiments.config import Config, Regularizer, check, plays_part
from experiments.forms import Control, Form
from experiments.records import Row

NUMBERS = "strength", "scale", "fraction"  # of which a sweep has several values


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A grid of runs: every combination of the values given."""

    base: tyro.conf.OmitArgPrefixes[Config]
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

    def validate(self) -> None:
        """Raises `ExperimentError` for the first value that makes no sense."""
        check("at_once", self.at_once, self.at_once >= 1, "1 or more")
        for config in self.runs():
            config.validate()

    def runs(self) -> list[Config]:
        """Returns the configurations of all runs, each once."""
        base = self.base
        grid = itertools.product(
            self.regularizers or (base.regularizer,),
            self.controls or (base.form.control,),
            self.strengths or (base.strength,),
            self.scales or (base.scale,),
            self.fractions or (base.fraction,),
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
            # What plays no part is the same for all, and makes no further run.
            numbers = {
                name: value
                for name, value in zip(NUMBERS, values, strict=True)
                if plays_part(name, vars(config))
            }
            configs.append(dataclasses.replace(config, **numbers))
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
