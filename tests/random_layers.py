"""Layers of random networks that act on the last axis, over any axes before it.

A layer draws weights for features (a `Unit` each) and returns how to apply them, and
the features that it makes. Where `out` is given, it adds to these.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from random_draw import chain, read, write


@jax.custom_vjp
def straight_through(x):
    return jnp.round(2 * x) / 2


straight_through.defvjp(lambda x: (straight_through(x), None), lambda _, g: (g,))


@jax.custom_jvp
def unlike_its_derivative(x):
    return jnp.sin(x)


unlike_its_derivative.defjvp(lambda x, t: (jnp.sin(x[0]), t[0] * jnp.exp(-(x[0] ** 2))))

ACTIVATIONS = (
    *(jax.nn.relu, jax.nn.gelu, jnp.tanh, jax.nn.silu, jax.nn.sigmoid),
    *(jax.nn.leaky_relu, jax.nn.softplus, jax.nn.relu6, jnp.square),
    *(straight_through, unlike_its_derivative),
)


def activation(draw, units):
    function = draw.pick(*ACTIVATIONS)
    draw.layers.append(getattr(function, "__name__", "activation"))
    return lambda params, x: function(x), units


def dense(draw, units, out=None):
    out, activate = (out, False) if out else (draw.units(), draw.chance(0.7))
    transposed = draw.chance(0.2)
    shape = (len(units), len(out))
    key = draw.layer("dense", w=shape[::-1] if transposed else shape, b=shape[1:])
    read(units, key, "w", int(transposed))
    write(out, key, "w", int(not transposed))
    write(out, key, "b", 0)

    def apply(params, x):
        w, b = params[key]["w"], params[key]["b"]
        return x @ (w.T if transposed else w) + b

    if activate:
        function, out = activation(draw, out)
        return chain([apply, function]), out
    return apply, out


def gram(draw, units):
    """x @ W @ W.T, its product first: features are written as they are read."""
    inner, out = draw.units(), draw.units(len(units))
    key = draw.layer("gram", w=(len(units), len(inner)), b=(len(out),))
    read(units, key, "w", 0)
    write(inner, key, "w", 1)
    write(out, key, "w", 0)
    write(out, key, "b", 0)

    def apply(params, x):
        w, b = params[key]["w"], params[key]["b"]
        return x @ (w @ w.T) + b

    return apply, out


def gated(draw, units):
    """A product of two halves, from two kernels or from one that is split."""
    out, fused = draw.units(), draw.chance()
    n, m = len(units), len(out)
    gate = draw.pick(jax.nn.sigmoid, jax.nn.silu, jax.nn.gelu)
    if fused:
        key = draw.layer("gated_fused", w=(n, 2 * m), b=(2 * m,))
        kernels = [("w", "b", lambda i: np.array([i, m + i]))]
    else:
        key = draw.layer("gated", w=(n, m), b=(m,), w2=(n, m), b2=(m,))
        kernels = [("w", "b", lambda i: i), ("w2", "b2", lambda i: i)]
    for w, b, place in kernels:
        read(units, key, w, 0)
        write(out, key, w, 1, place)
        write(out, key, b, 0, place)

    def apply(params, x):
        p = params[key]
        if fused:
            a, b = jnp.split(x @ p["w"] + p["b"], 2, axis=-1)
        else:
            a, b = (x @ p[w] + p[b] for w, b, _ in kernels)
        return gate(a) * b

    return apply, out


def norm(draw, units):
    form = draw.pick("rms", "one_pass", "two_pass", "group", "batch")
    n, out = len(units), draw.units(len(units))
    shapes = dict.fromkeys(("scale", "b", "mean", "variance"), (n,))
    if form != "batch":
        shapes = {"scale": (n,)} | ({} if form == "rms" else {"b": (n,)})
    key = draw.layer(form + "_norm", **shapes)
    read(units, key, "scale", 0)
    write(out, key, "scale", 0)
    if "b" in shapes:
        write(out, key, "b", 0)
    parts = draw.pick(*(g for g in range(1, n + 1) if n % g == 0))

    def apply(params, x):
        p = params[key]
        if form == "batch":
            x = (x - p["mean"]) * lax.rsqrt(p["variance"] + 1e-3)
        elif form == "group":
            y = x.reshape(*x.shape[:-1], parts, n // parts)
            axes = (*range(1, y.ndim - 2), y.ndim - 1)
            y = y - y.mean(axes, keepdims=True)
            y = y * lax.rsqrt(jnp.mean(y**2, axes, keepdims=True) + 1e-2)
            x = y.reshape(x.shape)
        else:
            mean = 0 if form == "rms" else x.mean(-1, keepdims=True)
            if form == "two_pass":
                square = jnp.mean((x - mean) ** 2, -1, keepdims=True)
            else:
                square = jnp.mean(x**2, -1, keepdims=True) - mean**2
            x = (x - mean) * lax.rsqrt(square + 1e-2)
        return x * p["scale"] + p.get("b", 0)

    return apply, out


def sequence(draw, units, layers):
    applied = []
    for layer in layers:
        apply, units = layer(draw, units)
        applied.append(apply)
    return chain(applied), units


def branch(draw, units, out=None):
    """One or two layers, perhaps after a norm, and a last one that adds to `out`."""
    layers = [norm] if draw.chance(0.6) else []
    layers += [draw.pick(dense, gated, gram, *draw.mixers)]
    layers += [activation] if draw.chance(0.3) else []
    layers += [functools.partial(dense, out=out)] if out else []
    return sequence(draw, units, layers)


def residual(draw, units):
    apply, _ = branch(draw, units, units)
    draw.layers.append("residual")
    return lambda params, x: x + apply(params, x), units


def concatenated(draw, units):
    """Two branches side by side; the second one may be the features themselves."""
    (f, left), (g, right) = branch(draw, units), (lambda params, x: x, units)
    if draw.chance():
        g, right = branch(draw, units)
    draw.layers.append("concatenated")
    return (
        lambda params, x: jnp.concatenate([f(params, x), g(params, x)], -1),
        left + right,
    )


def cut(draw, units):
    """The first features dropped, or moved to the end."""
    if len(units) == 1:
        return activation(draw, units)
    k, drop = int(draw.rng.integers(1, len(units))), draw.chance()
    f, _ = activation(draw, units)
    draw.layers.append("dropped" if drop else "cut")

    def apply(params, x):
        start, end = jnp.split(x, [k], axis=-1)
        return x[..., k:] if drop else jnp.concatenate([f(params, end), start], -1)

    return apply, units[k:] + ([] if drop else units[:k])


def padded(draw, units):
    before, after = draw.pick((0, 1), (1, 0), (1, 2))
    draw.layers.append("padded")
    zeros = draw.units(before + after)
    return (
        lambda params, x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)]),
        zeros[:before] + units + zeros[before:],
    )


def excited(draw, units):
    """Squeeze and excitation."""
    inner, n = draw.units(), len(units)
    m = len(inner)
    key = draw.layer("excited", w=(n, m), b=(m,), w2=(m, n), b2=(n,))
    read(units, key, "w", 0)
    write(inner, key, "w", 1)
    write(inner, key, "b", 0)
    read(inner, key, "w2", 0)

    def apply(params, x):
        p = params[key]
        y = x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)
        y = jax.nn.relu(y @ p["w"] + p["b"])
        return x * jax.nn.sigmoid(y @ p["w2"] + p["b2"])

    return apply, units


def scanned(draw, units):
    """Stacked layers in a scan, each added to the features or in their place."""
    add, normed, depth = draw.chance(0.7), draw.chance(), draw.pick(2, 3)
    inner, n = draw.units(), len(units)
    m = len(inner)
    shapes = {"w": (n, m), "b": (m,), "w2": (m, n), "b2": (n,), "scale": (n,)}
    shapes = {name: (depth, *shape) for name, shape in shapes.items()}
    function = draw.pick(*ACTIVATIONS[:-3])
    key = draw.layer("scanned_residual" if add else "scanned", **shapes)
    read(units, key, "scale", 1)
    read(units, key, "w", 1)
    write(inner, key, "w", 2)
    write(inner, key, "b", 1)
    read(inner, key, "w2", 1)
    write(units, key, "w2", 2)
    write(units, key, "b2", 1)

    def step(x, p):
        square = jnp.mean(x**2, -1, keepdims=True) if normed else 1.0
        y = x * lax.rsqrt(square + 1e-2) * p["scale"]
        y = function(y @ p["w"] + p["b"]) @ p["w2"] + p["b2"]
        return (x + y if add else y), None

    return lambda params, x: lax.scan(step, x, params[key])[0], units


def conditional(draw, units):
    """One of two layers, by the sum of all features or of the first one."""
    f, out = dense(draw, units, draw.units())
    g, _ = dense(draw, units, out)
    of = draw.pick(np.s_[...], np.s_[..., 0])
    draw.layers.append("conditional")
    return (
        lambda params, x: lax.cond(
            *(jnp.sum(x[of]) > 0, f, lambda p, x: jnp.tanh(g(p, x)), params, x)
        ),
        out,
    )


WRAPPERS = {
    "jitted": jax.jit,
    "checkpoint": jax.checkpoint,
    "vmapped": lambda f: jax.vmap(f, (None, 0)),
    "mapped": lambda f: lambda params, x: lax.map(functools.partial(f, params), x),
}


def wrapped(draw, units):
    apply, out = branch(draw, units)
    name = draw.pick(*WRAPPERS)
    draw.layers.append(name)
    return WRAPPERS[name](apply), out


# What networks are made of; what is there twice is drawn more often.
LAYERS = (
    *(dense, gated, gram, norm, activation, branch, residual, residual, concatenated),
    *(cut, padded, excited, scanned, scanned, conditional, wrapped, wrapped),
)
