"""Finds the removed units in another trace of the function, and checks that they fit.

A compacted network is the function of its expanded params, which are zero where units
were removed. This holds for a new trace if nothing reads the removed units there.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparse_optax._compaction.analysis import Analysis
from sparse_optax._compaction.evaluate import Evaluation
from sparse_optax._compaction.facts import UNKNOWN, Along, Fact, unknown
from sparse_optax._compaction.find_groups import find_groups
from sparse_optax._compaction.leaves import Kept
from sparse_optax._compaction.liveness import Liveness
from sparse_optax._compaction.program import Value
from sparse_optax._compaction.stacks import may_move


def fit_removed(
    analysis: Analysis, kept: Kept, shapes: Mapping[str, tuple[int, ...]]
) -> Evaluation:
    """Evaluates a new trace without the units that were removed from another one.

    Raises:
        ValueError: if the new trace couples them with units that are kept, reads them,
            or tells apart units that only some layers of a scan have lost.
    """
    removed = _find_removed(analysis, kept)
    evaluation = Evaluation(analysis.table, removed)
    _check_coupling(analysis, evaluation, kept, shapes)
    _check_unread(analysis, evaluation, removed)
    if any(x.ndim == 2 for by_axis in kept.values() for x in by_axis.values()):
        _check_alike(analysis, kept)
    return evaluation


def _find_removed(analysis: Analysis, kept: Kept) -> np.ndarray:
    """Which units of the new trace are removed: those with no kept position."""
    table = analysis.table
    seen, alive = np.zeros((2, table.size), bool)
    for name, value in zip(analysis.names, analysis.program.ins, strict=False):
        for axis, units in enumerate(value.axes):
            if units is not None:
                units = table.resolve(units)
                seen[units] = True
                alive[units[_kept_of(kept, name, axis)]] = True
    return seen & ~alive


def _kept_of(kept: Kept, name: str, axis: int) -> Any:
    """The kept indices of an axis, in the first layer where they are stacked."""
    indices = kept.get(name, {}).get(axis)
    if indices is None:
        return slice(None)
    return indices[0] if indices.ndim == 2 else indices


def _check_coupling(
    analysis: Analysis,
    evaluation: Evaluation,
    kept: Kept,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises an error if the removed units are not the removed slices.

    Leaves that the function does not read may have any size.
    """
    uses = analysis.program.uses()
    for name, value in zip(analysis.names, analysis.program.ins, strict=False):
        if not uses[value]:
            continue
        for axis, mask in enumerate(evaluation.masks(value)):
            n = shapes[name][axis]
            expected = np.arange(n)[_kept_of(kept, name, axis)]
            found = np.arange(n) if mask is None else np.flatnonzero(mask)
            if not np.array_equal(found, expected):
                reasons = analysis.table.why_frozen(value.axes[axis])
                raise ValueError(
                    "with these inputs the function needs units that were removed "
                    f"({n - len(expected)} of {n} slices of {name}, axis {axis}): "
                    f"{', '.join(reasons) or 'it couples other units'}."
                )


def _check_unread(
    analysis: Analysis, evaluation: Evaluation, removed: np.ndarray
) -> None:
    """Raises an error if the function of the expanded params reads removed units."""
    program, table, num = analysis.program, analysis.table, len(analysis.names)
    facts = [_zero_where_removed(evaluation, value) for value in program.ins[:num]]
    inputs = [unknown(value) for value in program.ins[num:]]
    liveness = Liveness(table, {}, np.zeros(table.size, bool))
    liveness.run(program, [*facts, *inputs])
    readers = liveness.readers * removed
    for name, value in zip(analysis.names, program.ins, strict=False):
        for axis, units in enumerate(value.axes):
            read = 0 if units is None else readers[table.resolve(units)].max(initial=0)
            if read:
                raise ValueError(
                    f"with these inputs {liveness.names[read]} reads units that were "
                    f"removed from {name}, axis {axis}, and that are not zero there."
                )


def _zero_where_removed(evaluation: Evaluation, value: Value) -> Fact:
    axes = [
        UNKNOWN if kept is None else Along(~kept, np.zeros(len(kept), value.dtype))
        for kept in evaluation.masks(value)
    ]
    return (*axes, UNKNOWN)


def _check_alike(analysis: Analysis, kept: Kept) -> None:
    """Raises an error if a scan tells units apart that have moved in its layers."""
    table = analysis.table
    movable = np.zeros(table.size, bool)
    for _, units in find_groups(analysis)[0]:
        movable[units] = may_move(analysis, units)
    for name, value in zip(analysis.names, analysis.program.ins, strict=False):
        for axis, indices in kept.get(name, {}).items():
            units = value.axes[axis]
            if indices.ndim == 1 or units is None:
                continue
            by_layer = table.resolve(units)[indices]
            moved = by_layer[:, (by_layer != by_layer[0]).any(axis=0)]
            if not movable[moved].all():
                raise ValueError(
                    "with these inputs a scan does not treat all units alike whose "
                    f"layers have lost different ones ({name}, axis {axis}). Compact "
                    "this function instead."
                )
