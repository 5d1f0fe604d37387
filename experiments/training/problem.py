"""What a run is about: a network, the data it learns, and how good it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import optax

from experiments.networks.functional import Variables
from experiments.records import Row
from experiments.training.devices import Devices
from experiments.training.loop import TrainState

Train = Callable[[TrainState], TrainState]


class Problem(Protocol):
    """What the phases of a run need to know about the data and the network.

    Attributes:
      variables: the network's initial arrays.
      devices: where it computes.
      updates_per_epoch: how many it takes to go once through the training set.
      digest: of what is learnt from, or None where that is not verified.
    """

    variables: Variables
    devices: Devices
    updates_per_epoch: int
    digest: str | None

    def adapt(
        self, optimizer: optax.GradientTransformationExtraArgs
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optimizer as `make_train` makes updates with it."""
        ...

    def make_train(
        self, optimizer: optax.GradientTransformationExtraArgs, *, per_example: bool
    ) -> Train:
        """Returns the function that makes the updates of a round."""
        ...

    def saliency(self, variables: Variables) -> Any:
        """Returns |g * w| for the loss of one batch, infinity for norms."""
        ...

    def metric(self, variables: Variables) -> float | jax.Array:
        """Returns the validation metric."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what belongs to a network, besides its arrays, into a folder."""
        ...

    def test(self, dense: Variables, sparse: Variables) -> Row:
        """Measures both networks, also on the test set, which is read here alone."""
        ...
