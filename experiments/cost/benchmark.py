"""Measures what the method costs, mostly as ratios of times."""

import dataclasses
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import jax

from experiments.cost import compilers, steps, torch_rivals, training_time
from experiments.cost.measurement import Measurement, made_on
from experiments.pages.tables import markdown, short
from experiments.records import Row
from experiments.running import figures
from experiments.running.environment import environment
from experiments.settings import setting
from experiments.tasks import digits, lenet300_mnist


@dataclasses.dataclass(frozen=True)
class Settings(Measurement):
    """Measures what the method costs: updates, pruning steps and training.

    It takes about fifteen minutes on two cores, and a few GB of memory.
    """

    sizes: tuple[int, ...] = setting((10_000_000,), "[1000, inf)")
    """Numbers of weights, in 30 matrices, for updates and pruning steps."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Dtypes of weights and gradients for updates."""
    rivals: tuple[int, ...] = setting((1_000_000, 10_000_000), "[10, inf)")
    """Numbers of weights at which pruning is compared with a sort and a top_k."""
    growth: tuple[int, ...] = setting(
        (1_000_000, 10_000_000, 100_000_000, 300_000_000), "[10, inf)"
    )
    """Numbers of weights, in 10 matrices, at which pruning is compared with updates."""
    leaves: tuple[int, ...] = setting((30, 300, 1000), "[1, inf)")
    """Numbers of leaves for which a pruning step is compiled."""
    compile_for: tuple[compilers.Target, ...] = ()
    """Only compile for these devices, and store what their compilers report."""
    turns: int = setting(21, "[1, inf)")
    """How often each comparison of times is repeated."""


BYTES = "bytes a weight"


class Found(NamedTuple):
    """What was measured, its unit, the value, and the target, if any."""

    what: str
    unit: str
    value: float
    target: str = ""


class Targets(NamedTuple):
    chain: dict[str, str]  # an update, by dtype
    prune: str
    sort: str
    compilation: dict[int, str]  # by number of leaves
    training: str


CPU = Targets({"float32": "1.3"}, "4", "30, at least", {300: "8", 1000: "40"}, "1.05")
GPU = Targets(
    {"float32": "1.06", "bfloat16": "1.10"},
    "10",
    "1, at least",
    {300: "8", 1000: "40"},
    "1.03",
)


def main(settings: Settings) -> None:
    for target in settings.compile_for:
        settings.store("compile_for", lambda target=target: compile(settings, target))
    if not settings.compile_for:
        settings.store("benchmark", lambda: measure(settings))


def compile(settings: Settings, target: compilers.Target) -> Row:
    """Returns what a compiler reports about programs for the first size."""
    size, *_ = settings.sizes
    rows = list(compilers.analyses(target, size))  # before plugins look for devices
    return {**environment(), "backend": target, "size": size, "rows": rows}


def show_compiled(found: Row) -> str:
    rows = [
        {
            name: f"{x:.2f}" if isinstance(x, float) else "" if x is None else str(x)
            for name, x in row.items()
        }
        for row in found["rows"]
    ]
    versions = f"jax {found['versions']['jax']}, commit {short(found['commit'])}"
    where = f"{found['backend']}, {found['size']:,} weights in 30 matrices ({versions})"
    return f"Compiled for, not run: {where}\n\n{markdown(rows)}"


def measure(settings: Settings) -> Row:
    """Returns the measurements of each topic, and prints a line for each."""
    found = {**environment(), "topics": {}}
    if torch_rivals.comparable():
        found["versions"]["torch"] = metadata.version("torch")
    targets = CPU if jax.default_backend() == "cpu" else GPU
    for topic, measure in TOPICS.items():
        found["topics"][topic] = rows = []
        for row in measure(settings, targets):
            print(*row, sep=" | ", flush=True)
            rows.append(row)
    return found


