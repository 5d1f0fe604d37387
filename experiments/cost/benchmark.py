"""Measures what the method costs, mostly as ratios of times."""

import dataclasses
from collections.abc import Iterator
from importlib import metadata
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from experiments.cost import steps, torch_rivals, training_time
from experiments.cost.measurement import Measurement, table
from experiments.records import Row
from experiments.running.environment import environment
from experiments.settings import setting
from experiments.tasks import digits, lenet300_mnist


@dataclasses.dataclass(frozen=True)
class Settings(Measurement):
    """Measures what the method costs: updates, pruning steps and training.

    It takes some fifteen minutes on two cores, and a few GB of memory.
    """

    sizes: tuple[int, ...] = setting((10_000_000,), "[1000, inf)")
    """Numbers of weights, in 30 matrices, of updates and pruning steps."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Types of weights and gradients of updates."""
    rivals: tuple[int, ...] = setting((1_000_000, 10_000_000), "[10, inf)")
    """Numbers of weights at which pruning is compared with a sort and a top_k."""
    growth: tuple[int, ...] = setting(
        (1_000_000, 10_000_000, 100_000_000, 300_000_000), "[10, inf)"
    )
    """Numbers of weights, in 10 matrices, at which pruning is compared with updates."""
    leaves: tuple[int, ...] = setting((30, 100, 300), "[1, inf)")
    """Numbers of matrices for which a pruning step is compiled."""
    turns: int = setting(21, "[1, inf)")
    """Number of comparisons of times."""


class Found(NamedTuple):
    """What was measured, its unit, the value, and the target or nothing."""

    what: str
    unit: str
    value: float
    target: str = ""


class Targets(NamedTuple):
    chain: dict[str, str]  # an update, by dtype
    prune: str
    sort: str
    training: str


CPU = Targets({"float32": "1.3"}, "6", "30, at least", "1.05")
GPU = Targets({"float32": "1.06", "bfloat16": "1.10"}, "10", "1, at least", "1.03")


def main(settings: Settings) -> None:
    settings.store("benchmark", lambda: measure(settings))


def measure(settings: Settings) -> Row:
    """Returns what all of it costs, and prints a line for each number."""
    found = {**environment(), "rows": []}
    if torch_rivals.comparable():
        found["versions"]["torch"] = metadata.version("torch")
    targets = CPU if jax.default_backend() == "cpu" else GPU
    for measure in (measure_updates, measure_pruning, measure_training):
        for row in measure(settings, targets):
            print(*row, sep=" | ", flush=True)
            found["rows"].append(row)
    return found


def measure_updates(settings: Settings, targets: Targets) -> Iterator[Found]:
    plain = "`chain(add_decayed_weights, adam)`"
    chain = "`chain(add_relevance_decay, adam, prune_by_magnitude)`"
    optimizers = {
        plain: steps.PLAIN,
        chain: steps.CHAIN,
        "`relevance_pruning(adam)`": steps.WHOLE,
        "`relevance_pruning(adam, decoupled=True)`": steps.DECOUPLED,
    }
    unit, turns = f"updates by {plain}", settings.turns
    for size in settings.sizes:
        for dtype in settings.dtypes:
            which = f"{size:,} weights, {dtype}"
            for name, tx in optimizers.items():
                found = steps.measure_update(tx, size, dtype, 30, turns)
                target = targets.chain.get(dtype, "") if name == chain else ""
                yield Found(f"update by {name}, {which}", unit, found["time"], target)
                yield Found("its reads and writes", "bytes a weight", found["moved"])
                yield Found("its temporaries", "bytes a weight", found["temporaries"])
            # Without reads and writes: XLA counts those of the pruning step as well.
            found = steps.measure_update(
                steps.CHAIN, size, dtype, 30, turns, prune=jnp.array(False)
            )
            what = f"update by {chain} with a traced `prune=False`, {which}"
            yield Found(what, unit, found["time"])
            yield Found("its temporaries", "bytes a weight", found["temporaries"])


def measure_pruning(settings: Settings, targets: Targets) -> Iterator[Found]:
    turns, unit = settings.turns, "updates by `adam`"
    for size in settings.sizes:
        for what, tx, dtype in (
            ("`prune`", steps.PRUNING, "float32"),
            ("`prune`", steps.PRUNING, "bfloat16"),
            ("`prune` of a state of `relevance_pruning(adam)`", steps.WHOLE, "float32"),
        ):
            found = steps.measure_prune(tx, size, dtype, 30, 3 * turns)
            what = f"{what}, {size:,} weights, {dtype}"
            yield Found(what, unit, found["adam"], targets.prune)
            yield Found("its temporaries", "bytes a weight", found["temporaries"], "5")
    for size in settings.growth:
        found = steps.measure_prune(steps.PRUNING, size, "float32", 10, turns)
        yield Found(f"`prune`, {size:,} weights in 10 matrices", unit, found["adam"])
    for size in settings.rivals:
        for name, value in steps.measure_rivals(size, max(turns // 7, 1)).items():
            target = targets.sort if name == "`jnp.sort`" else "1, at least"
            yield Found(f"{name}, {size:,} weights", "prunes of them", value, target)
    for number in settings.leaves:
        what = f"compilation of `prune`, {number} matrices"
        yield Found(what, "seconds", steps.measure_compilation(number))


def measure_training(settings: Settings, targets: Targets) -> Iterator[Found]:
    few, unit = max(settings.turns // 3, 1), "that with plain Adam"
    for name, make_task in training_time.TASKS.items():
        task = make_task()
        found = training_time.measure_training(task, few)
        what = f"training of {name}, batch {task.batch_size}"
        yield Found(what, unit, found["method"], targets.training)
        yield Found("the same without the method", unit, found["again"])
    if torch_rivals.comparable():
        found = training_time.measure_beside_torch(few)
        what = "training of LeNet-5, batch 100"
        rival = "by PyTorch, two backward passes"
        yield Found(what, f"that {rival}", found["ours"], "0.7")
        unit = "that by PyTorch with plain Adam"
        yield Found(f"{what}, {rival}", unit, found["theirs"])
    for config, side in ((digits.CONFIG, 8), (lenet300_mnist.CONFIG, 28)):
        for number in (2, 8):
            value = training_time.measure_at_once(config, side, number, min(few, 5))
            what = f"{number} runs of {config.network} on {side}x{side} images, in turn"
            yield Found(what, "all of them at once", value)


def show(found: Row) -> str:
    names = "measured", "in units of", "value", "target"
    rows: list[Row] = [
        dict(zip(names, (what, unit, f"{value:.2f}", target), strict=True))
        for what, unit, value, target in found["rows"]
    ]
    return table(found, rows)
