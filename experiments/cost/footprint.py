"""Compiles pruning steps of large networks for many devices, and reports their memory.

This needs neither devices nor memory: XLA compiles the program of each device, and
nothing is allocated.
"""

import dataclasses
import math
import re
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import sparse_optax
from experiments.cost.measurement import Measurement
from experiments.pages.tables import markdown
from experiments.records import Row
from experiments.running.environment import environment
from experiments.settings import check, setting

OPTIMIZER = sparse_optax.relevance_pruning(optax.adam(1e-3), 1e-4, mask=None)
# Of the loop in a pruning step: 32 bits of a bound and 38 of a position, 2 per pass.
MOST_PASSES = 35


@dataclasses.dataclass(frozen=True)
class Settings(Measurement):
    """Compiles pruning steps of large networks, and reports what each device needs."""

    devices: tuple[int, ...] = setting((8, 512), "[1, 2048]")
    """Numbers of devices."""

    def validate(self) -> None:
        super().validate()
        sound = all(n in (1, 2, 4) or n % 8 == 0 for n in self.devices)
        check("devices", self.devices, sound, "1, 2, 4 or multiples of 8")


class Decoder(NamedTuple):
    layers: int
    width: int
    keys: int  # features of the keys of a token, and of its values
    hidden: int
    vocabulary: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every leaf; layers are stacked, for a scan over them."""
        layers, width = self.layers, self.width
        return {
            "embedding": (self.vocabulary, width),
            "query": (layers, width, width),
            "key": (layers, width, self.keys),
            "value": (layers, width, self.keys),
            "attended": (layers, width, width),
            "gate": (layers, width, self.hidden),
            "up": (layers, width, self.hidden),
            "down": (layers, self.hidden, width),
            "output": (width, self.vocabulary),
        }


# With one billion weights, and with seventy billion.
DECODERS = (
    Decoder(16, 2048, 512, 8192, 32_000),
    Decoder(80, 8192, 1024, 28_672, 32_000),
)


def main(settings: Settings) -> None:
    settings.store("footprint", lambda: measure(settings.devices))


def measure(devices: tuple[int, ...]) -> Row:
    """Returns what a pruning step needs, for each decoder and number of devices."""
    # Creates virtual devices; this must come before the first use of JAX.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(devices))
    found = {**environment(), "rows": []}
    for decoder in DECODERS:
        found["rows"] += [measure_prune(decoder, number) for number in devices]
    print(show(found))
    return found


def measure_prune(decoder: Decoder, num_devices: int) -> Row:
    """Returns how many bytes a pruning step needs on each device."""
    compiled = compile_prune(decoder, num_devices)
    memory = cast(Any, compiled.memory_analysis())
    return {
        "weights": sum(math.prod(shape) for shape in decoder.shapes().values()),
        "devices": num_devices,
        "given": memory.argument_size_in_bytes,
        "returned": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "exchanged": exchanged(compiled.as_text() or "") * MOST_PASSES,
    }


def compile_prune(decoder: Decoder, num_devices: int) -> jax.stages.Compiled:
    """Compiles a pruning step, with every matrix sharded along both of its axes."""
    columns = math.gcd(num_devices, 8)
    mesh = jax.make_mesh(
        (num_devices // columns, columns),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[:num_devices],
    )

    def lay_out(shape: tuple[int, ...], dtype: Any, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def divided(x: Any) -> jax.ShapeDtypeStruct:
        stacked = (None,) * (len(x.shape) - 2)
        return lay_out(x.shape, x.dtype, P(*stacked, *mesh.axis_names))

    params = {
        name: divided(jax.ShapeDtypeStruct(shape, jnp.float32))
        for name, shape in decoder.shapes().items()
    }
    state = optax.tree.map_params(
        OPTIMIZER,
        divided,
        jax.eval_shape(OPTIMIZER.init, params),
        transform_non_params=lambda x: lay_out(x.shape, x.dtype, P()),
    )
    run = params, state
    with jax.set_mesh(mesh):
        shardings = jax.tree.map(lambda x: x.sharding, run)
        program = jax.jit(sparse_optax.prune, out_shardings=shardings)
        return program.lower(*run, 0.1).compile()


def exchanged(program: str) -> int:
    """Returns the bytes that a device exchanges in a program.

    Each loop counts once, and so does each number, however often it is forwarded.
    """
    found = 0
    kinds = r"all-gather|all-reduce|all-to-all|reduce-scatter|collective-\w+"
    pattern = rf"= (\S+|\(.*?\)) (?:ragged-)?(?:{kinds})(?:-start)?\("
    for results in re.findall(pattern, program):
        # As in (u32[80], f32[2,3], pred[]); a pred takes one byte.
        for bits, shape in re.findall(r"[a-z]+(\d*)\[([\d,]*)\]", results):
            size = math.prod(int(n) for n in shape.split(",") if n)
            found += size * int(bits or 8) // 8
    return found


def show(found: Row) -> str:
    return markdown(
        {
            "weights": f"{row['weights'] / 1e9:.1f}B",
            "devices": str(row["devices"]),
            "weights, moments, masks": f"{row['given'] / 1e6:,.0f} MB",
            "the same, returned": f"{row['returned'] / 1e6:,.0f} MB",
            "temporaries": f"{row['temporaries'] / 1e6:,.0f} MB",
            "exchanged": f"{row['exchanged'] / 1e3:,.1f} kB",
        }
        for row in found["rows"]
    )
