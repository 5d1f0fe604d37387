"""Compacts the networks of runs: smaller dense ones, without unread units."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import sparse_optax
from experiments.cost.measurement import ratios
from experiments.data.images import FORMATS
from experiments.networks import NETWORKS
from experiments.networks.encoder_decoder import Shape
from experiments.networks.functional import Variables, init_network
from experiments.networks.seq2seq import init_seq2seq
from experiments.records import Row, write_whole
from experiments.running.checkpoint import named_leaves
from experiments.settings import ExperimentError

WEIGHTS, PROGRAM = "compacted.safetensors", "compacted.stablehlo"
PLATFORMS = "cpu", "cuda", "tpu"
TIMED_BATCH = 256
Inputs = tuple[np.ndarray, ...]  # of an example: an image, or the tokens of two texts


class Runnable(NamedTuple):
    """A network of a run, and the function that computes its logits."""

    logits: Callable[..., jax.Array]  # from variables and inputs
    variables: Variables
    random_inputs: Callable[[int], Inputs]  # from the number of examples
    # From variables and sources to the tokens of greedy decoding; None for images.
    write: Callable[..., jax.Array] | None = None


def sizes(compacted: sparse_optax.Compacted) -> Row:
    """Returns the sizes of a network before and after, as JSON data."""
    before, after = compacted.total
    return {"before": before._asdict(), "after": after._asdict()}


def time_ratio(
    logits: Callable[..., jax.Array],
    variables: Variables,
    compacted: sparse_optax.Compacted,
    examples: tuple[jax.Array, ...],
) -> float:
    """Returns the time that the smaller network takes, relative to the original."""
    given, smaller = jax.jit(logits), jax.jit(compacted.apply)
    found = ratios(
        {"smaller": lambda: smaller(compacted.params, *examples)},
        lambda: given(variables, *examples),
        turns=21,
    )
    return found["smaller"]


def runnable(summary: Row, network: Variables) -> Runnable:
    """Returns a network of a finished run as a function."""
    make = of_images if summary["network"] in NETWORKS else of_texts
    found = make(summary, network)
    # Checkpoints have the names of leaves, not their tree.
    leaves, like = named_leaves(network), found.variables
    ordered = [leaves[name] for name in named_leaves(like)]
    variables = jax.tree.unflatten(jax.tree.structure(like), ordered)
    return found._replace(variables=variables)


def of_images(summary: Row, network: Variables) -> Runnable:
    del network
    shape, white = FORMATS[summary["dataset"]]
    make = NETWORKS[summary["network"]]
    functional, variables = init_network(make, shape, white, 0, dtype_of(summary))

    def random_inputs(number: int) -> Inputs:
        rng = np.random.default_rng(0)
        return (rng.integers(0, white + 1, (number, *shape), np.uint8),)

    return Runnable(functional.logits, variables, random_inputs)


def of_texts(summary: Row, network: Variables) -> Runnable:
    params = network.params
    of_target = params["embedding"]["embedding"]
    of_source = params.get("source_embedding", params["embedding"])["embedding"]
    positions = (
        params[side]["positions"]["embedding"]["embedding"]
        for side in ("encoder", "decoder")
    )
    longest = [len(table) for table in positions]
    shape = Shape(
        source_vocabulary=len(of_source),
        target_vocabulary=len(of_target),
        shared="source_embedding" not in params,
        layers=summary["num_layers"],
        features=summary["features"],
        hidden=summary["hidden"],
        heads=summary["heads"],
        source_positions=longest[0],
        target_positions=longest[1],
    )
    functional, like = init_seq2seq(
        shape, summary["label_smoothing"], 0, dtype_of(summary)
    )

    def logits(variables: Variables, source: jax.Array, target: jax.Array) -> jax.Array:
        return functional.logits(variables.params, source, target)

    def write(variables: Variables, source: jax.Array) -> jax.Array:
        return functional.write(variables.params, source, longest[1], 1, 0.0)

    def random_inputs(number: int) -> Inputs:
        rng = np.random.default_rng(0)  # no padding, which is among the first tokens
        tokens = [
            rng.integers(len(table) // 2, len(table), (number, length), np.int32)
            for table, length in zip((of_source, of_target), longest, strict=True)
        ]
        return tuple(tokens)

    return Runnable(logits, Variables(like, {}), random_inputs, write)


def dtype_of(summary: Row) -> Any:
    return jnp.bfloat16 if summary.get("bfloat16") else jnp.float32


def compact(network: Runnable) -> sparse_optax.Compacted:
    inputs = network.random_inputs(1)
    return sparse_optax.compact(network.logits, network.variables, *inputs)


def check_can_write() -> None:
    if find_spec("flatbuffers") is None:
        raise ExperimentError("--compact needs a package: pip install flatbuffers")


def write(folder: Path, network: Runnable, compacted: sparse_optax.Compacted) -> Row:
    """Writes the weights, and a program that contains them and computes logits.

    Returns:
        The sizes of the files, in bytes, by name.
    """
    sparse_optax.save_sparse(folder / WEIGHTS, compacted.state())
    write_whole(folder / PROGRAM, program(compacted, network.random_inputs(1)))
    return {name: (folder / name).stat().st_size for name in (WEIGHTS, PROGRAM)}


def program(compacted: sparse_optax.Compacted, example: Inputs) -> bytes:
    """Returns a program from the inputs of any number of examples to logits.

    `jax.export.deserialize(content).call(*inputs)` runs it on any of the `PLATFORMS`,
    without other packages.
    """
    (number,) = jax.export.symbolic_shape("B")
    inputs = [jax.ShapeDtypeStruct((number, *x.shape[1:]), x.dtype) for x in example]
    logits = jax.jit(lambda *inputs: compacted.apply(compacted.params, *inputs))
    exported = jax.export.export(logits, platforms=PLATFORMS)(*inputs)
    return bytes(exported.serialize())
