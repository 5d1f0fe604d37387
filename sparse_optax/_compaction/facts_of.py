"""What is known about the results of primitives, given facts about the arguments."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sparse_optax._compaction import wirings
from sparse_optax._compaction.facts import (
    Along,
    Fact,
    make_along,
    unknown,
    where_equal,
)
from sparse_optax._compaction.labels import FROZEN
from sparse_optax._compaction.moves import ALL, positions_from, reshape_groups
from sparse_optax._compaction.program import Step


def _apply(step: Step, numbers: Sequence[np.ndarray]) -> np.ndarray:
    """Applies the primitive to vectors of numbers, as it would be to arrays.

    Lengths are padded to powers of two, so that few programs are compiled.
    """
    length = len(numbers[0])
    pad = (1 << max(length - 1, 7).bit_length()) - length
    args = [
        np.pad(x.astype(value.dtype), (0, pad), mode="edge")
        for x, value in zip(numbers, step.ins, strict=True)
    ]
    with jax.ensure_compile_time_eval():
        (result,) = step.bind(args, step.params)
    return np.asarray(result)[:length]


def elementwise(step: Step, ins: list[Fact]) -> list[Fact]:
    """Applies the primitive to known numbers; zero where a factor is zero."""
    out = step.outs[0]
    is_scalar = [not value.shape for value in step.ins]
    if all(fact.whole is not None for fact in ins):
        whole = _apply(step, [np.asarray(fact.whole)[None] for fact in ins])[0]
        return [Fact(out.shape, whole, (None,) * len(out.shape))]
    if step.name == "mul" and any(
        fact.whole is not None and fact.whole == 0 for fact in ins
    ):
        return [Fact(out.shape, np.zeros((), out.dtype)[()], (None,) * len(out.shape))]
    axes: list[Along | None] = []
    for axis, size in enumerate(out.shape):
        if out.axes[axis] is None:
            axes.append(None)
            continue
        alongs = [
            _spread(fact, None if scalar else axis, size)
            for fact, scalar in zip(ins, is_scalar, strict=True)
        ]
        axes.append(_elementwise_along(step, alongs, size))
    return [Fact(out.shape, None, tuple(axes))]


def _spread(fact: Fact, axis: int | None, size: int) -> Along | None:
    """What is known along an axis of a value that is broadcast to a size."""
    if fact.whole is not None:
        return Along(np.ones(size, bool), np.full(size, fact.whole))
    along = None if axis is None else fact.axes[axis]
    if along is None or len(along.known) == size:
        return along
    return Along(*(np.broadcast_to(x, size) for x in along))


def _elementwise_along(
    step: Step, alongs: list[Along | None], size: int
) -> Along | None:
    known = np.zeros(size, bool)
    number = np.zeros(size, step.outs[0].dtype)
    factors = {"mul": alongs, "div": alongs[:1]}.get(step.name, [])
    for along in factors:
        if along is not None:
            known |= along.zero
    if step.name == "select_n" and (same := where_equal(alongs[1:])):
        known |= same.known
        number[same.known] = same.number[same.known]
    if all(along is not None for along in alongs):
        rest = functools.reduce(np.logical_and, [x.known for x in alongs if x]) & ~known
        if rest.any():
            number[rest] = _apply(step, [x.number[rest] for x in alongs if x])
            known |= rest
    return make_along(known, number)


def one_by_one(step: Step, ins: list[Fact]) -> list[Fact]:
    """Each result is one of the arguments."""
    return ins


def _wired(step: Step, ins: list[Fact], combine: Any) -> list[Fact]:
    """For each axis of a result, combines the arguments' axes with its symbol."""
    results = []
    for value, symbols in zip(step.outs, step.wiring.outs, strict=True):
        axes = []
        for axis, symbol in enumerate(symbols):
            found = [
                fact.along(theirs.index(symbol))
                for fact, theirs in zip(ins, step.wiring.ins, strict=False)
                if symbol in theirs
                and symbol is not FROZEN
                and value.axes[axis] is not None
            ]
            axes.append(combine(found) if found else None)
        results.append(Fact(value.shape, None, tuple(axes)))
    return results


def passes(step: Step, ins: list[Fact]) -> list[Fact]:
    """What is known about the argument, along the remaining axes."""
    results = _wired(step, ins[:1], lambda found: found[0])  # not of indices
    return [fact._replace(whole=ins[0].whole) for fact in results]


def _only_zeros(along: Along | None) -> Along | None:
    return None if along is None else make_along(along.zero, along.number)


def passes_zeros(step: Step, ins: list[Fact]) -> list[Fact]:
    """Zero where the argument is zero; other numbers become unknown."""
    if step.name in ("reduce_window_max", "reduce_window_min"):
        for size, pads in zip(
            step.params["window_dimensions"], step.params["padding"], strict=True
        ):
            if max(pads) >= size:  # a window of padding alone is infinite
                return [unknown(value) for value in step.outs]
    if step.name == "gather" and not wirings.fills_with_zeros_or_nan(step):
        return [unknown(value) for value in step.outs]
    results = _wired(step, ins[:1], lambda found: _only_zeros(found[0]))
    is_zero = ins[0].whole is not None and ins[0].whole == 0
    return [fact._replace(whole=ins[0].whole if is_zero else None) for fact in results]


