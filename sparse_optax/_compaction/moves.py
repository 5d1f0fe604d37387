"""Primitives that move positions of an axis: reshape, slice, concatenate and the like.

Their results do not have whole axes of the arguments, so wirings cannot describe them.
Their parameters include sizes, which change when units are removed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparse_optax._compaction.labels import FROZEN, freeze_all
from sparse_optax._compaction.program import Step
from sparse_optax._compaction.units import UnitTable

Masks = list[np.ndarray | None]  # for each axis, which positions are kept
ALL = "all"  # all positions of an axis, in order


def reshape(step: Step, table: UnitTable) -> None:
    """Merges the units of axes that become one; splits those that become several."""
    x, out = step.ins[0], step.outs[0]
    reason = "fixed by reshape"
    if 0 in x.shape:  # it is ambiguous which axes become which
        freeze_all(step, table, reason)
        return
    out.axes = []
    for ins, outs in reshape_groups(x.shape, out.shape):
        units = [x.axes[i] for i in ins]
        sizes = [out.shape[i] for i in outs]
        if len(ins) == len(outs) == 1:
            out.axes += units
        elif (
            not all(isinstance(n, int) for n in [*sizes, *(x.shape[i] for i in ins)])
            or not outs
            or not ins
        ):
            for one in units:
                table.freeze(one, reason)
            out.axes += [None] * len(outs)
        elif x.is_input and len(ins) > 1 and len(outs) == 1:
            # Such as an image that is flattened. Each position has its own unit, rather
            # than whole rows and columns: inputs can be indexed anywhere.
            for one in x.axes:  # it is flattened whole, and then indexed
                table.freeze(one, "indexed where it is flattened")
            step.is_whole = True
            out.axes.append(table.new(*sizes))
        else:
            merged = table.merge(units, [x.shape[i] for i in ins])
            out.axes += table.split(merged, sizes, reason)


def reshape_groups(old: tuple, new: tuple) -> list[tuple[list[int], list[int]]]:
    """Which axes become which: the smallest groups with equal numbers of elements."""
    groups, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        ins, outs, n, m = [i], [j], old[i], new[j]
        i, j = i + 1, j + 1
        while n is not m and n != m:
            is_old_next = len(old) - i >= len(new) - j  # a guess for symbolic sizes
            if isinstance(n, int) and isinstance(m, int):
                is_old_next = n < m
            if i < len(old) and (is_old_next or j == len(new)):
                n, ins, i = n * old[i], [*ins, i], i + 1
            elif j < len(new):
                m, outs, j = m * new[j], [*outs, j], j + 1
            else:
                break
        groups.append((ins, outs))
    if i < len(old) or j < len(new):  # axes of size 1
        groups += [([k], []) for k in range(i, len(old))]
        groups += [([], [k]) for k in range(j, len(new))]
    return groups


def concatenate(step: Step, table: UnitTable) -> None:
    """Concatenates the units of the parts, and joins those of other axes."""
    out, along = step.outs[0], step.params["dimension"]
    out.axes = list(step.ins[0].axes)
    for value in step.ins[1:]:
        for axis, units in enumerate(value.axes):
            if axis != along:
                table.join(out.axes[axis], units, "concatenate with a fixed axis")
    parts = [value.axes[along] for value in step.ins]
    if all(units is None for units in parts) or any(
        not isinstance(v.shape[along], int) for v in step.ins
    ):
        for units in parts:
            table.freeze(units, "fixed by concatenate")
        out.axes[along] = None
        return
    out.axes[along] = stack_positions(
        [
            np.zeros((v.shape[along], 0), np.int32) if u is None else table.resolve(u)
            for u, v in zip(parts, step.ins, strict=True)
        ]
    )


def stack_positions(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenates units, padded to the same number per position."""
    width = max(units.shape[1] for units in parts)
    return np.concatenate([np.pad(u, ((0, 0), (0, width - u.shape[1]))) for u in parts])


