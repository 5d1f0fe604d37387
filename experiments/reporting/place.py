"""Where measurements go: into the repository and its README, or elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.config import ExperimentError
from experiments.records import read_json, write_json
from experiments.reporting import results

Table = Callable[[list[dict[str, Any]]], str]


class Place:
    """A folder for measurements, a file for each backend.

    Made before anything is measured, so that nothing is measured in vain.

    Args:
      name: of what is measured; the README has markers of that name.
      out: the folder, or None for that of the repository, which the README shows.

    Raises:
      ExperimentError: the folder cannot be made, or the README has no such markers.
    """

    def __init__(self, name: str, out: Path | None):
        self._name = name
        self._readme = results.README if out is None else None
        self._folder = results.STORE / name if out is None else out
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._readme:
                results.insert(self._readme.read_text(), name, "")
        except OSError as error:
            raise ExperimentError(
                f"cannot use {error.filename}: {error.strerror}"
            ) from error

    def stored(self) -> list[dict[str, Any]]:
        """Returns what the folder holds, in the order of the backends' names."""
        return list(filter(None, map(read_json, sorted(self._folder.glob("*.json")))))

    def write(self, found: dict[str, Any], table: Table) -> None:
        """Stores what was found, and shows all that is stored in the README."""
        path = self._folder / f"{found['backend']}.json"
        write_json(path, found)
        print(f"Written: {path}")
        if self._readme:
            self.show(table)
            print(f"Written: {self._readme}")

    def show(self, table: Table) -> None:
        """Writes all that is stored in the repository into its README."""
        text = results.README.read_text()
        shown = results.insert(text, self._name, table(self.stored()))
        results.README.write_text(shown)
