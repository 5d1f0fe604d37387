"""What each primitive says of the units of its axes: a table from names to rules.

Most rules are a wiring, in the manner of an einsum: axes with the same symbol have the
same units. An axis that no result has is summed over, or frozen. An axis of a result
that no argument has is new. A primitive without a rule freezes the axes of its
arguments, and nothing can be removed along those of its results.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparse_optax._compaction.program import Program, Step, Sum, Value
from sparse_optax._compaction.units import UnitTable

FROZEN = None  # the symbol of an axis along which nothing is removed
Symbols = tuple[Hashable, ...]
Masks = list[list[np.ndarray | None]]  # which positions are kept, of each axis


class Wiring(NamedTuple):
    """The symbols of the axes of arguments and results."""

    ins: Sequence[Symbols]
    outs: Sequence[Symbols]


class Rule(NamedTuple):
    """What there is to know of a primitive.

    Attributes:
        label: sets the axes of the results, and joins or freezes those of arguments.
        facts: which rule of `liveness` says what is known of the results.
        resize: the parameters for smaller arrays, from the sizes of the results.
        is_whole: whether the results are made in their whole size, then indexed.
    """

    label: Callable[[Step, UnitTable], None]
    facts: str = ""
    resize: Callable[[Step, Masks, Masks], dict[str, Any]] | None = None
    is_whole: bool = False


def label(program: Program, table: UnitTable) -> None:
    """Sets the axes of all values, given those of the arguments of the program."""
    for constant in program.constants:
        constant.axes = new_axes(constant, table)
    for step in program.steps:
        for value in step.ins:
            if len(value.axes) != len(value.shape):  # a literal
                value.axes = new_axes(value, table)
        if step.name in RULES:
            RULES[step.name].label(step, table)
        else:
            freeze_all(step, table)
        others = [value for value in step.ins if value.constant is None]
        for value in step.outs:
            value.is_input = bool(others) and all(x.is_input for x in others)
    for value in program.outs:
        if len(value.axes) != len(value.shape):
            value.axes = new_axes(value, table)


def new_axes(value: Value, table: UnitTable) -> list:
    """Axes with units of their own."""
    return [table.new(n) if isinstance(n, int) else None for n in value.shape]


def freeze_all(step: Step, table: UnitTable, reason: str = "") -> None:
    """Freezes the axes of the arguments and those of the results."""
    reason = reason or f"{step.name} has no rule"
    for value in step.ins:
        for units in value.axes:
            table.freeze(units, reason)
    for value in step.outs:
        value.axes = [None] * len(value.shape)


def connect(step: Step, table: UnitTable, wiring: Wiring, *, sums: bool) -> None:
    """Sets and joins axes as a wiring says."""
    step.wiring = wiring
    units, factors = {}, {}
    for value, symbols in zip(step.ins, wiring.ins, strict=True):
        for axis, symbol in enumerate(symbols):
            if symbol is FROZEN:
                table.freeze(value.axes[axis], f"fixed by {step.name}")
                continue
            if symbol in units:
                reason = f"{step.name} with what is fixed"
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


def wired(wire: Callable[[Step], Wiring], facts="", resize=None, *, sums=False) -> Rule:
    """A rule by a wiring."""

    def label_step(step, table):
        connect(step, table, wire(step), sums=sums)

    return Rule(label_step, facts, resize)


# Elementwise primitives, whose arguments may be scalars or have axes of size 1.


def _elementwise(step: Step) -> Wiring:
    shape = step.outs[0].shape
    ins = []
    for value in step.ins:
        sizes = zip(value.shape, shape, strict=True) if value.shape else ()
        ins.append(tuple(i if n == m else FROZEN for i, (n, m) in enumerate(sizes)))
    return Wiring(ins, [tuple(range(len(v.shape))) for v in step.outs])


def _one_by_one(step: Step) -> Wiring:
    symbols = [
        tuple((k, i) for i in range(len(v.shape))) for k, v in enumerate(step.ins)
    ]
    return Wiring(symbols, symbols)


def _bitcast(step: Step) -> Wiring:
    shape, new = step.ins[0].shape, step.outs[0].shape
    common = tuple(
        i if n == m else FROZEN
        for i, (n, m) in enumerate(zip(shape, new, strict=False))
    )
    pad = (FROZEN,) * abs(len(shape) - len(new))
    return Wiring(
        [common + pad[: len(shape) - len(common)]],
        [common + pad[: len(new) - len(common)]],
    )


# Sums and other reductions.


def _without(axes: Any) -> Callable[[Step], Wiring]:
    """The wiring of a primitive whose results lack the axes that a parameter names."""

    def wire(step):
        symbols = tuple(range(len(step.ins[0].shape)))
        left = tuple(i for i in symbols if i not in step.params[axes])
        return Wiring([symbols] * len(step.ins), [left] * len(step.outs))

    return wire


def _dot_general(step: Step) -> Wiring:
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


def _convolution(step: Step, table: UnitTable) -> None:
    """Features are `groups` times those of a group; places are frozen."""
    if step.params["batch_group_count"] != 1:
        freeze_all(step, table, "fixed by a convolution in groups of the batch")
        return
    left, right, out = step.params["dimension_numbers"]
    (x, kernel), y = step.ins, step.outs[0]
    groups = step.params["feature_group_count"]
    reason = "fixed by conv_general_dilated"
    for i in left[2:]:
        table.freeze(x.axes[i], reason)
    for i in right[2:]:
        table.freeze(kernel.axes[i], reason)
    n_in, n_out = kernel.shape[right[1]], kernel.shape[right[0]] // groups
    group, feature = (
        table.split(x.axes[left[1]], (groups, n_in), reason)
        if groups > 1
        else (None, x.axes[left[1]])
    )
    table.join(feature, kernel.axes[right[1]], reason)
    new = kernel.axes[right[0]]
    if groups > 1:
        group_out, feature_out = table.split(new, (groups, n_out), reason)
        table.join(group, group_out, reason)
        new = table.merge([group, feature_out], (groups, n_out))
    y.axes = [None] * len(y.shape)
    y.axes[out[0]], y.axes[out[1]] = x.axes[left[0]], new
    if feature is not None:
        step.sums.append(Sum(feature, [(x, left[1]), (kernel, right[1])]))


def _resize_convolution(step: Step, ins: Masks, outs: Masks) -> dict[str, Any]:
    left, right, _ = step.params["dimension_numbers"]
    n, n_in = (
        value.shape[axis] if mask is None else int(mask.sum())
        for value, axis, mask in (
            (step.ins[0], left[1], ins[0][left[1]]),
            (step.ins[1], right[1], ins[1][right[1]]),
        )
    )
    return step.params | {"feature_group_count": n // n_in}


def _window(step: Step) -> Wiring:
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


def _along(name: str) -> Callable[[Step], Wiring]:
    """The wiring of a primitive that keeps shapes, and mixes along an axis."""

    def wire(step):
        rank = len(step.ins[0].shape)
        axis = step.params.get(name, -1) % rank
        symbols = tuple(FROZEN if i == axis else i for i in range(rank))
        return Wiring([symbols] * len(step.ins), [symbols] * len(step.outs))

    return wire


# Primitives that move axes.


def _transpose(step: Step) -> Wiring:
    symbols = tuple(range(len(step.ins[0].shape)))
    return Wiring([symbols], [step.params["permutation"]])


def _broadcast_in_dim(step: Step) -> Wiring:
    x, out = step.ins[0], step.outs[0]
    outs: list[Hashable] = [("new", i) for i in range(len(out.shape))]
    ins: list[Hashable] = [FROZEN] * len(x.shape)
    for axis, to in enumerate(step.params["broadcast_dimensions"]):
        if x.shape[axis] == out.shape[to]:
            ins[axis] = outs[to] = axis
    others = [()] * (len(step.ins) - 1)  # symbolic sizes
    return Wiring([tuple(ins), *others], [tuple(outs)])


def _stack(step: Step) -> Wiring:
    symbols = tuple(range(len(step.ins[0].shape)))
    axis = step.params["axis"]
    out = (*symbols[:axis], FROZEN, *symbols[axis:])
    return Wiring([symbols] * len(step.ins), [out])


def _unstack(step: Step) -> Wiring:
    symbols = tuple(range(len(step.outs[0].shape)))
    axis = step.params["axis"]
    own = (*symbols[:axis], FROZEN, *symbols[axis:])
    return Wiring([own], [symbols] * len(step.outs))


def _squeeze(step: Step, table: UnitTable) -> None:
    (x,), (y,) = step.ins, step.outs
    gone = [i % len(x.shape) for i in step.params["dimensions"]]
    for i in gone:
        table.freeze(x.axes[i], "chosen by a fixed index")
    y.axes = [units for i, units in enumerate(x.axes) if i not in gone]


def _reshape(step: Step, table: UnitTable) -> None:
    x, out = step.ins[0], step.outs[0]
    reason = "fixed by reshape"
    if 0 in x.shape:  # axes of which become which is anybody's guess
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
            # As of an image that is flattened. Units of its own for each position, and
            # no rows and columns as a whole: inputs can be indexed anywhere.
            for one in units:
                table.freeze(one, "indexed where it is flattened")
            step.gathered += outs
            out.axes.append(table.new(*sizes))
        else:
            merged = table.merge(units, [x.shape[i] for i in ins])
            out.axes += table.split(merged, sizes, reason)


def reshape_groups(old: tuple, new: tuple) -> list[tuple[list[int], list[int]]]:
    """Which axes become which: the fewest at a time that hold as many elements."""
    groups, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        ins, outs, n, m = [i], [j], old[i], new[j]
        i, j = i + 1, j + 1
        while n is not m and n != m:
            is_old_next = len(old) - i >= len(new) - j  # a guess, of symbolic sizes
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


def _concatenate(step: Step, table: UnitTable) -> None:
    out, along = step.outs[0], step.params["dimension"]
    out.axes = list(step.ins[0].axes)
    for value in step.ins[1:]:
        for axis, units in enumerate(value.axes):
            if axis != along:
                table.join(out.axes[axis], units, "concatenate with what is fixed")
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
    """The units of positions one after the other."""
    width = max(units.shape[1] for units in parts)
    return np.concatenate([np.pad(u, ((0, 0), (0, width - u.shape[1]))) for u in parts])


def _moved(step: Step, table: UnitTable) -> None:
    """A primitive whose results have positions of its argument, in some order."""
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


ALL = "all"  # of the positions of an axis, in their order


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
    """The units of some positions of an axis, and none where that is -1."""
    return np.where(positions[:, None] < 0, 0, units[positions])


def _resize_slice(step: Step, ins: Masks, outs: Masks) -> dict[str, Any]:
    start, limit = (
        list(step.params["start_indices"]),
        list(step.params["limit_indices"]),
    )
    for axis, mask in enumerate(ins[0]):
        if mask is not None:
            start[axis], limit[axis] = (
                int(mask[: x[axis]].sum()) for x in (start, limit)
            )
    return step.params | {"start_indices": tuple(start), "limit_indices": tuple(limit)}


def _resize_split(step: Step, ins: Masks, outs: Masks) -> dict[str, Any]:
    axis = step.params["axis"]
    sizes = tuple(small_shape(v, m)[axis] for v, m in zip(step.outs, outs, strict=True))
    return step.params | {"sizes": sizes}


def small_shape(value: Value, masks: list[np.ndarray | None]) -> tuple:
    """The shape of what is kept."""
    return tuple(
        n if mask is None else int(mask.sum())
        for n, mask in zip(value.shape, masks, strict=True)
    )


def _resize_reshape(step: Step, ins: Masks, outs: Masks) -> dict[str, Any]:
    masks = [None if i in step.gathered else m for i, m in enumerate(outs[0])]
    return step.params | {"new_sizes": small_shape(step.outs[0], masks)}


def _resize_to(name: str) -> Callable[[Step, Masks, Masks], dict[str, Any]]:
    """Parameters one of which is the shape of the result."""

    def resize(step, ins, outs):
        return step.params | {name: small_shape(step.outs[0], outs[0])}

    return resize


# Primitives that look up positions.


_NEVER_FILL = "CLIP", "PROMISE_IN_BOUNDS"  # modes of a gather


def _gather(step: Step) -> Wiring:
    numbers, sizes = step.params["dimension_numbers"], step.params["slice_sizes"]
    never_fills = getattr(step.params["mode"], "name", "") in _NEVER_FILL
    x, indices = step.ins
    ins: list[Hashable] = [FROZEN] * len(x.shape)
    outs: list[Hashable] = [FROZEN] * len(step.outs[0].shape)
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    windows = [axis for axis in range(len(x.shape)) if axis not in gone]
    for axis, to in zip(windows, numbers.offset_dims, strict=True):
        # A start of the whole axis is 0, unless what is out of bounds is filled.
        is_free = axis not in numbers.start_index_map or never_fills
        if sizes[axis] == x.shape[axis] and is_free:
            ins[axis] = outs[to] = ("window", axis)
    of_indices: list[Hashable] = [FROZEN] * len(indices.shape)
    others = [i for i in range(len(outs)) if i not in numbers.offset_dims]
    for axis, to in enumerate(others):
        if axis not in numbers.start_indices_batching_dims:
            of_indices[axis] = outs[to] = ("index", axis)
    return Wiring([tuple(ins), tuple(of_indices)], [tuple(outs)])


def _resize_slice_sizes(step: Step, ins: Masks, outs: Masks) -> dict[str, Any]:
    sizes = tuple(
        n if mask is None else int(mask.sum())
        for n, mask in zip(step.params["slice_sizes"], ins[0], strict=True)
    )
    return step.params | {"slice_sizes": sizes}


def _scatter(step: Step) -> Wiring:
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


def _dynamic_slice(step: Step) -> Wiring:
    shape, new = step.ins[0].shape, step.outs[0].shape
    symbols = tuple(
        i if n == m else FROZEN for i, (n, m) in enumerate(zip(shape, new, strict=True))
    )
    return Wiring([symbols] + [()] * (len(step.ins) - 1), [symbols])


def _dynamic_update_slice(step: Step) -> Wiring:
    x, update, *starts = step.ins
    symbols = tuple(
        i if n == m else FROZEN
        for i, (n, m) in enumerate(zip(x.shape, update.shape, strict=True))
    )
    return Wiring([symbols, symbols, *(() for _ in starts)], [symbols])


def _made(step: Step, table: UnitTable) -> None:
    """A primitive that makes its result of nothing, or of keys and seeds."""
    freeze_all(step, table, f"fixed by {step.name}")
    for value in step.outs:
        value.axes = new_axes(value, table)


_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt
ceil clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq
erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite
le lgamma log log1p logistic lt max min mul name ne neg nextafter not or
population_count pow real reduce_precision rem round rsqrt select_n shift_left
shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub
tan tanh xor
""".split()  # noqa: SIM905

