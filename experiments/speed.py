"""Training: the method beside plain Adam, and runs one by one beside runs at once.

No time depends on the data, which is random images.
"""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import optimizers, training
from experiments.config import Config
from experiments.data import Split
from experiments.networks import NETWORKS
from experiments.sweep import Numbers, runs_at_once
from experiments.timing import ratios, seconds

BATCH_SIZE, NUM_IMAGES = 100, 10_000


def random_images(number: int, size: int) -> Split:
    """Returns that many random square images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (number, size, size, 1), np.uint8)
    return Split(images, rng.integers(0, 10, number, np.int32))


def measure_step(config: Config, num_steps: int, num_turns: int) -> dict[str, float]:
    """Returns how many times longer an update takes than with plain Adam.

    With the method, and with plain Adam again.
    """
    data = random_images(NUM_IMAGES, 28)
    network, params = training.init_network(
        NETWORKS[config.network], (28, 28, 1), white=255, seed=0
    )

    def train(optimizer: optax.GradientTransformationExtraArgs) -> Callable[[], Any]:
        steps = training.make_train(
            network,
            optimizer,
            data,
            batch_size=BATCH_SIZE,
            num_steps=num_steps,
            seed=0,
            scale=config.scale,
        )
        state = training.init_state(params, optimizer, jnp.zeros([], jnp.int32))
        return lambda: steps(state)

    method = optimizers.pruning_optimizer(config, num_steps, NUM_IMAGES // BATCH_SIZE)
    functions = {"method": train(method), "again": train(optax.adam(1e-3))}
    return ratios(functions, train(optax.adam(1e-3)), num_turns)


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

    def timed(*runs: Numbers) -> float:
        together = jax.tree.map(lambda *values: jnp.stack(values), *runs)
        return seconds(lambda: runs_at_once(config, together, *images, 255))

    def ratio() -> float:
        at_once = timed(*numbers)
        return sum(timed(run) for run in numbers) / at_once

    ratio()  # compiles
    return statistics.median(ratio() for _ in range(num_turns))
