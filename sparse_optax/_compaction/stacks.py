"""Layers stacked for a scan: each may lose different units, but equally many.

A unit inside the body of a scan is in every layer, and each layer can remove it
independently. So each layer loses its own units, as many as the layer with the fewest
unread units. The remaining units move to the positions that they have in the first
layer: only the indices into stacked parameters differ by layer, and the scan still has
one body. The body must treat all units of a group alike, whatever their positions: it
must not slice some of them off, or combine them with position-dependent values.
"""

from collections import Counter

import numpy as np

from sparse_optax._compaction.analysis import Analysis
from sparse_optax._compaction.facts import fact_of_array, unknown
from sparse_optax._compaction.find_groups import find_groups
from sparse_optax._compaction.liveness import Liveness, Unread
from sparse_optax._compaction.program import Step, Value
from sparse_optax._compaction.units import UnitTable

Order = dict[int, np.ndarray]  # the unit of each layer, by that of the first


def unread_by_layer(
    analysis: Analysis, found: Unread, round_to: int
) -> dict[tuple[str, int], np.ndarray]:
    """Adds units of stacked layers to the removed ones.

    Returns:
        The kept indices, [layers, kept], by the name and axis of a leaf.
    """
    order: Order = {}
    for step in analysis.program.steps:
        if step.name == "scan" and step.params["length"] > 1:
            order |= _remove_from_scan(analysis, found, step, round_to)
    indices = {}
    for name, value in zip(analysis.names, analysis.program.ins, strict=False):
        for axis, units in enumerate(value.axes):
            if units is not None:
                units = analysis.table.resolve(units)
                if any(unit in order for unit in units.ravel().tolist()):
                    kept = np.flatnonzero(~found.removed[units].any(axis=1))
                    indices[name, axis] = _indices(units, kept, order)
    return indices


def _remove_from_scan(
    analysis: Analysis, found: Unread, step: Step, round_to: int
) -> Order:
    """Removes equally many units from each layer of a scan."""
    stacked = _stacked_leaves(analysis, step)
    local = _local_units(analysis, step, stacked)
    dead = [
        _dead_in_layer(analysis.table, found, step, stacked, local, layer)
        for layer in range(step.params["length"])
    ]
    order: Order = {}
    for _, units in find_groups(analysis)[0]:
        if not local[units].all() or not _are_alike(analysis.table, step, units):
            continue
        alive = units[~found.removed[units]]
        fewest = min(int(layer[alive].sum()) for layer in dead)
        num_kept = max(len(alive) - fewest, 1)
        num_kept = min(-(-num_kept // round_to) * round_to, len(alive))
        if num_kept == len(alive):
            continue
        kept = []
        for layer in dead:
            gone = alive[layer[alive]][: len(alive) - num_kept]
            kept.append(np.setdiff1d(alive, gone))
        found.removed[np.setdiff1d(alive, kept[0])] = True
        order |= dict(zip(kept[0].tolist(), np.stack(kept, 1), strict=True))
    return order


def may_move(analysis: Analysis, units: np.ndarray) -> bool:
    """Whether each layer of a scan may have these units at positions of its own."""
    return any(
        _local_units(analysis, step, _stacked_leaves(analysis, step))[units].all()
        and _are_alike(analysis.table, step, units)
        for step in analysis.program.steps
        if step.name == "scan"
    )


def _stacked_leaves(analysis: Analysis, step: Step) -> dict[Value, int]:
    """The leaves, as indices, by the arguments of the body that have their layers."""
    leaves = {v: i for i, v in enumerate(analysis.program.ins[: len(analysis.names)])}
    uses, inner = analysis.program.uses(), step.programs["body"].ins
    start = step.params["num_consts"] + step.params["num_carry"]
    pairs = list(zip(inner, step.ins, strict=True))[start:]
    return {x: leaves[v] for x, v in pairs if v in leaves and uses[v] == 1}


def _are_alike(table: UnitTable, step: Step, units: np.ndarray) -> bool:
    """Whether the body of a scan treats all of these units alike."""
    body = step.programs["body"]
    steps = body.all_steps()
    made = [value for value in body.all_values() if value.constant is not None]
    made += [value for s in steps if s.is_whole for value in s.outs]
    cut = [v for s in steps if s.name in ("slice", "split") for v in s.outs]

    def counts(values: list[Value]) -> list[int]:
        axes = (u for value in values for u in value.axes if u is not None)
        return [int(np.isin(units, table.resolve(u)).sum()) for u in axes]

    return not any(counts(made)) and not any(0 < n < len(units) for n in counts(cut))


def _local_units(
    analysis: Analysis, step: Step, stacked: dict[Value, int]
) -> np.ndarray:
    """Which units are in stacked leaves, and otherwise only in the body of a scan."""
    table, inside = analysis.table, set(step.programs["body"].all_values())
    outside = {analysis.program.ins[i] for i in stacked.values()}
    local, other = np.zeros((2, table.size), bool)
    for value in analysis.program.all_values():
        if value not in inside:
            for units in value.axes:
                if units is not None:
                    where = local if value in outside else other
                    where[table.resolve(units)] = True
    local[0] = False
    return local & ~other


def _dead_in_layer(
    table: UnitTable,
    found: Unread,
    step: Step,
    stacked: dict[Value, int],
    local: np.ndarray,
    layer: int,
) -> np.ndarray:
    """Which local units nothing reads in a layer, to a fixed point."""
    body = step.programs["body"]
    removed = found.removed.copy()
    before = found.liveness.known[step]
    while True:
        facts = [
            fact_of_array(
                found.leaves[stacked[value]][layer],
                [table.kept(u, removed) for u in value.axes],
            )
            if value in stacked
            else unknown(value)
            for value in body.ins[len(before) :]
        ]
        liveness = Liveness(table, {}, np.zeros(table.size, bool))
        liveness.run(body, [*before, *facts])
        new = removed | (local & (liveness.readers == 0))
        if (new == removed).all():
            return removed & local
        removed = new


def _indices(units: np.ndarray, kept: np.ndarray, order: Order) -> np.ndarray:
    """For each layer, where the units are that the first layer has at `kept`."""
    num_layers = len(next(iter(order.values())))
    occurrences: Counter = Counter()
    where = {}
    for position, row in enumerate(map(tuple, units.tolist())):
        where[row, occurrences[row]] = position
        occurrences[row] += 1
    indices = np.zeros((num_layers, len(kept)), int)
    for layer in range(num_layers):
        seen: Counter = Counter()
        for i, row in enumerate(units[kept].tolist()):
            mine = tuple(int(order[u][layer]) if u in order else u for u in row)
            indices[layer, i] = where[mine, seen[mine]]
            seen[mine] += 1
    return indices