def measure_updates(settings: Settings, targets: Targets) -> Iterator[Found]:
    plain = "`chain(add_decayed_weights, adam)`"
    chain = steps.CHAIN_NAME
    optimizers = {
        plain: steps.PLAIN,
        chain: steps.CHAIN,
        "`relevance_pruning(adam)`": steps.WHOLE,
        "`relevance_pruning(adam, decoupled=True)`": steps.DECOUPLED,
    }
    unit, turns = "the first row", settings.turns
    for size in settings.sizes:
        for dtype in settings.dtypes:
            which = f"{size / 1e6:g}M weights, {dtype}"
            for name, tx in optimizers.items():
                found = steps.measure_update(tx, size, dtype, 30, turns)
                target = targets.chain.get(dtype, "") if name == chain else ""
                yield Found(f"{name}, {which}", unit, found["time"], target)
                yield Found("its reads and writes", BYTES, found["moved"])
                yield Found("its temporaries", BYTES, found["temporaries"])
            for name, tx, gradual in (
                (chain, steps.CHAIN, steps.CHAIN_GRADUAL),
                ("`relevance_pruning(adam)`", steps.WHOLE, steps.WHOLE_GRADUAL),
            ):
                # No reads and writes: XLA would count those of the pruning step too.
                possible = steps.measure_possible_pruning(
                    tx, gradual, size, dtype, 30, turns
                )
                for how, found in possible.items():
                    what = f"{name} {how}, {which}"
                    yield Found(what, "the same without", found["time"], "1.15")
                    found = found["temporaries"]
                    yield Found("its temporaries", BYTES, found, "1.5")


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
            yield Found("its temporaries", BYTES, found["temporaries"], "5")
    for size in settings.growth:
        found = steps.measure_prune(steps.PRUNING, size, "float32", 10, turns)
        yield Found(f"`prune`, {size:,} weights in 10 matrices", unit, found["adam"])
    for size in settings.rivals:
        for name, value in steps.measure_rivals(size, max(turns // 7, 1)).items():
            target = targets.sort if name == "`jnp.sort`" else "1, at least"
            yield Found(f"{name}, {size:,} weights", "`prune`", value, target)


def measure_compilation(settings: Settings, targets: Targets) -> Iterator[Found]:
    for number in settings.leaves:
        for name, value in steps.measure_compilation(number).items():
            target = targets.compilation.get(number, "")
            target = target if name.startswith("`prune`") else ""
            yield Found(f"{name}, {number} leaves", "seconds", value, target)


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


TOPICS = {
    "Updates": measure_updates,
    "Pruning steps": measure_pruning,
    "Compilation": measure_compilation,
    "Training": measure_training,
}


def draw_and_show(folder: Path, found: Row) -> str:
    """Draws the times of updates, and returns the figure and a table of each topic."""
    name = f"cost-{found['backend']}"
    draw(found, folder / name)
    parts = [f"![The time of an update](figures/{name}.png)", made_on(found)]
    names = "measured", "in units of", "value", "target"
    for topic, rows in found["topics"].items():
        cells: list[Row] = [
            dict(zip(names, (what, unit, f"{value:.2f}", target), strict=True))
            for what, unit, value, target in rows
        ]
        parts += [f"### {topic}", markdown(cells)]
    return "\n\n".join(parts)


def draw(found: Row, path: Path) -> None:
    rows = found["topics"]["Updates"]
    times = {what: value for what, unit, value, _ in rows if unit != BYTES}
    with figures.figure(path, (6.4, 0.3 * len(times) + 0.6)) as canvas:
        axes = canvas.add_subplot()
        axes.barh(range(len(times)), [*times.values()], color=figures.SKY)
        names = ["  " + what.replace("`", "") for what in times]
        for place, name in enumerate(names):
            axes.text(0, place, name, fontsize=7, va="center")
        axes.axvline(1, color=figures.GREY, linewidth=1)
        axes.set_yticks([])
        axes.invert_yaxis()
        axes.set_xlabel("time of an update, relative to one without the method")
