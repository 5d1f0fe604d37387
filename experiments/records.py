"""What is kept of runs, as JSON: the folder of one run, and rows of many.

Files are written whole or not at all, and folders made where they are missing.
"""

import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from experiments.config import Config
from experiments.settings import ExperimentError, names

Row = dict[str, Any]  # of JSON data
RESULTS = Path(__file__).parent / "results"  # what is stored in this repository


def write_json(path: Path, data: Row) -> None:
    write_whole(path, (json.dumps(data, indent=2) + "\n").encode())


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_text(path: Path) -> str | None:
    """Returns the text in a file, or None if there is no such file."""
    try:
        return path.read_text() if path.exists() else None
    except (OSError, UnicodeError) as error:
        raise ExperimentError(f"cannot read {path}: {error}") from error


def read_json(path: Path) -> Row | None:
    """Returns the JSON data in a file, or None if there is no such file."""
    text = read_text(path)
    return None if text is None else parse(text, path)


def read_rows(path: Path, number: int | None = None) -> list[Row]:
    """Returns the first lines of JSON data in a file, or all; none without a file."""
    lines = (read_text(path) or "").splitlines()
    return [parse(line, path) for line in lines[:number]]


def parse(text: str, path: Path) -> Row:
    """Returns the JSON object in a text that was read from a file."""
    try:
        found = json.loads(text, object_hook=functools.partial(Found, path))
    except (ValueError, RecursionError) as error:
        raise ExperimentError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ExperimentError(f"{path} is damaged: {text[:40]!r} has no names.")
    return found


def check_writable(folder: Path) -> None:
    """Makes a folder, and raises an error if no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ExperimentError(f"cannot write to {folder}: {error.strerror}") from error


def by_config(runs: Iterable[Row]) -> list[list[Row]]:
    """Groups runs that differ in nothing but their seeds."""
    groups: dict[str, list[Row]] = {}
    for run in runs:
        groups.setdefault(run["config_id"], []).append(run)
    return list(groups.values())


def run_id(found: Row) -> str:
    """Returns the `Config.run_id` of stored settings."""
    return f"{found['config_id']}-seed{found['seed']}"


def differences(found: Row, config: Config, ignored: Collection[str] = ()) -> list[str]:
    """Returns the settings in which a stored run differs from `config`."""
    wanted, usual = config.to_dict(), dataclasses.asdict(type(config)("", "", ""))
    form = {**usual["form"], **found.get("form", {})}
    found = {**usual, **found, "form": form}  # newer settings have their defaults
    ignored = {"config_id", *names(config, place=True), *ignored}
    return [
        f"{name} {found.get(name)!r} there, {wanted.get(name)!r} here"
        for name in sorted((found.keys() | wanted.keys()) - ignored)
        if found.get(name) != wanted.get(name)
    ]


class Found(Row):
    """A JSON object that was read from a file; a name that it lacks is a user error."""

    def __init__(self, path: Path, data: Row):
        super().__init__(data)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise ExperimentError(f"{self.path} is damaged: it has no {name!r}.")


class RunFolder:
    """The files of a run.

    `config.json` has its settings. `metrics.jsonl` has a row for each round, and so has
    `rows`. `summary.json` is written last: a run that has it is finished.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.rows: list[Row] = []
        self._config = path / "config.json"
        self._summary = path / "summary.json"

    def check(self, config: Config) -> None:
        """Raises an error if the folder holds a run of another `config`."""
        found = self.config()
        if found is None:
            if self.metrics.exists():
                raise ExperimentError(
                    f"{self.metrics} exists without {self._config.name}, so its run is "
                    "unknown; choose another --out."
                )
        elif different := differences(found, config):
            raise ExperimentError(
                f"{self.path} contains a run with another configuration "
                f"({'; '.join(different)}); choose another --out than this folder."
            )

    def config(self) -> Row | None:
        """Returns the settings of the run in the folder, or None if it is empty."""
        return read_json(self._config)

    def claim(self, config: Config) -> None:
        """Makes the folders and writes the settings."""
        check_writable(self.checkpoints)
        settings = {**config.to_dict(), "config_id": config.config_id}
        write_json(self._config, settings)

    def lines(self, count: int) -> list[str]:
        return (read_text(self.metrics) or "").splitlines(keepends=True)[:count]

    def rewind(self, count: int) -> None:
        """Keeps the first `count` rows of the metrics, to resume from there."""
        lines = self.lines(count)
        self.rows = [parse(line, self.metrics) for line in lines]
        write_whole(self.metrics, "".join(lines).encode())

    def digest(self, count: int) -> str | None:
        """Returns the SHA-256 of the first `count` rows, or None if there are fewer."""
        lines = self.lines(count)
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        return digest if len(lines) == count else None

    def append(self, row: Row) -> None:
        self.rows.append(row)
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def summary(self) -> Row | None:
        return read_json(self._summary)

    def finished(self) -> Row:
        """Returns the summary; raises an error if there is no finished run."""
        summary = self.summary()
        if summary is None:
            if not self.path.exists():
                raise ExperimentError(f"{self.path} does not exist.")
            has_runs = any(self.path.glob(f"*/{self._summary.name}"))
            hint = ", but folders of runs: pass these" if has_runs else ""
            raise ExperimentError(f"{self.path} contains no finished run{hint}.")
        return summary

    def finish(self, summary: Row) -> None:
        """Writes the summary, which marks the run as finished."""
        write_json(self._summary, summary)
