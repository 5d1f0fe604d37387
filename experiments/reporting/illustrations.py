"""What a run does on its way, in one figure each, from rounds that are stored.

Of those with seed 0 the rounds are stored beside the summary, column by column.
"""

import json
from pathlib import Path
from typing import Any

from experiments.config import ExperimentError
from experiments.records import (
    Row,
    check_names,
    read_json,
    read_rows,
    read_summary,
    write_whole,
)
from experiments.reporting import figures, results

ROUNDS = "rounds"  # the folder of the rounds, in that of the summaries
DRAWN = "phase", "metric", "sparsity", "kept_by_leaf", "relevant_by_leaf"
DIGITS = 6  # of a number: a sparsity of 99.9 % is to have three of what is kept


def store(folder: Path) -> None:
    """Copies the rounds of a finished run of seed 0 into the repository."""
    summary = read_summary(folder / "summary.json")
    if summary is None or summary["seed"] != 0:
        return
    rows = read_rows(folder / "metrics.jsonl")
    rows = [row for row in rows if row["phase"] != "dense"]
    if not rows:
        raise ExperimentError(f"{folder} has no rounds of a sparse network.")
    target = results.STORE / ROUNDS
    target.mkdir(exist_ok=True)
    text = json.dumps(columns(rows), separators=(",", ":"))
    write_whole(target / f"{results.name_of(summary)}.json", (text + "\n").encode())


def columns(rows: list[Row]) -> Row:
    """Returns a list for each entry of rows that all have the same ones."""

    def column(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return columns(values)
        return [short(value) for value in values]

    return {name: column([row[name] for row in rows]) for name in rows[0]}


def short(value: Any) -> Any:
    """Returns a number with no more digits than a figure can show."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def rows_of(columns: Row) -> list[Row]:
    """Returns the rows that `columns` were made of."""
    lists = {
        name: rows_of(column) if isinstance(column, dict) else column
        for name, column in columns.items()
    }
    return [
        dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)
    ]


def write() -> None:
    """Draws the figure of every run whose rounds are stored, beside them."""
    for path in sorted((results.STORE / ROUNDS).glob("*.json")):
        summary, rounds = read_summary(results.STORE / path.name), read_json(path)
        if summary is None or rounds is None:
            raise ExperimentError(f"the summary of {path} is not there.")
        check_names(summary, ("magnitudes",), results.STORE / path.name)
        check_names(rounds, DRAWN, path)
        rows = rows_of(rounds)
        figures.draw_overview(rows, summary, path)
