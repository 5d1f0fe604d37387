"""Training speed with the method, next to plain Adam on the same network.

    python -m experiments.speed

Both are measured by turns, on random images: the time does not depend on the data.
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from experiments import lenet5_fashion, lenet300_mnist, optimizers, training
from experiments.config import Config
from experiments.data import Split
from experiments.networks import NETWORKS

BATCH_SIZE, NUM_IMAGES = 100, 10_000


def measure(config: Config, num_steps: int, num_turns: int) -> tuple[float, float]:
    """Returns the updates a second with the method and with plain Adam: medians."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, 28, 28, 1), np.uint8)
    data = Split(images, rng.integers(0, 10, NUM_IMAGES, np.int32))
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


def main() -> None:
    """Prints the updates a second of both networks."""
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
    Console().print(table)


if __name__ == "__main__":
    main()
