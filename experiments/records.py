"""What is kept of runs: the folder of one, and rows of many, as JSON that is whole."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.config import PLACES, Config, ExperimentError
from experiments.metrics import metric_of

Row = dict[str, Any]  # of JSON data: values under names

# What is shown of a finished run, one of any age.
SUMMARY = (
    *("experiment", "dataset", "network", "seed", "config_id", "regularizer"),
    *("strength", "scale", "strength_decay_epochs", "bound", "relative_bound"),
    *("sparsity", "kept", "total", "layers", "validation_bound", "wall_seconds"),
)
NUMBERS = "seed", "sparsity", "kept", "total", "wall_seconds"
MEASURED = "dense_test_", "test_", "dense_validation_", "validation_"  # of each metric
SIZES = "dense", "gzipped", "sparse"  # of the files of a network, in bytes


def write_json(path: Path, data: Row) -> None:
    """Writes JSON data; the file is never half of it."""
    write_whole(path, (json.dumps(data, indent=2) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is either the old one or the new one, never half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def read_text(path: Path) -> str | None:
    """Returns what a file holds, or None where there is no such file."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExperimentError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeError as error:
        raise ExperimentError(f"{path} is damaged: {error}") from error


def read_json(path: Path) -> Row | None:
    """Returns the JSON data that a file holds, or None where there is no such file."""
    text = read_text(path)
    return None if text is None else parse(text, path)


def read_summary(path: Path) -> Row | None:
    """Returns the summary of a finished run, or None where there is no such file."""
    found = read_json(path)
    if found is not None:
        check_names(found, SUMMARY, path)
        try:
            key = metric_of(found).key
        except (KeyError, TypeError) as error:
            raise ExperimentError(f"{path} has an unknown metric: {error}.") from error
        measured = [prefix + key for prefix in MEASURED]
        check_names(found, measured, path)
        sizes = found.get("bytes", dict.fromkeys(SIZES, 0))  # as of older runs
        check_names(sizes, SIZES, path)
        numbers = {name: found[name] for name in (*NUMBERS, *measured)} | {
            name: sizes[name] for name in SIZES
        }
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ExperimentError(f"{path} is damaged: {name!r} is {value!r}.")
    return found


def read_rows(path: Path, number: int | None = None) -> list[Row]:
    """Returns the lines of JSON data that a file holds, or the first of them."""
    text = read_text(path)
    if text is None:
        raise ExperimentError(f"there is no {path}.")
    return [parse(line, path) for line in text.splitlines()[:number]]


def parse(text: str, path: Path) -> Row:
    """Returns what is written in JSON in a file: values under names."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ExperimentError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ExperimentError(f"{path} is damaged: {text[:40]!r} has no names.")
    return found


def check_names(found: Any, names: Iterable[str], path: Path) -> None:
    """Raises `ExperimentError` if what a file holds lacks one of the names."""
    for name in names:
        if not isinstance(found, dict) or name not in found:
            raise ExperimentError(f"{path} is damaged: it has no {name!r}.")


def differences(found: Row, config: Config, ignored: Sequence[str] = ()) -> list[str]:
    """Returns in which settings a run that is there differs from one that is wanted."""
    wanted = config.to_dict()
    found = with_defaults(found, config)
    for name in PLACES:
        del found[name]
    ignored = "config_id", *ignored
    return [
        f"{name} {found.get(name)!r} there, {wanted.get(name)!r} here"
        for name in sorted(found.keys() | wanted.keys())
        if name not in ignored and found.get(name) != wanted.get(name)
    ]


def with_defaults(found: Row, settings: Any) -> Row:
    """Returns what is found of a dataclass, the defaults of what is not among it.

    A setting that is newer than a run was not there to be changed.
    """
    values = dict(found)
    for field in dataclasses.fields(settings):
        value, inner = getattr(settings, field.name), found.get(field.name, {})
        if dataclasses.is_dataclass(value) and isinstance(inner, dict):
            values[field.name] = with_defaults(inner, value)
        elif field.default is not dataclasses.MISSING:
            values.setdefault(field.name, field.default)
    return values


def replays(
    make_all: Callable[[Callable[..., list[Any]]], None],
    rows: list[Row],
    names: Sequence[str],
) -> bool:
    """Whether rows are of the runs that are made, and in their order.

    Args:
      make_all: makes runs by the function that it is given, and what it makes may
        depend on what that returns. Of its arguments the last are configurations.
      rows: what is stored of runs.
      names: where in a row those arguments are, configuration id and seed after them.
    """
    by_run = {tuple(row.get(name) for name in names): row for row in rows}
    found: list[Row] = []

    def find(*arguments: Any) -> list[Row]:
        *where, configs = arguments
        runs = [(*where, config.config_id, config.seed) for config in configs]
        if not by_run.keys() >= set(runs):
            raise LookupError
        found.extend(by_run[run] for run in runs)
        return [by_run[run] for run in runs]

    try:
        make_all(find)
    except LookupError:
        return False
    return found == rows


class RunFolder:
    """The files of a run.

    `config.json` says what it is a run of. `metrics.jsonl` has a row for each round and
    `rows` holds the same. `summary.json` is written last of all: a run that has it is
    finished.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.rows: list[Row] = []
        self._config = path / "config.json"
        self._metrics = path / "metrics.jsonl"
        self._summary = path / "summary.json"

    def check(self, config: Config) -> None:
        """Raises `ExperimentError` if the folder holds a run of another `config`."""
        found = read_json(self._config)
        if found is None:
            # Without it, nothing tells what the rest is of.
            for path in (self.checkpoints, self._metrics, self._summary):
                if path.exists():
                    raise ExperimentError(
                        f"{path} is there, but no {self._config.name} to say of which "
                        "run; choose another --out."
                    )
            return
        if different := differences(found, config):
            raise ExperimentError(
                f"{self.path} holds another configuration ({'; '.join(different)}); "
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
        lines = (read_text(self._metrics) or "").splitlines()[:count]
        self.rows = [parse(line, self._metrics) for line in lines]
        write_whole(self._metrics, "".join(line + "\n" for line in lines).encode())

    def digest(self, count: int) -> str | None:
        """Returns the SHA-256 of the first `count` rows, or None if there are less."""
        lines = (read_text(self._metrics) or "").splitlines()[:count]
        text = "".join(line + "\n" for line in lines)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return digest if len(lines) == count else None

    def append(self, row: Row) -> None:
        """Adds a row to the metrics."""
        self.rows.append(row)
        with self._metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def summary(self) -> Row | None:
        """Returns the outcome of a finished run, or None."""
        return read_summary(self._summary)

    def finish(self, summary: Row) -> None:
        """Writes the outcome, which marks the run as finished."""
        write_json(self._summary, summary)
