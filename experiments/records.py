"""The folder of a run: what it is a run of, its measurements and its outcome."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from experiments.config import Config, ExperimentError


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes JSON data; the file is never half of it."""
    write_whole(path, json.dumps(data, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is either the old one or the new one, never half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns what a file holds, or None where there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExperimentError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ExperimentError(f"{path} is not valid JSON: {error}") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of JSON data that a file holds."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except OSError as error:
        raise ExperimentError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ExperimentError(f"{path} is damaged: {error}") from error


class RunFolder:
    """The files of a run.

    `config.json` says what it is a run of. `metrics.jsonl` has a row for each round and
    `rows` holds the same. `summary.json` is written last of all: a run that has it is
    finished.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._config = path / "config.json"
        self._metrics = path / "metrics.jsonl"

    def check(self, config: Config) -> None:
        """Raises `ExperimentError` if the folder holds a run of another `config`."""
        found = read_json(self._config)
        if found is None:
            return
        wanted = config.to_dict()
        # A setting that is newer than the run was not there to be changed.
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        found = {name: defaults[name] for name in wanted} | found
        differences = [
            f"{name} {found.get(name)!r} there, {wanted.get(name)!r} here"
            for name in sorted(found.keys() | wanted.keys())
            if name != "config_id" and found.get(name) != wanted.get(name)
        ]
        if differences:
            raise ExperimentError(
                f"{self.path} holds another configuration ({'; '.join(differences)}); "
                "choose another --out."
            )

    def claim(self, config: Config) -> None:
        """Makes the folder and says what it holds."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(
                self._config, {**config.to_dict(), "config_id": config.config_id}
            )
        except OSError as error:
            raise ExperimentError(
                f"cannot write to {self.path}: {error.strerror}"
            ) from error

    def rewind(self, count: int) -> None:
        """Keeps the first `count` rows of the metrics, to go on from there.

        Later rows, and a last line torn by a kill, are of rounds to be made again.
        """
        lines = []
        if self._metrics.exists():
            lines = self._metrics.read_text().splitlines()[:count]
        try:
            self.rows = [json.loads(line) for line in lines]
        except ValueError as error:
            raise ExperimentError(f"{self._metrics} is damaged: {error}") from error
        if len(lines) < count:
            raise ExperimentError(
                f"{self._metrics} has {len(lines)} rows, the checkpoint {count}; "
                "delete the folder to start again."
            )
        write_whole(self._metrics, "".join(line + "\n" for line in lines))

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row to the metrics."""
        self.rows.append(row)
        with self._metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """Returns the outcome of a finished run, or None."""
        return read_json(self.path / "summary.json")

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the outcome, which marks the run as finished."""
        write_json(self.path / "summary.json", summary)
