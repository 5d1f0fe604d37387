"""Tables and figures of the times of pruned networks, from stored measurements."""

from pathlib import Path

import numpy as np

from experiments.cost.matrices import COMPACTED, has_matrices
from experiments.cost.measurement import made_on
from experiments.metrics import metric_of
from experiments.pages.tables import markdown
from experiments.records import Row
from experiments.running import figures


def show(measured: list[Row]) -> str:
    """Shows the times of compacted networks, and those of sparse matrices."""
    trained = [compacted_row(run) for run in runs_of(measured) if run["trained"]]
    others = [
        which(run)
        | {"batch": str(row["batch"])}
        | {name: f"{ratio:.2f}" for name, ratio in row["ratios"].items()}
        for run in runs_of(measured)
        for row in run["rows"]
        if has_matrices(run)
    ]
    tables = [markdown(rows) for rows in (trained, others) if rows]
    return "\n".join([f"{made_on_all(measured)}\n", *tables])


def runs_of(measured: list[Row]) -> list[Row]:
    return [run for found in measured for run in found["runs"]]


def made_on_all(measured: list[Row]) -> str:
    """Says on what, with which versions and at which commit each task was measured."""
    tasks: dict[str, dict[str, None]] = {}
    for found in measured:
        names = {run["experiment"]: None for run in found["runs"]}
        tasks[made_on(found)] = tasks.get(made_on(found), {}) | names
    if len(tasks) == 1:
        return next(iter(tasks))
    return "\n".join(f"- {made} {', '.join(names)}" for made, names in tasks.items())


def compacted_row(run: Row) -> dict[str, str]:
    """Returns what is gained by compacting the network of a run."""
    metric = metric_of(run)
    before, after = (run["compacted"][when] for when in ("before", "after"))
    fewer = before["multiplications"] / after["multiplications"]
    found = which(run) | {
        f"{name}, %": f"{metric.hundredths(run[prefix + metric.key]):.2f}"
        for name, prefix in (("dense", "dense_test_"), ("pruned", "test_"))
    }
    found["multiplications"] = f"{after['multiplications']:,}, {fewer:.1f}x fewer"
    for row in run["rows"]:
        found[f"time, batch {row['batch']}"] = f"{row['ratios'][COMPACTED]:.2f}"
        if "decoding" in row:
            name = f"time of decoding, batch {row['batch']}"
            found[name] = f"{row['decoding'][COMPACTED]:.2f}"
    found["sparse file, compacted, bytes"] = f"{run['compacted_bytes']['sparse']:,}"
    found["dense file, bytes"] = f"{run['bytes']['dense']:,}"
    return found


def show_files(measured: list[Row]) -> str:
    """Shows the sizes of the sparse files of pruned networks."""
    rows = [
        which(run)
        | {
            "dense, bytes": f"{run['bytes']['dense']:,}",
            "dense, gzipped": f"{run['bytes']['gzipped']:,}",
            "sparse file": f"{run['bytes']['sparse']:,}",
            "times smaller": f"{run['bytes']['dense'] / run['bytes']['sparse']:.0f}",
        }
        for run in runs_of(measured)
        if run["trained"]
    ]
    return f"{made_on_all(measured)}\n\n{markdown(rows)}"


def draw_and_show(folder: Path, measured: list[Row]) -> str:
    """Draws the times of compacted networks, and returns figures and tables.

    Each backend has its own.
    """
    parts = []
    for backend in sorted({found["backend"] for found in measured}):
        some = [found for found in measured if found["backend"] == backend]
        name = f"latency-{backend}"
        draw(some, folder / name)
        figure = f"![The time that smaller networks take](figures/{name}.png)"
        parts += [f"{figure}\n", show(some)]
    return "\n".join(parts)


def draw(measured: list[Row], path: Path) -> None:
    trained = [run for run in runs_of(measured) if run["trained"]]
    with figures.figure(path, (6.4, 0.35 * len(trained) + 1)) as canvas:
        axes = canvas.add_subplot()
        for index, colour in enumerate((figures.SKY, figures.BLUE)):
            batch = trained[0]["rows"][index]["batch"]
            times = [run["rows"][index]["ratios"][COMPACTED] for run in trained]
            places = np.arange(len(trained)) + 0.36 * (index - 0.5)
            axes.barh(places, times, 0.34, color=colour, label=f"batch of {batch}")
        axes.axvline(1, color=figures.GREY, linewidth=1)
        names = [", ".join([*which(run).values()][:2]) for run in trained]
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("time, relative to the dense network")
        canvas.legend(loc="outside lower center", ncols=2)


def which(run: Row) -> dict[str, str]:
    """Describes a network, for the first columns of a table."""
    pruned = "at once"
    if run["trained"]:
        unit = "units" if run["structure"] == "units" else "weights"
        if run["distribution"] == "uniform":
            unit += " of each layer alike"
        if run["pruned_first"] == "units":
            unit = "units, then weights"
        pruned = f"{unit}, {run['regularizer']}"
    return {
        "network": f"{run['network']}, {run['dataset']}",
        "pruned": pruned,
        "sparsity, %": f"{100 * run['sparsity']:.2f}",
    }
