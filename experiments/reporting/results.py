"""The results table of the README, from the stored summaries of finished runs."""

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.config import ExperimentError
from experiments.forms import Form
from experiments.metrics import ACCURACY, Metric, metric_of
from experiments.records import Row, read_summary, write_json

STORE = Path(__file__).parents[1] / "results"
WMT14_PAIRS = 4_000_000  # at the least; there are 4.5 million
README = Path(__file__).parents[2] / "README.md"


def store(folder: Path) -> Path:
    """Copies the summary of a finished run into the repository.

    Returns:
      The file, which may have held an earlier run of the same settings and seed.

    Raises:
      ExperimentError: the folder holds none.
    """
    summary = read_summary(folder / "summary.json")
    if summary is None:
        raise ExperimentError(f"{folder} holds no finished run.")
    path = STORE / f"{name_of(summary)}.json"
    write_json(path, summary)
    return path


def name_of(summary: Row) -> str:
    """Returns the name of a run among all that are stored."""
    names = ("experiment", "regularizer", "config_id")
    return "-".join(summary[key] for key in names) + f"-seed{summary['seed']}"


def table(summaries: Iterable[Row], metric: Metric = ACCURACY) -> str:
    """Returns a Markdown table: a row for each configuration, over its seeds.

    Args:
      summaries: of runs of which all have the same metric.
      metric: that one.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for summary in sorted(summaries, key=place):
        groups[summary["config_id"]].append(summary)
    name = "error, %" if metric == ACCURACY else metric.axis
    header = (
        "| data set | network | regularizer | strength | prunes | seeds "
        f"| dense {name} | {name} | sparsity, % | weights kept | compression |\n"
    )
    return header + "| --- " * 11 + "|\n" + "".join(map(row, groups.values()))


def quality(run: Row, prefix: str) -> float:
    """Returns how good a network is on the test set: its error, of images, in %."""
    metric = metric_of(run)
    value = metric.hundredths(run[f"{prefix}test_{metric.key}"])
    return 100 - value if metric == ACCURACY else value


def place(run: Row) -> tuple[Any, ...]:
    """Returns what runs are sorted by: reduced ones come last."""
    keys = ("dataset", "network", "regularizer", "strength_decay_epochs", "strength")
    reduced = run.get("num_train") is not None
    return reduced, *(run[key] for key in keys), run["config_id"], run["seed"]


def row(runs: list[Row]) -> str:
    """Returns the table row of runs that differ in their seeds alone."""
    first = runs[0]
    cells = (
        data_set(first),
        network(first),
        *(regularizer(first), strength(first), prunes(first), str(len(runs))),
        column((quality(run, "dense_") for run in runs), ".2f"),
        column((quality(run, "") for run in runs), ".2f"),
        column((100 * run["sparsity"] for run in runs), ".2f"),
        column((run["kept"] for run in runs), ",.0f") + f" of {first['total']:,}",
        column((run["total"] / max(run["kept"], 1) for run in runs), ".1f"),
    )
    return f"| {' | '.join(cells)} |\n"


def column(values: Iterable[float], form: str) -> str:
    """Returns the mean of seeds, and their standard deviation, as text."""
    values = list(values)
    text = format(statistics.fmean(values), form)
    if len(values) > 1:
        text += " ± " + format(statistics.stdev(values), form)
    return text


def data_set(run: Row) -> str:
    """Returns what a run was made on, and if not on all of it, that it was reduced."""
    number = run.get("num_train")
    what = "images" if metric_of(run) == ACCURACY else "pairs"
    reduced = f" (reduced run: {number:,} {what})" if number is not None else ""
    if run["dataset"] == "wmt14" and run["whole"] < WMT14_PAIRS:
        reduced = f" (other texts in its place: {run['pairs']:,} pairs)"
    return " ".join([run["dataset"], *run.get("edition", "").split()]) + reduced


def network(run: Row) -> str:
    """Returns the network of a run, with sizes if it has any.

    And what else of it differs between runs on the same data.
    """
    if "num_layers" not in run:
        return run["network"]
    layers, features = run["num_layers"], run["features"]
    adjusted = ", dropout adjusted" if run.get("adjust_dropout") else ""
    return f"{run['network']}, {layers}+{layers} layers of {features}{adjusted}"


def regularizer(run: Row) -> str:
    """Returns what drives weights to zero, and in what form if not the paper's."""
    usual = dataclasses.asdict(Form())
    form = run.get("form", usual)
    differing = [f"{name} {form[name]}" for name in form if form[name] != usual[name]]
    return ", ".join([run["regularizer"], *differing])


def strength(run: Row) -> str:
    """Returns how strong the regularizer of a run is, on what, and for how long."""
    if run["regularizer"] == "none":
        return ""
    epochs, scale = run["strength_decay_epochs"], run["scale"]
    falling = f", 0 after {epochs:g} epoch{'s' if epochs != 1 else ''}"
    sparing = run["regularizer"] == "relevance" and scale != 1
    return (
        f"{run['strength']:g}"
        + (falling if epochs else "")
        + (f", scale {scale:g}" if sparing else "")
    )


def prunes(run: Row) -> str:
    """Returns how many weights of a run go, and above what validation metric."""
    if run.get("prune", "gated") != "gated":
        return f"{run['prune']}, to {100 * run['target_sparsity']:g} % sparsity"
    metric = metric_of(run)
    bound = f"{metric.hundredths(run['bound']):g} {metric.unit or metric.name}"
    if run["relative_bound"]:
        bound = f"dense - {bound}" if run["bound"] else "dense"
    return f"{100 * run['fraction']:g} % each, above {bound}"


def commit(row: Row) -> str:
    """Returns the commit that made a run, short; "unknown" where git did not tell."""
    head, *dirty = (row["commit"] or "unknown").split("-")
    return "-".join([head[:8], *dirty])


def insert(text: str, name: str, new: str) -> str:
    """Returns `text` with `new` in place of what stands between the markers `name`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ExperimentError(f"README.md needs {begin} and {end}, once each.")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{new}{end}{after}"


def stored() -> list[Row]:
    """Returns the summaries of all runs that are stored."""
    return list(filter(None, map(read_summary, STORE.glob("*.json"))))


def write() -> None:
    """Writes the table of all runs on images that are stored into the README."""
    images = [run for run in stored() if metric_of(run) == ACCURACY]
    README.write_text(insert(README.read_text(), "results", table(images)))
