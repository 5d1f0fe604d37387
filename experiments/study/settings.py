"""What can be asked of the control study."""

import dataclasses
from pathlib import Path

from experiments.config import check
from experiments.study.trials import TASKS


@dataclasses.dataclass(frozen=True)
class Study:
    """Makes the control study, or goes on with it: see experiments/STUDY.md."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Tasks by name; by default all of them."""
    out: Path = Path("runs/study")
    """Folder of the runs, one folder a task."""
    data_dir: Path | None = None
    """Folder of the TFDS data sets; by default that of TFDS itself."""

    def validate(self) -> None:
        """Raises `ExperimentError` for the first value that makes no sense."""
        check("tasks", self.tasks, len(self.tasks) > 0, "one or more")
        for name in self.tasks:
            check("tasks", name, name in TASKS, "of " + ", ".join(map(repr, TASKS)))
