"""Image classification."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.config import ImageConfig
from experiments.data.images import Dataset, Split
from experiments.networks import NETWORKS
from experiments.networks.functional import Variables, init_network
from experiments.records import Row
from experiments.settings import check
from experiments.training import Optimizer, loop
from experiments.training.devices import Devices
from experiments.training.problem import Problem, Train

BATCHES = 2**29  # folded into the seed, together with a step


class ImageProblem(Problem):
    """The network of a configuration and a data set, whose arrays may be traced."""

    def __init__(self, config: ImageConfig, dataset: Dataset):
        size = len(dataset.train.labels)
        wanted = f"{size} or less, the size of the training set"
        check("batch_size", config.batch_size, config.batch_size <= size, wanted)
        self.config = config
        self.dataset = dataset
        self.devices = Devices.choose(config)
        self.files = {}
        self.updates_per_epoch = size // config.batch_size
        self.network, self.variables = init_network(
            NETWORKS[config.network],
            dataset.train.images.shape[1:],
            dataset.white,
            config.seed,
            jnp.bfloat16 if config.bfloat16 else jnp.float32,
        )
        self.count_correct = self.make_count_correct(dataset.validation)
        self.num_validation = len(dataset.validation.labels)

    def make_train(self, optimizer: Optimizer, *, per_example: bool) -> Train:
        what = self.config, self.network, optimizer, self.dataset.train
        return loop.make_train(*what, per_example=per_example, devices=self.devices)

    def gradients_at(self, variables: Variables, step: jax.Array) -> Any:
        data, key = self.dataset.train, jax.random.key(self.config.seed)
        order = jax.random.permutation(
            jax.random.fold_in(key, BATCHES + step), len(data.labels)
        )
        batch = order[: self.config.batch_size]
        images, labels = (jnp.asarray(x)[batch] for x in data)
        gradient = jax.grad(self.network.loss, has_aux=True)
        return gradient(*variables, images, labels)[0]

    def make_count_correct(self, data: Split) -> Callable[[Any], jax.Array]:
        return loop.make_count_correct(self.network, data, self.devices)

    def metric(self, variables: Variables) -> jax.Array:
        return self.count_correct(variables) / self.num_validation

    def logits(self, variables: Variables, *inputs: jax.Array) -> jax.Array:
        return self.network.logits(variables, *inputs)

    def examples(self, number: int) -> tuple[jax.Array, ...]:
        return (jnp.asarray(self.dataset.validation.images[:number]),)

    def test(self, dense: Variables, sparse: Variables) -> Row:
        test, found = self.dataset.read_test(), {}
        test_correct = self.make_count_correct(test)
        for prefix, variables in (("dense_", dense), ("", sparse)):
            correct = int(test_correct(variables))
            found[f"{prefix}test_accuracy"] = correct / len(test.labels)
            correct = int(self.count_correct(variables))
            found[f"{prefix}validation_accuracy"] = correct / self.num_validation
        return found
