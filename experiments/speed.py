"""Two ratios of times: the method to plain Adam, and runs one by one to runs at once.

    python -m experiments.speed

stores them in experiments/results/speed, a file for each kind of hardware, and writes
the table of the README. What is compared is measured by turns, on random images: no
time depends on the data.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import digits, lenet5_fashion, lenet300_mnist, optimizers, training
from experiments.config import Config
from experiments.data import Split
from experiments.environment import environment
from experiments.networks import NETWORKS
from experiments.records import write_json
from experiments.results import README, insert
from experiments.sweep import Numbers, runs_at_once

STORE = Path(__file__).parent / "results" / "speed"
BATCH_SIZE, NUM_IMAGES = 100, 10_000


def random_images(number: int, size: int) -> Split:
    """Returns that many random square images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (number, size, size, 1), np.uint8)
    return Split(images, rng.integers(0, 10, number, np.int32))


def measure_step(config: Config, num_steps: int, num_turns: int) -> float:
    """Returns how many times longer an update takes than with plain Adam, a median."""
    data = random_images(NUM_IMAGES, 28)
    network, params = training.init_network(
        NETWORKS[config.network], (28, 28, 1), white=255, seed=0
    )

    def timer(optimizer: optax.GradientTransformationExtraArgs) -> Callable[[], float]:
        train = training.make_train(
            network,
            optimizer,
            data,
            batch_size=BATCH_SIZE,
            num_steps=num_steps,
            seed=0,
            scale=config.scale,
        )
        state = training.init_state(params, optimizer, jnp.zeros([], jnp.int32))
        jax.block_until_ready(train(state))

        def seconds() -> float:
            start = time.perf_counter()
            jax.block_until_ready(train(state))
            return time.perf_counter() - start

        return seconds

    method = optimizers.pruning_optimizer(config, num_steps, NUM_IMAGES // BATCH_SIZE)
    with_method, plain = timer(method), timer(optax.adam(1e-3))
    return statistics.median(with_method() / plain() for _ in range(num_turns))


def measure_at_once(config: Config, size: int, num_runs: int, num_turns: int) -> float:
    """Returns how many times longer runs take one by one than at once, a median.

    Every run is one compiled program in both cases, and compilation is left out.
    """
    images = random_images(1_000, size), random_images(500, size)
    config = dataclasses.replace(
        config, dense_epochs=5, epochs=20, finetune_epochs=5, interval=20
    )
    scalars = (config.strength, config.scale, config.fraction)
    numbers = [Numbers(*map(jnp.asarray, (seed, *scalars))) for seed in range(num_runs)]

    def seconds(*runs: Numbers) -> float:
        together = jax.tree.map(lambda *values: jnp.stack(values), *runs)
        start = time.perf_counter()
        jax.block_until_ready(runs_at_once(config, together, *images, 255))
        return time.perf_counter() - start

    def ratio() -> float:
        at_once = seconds(*numbers)
        return sum(seconds(run) for run in numbers) / at_once

    ratio()  # compiles
    return statistics.median(ratio() for _ in range(num_turns))


def measure_all() -> dict[str, Any]:
    """Returns all ratios, and where they come from, as JSON data."""
    steps = (lenet300_mnist.CONFIG, 500), (lenet5_fashion.CONFIG, 50)
    sweeps = (digits.CONFIG, 8), (lenet300_mnist.CONFIG, 28)
    ratios = {
        f"an update of {config.network}, batch {BATCH_SIZE}, to that of plain Adam": (
            measure_step(config, num_steps, num_turns=7)
        )
        for config, num_steps in steps
    } | {
        f"{number} runs of {config.network} on {size}x{size} images one by one, "
        "to the same at once": measure_at_once(config, size, number, num_turns=5)
        for config, size in sweeps
        for number in (2, 8)
    }
    return {"ratios": ratios, **environment()}


def table(measured: list[dict[str, Any]]) -> str:
    """Returns a Markdown table: a column for each kind of hardware."""
    columns = [f"{one['hardware']}, {str(one['commit'])[:8]}" for one in measured]
    lines = [
        f"| time of | {' | '.join(columns)} |",
        "| --- " * (1 + len(columns)) + "|",
    ]
    for name in measured[0]["ratios"]:
        cells = [f"{one['ratios'][name]:.2f}" for one in measured]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and stores the ratios, and writes all stored ones into the README."""
    found = measure_all()
    STORE.mkdir(exist_ok=True)
    write_json(STORE / f"{found['backend']}.json", found)
    measured = [json.loads(path.read_text()) for path in sorted(STORE.glob("*.json"))]
    README.write_text(insert(README.read_text(), "speed", table(measured)))


if __name__ == "__main__":
    main()
