"""Two ratios of times: the method to plain Adam, and runs one by one to runs at once.

    python -m experiments.speed

What is compared is measured by turns, on random images: no time depends on the data.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from experiments import digits, lenet5_fashion, lenet300_mnist, optimizers, training
from experiments.config import Config
from experiments.data import Split
from experiments.networks import NETWORKS
from experiments.sweep import Numbers, runs_at_once

BATCH_SIZE, NUM_IMAGES = 100, 10_000


def random_images(number: int, size: int) -> Split:
    """Returns that many random square images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (number, size, size, 1), np.uint8)
    return Split(images, rng.integers(0, 10, number, np.int32))


def measure(config: Config, num_steps: int, num_turns: int) -> tuple[float, float]:
    """Returns the updates a second with the method and with plain Adam: medians."""
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

        def updates_per_second() -> float:
            start = time.perf_counter()
            jax.block_until_ready(train(state))
            return num_steps / (time.perf_counter() - start)

        return updates_per_second

    method = optimizers.pruning_optimizer(config, num_steps, NUM_IMAGES // BATCH_SIZE)
    timers = timer(method), timer(optax.adam(1e-3))
    turns = [[run() for run in timers] for _ in range(num_turns)]
    with_method, plain = map(statistics.median, zip(*turns, strict=True))
    return with_method, plain


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


def main() -> None:
    """Prints both comparisons."""
    table = Table(title=f"Updates a second, batch {BATCH_SIZE}")
    for column in ("network", "with the method", "plain Adam", "ratio of times"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for config, num_steps in (
        (lenet300_mnist.CONFIG, 500),
        (lenet5_fashion.CONFIG, 50),
    ):
        method, plain = measure(config, num_steps, num_turns=7)
        table.add_row(
            config.network, f"{method:.1f}", f"{plain:.1f}", f"{plain / method:.2f}"
        )
    together = Table(title="Runs one by one and at once")
    for column in ("network and images", "runs", "ratio of times"):
        together.add_column(column, justify="right")
    for config, size in ((digits.CONFIG, 8), (lenet300_mnist.CONFIG, 28)):
        for num_runs in (2, 8):
            ratio = measure_at_once(config, size, num_runs, num_turns=5)
            name = f"{config.network}, {size}x{size}"
            together.add_row(name, str(num_runs), f"{ratio:.2f}")
    Console().print(table, together)


if __name__ == "__main__":
    main()
