"""Measures how fast pruned networks are: dense, sparse and compacted.

For LeNets, sparse matrices are measured too: see `matrices`. Compacted networks are
smaller dense ones: see `experiments.running.compaction`.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import sparse_optax
from experiments.cost import matrices, onnx_rivals
from experiments.cost.matrices import COMPACTED, ONNX
from experiments.cost.measurement import Measurement, ratios, table
from experiments.data.images import FORMATS
from experiments.metrics import metric_of
from experiments.networks.functional import Variables
from experiments.pages.tables import markdown
from experiments.records import Row, RunFolder
from experiments.running import compaction, figures
from experiments.running.compaction import Runnable
from experiments.running.environment import environment
from experiments.running.export import file_sizes, networks_of
from experiments.settings import ExperimentError, check, setting

BATCHES = (1, 256)
PRUNED_AT_ONCE = (0.8, 0.9, 0.95)
AS_TRAINED = "as it is trained"


@dataclasses.dataclass(frozen=True)
class Settings(Measurement):
    """Measures how fast pruned networks are: dense, sparse and compacted."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of finished runs."""
    turns: int = setting(21, "[1, inf)")
    """How often each comparison of times is repeated."""

    def validate(self) -> None:
        super().validate()
        check("runs", self.runs, bool(self.runs), "one or more folders")


def main(settings: Settings) -> None:
    settings.store("latency", lambda: measure(settings))


def measure(settings: Settings) -> Row:
    """Returns the times of the networks of runs, and of LeNets pruned in one shot."""
    found: Row = {**environment(), "runs": []}
    if onnx_rivals.available():
        found["versions"]["onnxruntime"] = metadata.version("onnxruntime")
    else:
        print(f"{ONNX} is not measured: pip install onnx onnxruntime.")
    for path in settings.runs:
        summary, dense, final = networks_of(RunFolder(path))
        networks = {summary["sparsity"]: final}
        if has_matrices(summary) and not summary.get("pruned_from"):
            # Its dense network has not been measured with another run.
            networks = {x: pruned(dense, x) for x in PRUNED_AT_ONCE} | networks
        for sparsity, network in networks.items():
            run = outcome(summary)
            run |= {"sparsity": sparsity, "trained": network is final}
            run |= measure_network(summary, network, settings.turns)
            found["runs"].append(run)
            print(show(found | {"runs": [run]}), flush=True)
    return found


def outcome(summary: Row) -> Row:
    """Returns the stored results of a run."""
    key = metric_of(summary).key
    settings = "experiment", "config_id", "seed", "network", "dataset"
    pruning = "structure", "distribution", "regularizer"
    names = *settings, *pruning, f"dense_test_{key}", f"test_{key}"
    found = {name: summary[name] for name in names} | {"metric": key}
    return found | {"pruned_first": structure_before(summary)}


def structure_before(summary: Row) -> str | None:
    """Returns what the run of `--pruned-from` has pruned, or None without it."""
    path = summary.get("pruned_from")  # older runs have none
    if path is None:
        return None
    config = RunFolder(Path(path)).config()
    if config is None:
        raise ExperimentError(f"--pruned-from {path} of a run: there is no run.")
    return config["structure"]


def has_matrices(run: Row) -> bool:
    """Returns whether sparse matrices are measured too: for unstructured LeNets."""
    return run["network"].startswith("lenet") and run["structure"] == "unstructured"


def pruned(network: Variables, sparsity: float) -> Variables:
    params, _ = sparse_optax.one_shot(network.params, sparsity, mask=None)
    return network._replace(params=params)


def measure_network(summary: Row, network: Variables, turns: int) -> Row:
    """Returns the time of each variant on each batch, relative to the first.

    Also returns the sizes of the network and of its files, before and after compaction.
    """
    whole, rows = compaction.runnable(summary, network), []
    compacted = compaction.compact(whole)
    for batch in BATCHES:
        row: Row = {"batch": batch}
        row["ratios"] = timed(variants(summary, whole, compacted, batch), turns)
        if whole.write is not None:
            row["decoding"] = timed(decoders(whole, compacted, batch), turns)
        rows.append(row)
    with tempfile.TemporaryDirectory() as folder:
        files = [
            file_sizes(Path(folder) / "file", tree._asdict())
            for tree in (network, compacted.params)
        ]
    found = {"rows": rows, "compacted": compaction.sizes(compacted)}
    return found | {"bytes": files[0], "compacted_bytes": files[1]}


