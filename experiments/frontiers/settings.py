"""What can be asked of the frontiers."""

import dataclasses
from pathlib import Path

from experiments.config import check
from experiments.frontiers.methods import METHODS, TASKS


@dataclasses.dataclass(frozen=True)
class Frontiers:
    """Makes the frontiers of all methods, or goes on with it, and tabulates them."""

    tasks: tuple[str, ...] = tuple(
        name for name, task in TASKS.items() if not task.accelerator
    )
    """Tasks by name; by default all but resnet32-cifar10, which takes an
    accelerator."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Methods by name; by default all of them."""
    out: Path = Path("runs/frontiers")
    """Folder of the runs, one folder a task."""
    data_dir: Path | None = None
    """Folder of the TFDS data sets; by default that of TFDS itself."""

    def validate(self) -> None:
        """Raises `ExperimentError` for the first value that makes no sense."""
        for field, known in (("tasks", TASKS), ("methods", METHODS)):
            names = getattr(self, field)
            check(field, names, len(names) > 0, "one or more")
            for name in names:
                check(field, name, name in known, "of " + ", ".join(map(repr, known)))
