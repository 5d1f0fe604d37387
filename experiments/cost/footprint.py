"""Tells what a prune would take of many devices, and writes it into the README.

    python -m experiments footprint

Neither devices nor memory are needed: this machine pretends to have as many, XLA
compiles the program that each of them would run, and nothing is allocated.
"""

import math
import re
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

import sparse_optax
from experiments.cost.settings import Footprint
from experiments.reporting.place import Place
from experiments.running.environment import environment

OPTIMIZER = sparse_optax.relevance_pruning(optax.adam(1e-3), 1e-4, mask=None)
# Of any loop in a prune: it finds a number of up to 32 bits, two in a pass.
MOST_PASSES = 16


class Decoder(NamedTuple):
    """The sizes of a language model."""

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


DECODERS = {
    "1B": Decoder(16, 2048, 512, 8192, 32_000),
    "70B": Decoder(80, 8192, 1024, 28_672, 32_000),
}


def lay_out(decoder: Decoder, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the weights, every matrix divided along both of its axes."""

    def leaf(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        spec = P(*(None,) * (len(shape) - 2), *mesh.axis_names)
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    return {name: leaf(shape) for name, shape in decoder.shapes().items()}


def compile_prune(decoder: Decoder, num_devices: int) -> jax.stages.Compiled:
    """Returns the program that prunes a network on so many devices."""
    columns = math.gcd(num_devices, 8)
    mesh = jax.make_mesh(
        (num_devices // columns, columns),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[:num_devices],
    )
    params = lay_out(decoder, mesh)
    state = optax.tree.map_params(
        OPTIMIZER,
        lambda x, w: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=w.sharding),
        jax.eval_shape(OPTIMIZER.init, params),
        params,
        transform_non_params=lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, P())
        ),
    )
    run = params, state
    with jax.set_mesh(mesh):
        program = jax.jit(
            sparse_optax.prune, out_shardings=jax.tree.map(lambda x: x.sharding, run)
        )
        return program.lower(*run, 0.1).compile()


def exchanged(program: str) -> dict[str, int]:
    """Returns the bytes that a device has to tell others, by kind of exchange.

    Those of the numbers themselves: how often they are sent on is for the network to
    choose. Of a compiled program, each of whose loops is gone through once.
    """
    found: dict[str, int] = {}
    kinds = r"all-gather|all-reduce|all-to-all|reduce-scatter|collective-\w+"
    pattern = rf"= (\S+|\(.*?\)) ((?:ragged-)?(?:{kinds}))(?:-start)?\("
    for line in program.splitlines():
        if match := re.search(pattern, line):
            # As in (u32[80], f32[2,3], pred[]), the last of which is of bytes.
            for bits, shape in re.findall(r"[a-z]+(\d*)\[([\d,]*)\]", match[1]):
                size = math.prod(int(n) for n in shape.split(",") if n)
                found.setdefault(match[2], 0)
                found[match[2]] += size * int(bits or 8) // 8
    return found


def measure(decoder: Decoder, num_devices: int) -> dict[str, Any]:
    """Returns what a prune takes of each of so many devices, in bytes."""
    compiled = compile_prune(decoder, num_devices)
    memory = cast(Any, compiled.memory_analysis())
    told = exchanged(compiled.as_text() or "")
    weights = sum(math.prod(shape) for shape in decoder.shapes().values())
    return {
        "weights": weights,
        "devices": num_devices,
        "given": memory.argument_size_in_bytes,
        "returned": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "kinds": sorted(told),
        "exchanged": sum(told.values()) * MOST_PASSES,
    }


def table(measured: list[dict[str, Any]]) -> str:
    """Returns a Markdown table."""
    lines = [
        "| weights | devices | weights, moments, masks | the same, returned "
        "| temporaries | exchanged |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in (row for one in measured for row in one["rows"]):
        cells = (
            f"{row['weights'] / 1e9:.1f}B",
            str(row["devices"]),
            f"{row['given'] / 1e6:,.0f} MB",
            f"{row['returned'] / 1e6:,.0f} MB",
            f"{row['temporaries'] / 1e6:,.0f} MB",
            f"{row['exchanged'] / 1e3:,.1f} kB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def pretend(num_devices: int) -> None:
    """Has JAX, before it is first asked, take this machine for so many devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num_devices)


def footprint(settings: Footprint) -> None:
    """Compiles and stores, and writes what came out into the README."""
    place = Place("footprint", settings.out)
    pretend(max(settings.devices))
    rows = [
        measure(decoder, number)
        for decoder in DECODERS.values()
        for number in settings.devices
    ]
    found = {**environment(), "rows": rows}
    print(table([found]))
    place.write(found, table)
