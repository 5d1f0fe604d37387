"""The measurement of what compaction costs, on a small network."""

import jax.numpy as jnp
import numpy as np
from jax import ShapeDtypeStruct, nn

from experiments.cost import compaction_cost


def small():
    def fn(params, x):
        return nn.relu(x @ params["in"]) @ params["out"]

    shapes = {"in": (3, 8), "out": (8, 2)}
    shapes = {name: ShapeDtypeStruct(x, jnp.float32) for name, x in shapes.items()}
    return fn, shapes, (np.ones((1, 3), np.float32),)


def test_half_of_the_units_are_removed(monkeypatch):
    monkeypatch.setitem(compaction_cost.NETWORKS, "small", small)
    row = compaction_cost.measure_network("small")
    assert (row["weights"], row["left"]) == (40, 20)
    assert row.keys() >= compaction_cost.TARGETS.keys()
    assert row["memory, of the weights"] >= 0
