"""Small networks, with the shapes of their weights and inputs, for tests of units."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from helpers import random_tree
from jax import lax

import sparse_optax as so

relu = jax.nn.relu

# Compiling takes most of the time here: programs that are quickly compiled will do.
quickly_compiled = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
    },
)


def mlp(p, x):
    return relu(x @ p["w1"] + p["b"]) @ p["w2"]


def residual(p, x):
    x = x @ p["in"]
    x = x + relu(x @ p["up"]) @ p["down"]
    return x @ p["out"]


def convolution(x, kernel, groups=1):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", None, None, dimensions, groups
    )


def batch_norm(p, x):
    x = (x - p["mean"]) * lax.rsqrt(p["var"] + 1e-5)
    return x * p["scale"] + p["bias"]


def convolutional(p, x):
    x = relu(batch_norm(p["norm"], convolution(x, p["conv"])))
    return x.reshape(x.shape[0], -1) @ p["dense"]


def in_groups(num):
    def fn(p, x):
        x = relu(convolution(x, p["in"]))
        x = relu(convolution(x, p["groups"], num))
        return convolution(x, p["out"])

    return fn


def squeeze_and_excitation(p, x):
    x = relu(convolution(x, p["in"]))
    s = jax.nn.sigmoid(relu(x.mean((1, 2)) @ p["squeeze"]) @ p["excite"])
    return convolution(x * s[:, None, None, :], p["out"])


def attend(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def attention(p, x):
    y = attend(*(jnp.einsum("btf,fhd->bthd", x, p[name]) for name in "qkv"))
    return jnp.einsum("bqhd,hdf->bqf", y, p["o"])


def heads_of(x, num=2):
    return x.reshape(*x.shape[:2], num, -1)


def flat_attention(p, x):
    y = attend(*(heads_of(x @ p[name]) for name in "qkv"))
    return y.reshape(*x.shape[:2], -1) @ p["o"]


def fused_attention(p, x):
    y = attend(*map(heads_of, jnp.split(x @ p["qkv"], 3, axis=-1)))
    return y.reshape(*x.shape[:2], -1) @ p["o"]


def grouped_queries(p, x):
    k, v = (jnp.repeat(heads_of(x @ p[name]), 3, axis=2) for name in "kv")
    y = attend(heads_of(x @ p["q"], 6), k, v)
    return y.reshape(*x.shape[:2], -1) @ p["o"]


def gated(p, x):
    return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]


def fused_gated(p, x):
    a, b = jnp.split(x @ p["in"], 2, axis=-1)
    return (a * jax.nn.sigmoid(b)) @ p["out"]


def two_branches(p, x):
    return jnp.concatenate([x @ p["a"], relu(x @ p["b"])], axis=-1) @ p["out"]


def tied(p, tokens):
    x = p["embed"][tokens]
    x = x + relu(x @ p["up"]) @ p["down"]
    return x @ p["embed"].T


def layer_norm(p, x):
    x = x @ p["in"]
    x = x - x.mean(-1, keepdims=True)
    x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
    return (x * p["scale"]) @ p["out"]


def lstm(p, x):
    def step(carry, x):
        h, c = carry
        i, f, g, o = jnp.split(x @ p["x"] + h @ p["h"] + p["b"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), None

    zeros = jnp.zeros((x.shape[0], p["h"].shape[0]))
    (h, _), _ = lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1))
    return h @ p["out"]


def stacked_layers(p, x):
    def layer(x, w):
        return x + relu(x @ w["up"]) @ w["down"], None

    return lax.scan(layer, x @ p["in"], p["layers"])[0] @ p["out"]


def rows_are_outputs(p, x):
    return jax.vmap(lambda x: p["w2"] @ relu(p["w1"] @ x + p["b"]))(x)


class Network(NamedTuple):
    fn: Callable
    shapes: dict
    input: tuple | np.ndarray

    def params(self, seed=0):
        return random_tree(seed, shapes=self.shapes)

    def inputs(self, seed=1):
        if isinstance(self.input, np.ndarray):
            return self.input
        return random_tree(seed, shapes=self.input)

    def masks_of_two_thirds(self):
        """Masks without every third hidden unit, of a flat tree."""
        shapes = jax.eval_shape(self.params)
        groups = so.channel_groups(self.fn, shapes, self.inputs()).select(None)
        kept = {group.name: jnp.arange(group.size) % 3 > 0 for group in groups}
        whole = jax.tree.map(lambda w: jnp.ones(w.shape, bool), shapes)
        return groups.to_masks(kept, whole)


NORM = dict.fromkeys(("bias", "mean", "scale", "var"), (4,))
NETWORKS = {
    "mlp": Network(mlp, {"w1": (4, 3), "b": (3,), "w2": (3, 2)}, (2, 4)),
    "residual": Network(
        residual, {"in": (4, 6), "up": (6, 5), "down": (5, 6), "out": (6, 2)}, (2, 4)
    ),
    "convolutional": Network(
        convolutional,
        {"conv": (3, 3, 3, 4), "norm": NORM, "dense": (16, 5)},
        (2, 2, 2, 3),
    ),
    "depthwise": Network(
        in_groups(4),
        {"in": (1, 1, 3, 4), "groups": (3, 3, 1, 8), "out": (1, 1, 8, 5)},
        (2, 3, 3, 3),
    ),
    "in groups": Network(
        in_groups(2),
        {"in": (1, 1, 3, 4), "groups": (3, 3, 2, 6), "out": (1, 1, 6, 5)},
        (2, 3, 3, 3),
    ),
    "squeeze and excitation": Network(
        squeeze_and_excitation,
        {"in": (3, 3, 3, 6), "squeeze": (6, 2), "excite": (2, 6), "out": (1, 1, 6, 3)},
        (2, 4, 4, 3),
    ),
    "attention": Network(
        attention,
        {"q": (8, 2, 4), "k": (8, 2, 4), "v": (8, 2, 3), "o": (2, 3, 5)},
        (2, 6, 8),
    ),
    "flat attention": Network(
        flat_attention, {"q": (8, 8), "k": (8, 8), "v": (8, 6), "o": (6, 5)}, (2, 6, 8)
    ),
    "fused attention": Network(
        fused_attention, {"qkv": (8, 24), "o": (8, 5)}, (2, 6, 8)
    ),
    "grouped queries": Network(
        grouped_queries,
        {"q": (8, 24), "k": (8, 8), "v": (8, 8), "o": (24, 5)},
        (2, 6, 8),
    ),
    "gated": Network(gated, {"gate": (4, 6), "up": (4, 6), "down": (6, 2)}, (2, 4)),
    "fused gated": Network(fused_gated, {"in": (4, 12), "out": (6, 2)}, (2, 4)),
    "two branches": Network(
        two_branches, {"a": (4, 3), "b": (4, 2), "out": (5, 2)}, (2, 4)
    ),
    "tied": Network(
        tied,
        {"embed": (7, 4), "up": (4, 3), "down": (3, 4)},
        np.arange(6).reshape(2, 3),
    ),
    "layer norm": Network(
        layer_norm, {"in": (4, 6), "scale": (6,), "out": (6, 2)}, (2, 4)
    ),
    "lstm": Network(
        lstm, {"x": (4, 12), "h": (3, 12), "b": (12,), "out": (3, 2)}, (2, 5, 4)
    ),
    "stacked layers": Network(
        stacked_layers,
        {"in": (4, 6), "layers": {"up": (3, 6, 5), "down": (3, 5, 6)}, "out": (6, 2)},
        (2, 4),
    ),
    "rows are outputs": Network(
        rows_are_outputs, {"w1": (3, 4), "b": (3,), "w2": (2, 3)}, (2, 4)
    ),
}
