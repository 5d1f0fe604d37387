"""The devices of a run: one, or all of them, with each batch split among them."""

from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from experiments.config import Config
from experiments.settings import check

AXIS = "data"


class Devices(NamedTuple):
    mesh: Mesh | None  # of all devices in a row, or None for the default device

    @classmethod
    def choose(cls, config: Config) -> "Devices":
        """Returns all devices if `config` is data-parallel, or one."""
        if not config.data_parallel:
            return ONE
        number = jax.device_count()
        wanted = f"a multiple of {number}, the number of devices"
        check("batch_size", config.batch_size, config.batch_size % number == 0, wanted)
        return cls(jax.make_mesh((number,), (AXIS,), axis_types=(AxisType.Auto,)))

    @property
    def number(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    def split(self, batch: Any) -> Any:
        """Divides arrays `[B, ...]` of a batch evenly; call it inside `jit`."""
        return self._lay(batch, P(AXIS))

    def replicate(self, tree: Any) -> Any:
        """Replicates a tree on every device."""
        return self._lay(tree, P())

    def _lay(self, tree: Any, spec: P) -> Any:
        if self.mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, spec))


ONE = Devices(None)
