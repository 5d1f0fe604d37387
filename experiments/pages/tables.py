"""Tables in Markdown, and what they say about runs."""

import dataclasses
import statistics
from collections.abc import Iterable

from experiments.config import Form, ImageConfig
from experiments.metrics import ACCURACY, metric_of
from experiments.records import RESULTS, Row, by_config, parse
from experiments.settings import has_effect


def markdown(rows: Iterable[Row]) -> str:
    """Returns a table of rows, each with texts by the headings of their columns."""
    rows = list(rows)
    headings = list(dict.fromkeys(name for row in rows for name in row))
    lines = [headings, ["---"] * len(headings)]
    lines += [[row.get(name, "") for name in headings] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(values: Iterable[float], form: str = ".2f") -> str:
    """Returns mean and standard deviation of the values of seeds."""
    values = list(values)
    text = format(statistics.fmean(values), form)
    if len(values) > 1:
        text += " ± " + format(statistics.stdev(values), form)
    return text


def made(rows: Iterable[Row]) -> str:
    """Returns where rows were made, and by which code."""
    rows = list(rows)
    hardware = sorted({row["hardware"] for row in rows})
    commits = sorted({short(row["commit"]) for row in rows})
    plural = "s" if len(commits) > 1 else ""
    return f"Made on {' and '.join(hardware)}, at commit{plural} {', '.join(commits)}."


def short(commit: str | None) -> str:
    """Returns the first digits of a commit, and whether code had changed since."""
    head, *dirty = (commit or "unknown").split("-")
    return "-".join([head[:8], *dirty])


def stored_runs() -> list[Row]:
    """Returns the summaries of all stored runs, reduced ones last."""
    order = "dataset", "network", "regularizer", "strength_decay_epochs", "strength"
    order = *order, "config_id", "seed"
    paths = (RESULTS / "runs").glob("*.json")
    runs = [parse(path.read_text(), path) for path in paths]
    runs.sort(key=lambda run: [run[name] for name in order])
    return sorted(runs, key=lambda run: run.get("num_train") is not None)


def runs_table(runs: Iterable[Row]) -> str:
    """Returns a table of runs of one metric: a row for each setting, over its seeds."""
    return markdown(map(outcome, by_config(runs)))


def outcome(runs: list[Row]) -> Row:
    first, metric = runs[0], metric_of(runs[0])
    kept = [run["kept"] for run in runs]
    name = "error, %" if metric == ACCURACY else metric.axis

    def quality(prefix: str) -> str:
        values = [metric.hundredths(run[f"{prefix}test_{metric.key}"]) for run in runs]
        return spread(100 - x if metric == ACCURACY else x for x in values)

    return {
        "data set": data_set(first),
        "network": network(first),
        "regularizer": regularizer(first),
        "strength": strength(first),
        "pruning": pruning(first),
        "seeds": str(len(runs)),
        f"dense {name}": quality("dense_"),
        name: quality(""),
        "sparsity, %": spread(100 * run["sparsity"] for run in runs),
        "weights kept": f"{spread(kept, ',.0f')} of {first['total']:,}",
        "compression": spread((first["total"] / max(x, 1) for x in kept), ".1f"),
    }


def data_set(run: Row) -> str:
    """Returns the data set of a run, and how much of it the run used."""
    number = run.get("num_train")
    what = "images" if metric_of(run) == ACCURACY else "pairs"
    reduced = f" (reduced: {number:,} {what})" if number is not None else ""
    return " ".join([run["dataset"], *run.get("edition", "").split()]) + reduced


def network(run: Row) -> str:
    """Returns the network of a run, with its sizes if the run may choose them."""
    if "num_layers" not in run:
        return run["network"]
    layers, features = run["num_layers"], run["features"]
    adjusted = ", dropout adjusted" if run.get("adjust_dropout") else ""
    return f"{run['network']}, {layers}+{layers} layers of {features}{adjusted}"


def regularizer(run: Row) -> str:
    """Returns the regularizer of a run, and its form if it is not that of the paper."""
    usual = dataclasses.asdict(Form())
    form = run.get("form", usual)
    differing = [f"{name} {form[name]}" for name in form if form[name] != usual[name]]
    return ", ".join([run["regularizer"], *differing])


def strength(run: Row) -> str:
    """Returns strength, decay and scale of the regularizer, where they have effects."""
    if run["regularizer"] == "none":
        return ""
    epochs, scale = run["strength_decay_epochs"], run["scale"]
    text = f"{run['strength']:g}"
    if epochs:
        text += f", 0 after {epochs:g} epoch{'s' if epochs != 1 else ''}"
    if has_effect(ImageConfig, "scale", run) and scale != 1:
        text += f", scale {scale:g}"
    return text


def pruning(run: Row) -> str:
    start = run.get("start_sparsity")
    since = f", from {100 * start:.4g} %" if start else ""
    if run.get("prune", "gated") != "gated":
        target = 100 * run["target_sparsity"]
        return f"{run['prune']}, to {target:g} % sparsity{since}"
    metric = metric_of(run)
    bound = f"{metric.hundredths(run['bound']):g} {metric.unit or metric.name}"
    if run["relative_bound"]:
        bound = f"dense - {bound}" if run["bound"] else "dense"
    return f"{100 * run['fraction']:g} % each{since}, above {bound}"
