"""Makes the runs of a comparison, and stores a row for each.

An interrupted comparison resumes after the last run that was finished.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import tyro
from rich.console import Console

from experiments.comparing import methods, penalties, study
from experiments.comparing.engine import Comparison
from experiments.config import ImageConfig
from experiments.data import images
from experiments.records import RESULTS, Row, write_rows
from experiments.running.sweep import Diverged, check_finite, complete
from experiments.settings import ExperimentError, check

COMPARISONS = {
    comparison.name: comparison
    for comparison in (study.STUDY, penalties.COMPARISON, methods.METHODS)
}
STORED = (
    *("config_id", "seed", "strength", "scale", "learning_rate", "bound"),
    *("target_sparsity", "kept", "total", "sparsity", "at_once", "validation_bound"),
    *("dense_validation_accuracy", "validation_accuracy", "diverged"),
    *("dense_test_accuracy", "test_accuracy", "hardware", "xla_flags"),
    *("commit", "wall_seconds"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Makes the relevance study, or compares penalties, or the method with others.

    Rows are stored in experiments/results, and `pages` shows them.
    """

    comparison: tyro.conf.Positional[Literal["study", "penalties", "methods"]]
    """study: does sparing relevant weights help? penalties: which shape of the penalty
    prunes best? methods: sparsity against accuracy."""
    tasks: tuple[str, ...] = ()
    """Tasks by name; by default all that need no accelerator."""
    arms: tuple[str, ...] = ()
    """What is compared, by name; by default all of it."""
    out: Path | None = None
    """Folder of the runs; by default runs/COMPARISON."""
    data_dir: Path | None = None
    """Folder of the data sets; by default ~/tensorflow_datasets."""

    def validate(self) -> None:
        plan = COMPARISONS[self.comparison]
        for field, known in (("tasks", plan.tasks), ("arms", plan.arms)):
            for name in getattr(self, field):
                check(field, name, name in known, "of " + ", ".join(map(repr, known)))


def main(settings: Settings) -> None:
    plan, console = COMPARISONS[settings.comparison], Console(highlight=False)
    tasks = settings.tasks or [
        name for name, task in plan.tasks.items() if not task.needs_accelerator
    ]
    made = [
        (task, arm)
        for task in plan.tasks  # in this order: some are tuned on others
        if task in tasks
        for arm in plan.arms_of(task)
        if not settings.arms or arm in settings.arms
    ]
    if not made:
        raise ExperimentError(
            f"--arms {' '.join(map(repr, settings.arms))}: not on --tasks "
            f"{' '.join(tasks)}."
        )
    plan.check_stored(made)
    for task, arm in made:
        source = plan.tasks[task].tuned_on
        if source and (source, arm) not in made:
            plan.tuned_elsewhere(arm, source)  # or an error, before any run
    for name in {plan.tasks[task].config.dataset for task in tasks} - {"digits"}:
        images.prepared_builder(name, settings.data_dir)  # or an error

    out = settings.out or Path("runs") / plan.name
    load = functools.cache(images.load)
    failed = []
    for task, arm in made:
        base = dataclasses.replace(plan.tasks[task].config, data_dir=settings.data_dir)
        data = functools.partial(load, base)
        try:
            rows = make_rows(plan, task, arm, out / task, data, console)
        except Diverged as error:
            failed.append(f"{task}, {arm}: {error}")
        else:
            rows += [row for row in plan.rows(task) if row["arm"] != arm]
            order = plan.arms_of(task)
            rows.sort(key=lambda row: order.index(row["arm"]))
            write_rows(plan.path(task), rows)
        jax.clear_caches()  # another arm is another program
    console.print(f"Stored: {RESULTS / plan.name}", soft_wrap=True)
    if failed:
        raise Diverged(" ".join(failed))


def make_rows(
    plan: Comparison,
    task: str,
    arm: str,
    folder: Path,
    load: Callable[[], images.Dataset],
    console: Console,
) -> list[Row]:
    rows: list[Row] = []

    def make(stage: str, configs: list[ImageConfig]) -> list[Row]:
        console.print(f"{task}, {arm}: {stage}")
        at_once, compared = plan.tasks[task].at_once, stage == "comparison"
        # What is being chosen does not see the test set.
        runs = complete(configs, folder, load, console, at_once=at_once, test=compared)
        if compared:
            check_finite(runs)
        for run in runs:
            stored = {key: run[key] for key in STORED if key in run}
            control = run["form"]["control"]
            head = {"task": task, "arm": arm, "stage": stage, "control": control}
            rows.append(head | stored)
        return runs

    plan.make_arm(task, arm, make)
    return rows
