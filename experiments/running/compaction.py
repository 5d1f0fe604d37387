"""The networks of runs without the units that nothing reads: small dense ones."""

import dataclasses
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import sparse_optax
from experiments.data.images import FORMATS
from experiments.networks import NETWORKS
from experiments.networks.functional import Variables, init_network
from experiments.records import Row, write_whole
from experiments.running.checkpoint import named_leaves
from experiments.settings import ExperimentError

WEIGHTS, PROGRAM = "compacted.safetensors", "compacted.stablehlo"
PLATFORMS = "cpu", "cuda", "tpu"


def sizes(compacted: sparse_optax.Compacted) -> Row:
    """Returns the sizes of a network before and after, as JSON data."""
    before, after = compacted.total
    return {"before": dataclasses.asdict(before), "after": dataclasses.asdict(after)}


def compact(summary: Row, network: Variables) -> sparse_optax.Compacted:
    """Returns the network of a finished run on images, compacted."""
    name, dataset = summary["network"], summary["dataset"]
    if dataset not in FORMATS:
        raise ExperimentError(
            f"only networks of images can be compacted here; {name} on {dataset} is "
            "another one."
        )
    shape, white = FORMATS[dataset]
    dtype = jnp.bfloat16 if summary.get("bfloat16") else jnp.float32
    functional, like = init_network(NETWORKS[name], shape, white, 0, dtype)
    # Checkpoints have the names of leaves, not their tree.
    leaves = named_leaves(network)
    ordered = [leaves[name] for name in named_leaves(like)]
    variables = jax.tree.unflatten(jax.tree.structure(like), ordered)
    images = np.random.default_rng(0).integers(0, white + 1, (1, *shape), np.uint8)
    return sparse_optax.compact(functional.logits, variables, images)


def check_can_write() -> None:
    if find_spec("flatbuffers") is None:
        raise ExperimentError("--compact needs a package: pip install flatbuffers")


def write(folder: Path, compacted: sparse_optax.Compacted, dataset: str) -> Row:
    """Writes the weights, and the program that computes logits with them inside.

    Returns:
        The sizes of the files, in bytes, by name.
    """
    state = compacted.state()
    state["params"] = compacted.params._asdict()
    sparse_optax.save_sparse(folder / WEIGHTS, state)
    write_whole(folder / PROGRAM, program(compacted, FORMATS[dataset].shape))
    return {name: (folder / name).stat().st_size for name in (WEIGHTS, PROGRAM)}


def program(
    compacted: sparse_optax.Compacted, image_shape: tuple[int, int, int]
) -> bytes:
    """Returns a program from uint8 images `[B, H, W, C]` to logits `[B, K]`.

    B may be any number. `jax.export.deserialize(content).call(images)` runs it, on the
    platforms that it is made for, without any other package.
    """
    (number,) = jax.export.symbolic_shape("B")
    images = jax.ShapeDtypeStruct((number, *image_shape), jnp.uint8)
    logits = jax.jit(lambda images: compacted.apply(compacted.params, images))
    exported = jax.export.export(logits, platforms=PLATFORMS)(images)
    return bytes(exported.serialize())
