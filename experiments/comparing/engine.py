"""What a comparison is: tasks, arms, and which runs it makes of an arm on a task.

An arm is a way to a sparse network. It is tuned on some seeds by the validation split,
and compared at its best setting on others. Nothing here makes a run: `make_arm` asks a
function for runs, which `compare` makes, and `is_current` finds among stored ones.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.comparing.tuning import Setting, tune
from experiments.config import ImageConfig
from experiments.records import RESULTS, Row, read_rows
from experiments.settings import ExperimentError

# Makes the runs of a stage, "tuning" or "comparison".
Make = Callable[[str, list[ImageConfig]], list[Row]]
Variant = dict[str, Any]  # settings
# Of tuning: the seeds of each round, and how many settings are left after it.
Rounds = Sequence[tuple[Sequence[int], int]]


class Arm(NamedTuple):
    """A way to a sparse network."""

    configure: Callable[[ImageConfig], ImageConfig]  # from the configuration of a task
    names: tuple[str, ...]  # of the settings that are tuned
    first: Callable[[ImageConfig], list[Setting]]  # their values that are tried first
    about: str = ""
    counterpart: str = "l2"  # in the study, the l2 that decays as this arm does


class Task(NamedTuple):
    """What is trained and pruned."""

    config: ImageConfig
    title: str = ""
    arms: tuple[str, ...] = ()  # all those of the comparison, by default
    rounds: Rounds = ()  # those of the comparison, by default
    first_seed: int = 10  # of those on which arms are compared
    num_seeds: int = 9
    at_once: int = 3  # on wide matrices 1: the number decides about the last bits
    bounds: tuple[float, ...] = ()  # validation accuracies at which arms are compared
    sparsities: tuple[float, ...] = ()  # the same for arms that take a sparsity
    errors: tuple[float, ...] = ()  # in %, at which sparsities are reported
    tuned_on: str | None = None  # another task, whose tuning this one takes
    needs_accelerator: bool = False


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Tasks, arms, and how they are tuned and compared."""

    name: str
    tasks: dict[str, Task]
    arms: dict[str, Arm]
    rounds: Rounds
    # The settings at which an arm is compared, and the one of them that tunes it.
    variants: Callable[[Task, ImageConfig], list[Variant]]
    tuned_at: Callable[[list[Variant]], Variant]
    size: Callable[[Row, ImageConfig], float]  # of a pruned network; the tuning's goal

    def path(self, task: str) -> Path:
        return RESULTS / self.name / f"{task}.jsonl"

    def rows(self, task: str) -> list[Row]:
        return read_rows(self.path(task))

    def arms_of(self, task: str) -> tuple[str, ...]:
        return self.tasks[task].arms or tuple(self.arms)

    def make_arm(self, task: str, arm: str, make: Make) -> None:
        """Tunes an arm on a task, and makes its runs at the best setting."""
        plan, (configure, names, first, *_) = self.tasks[task], self.arms[arm]
        config = configure(plan.config)
        variants = self.variants(plan, config)
        if plan.tuned_on:
            best = self.tuned_elsewhere(arm, plan.tuned_on)
        else:
            goal = dataclasses.replace(config, **self.tuned_at(variants))
            best = tune(
                goal,
                names,
                first(config),
                plan.rounds or self.rounds,
                size=lambda run: self.size(run, config),
                make=lambda configs: make("tuning", configs),
            )
        config = dataclasses.replace(config, **dict(zip(names, best, strict=True)))
        seeds = range(plan.first_seed, plan.first_seed + plan.num_seeds)
        make(
            "comparison",
            [
                dataclasses.replace(config, **variant, seed=seed)
                for variant in variants
                for seed in seeds
            ],
        )

    def tuned_elsewhere(self, arm: str, task: str) -> Setting:
        """Returns the best setting of an arm on another task."""
        for row in self.rows(task):
            if (row["arm"], row["stage"]) == (arm, "comparison"):
                return tuple(row[name] for name in self.arms[arm].names)
        raise ExperimentError(
            f"{arm} is tuned on {task}, which has not been run: add it to --tasks."
        )

    def is_current(self, task: str, arm: str, rows: list[Row]) -> bool:
        """Whether rows are those of the runs of an arm on a task, in their order."""
        if arm not in self.arms_of(task):
            return False
        remaining = iter(rows)

        def find(stage: str, configs: list[ImageConfig]) -> list[Row]:
            found = list(itertools.islice(remaining, len(configs)))
            runs = [(row["stage"], row["config_id"], row["seed"]) for row in found]
            if runs != [(stage, config.config_id, config.seed) for config in configs]:
                raise LookupError
            return found

        try:
            self.make_arm(task, arm, find)
        except LookupError:
            return False
        return next(remaining, None) is None

    def check_stored(self, made: Sequence[tuple[str, str]] = ()) -> None:
        """Raises `ExperimentError` if stored rows do not match the plan.

        Rows of the (task, arm) that are about to be `made` are not checked.
        """
        for task in self.tasks:
            rows = self.rows(task)
            for arm in dict.fromkeys(row["arm"] for row in rows):
                own = [row for row in rows if row["arm"] == arm]
                if (task, arm) not in made and not self.is_current(task, arm, own):
                    raise ExperimentError(
                        f"the rows of {arm} in {self.path(task)} do not match the "
                        f"plan: make them with --tasks {task} --arms '{arm}', or "
                        "delete them."
                    )
