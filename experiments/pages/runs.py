"""What is stored of single runs, and the page of those on images."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import records
from experiments.metrics import ACCURACY, metric_of
from experiments.pages.cifar10 import ways_table
from experiments.pages.tables import made, runs_table, stored_runs
from experiments.records import (
    RESULTS,
    Row,
    RunFolder,
    read_json,
    read_rows,
    write_whole,
)
from experiments.running import figures
from experiments.settings import ExperimentError

DIGITS = 6  # of a stored number: a sparsity of 99.9 % keeps three digits of the rest


def store(folder: Path) -> Path:
    """Stores the summary of a finished run, and of seed 0 its rounds."""
    summary = RunFolder(folder).finished()
    names = (summary[key] for key in ("experiment", "regularizer", "config_id"))
    name = "-".join([*names, f"seed{summary['seed']}"]) + ".json"
    if summary["seed"] == 0:
        rows = read_rows(folder / "metrics.jsonl")
        rows = [row for row in rows if row["phase"] != "dense"]
        if not rows:
            raise ExperimentError(f"{folder} has no rounds of a sparse network.")
        text = json.dumps(columns(rows), separators=(",", ":")) + "\n"
        write_whole(RESULTS / "rounds" / name, text.encode())
    records.write_json(RESULTS / "runs" / name, summary)
    return RESULTS / "runs" / name


def columns(rows: list[Row]) -> Row:
    """Returns a list for each name in rows that all have the same ones."""

    def column(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return columns(values)
        return [float(f"{x:.{DIGITS}g}") if isinstance(x, float) else x for x in values]

    return {name: column([row[name] for row in rows]) for name in rows[0]}


def draw(name: str, folder: Path) -> None:
    summary = read_json(RESULTS / "runs" / f"{name}.json")
    rounds = read_json(RESULTS / "rounds" / f"{name}.json")
    if summary is None or rounds is None:
        raise ExperimentError(f"{name} is not stored.")
    for key, values in rounds.items():
        if isinstance(values, dict):
            rounds[key] = pd.DataFrame(values).to_dict("records")
    figures.draw_run(pd.DataFrame(rounds), summary, folder / name, (".png",))


def images() -> dict[str, str]:
    runs = [run for run in stored_runs() if metric_of(run) == ACCURACY]
    return {"table": runs_table(runs), "cifar10": ways_table(runs), "made": made(runs)}
