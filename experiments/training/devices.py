"""Where a run computes: on one device, or on all there are, each a part of a batch."""

from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from experiments.config import Config, ExperimentError

AXIS = "data"


class Devices(NamedTuple):
    """The devices of a run.

    Attributes:
      mesh: of all devices in a row, or None for the one that JAX takes by default.
    """

    mesh: Mesh | None

    @classmethod
    def choose(cls, config: Config) -> "Devices":
        """Returns all devices there are, or one, as the run wants it.

        Raises:
          ExperimentError: a batch cannot be divided among them.
        """
        if not config.data_parallel:
            return ONE
        number = jax.device_count()
        if config.batch_size % number:
            raise ExperimentError(
                f"--batch-size must be a multiple of {number}, the number of devices; "
                f"got {config.batch_size}."
            )
        return cls(jax.make_mesh((number,), (AXIS,), axis_types=(AxisType.Auto,)))

    @property
    def number(self) -> int:
        """How many they are."""
        return 1 if self.mesh is None else self.mesh.size

    def split(self, batch: Any) -> Any:
        """Divides arrays `[B, ...]` of a batch evenly: to be called within `jit`."""
        return self._lay(batch, P(AXIS))

    def replicate(self, tree: Any) -> Any:
        """Gives every device the whole of a tree."""
        return self._lay(tree, P())

    def _lay(self, tree: Any, spec: P) -> Any:
        if self.mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, spec))


ONE = Devices(None)
