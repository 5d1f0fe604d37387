"""A transformer-shaped tree, its layouts over a mesh, and how the tests train it."""

import jax
import jax.numpy as jnp
import optax
from helpers import make_step, random_tree
from jax.sharding import NamedSharding, PartitionSpec as P

import sparse_optax

LAYER = {
    "attention": {"qkv": P(None, "model"), "out": P("model", None)},
    "mlp": {"up": P(None, "model"), "bias": P("model"), "down": P("model", None)},
    "norm": {"scale": P()},
}
TENSOR = {"embedding": P("model", None), "layers": [LAYER]}


def fully_sharded(spec):
    """Over all devices along the last axis."""
    return P(*(None,) * (len(spec) - 1), ("data", "model")) if spec else P()


LAYOUTS = {
    "data-parallel": jax.tree.map(lambda _: P(), TENSOR),
    "fsdp": jax.tree.map(fully_sharded, TENSOR),
    "tensor-parallel": TENSOR,
}
NUM_LEAVES = len(jax.tree.leaves(TENSOR))


def shapes(width):
    layer = {
        "attention": {"qkv": (width, 3 * width), "out": (width, width)},
        "mlp": {"up": (width, 64), "bias": (64,), "down": (64, width)},
        "norm": {"scale": (width,)},
    }
    return {"embedding": (10 * width, width), "layers": [layer]}


def shardings(layout, mesh):
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), LAYOUTS[layout])


def transformer(seed, width=16):
    """Weights of few digits, so that many tie and a pruning step has to choose."""
    tree = random_tree(seed, shapes=shapes(width))
    return jax.tree.map(lambda w: jnp.round(8 * w) / 8, tree)


TX = sparse_optax.relevance_pruning(optax.adam(2.0**-7), 2.0**-9, 0.5, 0.4, mask=None)


def train(params, grads):
    """A prune of the dense network, an update, and one that prunes."""
    step = jax.jit(make_step(TX))
    state = jax.jit(TX.init)(params)
    params, state = sparse_optax.prune(params, state, 0.3)
    for prune in (False, True):
        params, state = step(params, state, grads, prune=jnp.array(prune))
    return params, state
