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
from experiments.cost.latency_tables import show
from experiments.cost.matrices import COMPACTED, ONNX, has_matrices
from experiments.cost.measurement import Measurement, ratios
from experiments.data.images import FORMATS
from experiments.metrics import metric_of
from experiments.networks.functional import Variables
from experiments.records import Row, RunFolder
from experiments.running import compaction
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
    if not onnx_rivals.available():
        print(f"{ONNX} is not measured: pip install onnx onnxruntime.")
    runs: dict[str, list[Any]] = {}
    for path in settings.runs:
        run = networks_of(RunFolder(path))
        runs.setdefault(run[0]["experiment"], []).append(run)
    # A file each, so that some can be measured again without the others.
    for task, some in runs.items():
        settings.store(
            "latency", lambda some=some: measure(some, settings.turns), of=f"-{task}"
        )


def measure(runs: list[tuple[Row, Variables, Variables]], turns: int) -> Row:
    """Returns the times of the networks of runs, and of LeNets pruned in one shot."""
    found: Row = {**environment(), "runs": []}
    if onnx_rivals.available():
        found["versions"]["onnxruntime"] = metadata.version("onnxruntime")
    for summary, dense, final in runs:
        networks = {summary["sparsity"]: final}
        if has_matrices(summary) and not summary.get("pruned_from"):
            # Its dense network has not been measured with another run.
            networks = {x: pruned(dense, x) for x in PRUNED_AT_ONCE} | networks
        for sparsity, network in networks.items():
            run = outcome(summary)
            run |= {"sparsity": sparsity, "trained": network is final}
            run |= measure_network(summary, network, turns)
            found["runs"].append(run)
            print(show([found | {"runs": [run]}]), flush=True)
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
