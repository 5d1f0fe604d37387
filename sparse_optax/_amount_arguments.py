"""Reads and checks the arguments `fraction`, `sparsity` and `count`."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sparse_optax import _amounts, _layers, _prunable
from sparse_optax._amounts import Kind, Value
from sparse_optax._prune_state import Distribution, PruneState


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
        _check_structure_allows(kind, kind, value, structure)
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
    """Raises unless a dict gives each leaf an amount that its structure allows."""
    if kind is None or not isinstance(value, Mapping):
        return
    rules = _prunable.resolve(state.rules, state.masks)
    found = _amounts.by_leaf(kind, value, rules.named, rules.num_layers)
    for name, structure in getattr(rules.structure, "structures", ()):
        _check_structure_allows(f"{kind} of {name}", kind, found[name], structure)


def _check_structure_allows(name: str, kind: Any, number: Any, structure: Any) -> None:
    highest = float(_layers.highest_sparsity(structure))
    is_known = isinstance(number, int | float | np.number)
    if is_known and kind != "count" and number > highest:
        raise ValueError(
            f"{name} must be at most {highest:g}, which {structure} allows; got "
            f"{number!r}."
        )
