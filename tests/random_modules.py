"""Layers of random networks over positions: attention, recurrence, convolution."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from random_draw import Unit, chain, read, write
from random_layers import activation, norm

# How the kernels of queries, keys and values are stored: three of (features, heads,
# dim) or of (features, heads * dim), fewer heads of keys and values, and one kernel
# that is split, reshaped, or has an axis for the three.
KERNELS = ("axes", "flat", "grouped", "grouped", "split", "reshaped", "stacked")


def attention(draw, units):
    form = draw.pick(*KERNELS)
    n, m = len(units), draw.pick(2, 3, 4)
    groups, dim = draw.pick(2, 3), draw.pick(2, 3, 4)
    repeats = draw.pick(2, 3) if form == "grouped" else 1
    heads, causal = groups * repeats, draw.chance()
    fused = form in ("split", "reshaped", "stacked")
    flat = form in ("flat", "split", "reshaped")
    if form == "stacked":
        shapes = {"qkv": (3, groups, dim)}
    else:
        counts = {"q": heads, "k": groups, "v": groups}
        counts = {"qkv": 3 * groups} if fused else counts
        shapes = {x: (c * dim,) if flat else (c, dim) for x, c in counts.items()}
    key = draw.layer(
        f"attention_{form}",
        **{name: (n, *shape) for name, shape in shapes.items()},
        **{"b" + name: shape for name, shape in shapes.items()},
        o=(heads * dim, m) if flat else (heads, dim, m),
        b=(m,),
    )
    for name in shapes:
        read(units, key, name, 0)
    attention_units(draw, key, shapes, (groups, repeats, dim), flat)
    out = draw.units(m)
    write(out, key, "o", 1 if flat else 2)
    write(out, key, "b", 0)
    scores, mixed = "...qhd,...khd->...hqk", "...hqk,...khd->...qhd"
    if form == "grouped":
        scores, mixed = "...qgrd,...kgd->...grqk", "...grqk,...kgd->...qgrd"

    def apply(params, x):
        p, places = params[key], x.shape[:-1]
        qkv = [jnp.tensordot(x, p[name], 1) + p["b" + name] for name in shapes]
        if form == "split":
            qkv = jnp.split(qkv[0], 3, axis=-1)
        elif fused:
            qkv = jnp.moveaxis(qkv[0].reshape(*places, 3, heads, dim), -3, 0)
        q, k, v = (y.reshape(*places, -1, dim) for y in qkv)
        if form == "grouped":
            q = q.reshape(*places, groups, repeats, dim)
        logits = jnp.einsum(scores, q, k) / math.sqrt(dim)
        if causal:
            seen = jnp.tril(jnp.ones(logits.shape[-2:], bool))
            logits = jnp.where(seen, logits, -1e9)
        y = jnp.einsum(mixed, jax.nn.softmax(logits), v)
        if flat:
            return y.reshape(*places, heads * dim) @ p["o"] + p["b"]
        y = y.reshape(*places, heads, dim)
        return jnp.einsum("...hd,hdo->...o", y, p["o"]) + p["b"]

    return apply, out


def attention_units(draw, key, shapes, sizes, flat):
    """Heads, query heads of a group, and dimensions of values, and of the scores."""
    groups, repeats, dim = sizes
    heads, every = groups * repeats, np.s_[:]

    def project(part, head, d):
        """The slices of queries, keys or values, in one kernel or in three."""
        if "qkv" in shapes:
            name, chosen = "qkv", np.zeros((3, groups, dim), bool)
            chosen[part, head, d] = True
        else:
            name = "qkv"[part]
            chosen = np.zeros((math.prod(shapes[name]) // dim, dim), bool)
            chosen[head, d] = True
        chosen = chosen.reshape(shapes[name])
        return [(key, name, np.s_[:, chosen]), (key, "b" + name, chosen)]

    def output(*index):
        chosen = np.zeros((groups, repeats, dim), bool)
        chosen[index] = True
        return [(key, "o", chosen.reshape(-1 if flat else (heads, dim)))]

    draw.groups += [
        [Unit(project(2, i, every), output(i)) for i in range(groups)],
        [Unit([], output(every, i)) for i in range(repeats)],
        [Unit(project(2, every, i), output(every, every, i)) for i in range(dim)],
        [Unit(project(0, every, i), project(1, every, i)) for i in range(dim)],
    ]


def mixed(draw, units, steps):
    """A dense layer over positions, the same for all features."""
    key = draw.layer("mixed", w=(steps, steps), b=(steps,))

    def apply(params, x):
        y = jnp.swapaxes(x, -1, -2) @ params[key]["w"] + params[key]["b"]
        return jnp.swapaxes(y, -1, -2)

    return apply, units


def recurrent(draw, units):
    """An LSTM or a GRU over time, or only its last state."""
    gates, last, out = draw.pick(3, 4), draw.chance(), draw.units()
    n, m = len(units), len(out)
    shapes = {"w": (n, gates * m), "u": (m, gates * m), "b": (gates * m,)}
    key = draw.layer("gru" if gates == 3 else "lstm", **shapes)
    read(units, key, "w", 0)
    read(out, key, "u", 0)
    for name, axis in (("w", 1), ("u", 1), ("b", 0)):
        write(out, key, name, axis, lambda i: i + m * np.arange(gates))

    def gru(p, h, x):
        x, y = x @ p["w"] + p["b"], h @ p["u"]
        (r, z, a), (s, t, b) = jnp.split(x, 3, axis=-1), jnp.split(y, 3, axis=-1)
        z = jax.nn.sigmoid(z + t)
        h = (1 - z) * jnp.tanh(a + jax.nn.sigmoid(r + s) * b) + z * h
        return h, h

    def lstm(p, state, x):
        h, c = state
        i, f, g, o = jnp.split(x @ p["w"] + h @ p["u"] + p["b"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def apply(params, x):
        h = jnp.zeros((x.shape[0], m))
        step, start = (gru, h) if gates == 3 else (lstm, (h, h))
        step = functools.partial(step, params[key])
        _, h = lax.scan(step, start, jnp.swapaxes(x, 0, 1))
        return h[-1] if last else jnp.swapaxes(h, 0, 1)

    return apply, out


def conv(draw, units, side):
    """Over images of NHWC, plain, over NCHW, grouped, depthwise or transposed."""
    form = draw.pick(*("plain", "plain", "nchw", "grouped", "depthwise", "transposed"))
    n, size = len(units), draw.pick(1, 2, 3)
    groups = n if form == "depthwise" else 1
    if form == "grouped":
        groups = draw.pick(*(g for g in range(1, n + 1) if n % g == 0))
    stride = draw.pick(1, 2) if side > 3 else 1
    padding = draw.pick("SAME", "VALID") if side > 3 else "SAME"
    out = draw.units(groups * draw.pick(1, 2) if groups > 1 else None)
    fan_in, fan_out = n // groups, len(out) // groups
    key = draw.layer(f"conv_{form}", w=(size, size, fan_in, len(out)), b=(len(out),))
    for i, unit in enumerate(units):
        group, place = divmod(i, fan_in)
        outputs = slice(group * fan_out, (group + 1) * fan_out)
        unit.reads.append((key, "w", np.s_[:, :, place, outputs]))
    write(out, key, "w", 3)
    write(out, key, "b", 0)

    def apply(params, x):
        w, b = params[key]["w"], params[key]["b"]
        shared = {"window_strides": (stride, stride), "padding": padding}
        names = ("NHWC", "HWIO", "NHWC")
        if form == "transposed":
            shared = {"strides": (stride, stride), "padding": padding}
            return lax.conv_transpose(x, w, dimension_numbers=names, **shared) + b
        if form == "nchw":
            x, w = x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1)
            names = ("NCHW", "OIHW", "NCHW")
        y = lax.conv_general_dilated(
            *(x, w), dimension_numbers=names, feature_group_count=groups, **shared
        )
        return (y.transpose(0, 2, 3, 1) if form == "nchw" else y) + b

    return apply, out


def conv_block(draw, units, side):
    """A residual block: its shortcut drops pixels, and has zeros as new features."""
    new = draw.pick(0, 0, 1, 2)
    out = units + draw.units(new) if new else units
    stride = draw.pick(1, 2) if side > 3 else 1
    f, inner = (norm if draw.chance() else activation)(draw, units)
    key = draw.layer("conv_block", w=(3, 3, len(inner), len(out)), b=(len(out),))
    read(inner, key, "w", 2)
    write(out, key, "w", 3)
    write(out, key, "b", 0)

    def apply(params, x):
        y = lax.conv_general_dilated(
            *(f(params, x), params[key]["w"], (stride, stride), "SAME"),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jnp.pad(x[:, ::stride, ::stride], ((0, 0),) * 3 + ((0, new),))
        return x + y + params[key]["b"]

    f, out = activation(draw, out)
    return chain([apply, f]), out


def pool(draw, units, side):
    form, size = draw.pick("max", "average"), draw.pick(1, 2)
    padding = "VALID" if side > 1 and draw.chance() else "SAME"
    draw.layers.append(f"{form}_pool")
    start, of = (-jnp.inf, lax.max) if form == "max" else (0.0, lax.add)
    windows = ((1, 2, 2, 1), (1, size, size, 1), padding)

    def apply(params, x):
        y = lax.reduce_window(x, start, of, *windows)
        return y if form == "max" else y / 4

    return apply, units
