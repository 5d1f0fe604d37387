"""A small function for each primitive, between two dense layers whose units it mixes.

Each takes `h`, of shape (2, 4, 6) with units along the last axis; weights `p`; and the
input `x`, of shape (2, 4, 3). It returns an array whose last axis a dense layer reads.
Nothing writes to unit 1 of h, which so is zero; of what it returns, row 4 is not read.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

WEIGHTS = {
    "v": (6,),
    "w": (6, 6),
    "second": (3, 6),
    "table": (9, 6),
    "kernel": (3, 6, 8),
    "depthwise": (3, 1, 12),
    "in groups": (3, 3, 6),
}


class Case(NamedTuple):
    """A function, and what of it is known.

    Attributes:
        op: of h, the weights and the input.
        removed: the units of h that can be removed.
        rows: of the dense layer after it that are zero.
        dead: the units of h that are zero.
    """

    op: Any
    removed: tuple = (4,)
    rows: tuple = (4,)
    dead: tuple = (1,)


both = functools.partial(Case, removed=(1, 4))
none = functools.partial(Case, removed=())
CASES: dict[str, Case] = {}

# Elementwise: unit 1 stays zero, or becomes another number.

ZERO_STAYS_ZERO = """
abs asin asinh atan atanh bessel_i1e ceil erf erf_inv expm1 floor log1p neg sign
sin sinh square tan tanh
"""
BECOMES_A_NUMBER = "acos bessel_i0e cos cosh erfc exp exp2 is_finite logistic"
OF_POSITIVE_NUMBERS = "acosh cbrt digamma lgamma log rsqrt sqrt"


def of_small(name):
    return lambda h, p, x: 1.0 * getattr(lax, name)(h / 8)


def of_positive(name):
    return lambda h, p, x: getattr(lax, name)(2.5 + jnp.square(h))


CASES |= {name: both(of_small(name)) for name in ZERO_STAYS_ZERO.split()}
CASES |= {name: Case(of_small(name)) for name in BECOMES_A_NUMBER.split()}
CASES |= {name: Case(of_positive(name)) for name in OF_POSITIVE_NUMBERS.split()}


def two(f, removed=(4,)):
    """Of the units and those of a second layer, none of which is zero."""
    return Case(lambda h, p, x: 1.0 * f(h, x @ p["second"]), removed)


def integers(f, removed=(4,)):
    def op(h, p, x):
        a, b = (jnp.round(8 * y).astype(jnp.int32) for y in (h, x @ p["second"]))
        return f(a, b).astype(h.dtype)

    return Case(op, removed)


def compare(a, b):
    a, b = jnp.round(a), jnp.round(b)
    comparisons = lax.eq, lax.ne, lax.ge, lax.gt, lax.le, lax.lt
    return sum(i * jnp.where(f(a, b), a, b) for i, f in enumerate(comparisons, 1))


def positive(*xs):
    """Without gradients, which take long to compile."""
    return [1 + jnp.square(lax.stop_gradient(x)) for x in xs]


def shift(a, b):
    left = lax.shift_left(a, b & 3)
    return (
        left + lax.shift_right_arithmetic(a, b & 7) - lax.shift_right_logical(a, b & 15)
    )


CASES |= {
    "add": two(lax.add),
    "add_any": both(
        lambda h, p, x: jax.vjp(lambda h: h * jnp.sin(h), h)[1](x @ p["second"])[0]
    ),
    "atan2": two(lax.atan2),
    "clamp": two(lambda a, b: lax.clamp(-1.0, a * b, 1.0), (1, 4)),
    "comparisons": two(compare),
    "complex": two(lambda a, b: jnp.conj(lax.complex(a, b)).real),
    "imag": two(lambda a, b: jnp.square(lax.complex(a, b)).imag),
    "constants cancel": both(lambda h, p, x: jnp.cos(h) - 1),
    "div": two(lambda a, b: a / (1 + b * b), (1, 4)),
    "div by it": two(lambda a, b: b / (1 + a * a)),
    "igamma": two(lambda a, b: lax.igamma(*positive(a, b))),
    "igammac": two(lambda a, b: lax.igammac(*positive(a, b))),
    "integer_pow": both(lambda h, p, x: lax.integer_pow(h, 3)),
    "max": two(lax.max),
    "max with zero": both(lambda h, p, x: lax.max(h, 0.0)),
    "min": two(lax.min),
    "mul": two(lax.mul, (1, 4)),
    "mul by weights": both(lambda h, p, x: h * p["v"]),
    "mul by an axis of one": both(lambda h, p, x: h * x[..., :1]),
    "nextafter": two(lambda *xs: lax.nextafter(*map(lax.stop_gradient, xs))),
    "pow": two(lambda a, b: (1 + a * a) ** b),
    "rem": two(lambda a, b: lax.rem(a, 1 + b * b)),
    "round": both(lambda h, p, x: lax.round(h)),
    "select_n": two(lambda a, b: lax.select(b > 0, a, 2 * a), (1, 4)),
    "select_n by it": two(lambda a, b: jnp.where(a > 0, a, b)),
    "sub": two(lax.sub),
    "and": integers(lax.bitwise_and),
    "or": integers(lax.bitwise_or),
    "xor": integers(lax.bitwise_xor),
    "not": integers(lambda a, b: ~a),
    "bits": integers(lambda a, b: lax.clz(a) + lax.population_count(b)),
    "shifts": integers(shift),
    "copy": both(lambda h, p, x: jnp.array(h, copy=True)),
    "name": both(lambda h, p, x: checkpoint_name(h, "h")),
    "reduce_precision": both(lambda h, p, x: lax.reduce_precision(h, 8, 7)),
    "stop_gradient": both(lambda h, p, x: lax.stop_gradient(h) * h),
    "convert_element_type": both(
        lambda h, p, x: h.astype(jnp.bfloat16).astype(h.dtype)
    ),
    "optimization_barrier": both(
        lambda h, p, x: sum(lax.optimization_barrier((h, 2 * h)))
    ),
    "bitcast_convert_type": Case(
        lambda h, p, x: lax.bitcast_convert_type(
            lax.bitcast_convert_type(h, jnp.int32), h.dtype
        )
    ),
    "bitcast_convert_type to halves": Case(
        lambda h, p, x: lax.bitcast_convert_type(
            lax.bitcast_convert_type(h, jnp.int16), h.dtype
        )
    ),
}

# Sums and other reductions, over an axis without units and over the units.


def over(f, other, units):
    return (
        Case(lambda h, p, x: 1.0 * f(h, 1), other),
        Case(lambda h, p, x: h + f(h, 2)[..., None], units),
    )


def along(f, other, units=()):
    return (
        Case(lambda h, p, x: f(h, 1), other),
        Case(lambda h, p, x: h + f(h, 2), units),
    )


REDUCTIONS = {
    "reduce_sum": over(jnp.sum, (1, 4), ()),
    "reduce_max": over(jnp.max, (1, 4), ()),
    "reduce_min": over(jnp.min, (1, 4), ()),
    "reduce_prod": over(jnp.prod, (4,), ()),
    "reduce_and": over(lambda h, axis: jnp.all(h > -1, axis), (4,), ()),
    "reduce_or": over(lambda h, axis: jnp.any(h > 1, axis), (1, 4), ()),
    "argmax": over(jnp.argmax, (4,), ()),
    "argmin": over(jnp.argmin, (4,), ()),
    "cumsum": along(lax.cumsum, (1, 4)),
    "cumprod": along(lax.cumprod, (1, 4)),
    "cummax": along(lax.cummax, (1, 4)),
    "cummin": along(lax.cummin, (1, 4)),
    "cumlogsumexp": along(lax.cumlogsumexp, (4,)),
    "sort": along(jnp.sort, (4,)),
    "top_k": (
        Case(
            lambda h, p, x: jnp.swapaxes(lax.top_k(jnp.swapaxes(h, 1, 2), 2)[0], 1, 2)
        ),
        none(lambda h, p, x: h + lax.top_k(h, 2)[0][..., :1]),
    ),
}
CASES |= {name: cases[0] for name, cases in REDUCTIONS.items()}
CASES |= {f"{name} of units": cases[1] for name, cases in REDUCTIONS.items()}


def convolve(x, kernel, **options):
    options = {"window_strides": (1,), "padding": "SAME"} | options
    dimensions = ("NWC", "WIO", "NWC")
    return lax.conv_general_dilated(x, kernel, dimension_numbers=dimensions, **options)


def pool(start, f, sizes, strides=(1, 1, 1), padding="VALID"):
    return lambda h, p, x: lax.reduce_window(h, start, f, sizes, strides, padding)


CASES |= {
    "dot_general": Case(lambda h, p, x: h @ p["w"], (1,)),
    "dot_general, batched": both(
        lambda h, p, x: jnp.einsum("bti,bti->bi", h, x @ p["second"])
    ),
    "dot_general of units": Case(
        lambda h, p, x: jnp.einsum("bti,bsi->bts", h, x @ p["second"]), (1,), ()
    ),
    "w @ w.T": Case(lambda h, p, x: h @ (p["w"] @ p["w"].T), (1,), (1, 4)),
    "w @ w.T is read": none(lambda h, p, x: h @ (p["w"] @ p["w"].T)),
    "convolution": Case(lambda h, p, x: convolve(h, p["kernel"]), (1,)),
    "convolution with strides": Case(
        lambda h, p, x: convolve(
            h, p["kernel"], window_strides=(2,), padding=((1, 2),), lhs_dilation=(2,)
        ),
        (1,),
    ),
    "depthwise convolution": both(
        lambda h, p, x: convolve(h, p["depthwise"][..., :6], feature_group_count=6)
    ),
    "depthwise convolution with two features each": Case(
        lambda h, p, x: convolve(h, p["depthwise"], feature_group_count=6),
        rows=(8, 9),
    ),
    "convolution in groups": both(
        lambda h, p, x: convolve(h, p["in groups"], feature_group_count=2),
        rows=(),
        dead=(1, 4),
    ),
    "convolution in groups, one of which is read": none(
        lambda h, p, x: convolve(h, p["in groups"], feature_group_count=2)
    ),
    "convolution in groups of the batch": none(
        lambda h, p, x: convolve(h, p["kernel"], batch_group_count=2)
    ),
    "reduce_window_sum": both(pool(0.0, lax.add, (1, 2, 1), (1, 2, 1), "SAME")),
    "reduce_window_max": both(pool(-jnp.inf, lax.max, (1, 3, 1))),
    "reduce_window_min": both(pool(jnp.inf, lax.min, (1, 3, 1))),
    "reduce_window_sum of units": none(pool(0.0, lax.add, (1, 1, 2))),
    "reduce_window_max of units": none(pool(-jnp.inf, lax.max, (1, 1, 2))),
}