RULES: dict[str, Rule] = {
    **{name: wired(_elementwise, "elementwise") for name in _ELEMENTWISE},
    "optimization_barrier": wired(_one_by_one, "one_by_one"),
    "bitcast_convert_type": wired(_bitcast),
    "reduce_sum": wired(_without("axes"), "passes_zeros", sums=True),
    **{
        name: wired(_without("axes"), "passes")
        for name in ("reduce_max", "reduce_min", "reduce_and", "reduce_or")
    },
    **{name: wired(_without("axes")) for name in ("reduce_prod", "argmax", "argmin")},
    "dot_general": wired(_dot_general, "product", sums=True),
    "conv_general_dilated": Rule(_convolution, "convolution", _resize_convolution),
    **{
        name: wired(_window, "passes_zeros")
        for name in ("reduce_window_sum", "reduce_window_max", "reduce_window_min")
    },
    **{
        name: wired(_along("axis"), "passes_zeros")
        for name in ("cumsum", "cumprod", "cummax", "cummin")
    },
    "cumlogsumexp": wired(_along("axis")),
    "sort": wired(_along("dimension")),
    "top_k": wired(_along("axis")),
    "transpose": wired(_transpose, "passes"),
    "broadcast_in_dim": wired(_broadcast_in_dim, "passes", _resize_to("shape")),
    "stack": wired(_stack, "all_equal"),
    "unstack": wired(_unstack, "passes"),
    "squeeze": Rule(_squeeze, "squeeze"),
    "reshape": Rule(_reshape, "reshape", _resize_reshape),
    "concatenate": Rule(_concatenate, "concatenate"),
    "slice": Rule(_moved, "moved", _resize_slice),
    "split": Rule(_moved, "moved", _resize_split),
    "rev": Rule(_moved, "moved"),
    "tile": Rule(_moved, "moved"),
    "pad": Rule(_moved, "moved"),
    "gather": wired(_gather, "passes_zeros", _resize_slice_sizes),
    "scatter": wired(_scatter, "all_equal"),
    "scatter-add": wired(_scatter, "all_zero"),
    "dynamic_slice": wired(_dynamic_slice, "passes", _resize_slice_sizes),
    "dynamic_update_slice": wired(_dynamic_update_slice, "all_equal"),
    "iota": Rule(_made, is_whole=True),
    "random_bits": Rule(_made, is_whole=True),
}
