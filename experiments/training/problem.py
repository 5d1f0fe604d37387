"""The problem that a run solves: a network, its data and its metric."""

import abc
from collections.abc import Callable
from typing import Any

import jax

import sparse_optax
from experiments.networks.functional import Variables
from experiments.records import Row
from experiments.training import Optimizer
from experiments.training.devices import Devices
from experiments.training.loop import TrainState

Train = Callable[[TrainState], TrainState]  # makes the updates of a round


class Problem(abc.ABC):
    """What the phases of a run need to know about the data and the network."""

    variables: Variables  # the initial ones
    devices: Devices
    updates_per_epoch: int
    digest: str | None = None  # of the training texts
    files: dict[str, bytes]  # what a network needs besides its arrays

    def adapt(self, optimizer: Optimizer) -> Optimizer:
        """Returns the optimizer that `make_train` calls."""
        return optimizer

    @abc.abstractmethod
    def make_train(self, optimizer: Optimizer, *, per_example: bool) -> Train:
        """Returns the function that makes the updates of a round."""

    @abc.abstractmethod
    def gradients_at(self, variables: Variables, step: jax.Array) -> Any:
        """Returns the gradients of the loss on one batch, which differs by step."""

    @abc.abstractmethod
    def metric(self, variables: Variables) -> float | jax.Array:
        """Returns the validation metric."""

    @abc.abstractmethod
    def logits(self, variables: Variables, *inputs: jax.Array) -> jax.Array:
        """Returns the logits of a network for inputs like those of `examples`."""

    @abc.abstractmethod
    def examples(self, number: int) -> tuple[jax.Array, ...]:
        """Returns the inputs of up to `number` examples."""

    def compact(self, variables: Variables) -> sparse_optax.Compacted:
        """Returns a network without the units that nothing reads."""
        # Without a check: an error at the end would cost a run its summary.
        return sparse_optax.compact(
            self.logits, variables, *self.examples(1), check=False
        )

    def units(self) -> sparse_optax.ChannelGroups:
        """Returns which weights belong to the same units."""
        params, statistics = self.variables
        return sparse_optax.channel_groups(
            lambda params, *inputs: self.logits(Variables(params, statistics), *inputs),
            *(params, *self.examples(1)),
        )

    @abc.abstractmethod
    def test(self, dense: Variables, sparse: Variables) -> Row:
        """Measures both networks; only this reads the test set."""
