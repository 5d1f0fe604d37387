"""Wirings: which axes of an equation share units, like the subscripts of an einsum.

Axes with the same symbol have the same units. A symbol that no result has is summed
over or frozen. A symbol of a result that no argument has gets new units.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

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


# Wirings of primitives that keep whole axes or sum over them.


def _common(shape: tuple, other: tuple) -> tuple:
    """Axes at the same place, where they have the same size."""
    sizes = enumerate(zip(shape, other, strict=False))
    common = tuple(i if n == m else FROZEN for i, (n, m) in sizes)
    return common + (FROZEN,) * (len(shape) - len(common))


def elementwise(step: Step) -> Wiring:
    """Axes at the same place are the same; axes of size 1 are broadcast."""
    shape = step.outs[0].shape
    ins = [_common(value.shape, shape) for value in step.ins]
    return Wiring(ins, [tuple(range(len(shape)))])


def one_by_one(step: Step) -> Wiring:
    """Each result has the axes of one argument."""
    symbols = [
        tuple((k, i) for i in range(len(v.shape))) for k, v in enumerate(step.ins)
    ]
    return Wiring(symbols, symbols)


def bitcast(step: Step) -> Wiring:
    """An axis that is added or dropped holds the parts of a number."""
    shape, new = step.ins[0].shape, step.outs[0].shape
    return Wiring([_common(shape, new)], [_common(new, shape)])


# Reductions and products.


def without(axes: Any) -> Callable[[Step], Wiring]:
    """The wiring of a primitive whose results lack the axes that a parameter names."""

    def wire(step):
        symbols = tuple(range(len(step.ins[0].shape)))
        left = tuple(i for i in symbols if i not in step.params[axes])
        return Wiring([symbols] * len(step.ins), [left] * len(step.outs))

    return wire


def dot_general(step: Step) -> Wiring:
    """The two factors share the axes that are summed over and the batch axes."""
    (left_sum, right_sum), (left_batch, right_batch) = step.params["dimension_numbers"]
    left = [("left", i) for i in range(len(step.ins[0].shape))]
    right = [("right", i) for i in range(len(step.ins[1].shape))]
    for i, j in [
        *zip(left_sum, right_sum, strict=True),
        *zip(left_batch, right_batch, strict=True),
    ]:
        right[j] = left[i]
    outs = [left[i] for i in left_batch]
    outs += [x for i, x in enumerate(left) if i not in (*left_batch, *left_sum)]
    outs += [x for j, x in enumerate(right) if j not in (*right_batch, *right_sum)]
    return Wiring([tuple(left), tuple(right)], [tuple(outs)])


def window(step: Step) -> Wiring:
    """Axes that a window moves along are frozen."""
    params = step.params
    n = len(step.ins[0].shape)
    is_free = [
        params["window_dimensions"][i] == 1
        and params["window_strides"][i] == 1
        and tuple(params["padding"][i]) == (0, 0)
        and params["base_dilation"][i] == 1
        for i in range(n)
    ]
    symbols = tuple(i if is_free[i] else FROZEN for i in range(n))
    return Wiring([symbols], [symbols])


def along(name: str) -> Callable[[Step], Wiring]:
    """The wiring of a primitive that keeps shapes and mixes positions of one axis."""

    def wire(step):
        rank = len(step.ins[0].shape)
        axis = step.params.get(name, -1) % rank
        symbols = tuple(FROZEN if i == axis else i for i in range(rank))
        return Wiring([symbols] * len(step.ins), [symbols] * len(step.outs))

    return wire


# Primitives that move whole axes.


def transpose(step: Step) -> Wiring:
    """The axes in another order."""
    symbols = tuple(range(len(step.ins[0].shape)))
    return Wiring([symbols], [step.params["permutation"]])


def broadcast_in_dim(step: Step) -> Wiring:
    """Axes that keep their size are the same, and the others are new."""
    x, out = step.ins[0], step.outs[0]
    outs: list[Hashable] = [("new", i) for i in range(len(out.shape))]
    ins: list[Hashable] = [FROZEN] * len(x.shape)
    for axis, to in enumerate(step.params["broadcast_dimensions"]):
        if x.shape[axis] == out.shape[to]:
            ins[axis] = outs[to] = axis
    others = [()] * (len(step.ins) - 1)  # symbolic sizes
    return Wiring([tuple(ins), *others], [tuple(outs)])


def stack(step: Step) -> Wiring:
    """The new axis is frozen."""
    symbols = tuple(range(len(step.ins[0].shape)))
    axis = step.params["axis"]
    out = (*symbols[:axis], FROZEN, *symbols[axis:])
    return Wiring([symbols] * len(step.ins), [out])


def unstack(step: Step) -> Wiring:
    """Each result has all axes except the one that is unstacked."""
    symbols = tuple(range(len(step.outs[0].shape)))
    axis = step.params["axis"]
    own = (*symbols[:axis], FROZEN, *symbols[axis:])
    return Wiring([own], [symbols] * len(step.outs))


# Primitives that look up positions.


_NEVER_FILL = "CLIP", "PROMISE_IN_BOUNDS"  # modes of a gather


def _never_fills(step: Step) -> bool:
    """Whether a gather reads its argument even where an index is out of bounds."""
    return getattr(step.params["mode"], "name", "") in _NEVER_FILL


def fills_with_zeros_or_nan(step: Step) -> bool:
    """Whether a gather of zeros returns zeros, or NaN in all features."""
    value = step.params["fill_value"]
    if value is None:  # the default
        fills_with_nan = jnp.issubdtype(step.outs[0].dtype, jnp.inexact)
    else:
        fills_with_nan = bool(np.isnan(value))
    return _never_fills(step) or fills_with_nan or value == 0


def gather(step: Step) -> Wiring:
    """Keeps the axes of the argument that are taken whole, and those of the indices."""
    numbers, sizes = step.params["dimension_numbers"], step.params["slice_sizes"]
    never_fills = _never_fills(step)
    x, indices = step.ins
    ins: list[Hashable] = [FROZEN] * len(x.shape)
    outs: list[Hashable] = [FROZEN] * len(step.outs[0].shape)
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    windows = [axis for axis in range(len(x.shape)) if axis not in gone]
    for axis, to in zip(windows, numbers.offset_dims, strict=True):
        # The start of a whole axis is 0, unless positions out of bounds are filled.
        is_free = axis not in numbers.start_index_map or never_fills
        if sizes[axis] == x.shape[axis] and is_free:
            ins[axis] = outs[to] = ("window", axis)
    of_indices: list[Hashable] = [FROZEN] * len(indices.shape)
    others = [i for i in range(len(outs)) if i not in numbers.offset_dims]
    for axis, to in enumerate(others):
        if axis not in numbers.start_indices_batching_dims:
            of_indices[axis] = outs[to] = ("index", axis)
    return Wiring([tuple(ins), tuple(of_indices)], [tuple(outs)])


def scatter(step: Step) -> Wiring:
    """Keeps the axes of the argument that are written to as a whole."""
    numbers = step.params["dimension_numbers"]
    x, indices, updates = step.ins
    of_x: list[Hashable] = [FROZEN] * len(x.shape)
    of_updates: list[Hashable] = [FROZEN] * len(updates.shape)
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    windows = [axis for axis in range(len(x.shape)) if axis not in gone]
    for axis, to in zip(windows, numbers.update_window_dims, strict=True):
        is_mapped = axis in numbers.scatter_dims_to_operand_dims
        if updates.shape[to] == x.shape[axis] and not is_mapped:
            of_x[axis] = of_updates[to] = axis
    fixed = (FROZEN,) * len(indices.shape)
    return Wiring([tuple(of_x), fixed, tuple(of_updates)], [tuple(of_x)])


def dynamic_slice(step: Step) -> Wiring:
    """Keeps the axes that are taken whole."""
    symbols = _common(step.ins[0].shape, step.outs[0].shape)
    return Wiring([symbols] + [()] * (len(step.ins) - 1), [symbols])


def dynamic_update_slice(step: Step) -> Wiring:
    """Keeps the axes that are written to as a whole."""
    x, update, *starts = step.ins
    symbols = _common(x.shape, update.shape)
    return Wiring([symbols, symbols, *(() for _ in starts)], [symbols])
