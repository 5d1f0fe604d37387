"""More of `rule_cases`: what moves elements, makes them, or holds functions."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from rule_cases import Case, both, none

CONSTANT = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def place(x):
    """An index that is only known in a call."""
    return (x[0, 0, 0] > 0).astype(jnp.int32)


def regroup(h, p, x):
    return h.reshape(2, 4, 2, 3).swapaxes(2, 3).reshape(2, 4, 6)


MOVES = {
    "transpose": both(lambda h, p, x: lax.transpose(h, (1, 0, 2))),
    "transpose twice": both(lambda h, p, x: jnp.sin(h.T).T),
    "broadcast_in_dim": both(lambda h, p, x: jnp.broadcast_to(h, (3, 2, 4, 6))),
    "broadcast_in_dim of weights": Case(
        lambda h, p, x: h + jnp.broadcast_to(p["v"], h.shape)
    ),
    "repeat": both(lambda h, p, x: jnp.repeat(h, 2, axis=2), rows=(8, 9)),
    "tile": both(lambda h, p, x: jnp.tile(h, (1, 3, 2)), rows=(4, 10)),
    "squeeze": both(lambda h, p, x: lax.squeeze(h[:, :1], (1,))),
    "squeeze of a unit": Case(lambda h, p, x: h + h[..., 4][..., None], ()),
    "squeeze of another unit": Case(lambda h, p, x: h * h[..., 2][..., None], (1, 4)),
    "reshape into one": both(lambda h, p, x: h.reshape(2, 24), rows=(4, 10, 16, 22)),
    "reshape into one, half of which is read": Case(
        lambda h, p, x: h.reshape(2, 24), (1,), (4, 10)
    ),
    "reshape into two": both(
        lambda h, p, x: h.reshape(2, 4, 2, 3).sum(2), rows=(), dead=(1, 4)
    ),
    "reshape into two, half of which is zero": none(
        lambda h, p, x: h.reshape(2, 4, 2, 3).sum(2), rows=()
    ),
    "reshape in another order": both(regroup, rows=(2, 3), dead=()),
    "reshape with an axis of one": both(
        lambda h, p, x: h.reshape(2, 1, 4, 6, 1)[..., 0]
    ),
    "concatenate": both(lambda h, p, x: jnp.concatenate([h, x @ p["second"]], 2)),
    "concatenate along another axis": Case(
        lambda h, p, x: jnp.concatenate([h, x @ p["second"]], 1)
    ),
    "concatenate with itself": both(lambda h, p, x: jnp.concatenate([h, 2 * h], 1)),
    "stack": both(lambda h, p, x: jnp.stack([h, 2 * h], 1)),
    "stack with others": Case(lambda h, p, x: jnp.stack([h, x @ p["second"]], 1)),
    "stack of units": both(
        lambda h, p, x: jnp.stack([h, 2 * h], 3).reshape(2, 4, 12), rows=(8, 9)
    ),
    "unstack": both(lambda h, p, x: jnp.multiply(*jnp.unstack(h, axis=0))),
    "unstack of units": none(lambda h, p, x: h * jnp.unstack(h, axis=2)[5][..., None]),
    "slice": Case(lambda h, p, x: h[..., 1:5], (0, 1, 4, 5), (3,)),
    "slice of another axis": both(lambda h, p, x: h[:, 1:3]),
    "slice with strides": none(
        lambda h, p, x: lax.slice(h, (0, 0, 1), h.shape, (1, 1, 2)), rows=()
    ),
    "split": both(lambda h, p, x: jnp.multiply(*jnp.split(h, 2, 2)), rows=()),
    "split along another axis": both(lambda h, p, x: jnp.add(*jnp.split(h, 2, 1))),
    "rev": both(lambda h, p, x: lax.rev(h, (2,)), rows=(1,)),
    "rev of another axis": both(lambda h, p, x: lax.rev(h, (0, 1))),
    "pad": both(
        lambda h, p, x: lax.pad(h, 0.0, [(0, 0, 0), (0, 0, 0), (1, 2, 0)]), rows=(5,)
    ),
    "pad another axis": both(
        lambda h, p, x: lax.pad(h, 0.0, [(0, 0, 0), (1, -1, 1), (0, 0, 0)])
    ),
    "pad another axis by ones": Case(
        lambda h, p, x: lax.pad(h, 1.0, [(0, 0, 0), (1, 0, 0), (0, 0, 0)])
    ),
    "pad between units": none(
        lambda h, p, x: lax.pad(h, 0.0, [(0, 0, 0), (0, 0, 0), (0, 0, 1)])
    ),
    "gather": both(lambda h, p, x: h[:, jnp.array([0, 2, 2])]),
    "gather along a batch": both(
        lambda h, p, x: jnp.take_along_axis(h, jnp.argsort(x[..., :1], 1), 1)
    ),
    "gather of units": none(lambda h, p, x: h[..., jnp.array([0, 3, 2])], rows=()),
    "gather of rows of weights": both(lambda h, p, x: h * p["table"][jnp.argmax(x, 2)]),
    "scatter": Case(lambda h, p, x: h.at[:, place(x)].set(x[:, 0] @ p["second"])),
    "scatter of its own": both(lambda h, p, x: h.at[:, place(x)].set(h[:, 0])),
    "scatter of units": none(lambda h, p, x: h.at[..., jnp.array([2, 3])].set(1.0)),
    "scatter-add": both(lambda h, p, x: h.at[:, place(x)].add(h[:, 0])),
    "scatter-add of units": none(lambda h, p, x: h.at[..., jnp.array([2, 3])].add(1.0)),
    "dynamic_slice": both(lambda h, p, x: lax.dynamic_slice_in_dim(h, place(x), 2, 1)),
    "dynamic_slice of units": none(
        lambda h, p, x: lax.dynamic_slice_in_dim(h, place(x), 5, 2)
    ),
    "dynamic_update_slice": Case(
        lambda h, p, x: lax.dynamic_update_slice_in_dim(
            h, x[:, :1] @ p["second"], place(x), 1
        )
    ),
    "dynamic_update_slice of its own": both(
        lambda h, p, x: lax.dynamic_update_slice_in_dim(h, h[:, :2], place(x), 1)
    ),
    "dynamic_update_slice of units": none(
        lambda h, p, x: lax.dynamic_update_slice_in_dim(h, h[..., :2], place(x), 2)
    ),
}


def noise(h):
    return jax.random.normal(jax.random.key(0), h.shape)


def dropout(h, p, x):
    return jnp.where(jax.random.bernoulli(jax.random.key(1), 0.5, h.shape), 2 * h, 0)


MADE = {
    "iota": both(lambda h, p, x: h * lax.broadcasted_iota(jnp.float32, h.shape, 2)),
    "eye": Case(lambda h, p, x: h @ (jnp.eye(6) + CONSTANT[:, :1]), (1,)),
    "eye is added": Case(lambda h, p, x: h + jnp.eye(6)[:4]),
    "random_bits": Case(lambda h, p, x: h + noise(h)),
    "dropout": both(dropout),
    "constant array": both(lambda h, p, x: h * CONSTANT[:, 0]),
    "constant matrix": Case(lambda h, p, x: jnp.sin(h @ CONSTANT), (1,), ()),
    "constant table": Case(lambda h, p, x: h + jnp.asarray(CONSTANT.T)),
}


@jax.custom_jvp
def unlike_its_derivative(x):
    return jnp.sin(x)


unlike_its_derivative.defjvp(lambda x, t: (jnp.sin(x[0]), t[0] * jnp.exp(-x[0])))


@jax.custom_vjp
def straight_through(x):
    return jnp.round(2 * x) / 2


straight_through.defvjp(lambda x: (straight_through(x), x), lambda x, g: (g * x,))


@jax.custom_vjp
def product(x, w):
    return x @ w


product.defvjp(
    lambda x, w: (x @ w, (x, w)), lambda xw, g: (3 * g @ xw[1].T, xw[0].mT @ g)
)


double_by_rows = jax.custom_vjp(jax.custom_batching.sequential_vmap(lambda x: 2 * x))
double_by_rows.defvjp(lambda x: (double_by_rows(x), None), lambda _, g: (2 * g,))


def nested(h, p, x):
    return jax.jit(lambda h: jax.jit(jnp.tanh)(h) * p["v"])(h)


def loop(f):
    def op(h, p, x):
        v, h = map(lax.stop_gradient, (p["v"], h))  # JAX does not differentiate loops
        return lax.while_loop(lambda c: c[0] < 3, lambda c: f(*c, v), (0, h))[1]

    return op


def until_large(h, p, x):
    h = lax.stop_gradient(h)
    return lax.while_loop(lambda h: h.sum() ** 2 < 99, lambda h: h * 2, h)


def scan(f, carry):
    """A scan along the second axis, with h in the carry or as xs."""

    def op(h, p, x):
        carried = {"zeros": jnp.zeros((2, 6)), "h": h}[carry]
        xs = {"zeros": h, "h": x}[carry].swapaxes(0, 1)
        carried, ys = lax.scan(lambda c, y: f(c, y, p), carried, xs)
        return carried if carry == "h" else ys + carried

    return op


CALLS = {
    "jit": both(nested),
    "vmap": both(lambda h, p, x: jax.vmap(jax.vmap(lambda h: h * p["v"]))(h)),
    "custom_vmap_call": both(lambda h, p, x: double_by_rows(h)),
    "remat2": both(lambda h, p, x: jax.checkpoint(lambda h: jnp.sin(h) * p["v"])(h)),
    "remat2 of a product": Case(
        lambda h, p, x: jax.checkpoint(lambda h: jnp.sin(h @ p["w"]))(h), (1,)
    ),
    "custom_jvp_call": both(lambda h, p, x: jax.nn.relu(h)),
    "custom_jvp_call unlike its derivative": both(
        lambda h, p, x: unlike_its_derivative(h)
    ),
    "custom_vjp_call": both(lambda h, p, x: straight_through(h)),
    "custom_vjp_call of a product": Case(
        lambda h, p, x: product(h.reshape(8, 6), p["w"]), (1,)
    ),
    "cond": both(lambda h, p, x: lax.cond(x[0, 0, 0] > 0, jnp.sin, lambda h: h * 2, h)),
    "cond with another number": Case(
        lambda h, p, x: lax.cond(x[0, 0, 0] > 0, jnp.sin, jnp.cos, h)
    ),
    "cond with an array of its own": Case(
        lambda h, p, x: lax.cond(x[0, 0, 0] > 0, lambda h: x @ p["second"], jnp.sin, h)
    ),
    "switch": both(
        lambda h, p, x: lax.switch(place(x), [jnp.sin, jnp.tan, lambda h: h], h)
    ),
    "platform_dependent": both(
        lambda h, p, x: lax.platform_dependent(h, cpu=jnp.sin, default=jnp.tan)
    ),
    "while": both(loop(lambda i, h, v: (i + 1, jnp.sin(h * v)))),
    "while it becomes another number": Case(loop(lambda i, h, v: (i + 1, jnp.cos(h)))),
    "while that reads units": Case(until_large, (1,)),
    "scan": both(scan(lambda c, x, p: (jnp.sin(c * p["v"]), None), "h")),
    "scan over it": both(scan(lambda c, h, p: (c + h, jnp.tanh(c)), "zeros")),
    "scan that adds": Case(scan(lambda c, h, p: (c + h + p["v"], c * 2), "zeros")),
    "recurrence": none(scan(lambda c, h, p: (jnp.tanh(c @ p["w"] + h),) * 2, "zeros")),
    "associative_scan": both(
        lambda h, p, x: lax.associative_scan(jnp.multiply, h, axis=1)
    ),
}
