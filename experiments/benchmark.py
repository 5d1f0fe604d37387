"""Measures what the method costs, and writes it into the README.

    python -m experiments benchmark

Times are ratios to something that was measured by turns with it, medians. They are
stored in experiments/results/benchmark, a file for each backend, and take about ten
minutes on two cores.
"""

import json
from pathlib import Path
from typing import Any

from experiments import costs, digits, lenet5_fashion, lenet300_mnist, speed
from experiments.config import Benchmark
from experiments.environment import environment
from experiments.records import write_json
from experiments.results import README, insert

STORE = Path(__file__).parent / "results" / "benchmark"
Row = tuple[str, float, str]  # what was measured, its value, and the target or nothing


def rows_of(settings: Benchmark) -> list[Row]:
    """Measures everything."""
    size, turns, few = settings.size, settings.turns, max(settings.turns // 3, 1)
    rows: list[Row] = []
    plain = f"`chain(add_decayed_weights, adam)`, {size:,} weights"
    for name, found in costs.measure_updates(size, 30, turns).items():
        target = "1.3" if "chain" in name else ""
        rows.append((f"an update by {name}, to one by {plain}", found["time"], target))
        if "again" not in name:
            rows.append((f"bytes moved for a weight by {name}", found["moved"], ""))
    # Of many small parts, a prune is disturbed for longer, and takes more turns.
    prune = costs.measure_prune(size, 30, 5 * turns)
    whole = f"`prune` of {size:,} weights"
    rows += [
        (f"{whole}, to an update of Adam", prune["adam"], "6"),
        (f"`jnp.sort` of them, to {whole}", prune["sort"], "30, at least"),
        (f"bytes of temporaries for a weight of {whole}", prune["temporaries"], "5"),
    ]
    first = settings.growth[0]
    for number, value in costs.measure_growth(list(settings.growth), turns).items():
        what = f"time for a weight of `prune`, {number:,} weights to {first:,}"
        rows.append((what, value, ""))
    for number in settings.leaves:
        seconds = costs.measure_prune(number * 1000, number, 1)["compilation"]
        rows.append((f"seconds to compile `prune` of {number} matrices", seconds, ""))
    for config, num_steps in (
        (lenet300_mnist.CONFIG, 500),
        (lenet5_fashion.CONFIG, 50),
    ):
        found = speed.measure_step(config, num_steps, few)
        what = f"training {config.network}, batch {speed.BATCH_SIZE}"
        rows.append((f"{what}, to the same with plain Adam", found["method"], "1.05"))
        rows.append((f"{what} with plain Adam, to the same again", found["again"], ""))
    for config, side in ((digits.CONFIG, 8), (lenet300_mnist.CONFIG, 28)):
        for number in (2, 8):
            value = speed.measure_at_once(config, side, number, min(few, 5))
            runs = f"{number} runs of {config.network} on {side}x{side} images"
            rows.append((f"{runs} one by one, to the same at once", value, ""))
    return rows


def table(measured: list[dict[str, Any]]) -> str:
    """Returns a Markdown table for each backend."""
    parts = []
    for one in measured:
        head, *dirty = str(one["commit"]).split("-")
        commit = "-".join([head[:8], *dirty])
        lines = [f"On {one['hardware']}, {commit}:\n"]
        lines += ["| measured | value | target |", "| --- | --- | --- |"]
        lines += [f"| {what} | {value:.2f} | {at} |" for what, value, at in one["rows"]]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def benchmark(settings: Benchmark) -> None:
    """Measures and stores, and writes all that is stored into the README."""
    found = {**environment(), "rows": rows_of(settings)}  # the code as it starts
    STORE.mkdir(exist_ok=True)
    write_json(STORE / f"{found['backend']}.json", found)
    measured = [json.loads(path.read_text()) for path in sorted(STORE.glob("*.json"))]
    README.write_text(insert(README.read_text(), "benchmark", table(measured)))
