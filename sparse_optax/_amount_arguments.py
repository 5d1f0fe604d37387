"""Reads and checks the arguments `fraction`, `sparsity` and `count`."""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_optax import _amounts, _layers, _prunable
from sparse_optax._amounts import Kind, Value
from sparse_optax._prunable import Resolved
from sparse_optax._prune_state import Distribution, PruneState

_LATE = 1_000_000  # a step at which the last value of most schedules is reached


def the_amount(
    structure: Any, *, schedule: bool = True, **given: Value
) -> tuple[Any, Value]:
    """The kind and the value of the one amount that is given, or None for both.

    Args:
        structure: the structure, which limits the amount.
        schedule: whether the amount may be a schedule.
        **given: amounts by name; None if not given.

    Raises:
        TypeError: if the amount is of the wrong type.
        ValueError: if several are given, or if the amount is out of range.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"give one of {', '.join(given)}; got {given}.")
    kind: Any
    kind, value = next(iter(given.items()), (None, None))
    if kind is None:
        return None, None
    _amounts.check_amount(kind, value, schedule=schedule)
    # Dicts and schedules are checked when there are params.
    if not isinstance(value, Mapping) and not callable(value):
        highest = _layers.highest_sparsity(structure)
        _check_allowed(kind, kind, value, highest, structure)
    return kind, value


def check_amount_is_given(kind: Kind | None, structure: Any) -> None:
    """Raises if a pruning step has no amount and the structure does not imply one."""
    if kind is None and _layers.highest_sparsity(structure) == 1:
        raise ValueError(
            "a pruning step needs fraction, count or sparsity: only NM for all "
            f"leaves implies an amount; structure is {structure}."
        )


def check_distribution(distribution: Distribution, value: Value) -> None:
    """Raises a `ValueError` if ERK is combined with an amount for each leaf."""
    if distribution == "erk" and isinstance(value, Mapping):
        raise ValueError(
            "distribution='erk' needs one amount; got a dict of amounts for each leaf."
        )


def amount_at(
    kind: Kind | None, value: Value, step: jax.Array, state: PruneState
) -> jax.Array | None:
    """The amount at a step, in the form that `_pruning_step` takes."""
    if kind is None:
        return None
    named, num_layers = None, {}
    if isinstance(value, Mapping):
        rules = _prunable.resolve(state.rules, state.masks)
        named, num_layers = rules.named, rules.num_layers
    return _amounts.value_at(kind, value, step, named, num_layers)


def check_amount_fits(kind: Kind | None, value: Value, state: PruneState) -> None:
    """Raises if an amount is more than the structures of the leaves allow.

    Caps such as `min_kept` are not errors: what they keep is counted as `shortfall`.
    """
    if kind is None:
        return
    if isinstance(value, Mapping):
        rules = _prunable.resolve(state.rules, state.masks)
        found = _amounts.by_leaf(kind, value, rules.named, rules.num_layers)
        _check_each(kind, found, rules)
    elif _layers.lowest_sparsity(state.rules.structure.value) == 1:
        _check_allowed(kind, kind, value, 1, "")  # this needs no look at the leaves
    else:
        rules = _prunable.resolve(state.rules, state.masks)
        if state.rules.distribution == "uniform":
            _check_each(kind, dict.fromkeys(rules.num_layers, value), rules)
        else:
            _check_total(kind, value, rules)


def _check_each(kind: Kind, found: Mapping[str, Any], rules: Resolved) -> None:
    for name, structure in getattr(rules.structure, "structures", ()):
        highest = structure.max_sparsity
        _check_allowed(f"{kind} of {name}", kind, found[name], highest, structure)


def _check_total(kind: Kind, value: Any, rules: Resolved) -> None:
    sizes, total, allowed = rules.sizes.tolist(), 0, Fraction(0)
    structures = dict(getattr(rules.structure, "structures", ()))
    for name, num_layers in rules.num_layers.items():
        size, sizes = sum(sizes[: num_layers or 1]), sizes[num_layers or 1 :]
        total += size
        allowed += Fraction(structures[name].max_sparsity) * size
    _check_allowed(kind, kind, value, allowed / total if total else 1, "all leaves")


def _check_allowed(name: str, kind: Kind, value: Any, highest: Any, by: Any) -> None:
    """Raises if a number, or a late value of a schedule, is above `highest`.

    Amounts are used as `float32`, and so compared as `float32`.
    """
    got = repr(value)
    if callable(value):
        value = _late_value(value)
        got = f"a schedule with {value:g} at step {_LATE:,}"
    is_known = isinstance(value, int | float | np.number) and not math.isnan(value)
    if kind == "count" or not is_known or np.float32(value) <= np.float32(highest):
        return
    if highest == 1:
        raise ValueError(f"{name} must be in [0, 1]; got {got}.")
    raise ValueError(
        f"{name} must be at most {float(highest):g}, the limit of {by}; got {got}."
    )


def _late_value(schedule: Any) -> float:
    """The value of a schedule after many steps; NaN if there is none yet.

    Also NaN for values above 100, which no percentage is: a ramp that goes on rising
    may be meant, and values are clamped.
    """
    try:
        with jax.ensure_compile_time_eval():
            value = float(schedule(jnp.asarray(_LATE, jnp.int32)))
    except Exception:  # it depends on tracers, say, or ends before
        return math.nan
    return value if value <= 100 else math.nan
