"""Wirings: which axes of an equation share units, like the subscripts of an einsum.

Axes with the same symbol have the same units. A symbol that no result has is summed
over or frozen. A symbol of a result that no argument has gets new units.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from sparse_optax._compaction.program import Step, Sum, Value
from sparse_optax._compaction.units import UnitTable

FROZEN = None  # the symbol of an axis along which nothing is removed
Symbols = tuple[Hashable, ...]


class Wiring(NamedTuple):
    """The symbols of the axes of arguments and results."""

    ins: Sequence[Symbols]
    outs: Sequence[Symbols]


def new_axes(value: Value, table: UnitTable) -> list:
    """Axes with new units."""
    return [table.new(n) if isinstance(n, int) else None for n in value.shape]


def freeze_all(step: Step, table: UnitTable, reason: str = "") -> None:
    """Freezes all axes of the arguments and results."""
    reason = reason or f"{step.name} has no rule"
    for value in step.ins:
        for units in value.axes:
            table.freeze(units, reason)
    for value in step.outs:
        value.axes = [None] * len(value.shape)


def connect(step: Step, table: UnitTable, wiring: Wiring, *, sums: bool) -> None:
    """Sets and joins the axes of a step according to a wiring."""
    step.wiring = wiring
    units, factors = {}, {}
    for value, symbols in zip(step.ins, wiring.ins, strict=True):
        for axis, symbol in enumerate(symbols):
            if symbol is FROZEN:
                table.freeze(value.axes[axis], f"fixed by {step.name}")
                continue
            if symbol in units:
                reason = f"{step.name} with a fixed axis"
                table.join(units[symbol], value.axes[axis], reason)
            units.setdefault(symbol, value.axes[axis])
            factors.setdefault(symbol, []).append((value, axis))
    for value, symbols in zip(step.outs, wiring.outs, strict=True):
        for symbol, size in zip(symbols, value.shape, strict=True):
            if symbol is not FROZEN and symbol not in units:
                units[symbol] = table.new(size) if isinstance(size, int) else None
        value.axes = [units.get(symbol) for symbol in symbols]
    kept = {symbol for symbols in wiring.outs for symbol in symbols}
    for symbol in factors.keys() - kept:
        if not sums:
            table.freeze(units[symbol], f"fixed by {step.name}")
        elif units[symbol] is not None:
            step.sums.append(Sum(units[symbol], factors[symbol]))
