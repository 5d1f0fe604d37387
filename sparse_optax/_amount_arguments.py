"""Reads and checks the arguments `fraction`, `sparsity` and `count`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sparse_optax import _amounts, _layers, _prunable
from sparse_optax._amounts import Kind, Value
from sparse_optax._prune_state import Distribution, PruneState

_LATE = 1_000_000  # an update at which schedules of amounts have reached their end


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
    if not isinstance(value, Mapping):
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
    """Raises unless the structures of the leaves allow the amount: of each, or of all.

    Caps such as `min_kept` are not errors: what they keep is counted as `shortfall`.
    """
    if kind is None:
        return
    rules = _prunable.resolve(state.rules, state.masks)
    structures = dict(getattr(rules.structure, "structures", ()))
    if isinstance(value, Mapping):
        found = _amounts.by_leaf(kind, value, rules.named, rules.num_layers)
    elif state.rules.distribution == "uniform":
        found = dict.fromkeys(structures, value)
    else:
        sizes = rules.sizes_by_name()
        allowed = sum(x.max_sparsity * sizes[name] for name, x in structures.items())
        total = sum(sizes.values()) if structures else 0
        highest = allowed / total if total else 1
        _check_allowed(kind, kind, value, highest, "the structures of all leaves")
        return
    for name, structure in structures.items():
        highest = structure.max_sparsity
        _check_allowed(f"{kind} of {name}", kind, found[name], highest, structure)


def _check_allowed(name: str, kind: Kind, value: Any, highest: Any, by: Any) -> None:
    """Raises if a number, or the last value of a schedule, is above `highest`."""
    if kind == "count":
        return
    got = repr(value)
    if callable(value):
        value = _late_value(value)
        got = f"a schedule with {value} at update {_LATE:,}"
    is_known = isinstance(value, int | float | np.number)
    if is_known and not value <= float(highest):  # NaN is not
        plural = "" if isinstance(by, str) else "s"
        wanted = f"at most {float(highest):g}, which {by} allow{plural}"
        wanted = wanted if highest < 1 else "in [0, 1]"
        raise ValueError(f"{name} must be {wanted}; got {got}.")


def _late_value(schedule: Any) -> Any:
    """The value of a schedule after many updates, or None if it depends on tracers."""
    with jax.ensure_compile_time_eval():
        value = schedule(jnp.asarray(_LATE, jnp.int32))
    if isinstance(value, Tracer) or np.ndim(value):
        return None
    return float(f"{float(value):.6g}")  # 0.9, and not 0.8999999761581421
