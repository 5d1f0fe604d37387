"""Which modules of flax and equinox take smaller arrays: the table in the docs."""

import pathlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

import sparse_optax

pytestmark = pytest.mark.quickly_compiled

ATTENTION, ONLY_HEADS = "eqx.nn.MultiheadAttention", ", only heads pruned"
PAGE = pathlib.Path(__file__).parents[1] / "docs/smaller.md"
ROWS = re.findall(
    r"^\| (`.*) \| (exact|fails|wrong) \|", PAGE.read_text(), re.MULTILINE
)
TABLE = {module.replace("`", ""): outcome for module, outcome in ROWS}
FEATURES = 8


def nnx_stack(make):
    """Two layers around a module that keeps the number of features."""
    rngs = nnx.Rngs(0)
    model = nnx.List([nnx.Linear(3, FEATURES, rngs=rngs), make(rngs)])
    model.append(nnx.Linear(FEATURES, 2, rngs=rngs))
    model.eval()
    graphdef, params = nnx.split(model)

    def fn(params, x):
        for layer in nnx.merge(graphdef, params):
            x = layer(x)
        return x

    return fn, params


class LinenStack(nn.Module):
    middle: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(self.middle(nn.Dense(FEATURES)(x)))


def linen_stack(middle):
    model = LinenStack(middle)
    return model.apply, model.init(jax.random.key(0), jnp.ones((2, 5, 3)))


def equinox_stack(make, is_image=False):
    """The same of equinox, whose modules take one example."""
    keys = jax.random.split(jax.random.key(0), 3)
    first, last = (
        eqx.nn.Linear(3, FEATURES, key=keys[0]),
        eqx.nn.Linear(FEATURES, 2, key=keys[1]),
    )
    model = first, make(keys[2]), last
    params, static = eqx.partition(model, eqx.is_array)

    def fn(params, x):
        first, middle, last = eqx.combine(params, static)
        x = jax.vmap(jax.vmap(first))(x)
        if is_image:  # features first, two axes of places
            x = jax.vmap(lambda x: middle(x.T[:, :, None])[:, :, 0].T)(x)
        elif isinstance(middle, eqx.nn.MultiheadAttention):
            x = jax.vmap(lambda x: middle(x, x, x))(x)
        else:
            x = jax.vmap(jax.vmap(middle))(x)
        return jax.vmap(jax.vmap(last))(x)

    return fn, params


NETWORKS = {
    "nnx.Linear": lambda: nnx_stack(lambda r: nnx.Linear(FEATURES, FEATURES, rngs=r)),
    "nnx.Conv": lambda: nnx_stack(lambda r: nnx.Conv(FEATURES, FEATURES, 3, rngs=r)),
    "nnx.BatchNorm": lambda: nnx_stack(lambda r: nnx.BatchNorm(FEATURES, rngs=r)),
    "nnx.LayerNorm": lambda: nnx_stack(lambda r: nnx.LayerNorm(FEATURES, rngs=r)),
    "nnx.RMSNorm": lambda: nnx_stack(lambda r: nnx.RMSNorm(FEATURES, rngs=r)),
    "nnx.GroupNorm": lambda: nnx_stack(
        lambda r: nnx.GroupNorm(FEATURES, num_groups=2, rngs=r)
    ),
    "nnx.MultiHeadAttention": lambda: nnx_stack(
        lambda r: nnx.MultiHeadAttention(4, FEATURES, decode=False, rngs=r)
    ),
    "linen.Dense": lambda: linen_stack(nn.Dense(FEATURES)),
    "linen.Conv": lambda: linen_stack(nn.Conv(FEATURES, (3,))),
    "linen.BatchNorm": lambda: linen_stack(nn.BatchNorm(use_running_average=True)),
    "linen.LayerNorm": lambda: linen_stack(nn.LayerNorm()),
    "linen.RMSNorm": lambda: linen_stack(nn.RMSNorm()),
    "linen.MultiHeadDotProductAttention": lambda: linen_stack(
        nn.MultiHeadDotProductAttention(4)
    ),
    "eqx.nn.Linear": lambda: equinox_stack(
        lambda key: eqx.nn.Linear(FEATURES, FEATURES, key=key)
    ),
    "eqx.nn.Conv2d": lambda: equinox_stack(
        lambda key: eqx.nn.Conv2d(FEATURES, FEATURES, 1, key=key), is_image=True
    ),
    "eqx.nn.RMSNorm": lambda: equinox_stack(lambda key: eqx.nn.RMSNorm(FEATURES)),
    "eqx.nn.MultiheadAttention": lambda: equinox_stack(
        lambda key: eqx.nn.MultiheadAttention(4, FEATURES, key=key)
    ),
}
NETWORKS[f"{ATTENTION}{ONLY_HEADS}"] = NETWORKS[ATTENTION]


def pruned_network(name):
    """A network with half of the units of each group pruned: 4 of 8, 2 of 4 heads."""
    fn, params = NETWORKS[name]()
    x = jax.random.normal(jax.random.key(1), (2, 5, 3))
    groups = sparse_optax.channel_groups(fn, params, x)
    wanted = [g for g in groups if g.kind != "input"]
    if name.endswith(ONLY_HEADS):
        wanted = [g for g in wanted if g.size == 4]
    named = {re.escape(g.name): True for g in wanted}
    params, _ = sparse_optax.one_shot(
        params, 0.5, structure=groups, mask=named, distribution="uniform"
    )
    return fn, params, x


def outcome(fn, params, x, wanted):
    try:
        found = fn(params, x)
    except Exception:
        return "fails"
    return "exact" if np.allclose(found, wanted, atol=1e-5) else "wrong"


@pytest.mark.parametrize("name", NETWORKS)
def test_modules_take_smaller_arrays_as_the_table_says(name):
    fn, params, x = pruned_network(name)
    compacted = sparse_optax.compact(fn, params, x)
    before, after = compacted.total
    assert after.weights < (0.8 if name.endswith(ONLY_HEADS) else 0.6) * before.weights
    found = outcome(fn, compacted.params, x, fn(params, x))
    assert TABLE[name] == found


def test_the_table_has_these_modules():
    assert TABLE.keys() == NETWORKS.keys()