def timed(functions: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Returns the times of all functions but the first, relative to the first.

    Raises:
        ExperimentError: if one returns something else than the first.
    """
    wanted = np.asarray(functions[AS_TRAINED]())
    for variant, function in functions.items():
        if not np.allclose(function(), wanted, atol=1e-3, rtol=1e-3):
            raise ExperimentError(f"{variant} returns other outputs.")
    functions = {
        # Ten times, so that caches are warm.
        variant: lambda f=f: [jax.block_until_ready(f()) for _ in range(10)]
        for variant, f in functions.items()
    }
    reference = functions.pop(AS_TRAINED)
    return ratios(functions, reference, turns)


def variants(
    summary: Row, network: Runnable, compacted: sparse_optax.Compacted, batch: int
) -> dict[str, Callable[[], Any]]:
    """Returns functions that compute the logits of a batch, by name."""
    inputs = network.random_inputs(batch)
    found = in_jax(network.logits, network, compacted, inputs)
    if has_matrices(summary):
        white = FORMATS[summary["dataset"]].white
        found |= matrices.variants(network.variables, compacted, white, *inputs)
    return found


def decoders(
    network: Runnable, compacted: sparse_optax.Compacted, batch: int
) -> dict[str, Callable[[], Any]]:
    """Returns functions that decode greedily for a batch of sources, by name."""
    assert network.write is not None
    source, _ = network.random_inputs(batch)
    smaller = compacted.convert(network.write)
    return in_jax(network.write, network, smaller, (source,))


def in_jax(
    fn: Callable[..., jax.Array],
    network: Runnable,
    compacted: sparse_optax.Compacted,
    inputs: tuple[np.ndarray, ...],
) -> dict[str, Callable[[], Any]]:
    as_trained, apply = jax.jit(fn), jax.jit(compacted.apply)
    variables, smaller, on_device = jax.tree.map(
        jnp.asarray, (network.variables, compacted.params, inputs)
    )
    return {
        AS_TRAINED: lambda: as_trained(variables, *on_device),
        f"{AS_TRAINED}, again": lambda: as_trained(variables, *on_device),
        COMPACTED: lambda: apply(smaller, *on_device),
    }


def show(found: Row) -> str:
    trained = [compacted_row(run) for run in found["runs"] if run["trained"]]
    others = [
        which(run)
        | {"batch": str(row["batch"])}
        | {name: f"{ratio:.2f}" for name, ratio in row["ratios"].items()}
        for run in found["runs"]
        for row in run["rows"]
        if has_matrices(run)
    ]
    return "\n".join([table(found, trained), *([markdown(others)] if others else [])])


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


def show_files(found: Row) -> str:
    """Shows the sizes of the sparse files of pruned networks."""
    rows = [
        which(run)
        | {
            "dense, bytes": f"{run['bytes']['dense']:,}",
            "dense, gzipped": f"{run['bytes']['gzipped']:,}",
            "sparse file": f"{run['bytes']['sparse']:,}",
            "times smaller": f"{run['bytes']['dense'] / run['bytes']['sparse']:.0f}",
        }
        for run in found["runs"]
        if run["trained"]
    ]
    return table(found, rows)


def draw_and_show(folder: Path, found: Row) -> str:
    """Draws the times of compacted networks, and returns the figure and the tables."""
    name = f"latency-{found['backend']}"
    draw(found, folder / name)
    figure = f"![The time that smaller networks take](figures/{name}.png)"
    return f"{figure}\n\n{show(found)}"


def draw(found: Row, path: Path) -> None:
    trained = [run for run in found["runs"] if run["trained"]]
    with figures.figure(path, (6.4, 0.35 * len(trained) + 1)) as canvas:
        axes = canvas.add_subplot()
        for index, (batch, colour) in enumerate(
            zip(BATCHES, (figures.SKY, figures.BLUE), strict=True)
        ):
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
