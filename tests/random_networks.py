"""Random small networks that know which slices of their weights make up a unit.

`network` draws one from a seed, and `kill_units` sets slices of its weights to zero so
that units die: what reads a unit, what writes it, or both.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from random_draw import Draw, Unit, chain, read, write
from random_layers import (
    LAYERS,
    activation,
    dense,
    excited,
    norm,
    residual,
    scanned,
    sequence,
)
from random_modules import attention, conv, conv_block, mixed, pool, recurrent


class Network(NamedTuple):
    """A function of weights and inputs, the groups of its units, and its layers."""

    fn: Callable
    params: dict
    inputs: tuple
    groups: list
    layers: list


def some(draw, layers, *numbers):
    return [draw.pick(*layers) for _ in range(draw.pick(*numbers))]


def vectors(draw):
    units = draw.units(draw.pick(3, 4, 6))
    x = draw.normal(3, len(units))
    return *sequence(draw, units, [dense, *some(draw, LAYERS, 2, 3, 4)]), x


def series(draw):
    """Recurrent layers over time, between others."""
    units = draw.units(draw.pick(2, 3))
    x = draw.normal(2, draw.pick(3, 4), len(units))
    layers = [*some(draw, LAYERS, 0, 1), recurrent, *some(draw, LAYERS, 0, 1, 2)]
    return *sequence(draw, units, layers), x


def tokens(draw):
    """Embedded tokens and their positions, attention, and perhaps a tied output."""
    words, steps, tied = draw.pick(5, 8), draw.pick(3, 4), draw.chance()
    units = draw.units(draw.pick(3, 4, 6))
    n = len(units)
    key = draw.layer("embedding", w=(words, n), positions=(steps, n))
    write(units, key, "w", 1)
    write(units, key, "positions", 1)
    form = draw.pick("indexed", "taken", "one_hot")
    draw.mixers = (*(attention,) * 4, functools.partial(mixed, steps=steps))
    kept = (residual, residual, residual, scanned, excited)
    layers = some(draw, kept if tied else (*LAYERS, *draw.mixers), 2, 3)

    def embed(params, x):
        w = params[key]["w"]
        if form == "one_hot":
            y = jax.nn.one_hot(x, words) @ w
        else:
            y = w[x] if form == "indexed" else jnp.take(w, x, axis=0)
        return y + params[key]["positions"]

    apply, units = sequence(draw, units, [*layers, norm] if tied else layers)
    parts = [embed, apply]
    if tied:
        read(units, key, "w", 1)
        draw.layers.append("tied")
        parts.append(lambda params, x: x @ params[key]["w"].T)
    elif draw.chance():
        parts.append(lambda params, x: x[:, -1])
    x = draw.rng.integers(0, words, (2, steps), np.int32)
    return chain(parts), None if tied else units, x


def images(draw):
    """Convolutions and other layers over images, then flattened or averaged."""
    units = draw.units(draw.pick(2, 3))
    x = draw.normal(2, *draw.pick((6, 6, len(units)), (7, 5, len(units))))
    layers = [conv, *some(draw, (conv, conv_block, pool, None, None), 1, 2, 3)]
    parts = []
    for layer in layers:
        shape = jax.eval_shape(chain(parts), draw.params, x).shape
        sided = layer and functools.partial(layer, side=min(shape[1:3]))
        apply, units = (sided or draw.pick(*LAYERS, excited, activation))(draw, units)
        parts.append(apply)
    _, height, width, _ = jax.eval_shape(chain(parts), draw.params, x).shape
    end = draw.pick("averaged", "flattened", "flattened_nchw")
    draw.layers.append(end)
    if end == "averaged":
        return chain([*parts, lambda params, x: x.mean((1, 2))]), units, x
    if end == "flattened":
        units = units * (height * width)
    else:
        units = [unit for unit in units for _ in range(height * width)]
        parts.append(lambda params, x: x.transpose(0, 3, 1, 2))
    return chain([*parts, lambda params, x: x.reshape(x.shape[0], -1)]), units, x


def network(seed):
    """A random network; its function, weights and inputs come first."""
    draw = Draw(seed)
    apply, units, x = draw.pick(vectors, series, tokens, tokens, images, images)(draw)
    head = None
    if units:
        head, _ = dense(draw, units, [Unit() for _ in range(draw.pick(2, 3))])
    shown = draw.pick(*("output",) * 6, "hidden", "probabilities")
    draw.layers.append(shown)

    def fn(params, x):
        hidden = apply(params, x)
        y = head(params, hidden) if head else hidden
        if shown == "hidden":
            return y, hidden.sum(-1)
        return {"y": y, "p": jax.nn.softmax(y)} if shown == "probabilities" else y

    params = jax.tree.map(jnp.asarray, draw.params)
    return Network(fn, params, (jnp.asarray(x),), draw.groups, draw.layers)


def kill_units(network, rng, share=0.5):
    """The weights with about this share of units dead, but never all of a group.

    Of a unit, what reads it, what writes it, or both become zero. Of some units, only
    a part of this does, as do a few slices of single leaves: they do not die by it.
    """
    params = jax.tree.map(np.array, network.params)
    survivor = rng.integers(12)  # the same one of groups of one size
    for units in network.groups:
        for i, unit in enumerate(units):
            if i == survivor % len(units) or rng.random() > share:
                continue
            kinds = ((unit.reads,), (unit.writes,), (unit.reads, unit.writes))
            share_of_slices = rng.choice([1, 1, 1, 0.7])
            for key, name, index in itertools.chain(*kinds[rng.integers(3)]):
                if rng.random() < share_of_slices:
                    params[key][name][index] = 0
    for leaf in jax.tree.leaves(params):
        if leaf.ndim > 1 and rng.random() < 0.1:
            slices = np.moveaxis(leaf, rng.integers(leaf.ndim), 0)
            n = len(slices)
            slices[(survivor + rng.integers(1, n)) % n if n > 1 else slice(0)] = 0
    return jax.tree.map(jnp.asarray, params)
