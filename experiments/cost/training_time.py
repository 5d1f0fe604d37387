"""Times of training: with the method, and of many runs at once, on random data."""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import ImageConfig
from experiments.cost import torch_rivals
from experiments.cost.measurement import ratios, seconds
from experiments.cost.steps import CHAIN
from experiments.data.batches import Batch
from experiments.data.images import Split
from experiments.networks import LeNet5, LeNet300, ResNet20
from experiments.networks.encoder_decoder import Shape
from experiments.networks.functional import Variables, init_network
from experiments.networks.seq2seq import Seq2Seq, init_seq2seq
from experiments.running.program import Numbers, runs_at_once
from experiments.tasks import digits
from experiments.training import Optimizer, loop

NUM_EXAMPLES = 10_000


class Task(NamedTuple):
    network: Any  # has `loss`
    variables: Variables
    data: Split
    batch_size: int
    num_steps: int  # per call


def random_images(number: int, size: int, channels: int = 1) -> Split:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (number, size, size, channels), np.uint8)
    return Split(images, rng.integers(0, 10, number, np.int32))


def image_task(network: Any, data: Split, num_steps: int) -> Task:
    found = init_network(network, data.images.shape[1:], white=255, seed=0)
    return Task(*found, data, 100, num_steps)


class Transformer(NamedTuple):
    network: Seq2Seq

    def loss(
        self, params: Any, statistics: Any, sources: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, Any]:
        return self.network.loss(params, Batch(sources, targets)), statistics


def transformer() -> Task:
    shape = Shape(8_000, 8_000, True, 2, 256, 1024, 4, 32, 31)
    network, params = init_seq2seq(shape, 0.1, seed=0)
    rng = np.random.default_rng(0)
    pairs = rng.integers(4, 8_000, (2, NUM_EXAMPLES, 32), np.int32)
    return Task(Transformer(network), Variables(params, {}), Split(*pairs), 32, 10)


TASKS: dict[str, Callable[[], Task]] = {
    "LeNet-300-100": lambda: image_task(LeNet300, random_images(NUM_EXAMPLES, 28), 500),
    "LeNet-5": lambda: image_task(LeNet5, random_images(NUM_EXAMPLES, 28), 50),
    "ResNet-20": lambda: image_task(ResNet20, random_images(1_000, 32, 3), 2),
    "a 2-layer transformer": transformer,
}


def trainer(task: Task, optimizer: Optimizer) -> Callable[[], Any]:
    config = dataclasses.replace(
        digits.CONFIG, batch_size=task.batch_size, interval=task.num_steps, scale=1.0
    )
    train = loop.make_train(config, task.network, optimizer, task.data)
    state = loop.init_state(task.variables, optimizer)
    return lambda: train(state)


def measure_training(task: Task, turns: int) -> dict[str, float]:
    """Returns the times with the method and again with Adam, relative to Adam."""
    adam = optax.adam(1e-3)
    functions = {"method": trainer(task, CHAIN), "again": trainer(task, adam)}
    return ratios(functions, trainer(task, adam), turns)


def measure_beside_torch(turns: int) -> dict[str, float]:
    """Returns the times of regularized training of LeNet-5.

    Our time is relative to PyTorch; PyTorch's is relative to its own plain training.
    """
    task = TASKS["LeNet-5"]()
    plain, regularized = (
        torch_rivals.make_train(task.data, task.batch_size, task.num_steps, strength)
        for strength in (None, 1e-4)
    )
    ours = ratios({"ours": trainer(task, CHAIN)}, regularized, turns)
    return ours | ratios({"theirs": regularized}, plain, turns)


def measure_at_once(
    config: ImageConfig, size: int, num_runs: int, num_turns: int
) -> float:
    """Returns how many times longer runs take one by one than at once (a median).

    Every run is one compiled program in both cases; compilation is left out.
    """
    images = random_images(1_000, size), random_images(500, size)
    config = dataclasses.replace(
        config, dense_epochs=5, epochs=20, finetune_epochs=5, interval=20
    )
    scalars = Numbers(*(jnp.asarray(getattr(config, name)) for name in Numbers._fields))
    numbers = [scalars._replace(seed=jnp.asarray(seed)) for seed in range(num_runs)]

    def timed(*runs: Numbers) -> float:
        together = jax.tree.map(lambda *values: jnp.stack(values), *runs)
        return seconds(lambda: runs_at_once(config, together, *images, 255))

    def ratio() -> float:
        at_once = timed(*numbers)
        return sum(timed(run) for run in numbers) / at_once

    ratio()  # compiles
    return statistics.median(ratio() for _ in range(num_turns))
