"""Measures what the method costs, and writes it into the README.

    python -m experiments benchmark

Times are ratios to something that was measured by turns with it, medians. They are
stored in experiments/results/benchmark, a file for each backend; what was measured to
try something out, with --out elsewhere. On a GPU, larger networks are of interest:

    python -m experiments benchmark --sizes 10000000 1000000000 \
        --dtypes float32 bfloat16 --rivals 1000000 10000000 100000000 1000000000
"""

from collections.abc import Iterator
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import sparse_optax
from experiments.cost import prunes, torch_rivals, training_time, updates
from experiments.cost.settings import Benchmark
from experiments.reporting.place import Place
from experiments.reporting.results import commit
from experiments.running.environment import environment
from experiments.tasks import digits, lenet300_mnist


class Row(NamedTuple):
    """What was measured, in what units, the value, and what is aimed at or nothing."""

    what: str
    unit: str
    value: float
    target: str = ""


class Targets(NamedTuple):
    """What the method is meant to cost."""

    chain: dict[str, str]  # an update, by dtype
    prune: str
    sort: str
    training: str


CPU = Targets({"float32": "1.3"}, "6", "30, at least", "1.05")
GPU = Targets({"float32": "1.06", "bfloat16": "1.10"}, "10", "1, at least", "1.03")


def update_rows(settings: Benchmark, targets: Targets) -> Iterator[Row]:
    """Measures updates."""
    adam = optax.adam(1e-3)
    plain = "`chain(add_decayed_weights, adam)`"
    chain = "`chain(add_relevance_decay, adam, prune_by_magnitude)`"
    optimizers = {
        plain: updates.PLAIN,
        chain: updates.CHAIN,
        "`relevance_pruning(adam)`": sparse_optax.relevance_pruning(
            adam, 1e-4, mask=None
        ),
        "`relevance_pruning(adam, decoupled=True)`": sparse_optax.relevance_pruning(
            adam, 1e-4, decoupled=True, mask=None
        ),
    }
    for size in settings.sizes:
        for dtype in settings.dtypes:
            which = f"{size:,} weights, {dtype}"
            for name, tx in optimizers.items():
                found = updates.measure_update(tx, size, dtype, 30, settings.turns)
                target = targets.chain.get(dtype, "") if name == chain else ""
                what = f"update by {name}, {which}"
                yield Row(what, f"updates by {plain}", found["time"], target)
                yield Row("its reads and writes", "bytes a weight", found["moved"])
                yield Row("its temporaries", "bytes a weight", found["temporaries"])
            # What is read and written is not told of it: it counts the prune as well.
            found = updates.measure_update(
                *(updates.CHAIN, size, dtype, 30, settings.turns),
                prune=jnp.array(False),
            )
            what = f"update by {chain} with a traced `prune=False`, {which}"
            yield Row(what, f"updates by {plain}", found["time"])
            yield Row("its temporaries", "bytes a weight", found["temporaries"])


def prune_rows(settings: Benchmark, targets: Targets) -> Iterator[Row]:
    """Measures prunes."""
    turns = settings.turns
    whole = sparse_optax.relevance_pruning(optax.adam(1e-3), 1e-4, mask=None)
    for size in settings.sizes:
        for what, tx, dtype in (
            ("`prune`", prunes.PRUNABLE, "float32"),
            ("`prune`", prunes.PRUNABLE, "bfloat16"),
            ("`prune` of a state of `relevance_pruning(adam)`", whole, "float32"),
        ):
            # Of many small parts, it is disturbed for longer, and takes more turns.
            found = prunes.measure_prune(tx, size, dtype, 30, 3 * turns)
            what = f"{what}, {size:,} weights, {dtype}"
            yield Row(what, "updates by `adam`", found["adam"], targets.prune)
            yield Row("its temporaries", "bytes a weight", found["temporaries"], "5")
        for name, value in prunes.measure_floors(size, 3 * turns).items():
            what = f"`prune` with floors {name}, {size:,} weights, float32"
            yield Row(what, "prunes without", value)
    for size in settings.growth:
        found = prunes.measure_prune(prunes.PRUNABLE, size, "float32", 10, turns)
        what = f"`prune`, {size:,} weights in 10 matrices"
        yield Row(what, "updates by `adam`", found["adam"])
    for size in settings.rivals:
        found = prunes.measure_rivals(size, max(turns // 7, 1))
        for name, value in found.items():
            target = targets.sort if name == "`jnp.sort`" else "1, at least"
            yield Row(f"{name}, {size:,} weights", "prunes of them", value, target)
    for number in settings.leaves:
        seconds = prunes.measure_compilation(number)
        yield Row(f"compilation of `prune`, {number} matrices", "seconds", seconds)


def training_rows(settings: Benchmark, targets: Targets) -> Iterator[Row]:
    """Measures training."""
    few = max(settings.turns // 3, 1)
    for name, make_task in training_time.TASKS.items():
        task = make_task()
        found = training_time.measure_training(task, few)
        what = f"training of {name}, batch {task.batch_size}"
        unit = "that with plain Adam"
        yield Row(what, unit, found["method"], targets.training)
        yield Row("the same without the method", unit, found["again"])
    if jax.default_backend() == "cpu" and torch_rivals.has_torch():
        found = training_time.measure_beside_torch(few)
        what = "training of LeNet-5, batch 100"
        yield Row(what, "that by PyTorch, two backward passes", found["ours"], "0.7")
        what += ", by PyTorch, two backward passes"
        yield Row(what, "that by PyTorch with plain Adam", found["theirs"])
    for config, side in ((digits.CONFIG, 8), (lenet300_mnist.CONFIG, 28)):
        for number in (2, 8):
            value = training_time.measure_at_once(config, side, number, min(few, 5))
            what = f"{number} runs of {config.network} on {side}x{side} images, in turn"
            yield Row(what, "all of them at once", value)


def rows_of(settings: Benchmark) -> Iterator[Row]:
    """Measures everything."""
    targets = CPU if jax.default_backend() == "cpu" else GPU
    for rows in (update_rows, prune_rows, training_rows):
        yield from rows(settings, targets)


def line(row: Row) -> str:
    """Returns a line of a Markdown table."""
    return f"| {row.what} | {row.unit} | {row.value:.2f} | {row.target} |"


def table(measured: list[dict[str, Any]]) -> str:
    """Returns a Markdown table for each backend."""
    parts = []
    for one in measured:
        versions = [f"{name} {number}" for name, number in one["versions"].items()]
        where = [one["hardware"], *versions, "commit " + commit(one)]
        lines = [f"On {', '.join(where)}:\n"]
        lines += ["| measured | in units of | value | target |"]
        lines += ["| --- | --- | --- | --- |"]
        lines += [line(Row(*row)) for row in one["rows"]]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def benchmark(settings: Benchmark) -> None:
    """Measures, prints and stores, and writes all that is stored into the README."""
    place = Place("benchmark", settings.out)
    found = environment()  # of the code as it starts
    if torch_rivals.has_torch():
        found["versions"]["torch"] = metadata.version("torch")
    else:
        print("PyTorch is not installed, and nothing is compared with it.")
    found["rows"] = []
    for row in rows_of(settings):
        print(line(row), flush=True)
        found["rows"].append(row)
    place.write(found, table)
