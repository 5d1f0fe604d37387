"""The random choices, weights and units of a network that is drawn layer by layer."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(eq=False)
class Unit:
    """The slices that write a feature, and those that read it: (layer, leaf, index)."""

    writes: list = dataclasses.field(default_factory=list)
    reads: list = dataclasses.field(default_factory=list)


class Draw:
    """The random choices of a network, and the weights and units drawn so far."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.params, self.groups, self.layers = {}, [], []
        self.mixers = ()  # layers over positions that a branch may have

    def pick(self, *options):
        return options[self.rng.integers(len(options))]

    def chance(self, probability=0.5):
        return self.rng.random() < probability

    def normal(self, *shape):
        return np.float32(self.rng.normal(size=shape))

    def units(self, number=None):
        self.groups.append([Unit() for _ in range(number or self.pick(2, 3, 4, 6))])
        return self.groups[-1]

    def layer(self, kind, **shapes):
        """The key of a new layer: its weights have these shapes, and none is zero."""
        key = f"{len(self.params)}_{kind}"
        self.layers.append(kind)
        self.params[key] = {name: self.weight(name, *s) for name, s in shapes.items()}
        return key

    def weight(self, name, *shape):
        if name in ("scale", "variance"):
            return 0.5 + np.float32(self.rng.random(shape))
        fan_in = math.prod(shape[:-1]) if len(shape) > 1 else 4
        return self.normal(*shape) / np.float32(math.sqrt(fan_in))


def every(axis, place):
    return (slice(None),) * axis + (place,)


def read(units, key, name, axis, place=lambda i: i):
    for i, unit in enumerate(units):
        unit.reads.append((key, name, every(axis, place(i))))


def write(units, key, name, axis, place=lambda i: i):
    for i, unit in enumerate(units):
        unit.writes.append((key, name, every(axis, place(i))))


def chain(layers):
    def apply(params, x):
        for layer in layers:
            x = layer(params, x)
        return x

    return apply
