"""Measures what it costs to compact large networks: seconds and memory.

The networks have their usual sizes and random weights, with half of all hidden units
zero. Memory is measured in a process that does nothing else, beyond what the weights
alone need.
"""

import dataclasses
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx

import sparse_optax
from experiments.cost.measurement import Measurement, table
from experiments.networks.encoder_decoder import EncoderDecoder, Shape
from experiments.networks.seq2seq import Seq2Seq
from experiments.records import Row
from experiments.running.environment import environment

TARGETS = {"seconds to analyse": 5, "to compact": 10, "memory, of the weights": 2}


@dataclasses.dataclass(frozen=True)
class Settings(Measurement):
    """Measures what it costs to compact large networks: seconds and memory.

    It takes a minute or two on two cores, and 1 GB of memory.
    """


def main(settings: Settings) -> None:
    settings.store("compaction", measure)


def measure() -> Row:
    found: Row = {**environment(), "rows": []}
    for name in NETWORKS:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as process:
            row = process.submit(measure_network, name).result()
        found["rows"].append({"network": name} | row)
        print(row, flush=True)
    print(show(found))
    return found


class Bottleneck(nnx.Module):
    """Convolutions of 1x1, 3x3 and 1x1, and a shortcut (He et al. 2015)."""

    def __init__(self, channels: int, width: int, stride: int, rngs: nnx.Rngs):
        def conv(
            channels: int, features: int, size: int, stride: int
        ) -> nnx.Sequential:
            return nnx.Sequential(
                nnx.Conv(
                    *(channels, features, (size, size), stride),
                    use_bias=False,
                    rngs=rngs,
                ),
                nnx.BatchNorm(features, use_running_average=True, rngs=rngs),
            )

        self.first = conv(channels, width, 1, 1)
        self.second = conv(width, width, 3, stride)
        self.third = conv(width, 4 * width, 1, 1)
        projects = stride > 1 or channels != 4 * width
        self.shortcut = conv(channels, 4 * width, 1, stride) if projects else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.second(nnx.relu(self.first(x))))
        return nnx.relu(self.third(y) + (self.shortcut(x) if self.shortcut else x))


class ResNet50(nnx.Module):
    """ResNet-50 for 224x224 images and 1,000 classes: 25.6 million weights."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 64, (7, 7), 2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(64, use_running_average=True, rngs=rngs)
        blocks, channels = [], 64
        for stage, number in enumerate((3, 4, 6, 3)):
            for place in range(number):
                width, stride = 64 << stage, 2 if stage and not place else 1
                blocks.append(Bottleneck(channels, width, stride, rngs))
                channels = 4 * width
        self.blocks = nnx.List(blocks)
        self.output = nnx.Linear(channels, 1000, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for block in self.blocks:
            x = block(x)
        return self.output(x.mean((1, 2)))


def resnet50() -> tuple[Callable, Any, tuple]:
    model = nnx.eval_shape(lambda: ResNet50(nnx.Rngs(0)))
    structure, state = nnx.split(model)
    shapes = nnx.to_pure_dict(state)

    def fn(state: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(structure, state)(images)

    return fn, shapes, (np.zeros((1, 224, 224, 3), np.float32),)


def transformer() -> tuple[Callable, Any, tuple]:
    """Six encoder and six decoder layers, with 512 features."""
    shape = Shape(8000, 8000, True, 6, 512, 2048, 8, 128, 128)
    model = nnx.eval_shape(lambda: EncoderDecoder(shape, nnx.Rngs(0)))
    structure, state = nnx.split(model)
    shapes = nnx.to_pure_dict(state)
    tokens = np.ones((1, 32), np.int32)
    return Seq2Seq(structure, label_smoothing=0.0).logits, shapes, (tokens, tokens)


NETWORKS = {"ResNet-50": resnet50, "transformer of 12 layers": transformer}


def measure_network(name: str) -> Row:
    """Returns seconds and memory; runs in a process of its own."""
    fn, shapes, inputs = NETWORKS[name]()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
    before = memory()
    start = time.perf_counter()
    groups = sparse_optax.channel_groups(fn, params, *inputs)
    analysed = time.perf_counter() - start
    remove_half(params, groups)
    start = time.perf_counter()
    compacted = sparse_optax.compact(fn, params, *inputs, check=False)
    seconds = time.perf_counter() - start
    size, left = compacted.total
    values = analysed, seconds, (memory() - before) / size.num_bytes
    found = dict(zip(TARGETS, values, strict=True))
    return {"weights": size.weights, "left": left.weights} | found


def remove_half(params: Any, groups: sparse_optax.ChannelGroups) -> None:
    """Sets the first half of the units of every hidden group to zero, in place."""
    with_path = jax.tree_util.tree_leaves_with_path(params)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in with_path
    }
    for group in groups.select(None):
        for leaf, axis, start, before, after in group.members:
            places = np.arange(before * group.size * after)
            is_first = places // after % group.size < group.size // 2
            np.moveaxis(leaves[leaf], axis, 0)[start + places[is_first]] = 0


def memory() -> int:
    """Returns the peak memory of the process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def show(found: Row) -> str:
    rows = [
        {
            "network": row["network"],
            "weights": f"{row['weights']:,}",
            "left": f"{row['left']:,}",
        }
        | {f"{name} (target {x})": f"{row[name]:.2f}" for name, x in TARGETS.items()}
        for row in found["rows"]
    ]
    return table(found, rows)