def product(step: Step, ins: list[Fact]) -> list[Fact]:
    """Zero where a factor is zero."""

    def combine(found):
        zeros = [x.zero for x in found if x is not None]
        if not zeros:
            return None
        zero = functools.reduce(np.logical_or, zeros)
        return make_along(zero, np.zeros(len(zero), step.outs[0].dtype))

    results = _wired(step, ins, combine)
    is_zero = any(fact.whole is not None and fact.whole == 0 for fact in ins)
    whole = np.zeros((), step.outs[0].dtype)[()] if is_zero else None
    return [fact._replace(whole=whole) for fact in results]


def convolution(step: Step, ins: list[Fact]) -> list[Fact]:
    """Zero where the kernel is zero or, if it is depthwise, where the input is zero.

    Larger groups are left out: removing a feature from all groups would drop its term
    from the gradients of a zero input.
    """
    left, right, out = step.params["dimension_numbers"]
    value = step.outs[0]
    axes: list[Along | None] = [None] * len(value.shape)
    zero = ins[1].zero(right[0])
    if len(zero) == step.params["feature_group_count"] == ins[0].shape[left[1]]:
        zero = zero | ins[0].zero(left[1])
    axes[out[1]] = make_along(zero, np.zeros(len(zero), value.dtype))
    return [Fact(value.shape, None, tuple(axes))]


def all_equal(step: Step, ins: list[Fact]) -> list[Fact]:
    """Known where all arguments are the same number."""
    return _wired(step, ins, where_equal)


def all_zero(step: Step, ins: list[Fact]) -> list[Fact]:
    """Zero where all arguments are zero."""
    return _wired(step, ins, lambda found: _only_zeros(where_equal(found)))


def squeeze(step: Step, ins: list[Fact]) -> list[Fact]:
    """What is known about the remaining axes."""
    shape = step.ins[0].shape
    gone = [i % len(shape) for i in step.params["dimensions"]]
    axes = tuple(x for i, x in enumerate(ins[0].axes) if i not in gone)
    return [Fact(step.outs[0].shape, ins[0].whole, axes)]


def reshape(step: Step, ins: list[Fact]) -> list[Fact]:
    """What is known about axes that are merged or split."""
    fact, out = ins[0], step.outs[0]
    axes: list[Along | None] = []
    for old, new in reshape_groups(fact.shape, out.shape):
        sizes, new_sizes = [fact.shape[i] for i in old], [out.shape[i] for i in new]
        found = [None] * len(new)
        if len(old) == len(new) == 1:
            found = [fact.axes[old[0]]]
        elif any(fact.axes[i] is not None for i in old) and all(
            isinstance(n, int) for n in [*sizes, *new_sizes]
        ):
            found = _reshape_along([fact.axes[i] for i in old], sizes, new_sizes)
        axes += found
    return [Fact(out.shape, fact.whole, tuple(axes))]


def _reshape_along(
    alongs: list[Along | None], sizes: list[int], new_sizes: list[int]
) -> list[Along | None]:
    """A position of a merged axis is known if it is known along one of its parts."""
    dtype = next(x.number.dtype for x in alongs if x is not None)
    known, number = np.zeros(sizes, bool), np.zeros(sizes, dtype)
    for axis, along in enumerate(alongs):
        if along is not None:
            shape = [n if i == axis else 1 for i, n in enumerate(sizes)]
            mine = np.broadcast_to(along.known.reshape(shape), sizes)
            number = np.where(mine, along.number.reshape(shape), number)
            known = known | mine
    known, number = known.reshape(new_sizes), number.reshape(new_sizes)
    found = []
    for axis in range(len(new_sizes)):
        rows = np.moveaxis(known, axis, 0).reshape(new_sizes[axis], -1)
        numbers = np.moveaxis(number, axis, 0).reshape(new_sizes[axis], -1)
        is_same = rows.all(axis=1) & (numbers == numbers[:, :1]).all(axis=1)
        found.append(make_along(is_same, numbers[:, 0]))
    return found


def concatenate(step: Step, ins: list[Fact]) -> list[Fact]:
    """What is known about the parts, concatenated."""
    out, axis = step.outs[0], step.params["dimension"]
    axes: list[Along | None] = [
        None
        if i == axis or out.axes[i] is None
        else where_equal([f.along(i) for f in ins])
        for i in range(len(out.shape))
    ]
    if out.axes[axis] is not None:
        parts = [
            fact.along(axis) or Along(np.zeros(n, bool), np.zeros(n, out.dtype))
            for fact in ins
            for n in [fact.shape[axis]]
        ]
        known, number = (np.concatenate(x) for x in zip(*parts, strict=True))
        axes[axis] = make_along(known, number)
    return [Fact(out.shape, None, tuple(axes))]


def moved(step: Step, ins: list[Fact]) -> list[Fact]:
    """What is known about the positions that are taken, and about padding."""
    fact = ins[0]
    pad = ins[1].whole if step.name == "pad" else None
    results = []
    for k, value in enumerate(step.outs):
        positions = positions_from(step, k)
        is_padded = step.name == "pad" and any(x is not ALL for x in positions)
        axes: list[Along | None] = []
        for axis, taken in enumerate(positions):
            along = fact.along(axis) if isinstance(fact.shape[axis], int) else None
            if along is None or value.axes[axis] is None or taken is FROZEN:
                axes.append(None)
                continue
            known, number = along
            if taken is not ALL:
                known, number = known[taken] & (taken >= 0), number[taken]
            if is_padded:  # padding may differ from the number, along other axes
                known = known & (number == pad) if pad is not None else known & False
            axes.append(make_along(known, number))
        whole = fact.whole
        if is_padded and (pad is None or whole is None or pad != whole):
            whole = None
        results.append(Fact(value.shape, whole, tuple(axes)))
    return results