def moved(step: Step, table: UnitTable) -> None:
    """For primitives whose results take positions of the argument, in some order."""
    x = step.ins[0]
    for k, out in enumerate(step.outs):
        out.axes = []
        for axis, positions in enumerate(positions_from(step, k)):
            units = x.axes[axis]
            if positions is ALL or units is None:
                out.axes.append(units)
            elif positions is FROZEN:
                table.freeze(units, f"fixed by {step.name}")
                out.axes.append(None)
            else:
                out.axes.append(take_positions(units, positions))


def positions_from(step: Step, k: int) -> list:
    """For each axis of a result, the positions of the argument; -1 is padding."""
    shape, params = step.ins[0].shape, step.params
    found: list = [ALL] * len(shape)
    if step.name == "slice":
        strides = params["strides"] or (1,) * len(shape)
        for axis, n in enumerate(shape):
            start, limit = params["start_indices"][axis], params["limit_indices"][axis]
            if (n, 0) != (limit, start):
                is_plain = strides[axis] == 1 and isinstance(n, int)
                found[axis] = np.arange(start, limit) if is_plain else FROZEN
            elif strides[axis] != 1:
                found[axis] = FROZEN
    elif step.name == "split":
        start = sum(params["sizes"][:k])
        found[params["axis"]] = np.arange(start, start + params["sizes"][k])
    elif step.name == "tile":
        for axis, times in enumerate(params["reps"]):
            n = shape[axis]
            if times != 1:
                is_plain = isinstance(n, int)
                found[axis] = np.tile(np.arange(n), times) if is_plain else FROZEN
    elif step.name == "rev":
        for axis in params["dimensions"]:
            n = shape[axis]
            found[axis] = np.arange(n)[::-1] if isinstance(n, int) else FROZEN
    elif step.name == "pad":
        for axis, (low, high, inside) in enumerate(params["padding_config"]):
            n = shape[axis]
            if (low, high, inside) != (0, 0, 0):
                is_plain = low >= 0 and high >= 0 and inside == 0 and isinstance(n, int)
                found[axis] = FROZEN
                if is_plain:
                    found[axis] = np.pad(np.arange(n), (low, high), constant_values=-1)
    return found


def take_positions(units: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The units of some positions of an axis, and none for position -1."""
    return np.where(positions[:, None] < 0, 0, units[positions])


# Parameters for smaller arrays.


def small_shape(shape: Sequence[Any], masks: Masks) -> tuple:
    """A shape without the removed units."""
    return tuple(
        n if mask is None else int(mask.sum())
        for n, mask in zip(shape, masks, strict=True)
    )


def resize_to(name: str) -> Callable[[Step, list[Masks], list[Masks]], dict[str, Any]]:
    """Sets a parameter to the smaller shape of the result."""

    def resize(step, ins, outs):
        return step.params | {name: small_shape(step.outs[0].shape, outs[0])}

    return resize


def resize_slice(step: Step, ins: list[Masks], outs: list[Masks]) -> dict[str, Any]:
    """Counts starts and limits in kept positions."""
    return step.params | {
        name: tuple(
            n if mask is None else int(mask[:n].sum())
            for n, mask in zip(step.params[name], ins[0], strict=True)
        )
        for name in ("start_indices", "limit_indices")
    }


def resize_split(step: Step, ins: list[Masks], outs: list[Masks]) -> dict[str, Any]:
    """Sets the smaller sizes of the parts."""
    axis = step.params["axis"]
    shapes = (small_shape(v.shape, m) for v, m in zip(step.outs, outs, strict=True))
    return step.params | {"sizes": tuple(shape[axis] for shape in shapes)}


def resize_slice_sizes(
    step: Step, ins: list[Masks], outs: list[Masks]
) -> dict[str, Any]:
    """Sets the smaller sizes of the slices."""
    sizes = small_shape(step.params["slice_sizes"], ins[0])
    return step.params | {"slice_sizes": sizes}
