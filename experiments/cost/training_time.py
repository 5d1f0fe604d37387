"""Training: the method beside plain Adam, and runs one by one beside runs at once.

No time depends on the data, which is random.
"""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.config import ImageConfig
from experiments.cost import timed_networks, torch_rivals
from experiments.cost.timing import ratios, seconds
from experiments.cost.updates import CHAIN
from experiments.data import Split
from experiments.networks import LeNet5, LeNet300, ResNet32
from experiments.networks.functional import Variables, init_network
from experiments.running.program import Numbers, runs_at_once
from experiments.training import loop

NUM_EXAMPLES = 10_000


class Task(NamedTuple):
    """What is trained when training is timed."""

    network: Any  # has `loss`
    variables: Variables
    data: Split
    batch_size: int
    num_steps: int  # of one call


def random_images(number: int, size: int, channels: int = 1) -> Split:
    """Returns that many random square images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (number, size, size, channels), np.uint8)
    return Split(images, rng.integers(0, 10, number, np.int32))


def lenet300() -> Task:
    """LeNet-300-100 on images like those of MNIST."""
    network, variables = init_network(LeNet300, (28, 28, 1), white=255, seed=0)
    return Task(network, variables, random_images(NUM_EXAMPLES, 28), 100, 500)


def lenet5() -> Task:
    """LeNet-5 on images like those of MNIST."""
    network, variables = init_network(LeNet5, (28, 28, 1), white=255, seed=0)
    return Task(network, variables, random_images(NUM_EXAMPLES, 28), 100, 50)


def resnet32() -> Task:
    """ResNet-32 on images like those of CIFAR."""
    network, variables = init_network(ResNet32, (32, 32, 3), white=255, seed=0)
    return Task(network, variables, random_images(1_000, 32, channels=3), 100, 2)


def transformer() -> Task:
    """A language model of two layers on sentences of 32 tokens."""
    rng = np.random.default_rng(0)
    words = timed_networks.LanguageModel.VOCABULARY
    tokens = rng.integers(0, words, (NUM_EXAMPLES, 33), np.int32)
    network, variables = timed_networks.split(timed_networks.LanguageModel(nnx.Rngs(0)))
    return Task(network, variables, Split(tokens[:, :-1], tokens[:, 1:]), 32, 10)


TASKS = {
    "LeNet-300-100": lenet300,
    "LeNet-5": lenet5,
    "ResNet-32": resnet32,
    "a 2-layer transformer": transformer,
}


def trainer(
    task: Task, optimizer: optax.GradientTransformationExtraArgs
) -> Callable[[], Any]:
    """Returns the function that trains from the start."""
    train = loop.make_train(
        *(task.network, optimizer, task.data),
        batch_size=task.batch_size,
        num_steps=task.num_steps,
        seed=0,
        scale=1.0,
    )
    state = loop.init_state(task.variables, optimizer, jnp.zeros([], jnp.int32))
    return lambda: train(state)


def measure_training(task: Task, turns: int) -> dict[str, float]:
    """Returns the times of training to that of training with plain Adam.

    With the method, and with plain Adam again.
    """
    adam = optax.adam(1e-3)
    functions = {"method": trainer(task, CHAIN), "again": trainer(task, adam)}
    return ratios(functions, trainer(task, adam), turns)


def measure_beside_torch(turns: int) -> dict[str, float]:
    """Returns the times of regularized training of LeNet-5, medians.

    Ours to that of PyTorch, and that of PyTorch to its own plain one.
    """
    task = lenet5()

    def theirs(strength: float | None) -> Callable[[], Any]:
        return torch_rivals.make_train(
            task.data,
            batch_size=task.batch_size,
            num_steps=task.num_steps,
            strength=strength,
        )

    regularized = theirs(1e-4)
    ours = ratios({"ours": trainer(task, CHAIN)}, regularized, turns)
    return {**ours, **ratios({"theirs": regularized}, theirs(None), turns)}


def measure_at_once(
    config: ImageConfig, size: int, num_runs: int, num_turns: int
) -> float:
    """Returns how many times longer runs take one by one than at once, a median.

    Every run is one compiled program in both cases, and compilation is left out.
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
