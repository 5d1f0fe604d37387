"""Amounts and distributions: how many units of each layer a pruning step removes.

An amount is a fraction of the remaining units, a sparsity over all units, or a number
of units. A distribution spreads it over the layers: "global" ranks all units together,
"uniform" applies the amount to each layer, and "erk" gives each layer the density of a
random sparse graph.

Source of ERK: Evci et al, `Rigging the Lottery <https://arxiv.org/abs/1911.11134>`_,
2020; for layers without kernels Mocanu et al, `Scalable training of artificial neural
networks with adaptive sparse connectivity <https://arxiv.org/abs/1707.04780>`_, 2018.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer

from sparse_optax import _arguments, _counts, _leaves, _trees
from sparse_optax._prune_state import Distribution

Kind = Literal["fraction", "sparsity", "count"]
_DTYPES = {"fraction": jnp.float32, "sparsity": jnp.float32, "count": jnp.int32}

# A number, a schedule, or a dict of them by regular expressions of leaf names.
Value = Any


class Target(NamedTuple):
    """How much a pruning step removes.

    Attributes:
        most: how many units of each layer may be removed, or are removed if `by_layer`.
        total: how many units to remove in all, including those removed before.
    """

    most: jax.Array  # int64, an element for each layer.
    total: jax.Array  # int64.


def check_amount(name: str, value: Value, *, schedule: bool = True) -> None:
    """Raises unless `value` is an amount, or a dict of amounts."""
    _leaves.check_patterns(name, value)
    named = value if isinstance(value, Mapping) else {None: value}
    for key, number in named.items():
        place = name if key is None else f"{name} at {key!r}"
        if name != "count":
            _arguments.check_number(place, number, high=1.0, schedule=schedule)
        elif isinstance(number, jax.Array):  # its value may not be known
            if not jnp.issubdtype(number.dtype, jnp.integer):
                raise TypeError(f"{place} must be an integer; got {number!r}.")
        elif not (schedule and callable(number)):
            _arguments.check_integer(place, number, low=0, high=2**31 - 1)


def check_distribution(distribution: Any) -> None:
    """Raises unless `distribution` is a known distribution."""
    *others, last = map(repr, get_args(Distribution))
    if repr(distribution) not in (*others, last):
        raise ValueError(
            f"distribution must be {', '.join(others)} or {last}; got {distribution!r}."
        )


def value_at(
    kind: Kind,
    value: Value,
    step: jax.Array,
    named: Any,
    num_layers: Mapping[str, int],
) -> jax.Array:
    """The amount at a step: a number, or one for each layer where a dict was given.

    Args:
        kind: the kind of amount.
        value: a number, a schedule, or a dict of them.
        step: the argument of schedules.
        named: a tree with the names that patterns match.
        num_layers: how many layers are stacked in each array of units, 0 if none are.

    Raises:
        ValueError: if a schedule does not return a scalar, or as for `by_leaf`.
    """
    if not isinstance(value, Mapping):
        return _scalar(kind, value, step)
    numbers = {
        pattern: jnp.reshape(_scalar(kind, x, step), [1])
        for pattern, x in value.items()
    }
    patterns = by_leaf(kind, dict(zip(value, value, strict=True)), named, num_layers)
    return jnp.concatenate(
        [
            jnp.zeros([0], _DTYPES[kind]),
            *[jnp.repeat(numbers[patterns[x]], n or 1) for x, n in num_layers.items()],
        ]
    )


def by_leaf(
    kind: Kind, value: Mapping[str, Any], named: Any, leaves: Iterable[str]
) -> dict[str, Any]:
    """The value of each leaf in a dict: the first pattern that matches its name wins.

    Raises:
        ValueError: if a pattern matches no leaf, or a leaf matches no pattern.
    """
    indices = _leaves.match_patterns(kind, value, named)
    names = [name for name, _ in _trees.named_leaves(named)]
    index = dict(zip(names, jax.tree.leaves(indices), strict=True))
    if missing := [name for name in leaves if index[name] < 0]:
        raise ValueError(
            f"{kind} has no pattern for {missing}; use 0 for leaves to keep whole."
        )
    values = list(value.values())
    return {name: values[index[name]] for name in leaves}


def _scalar(kind: Kind, value: Any, step: jax.Array) -> jax.Array:
    if callable(value):
        value = value(step)
        value = jnp.round(value) if kind == "count" else value
    if np.ndim(value):
        raise ValueError(f"{kind} must be a scalar; got {value}.")
    dtype = jnp.dtype(_DTYPES[kind])
    is_array = isinstance(value, jax.Array) and not value.weak_type
    if isinstance(value, Tracer) or (is_array and value.dtype == dtype):
        return jnp.asarray(value, dtype)
    return dtype.type(value)  # one dtype, as each type of number compiles separately


def target_of(
    kind: Kind | None,
    value: Any,
    distribution: Distribution,
    removed: jax.Array,
    sizes: np.ndarray,
    caps: np.ndarray,
    shapes: Sequence[tuple[int, ...]] | None,
    round_to: int = 1,
) -> Target:
    """How many units to remove from the layers, including those removed before.

    Args:
        kind: the kind of amount; None removes all that may be removed.
        value: a number; or one for each layer, then the distribution is not used.
        distribution: how the amount is spread over the layers.
        removed: how many units of each layer are removed, `int64`.
        sizes: how many units each layer has.
        caps: how many units of each layer may be removed.
        shapes: the shape of each layer, for "erk".
        round_to: each layer keeps a multiple of this many units.
    """
    most = jnp.maximum(_rounded(caps, sizes, round_to), removed)
    if kind is None:
        return Target(most, jnp.sum(most))
    if np.ndim(value) or distribution == "uniform":
        wanted = _after(kind, value, removed, sizes)
    else:
        total = _after(kind, value, jnp.sum(removed), jnp.int64(sizes.sum()))
        if distribution == "global":
            return Target(most, total)
        wanted = _erk(total, sizes, shapes)
    wanted = jnp.maximum(wanted, removed)
    by_layer = jnp.maximum(_rounded(wanted, sizes, round_to), removed)
    return Target(jnp.minimum(by_layer, most), jnp.sum(wanted))


def _rounded(removed: Any, sizes: np.ndarray, multiple: int) -> Any:
    """Rounds down what each layer loses, so that it keeps a multiple, or all units."""
    missing = (removed - sizes) % multiple  # how many more to keep
    return jnp.maximum(removed - missing, 0)


def _after(kind: Kind, value: Any, removed: jax.Array, size: Any) -> jax.Array:
    """How many units are removed in all after a pruning step."""
    if kind == "fraction":
        return removed + _counts.fraction_of(value, size - removed)
    if kind == "sparsity":
        return jnp.maximum(_counts.fraction_of(value, size), removed)
    return jnp.minimum(removed + jnp.maximum(value, 0), size)


def _erk(removed: jax.Array, sizes: np.ndarray, shapes: Any) -> jax.Array:
    """How many units to remove from each layer, for `removed` units in all.

    The density of a layer is proportional to sum(shape) / prod(shape), but at most 1;
    where it is 1, the other layers are sparser to compensate.
    """
    raw = [sum(shape) / max(math.prod(shape), 1) if shape else 1.0 for shape in shapes]
    raw = np.array(raw)
    order = np.argsort(-raw, kind="stable")
    # For every m: the m layers of the largest raw density are dense.
    raw_sorted, sizes_sorted = raw[order], sizes[order].astype(np.float64)
    dense = np.cumsum(sizes_sorted) - sizes_sorted
    rest = np.cumsum((raw_sorted * sizes_sorted)[::-1])[::-1]
    # Without the barrier, XLA would multiply by the inverse of a constant.
    rest = lax.optimization_barrier(jnp.asarray(rest))
    kept = (jnp.int64(sizes.sum()) - removed).astype(jnp.float64)
    scale = (kept - dense) / rest
    fits = scale * raw_sorted <= 1
    first = jnp.min(jnp.where(fits, np.arange(len(raw)), len(raw)))
    sparse = scale[jnp.minimum(first, len(raw) - 1)] * raw
    density = jnp.where(np.argsort(order) < first, 1.0, jnp.clip(sparse, 0.0, 1.0))
    sparsity = (1 - lax.optimization_barrier(density)).astype(jnp.float32)
    return _counts.fraction_of(sparsity, sizes)


def cubic_sparsity(init: float, target: float, begin: int, end: int) -> optax.Schedule:
    r"""A sparsity schedule that rises quickly at first and slowly towards the end.

    .. math:: s(t) = s_e + (s_0 - s_e) \left(1 - \frac{t - b}{e - b}\right)^3

    Args:
        init: the sparsity s_0 up to update `begin`, in [0, 1].
        target: the sparsity s_e from update `end` on, in [0, 1].
        begin: the update b after which the sparsity rises, at least 0.
        end: the update e that reaches `target`, after `begin`.

    Returns:
        An optax schedule, for `prune_to_sparsity`.

    Raises:
        TypeError: if a number is of the wrong type.
        ValueError: if a number is out of range.

    Examples:
        >>> import sparse_optax
        >>> schedule = sparse_optax.cubic_sparsity(0.0, 0.8, begin=0, end=10)
        >>> print([round(float(schedule(t)), 2) for t in (0, 5, 10, 20)])
        [0.0, 0.7, 0.8, 0.8]

    References:
        Zhu and Gupta, `To prune, or not to prune <https://arxiv.org/abs/1710.01878>`_,
        2017.
    """
    _arguments.check_number("init", init, high=1.0, schedule=False)
    _arguments.check_number("target", target, high=1.0, schedule=False)
    _arguments.check_integer("begin", begin, low=0)
    _arguments.check_integer("end", end, low=begin + 1)
    return optax.polynomial_schedule(init, target, 3, end - begin, begin)
