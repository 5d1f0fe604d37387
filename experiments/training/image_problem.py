"""Images to be classified."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.config import ExperimentError, ImageConfig
from experiments.data import Dataset, Split
from experiments.networks import NETWORKS
from experiments.networks.functional import Variables, init_network
from experiments.records import Row
from experiments.training import loop
from experiments.training.devices import Devices
from experiments.training.masks_at_init import snip_scores
from experiments.training.problem import Train


class ImageProblem:
    """The network of a configuration, to learn a data set of images.

    The data and the seed may be traced.

    Raises:
      ExperimentError: the batch is larger than the training set, or cannot be divided
        among the devices.
    """

    def __init__(self, config: ImageConfig, dataset: Dataset):
        train = dataset.train
        num_train = len(train.labels)
        if config.batch_size > num_train:
            raise ExperimentError(
                f"--batch-size must be {num_train} or less, the size of the training "
                f"set; got {config.batch_size}."
            )
        self.config = config
        self.dataset = dataset
        self.devices = Devices.choose(config)
        self.updates_per_epoch = num_train // config.batch_size
        self.digest: str | None = None
        self.network, self.variables = init_network(
            NETWORKS[config.network],
            train.images.shape[1:],
            dataset.white,
            config.seed,
            jnp.bfloat16 if config.bfloat16 else jnp.float32,
        )
        self.count_correct = self.make_count_correct(dataset.validation)
        self.num_validation = len(dataset.validation.labels)

    def adapt(
        self, optimizer: optax.GradientTransformationExtraArgs
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optimizer as it is."""
        return optimizer

    def make_train(
        self, optimizer: optax.GradientTransformationExtraArgs, *, per_example: bool
    ) -> Train:
        """Returns the function that makes the updates of a round, in one program."""
        config = self.config
        return loop.make_train(
            self.network,
            optimizer,
            self.dataset.train,
            batch_size=config.batch_size,
            num_steps=config.interval,
            seed=config.seed,
            scale=config.scale,
            per_example=per_example,
            shift=config.shift,
            mirror=config.mirror,
            devices=self.devices,
        )

    def saliency(self, variables: Variables) -> Any:
        """Returns |g * w| for the loss of one batch, norms infinite."""
        config = self.config
        return snip_scores(
            self.network,
            variables,
            self.dataset.train,
            config.batch_size,
            config.seed,
        )

    def make_count_correct(self, data: Split) -> Callable[[Any], jax.Array]:
        """Returns the function from variables to how many of `data` they get right."""
        return loop.make_count_correct(self.network, data, self.devices)

    def metric(self, variables: Variables) -> jax.Array:
        """Returns the validation accuracy, a float32."""
        return self.count_correct(variables) / self.num_validation

    def save(self, folder: Path) -> None:
        """Nothing belongs to a network but its arrays."""

    def test(self, dense: Variables, sparse: Variables) -> Row:
        """Returns both networks' accuracies on test set and validation split."""
        test = self.dataset.read_test()
        test_correct = self.make_count_correct(test)

        def accuracies(prefix: str, variables: Variables) -> Row:
            return {
                f"{prefix}test_accuracy": int(test_correct(variables))
                / len(test.labels),
                f"{prefix}validation_accuracy": int(self.count_correct(variables))
                / self.num_validation,
            }

        return {**accuracies("dense_", dense), **accuracies("", sparse)}
