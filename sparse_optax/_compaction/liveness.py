"""Which units nothing reads: those whose terms are zero wherever they are summed over.

What is known of a value is that all its elements at a position of an axis are one and
the same number: for parameters, because they were pruned; for results, because the
primitive makes them from what is known. A unit is read where an axis with a position
that belongs to it is summed over, unless a factor of the term is known to be zero.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_optax._compaction import calls
from sparse_optax._compaction.folding import Fold, find_folds
from sparse_optax._compaction.program import Program, Step, Value
from sparse_optax._compaction.rules import (
    ALL,
    FROZEN,
    RULES,
    positions_from,
    reshape_groups,
)
from sparse_optax._compaction.units import UnitTable


class Along(NamedTuple):
    """What is known of the positions of an axis.

    Attributes:
        known: whether all elements at a position are the same number.
        number: which; anything where that is not known.
    """

    known: np.ndarray
    number: np.ndarray

    @property
    def zero(self) -> np.ndarray:
        return self.known & (self.number == 0)


class Fact(NamedTuple):
    """What is known of a value.

    Attributes:
        shape: of it.
        whole: the number that all its elements are, or None.
        axes: what is known of each axis; None for nothing.
    """

    shape: tuple[Any, ...]
    whole: Any
    axes: tuple[Along | None, ...]

    def along(self, axis: int) -> Along | None:
        if self.whole is None:
            return self.axes[axis]
        size = self.shape[axis]
        return Along(np.ones(size, bool), np.full(size, self.whole))

    def zero(self, axis: int) -> np.ndarray:
        along = self.along(axis)
        return np.zeros(self.shape[axis], bool) if along is None else along.zero

    def and_in(self, other: "Fact") -> "Fact":
        """What is known of a value that is one or the other."""
        is_same = self.whole is not None and self.whole == other.whole
        axes = [
            _where_equal([self.along(i), other.along(i)])
            if isinstance(n, int)
            else None
            for i, n in enumerate(self.shape)
        ]
        return Fact(self.shape, self.whole if is_same else None, tuple(axes))

    def same_as(self, other: "Fact") -> bool:
        if (self.whole is None) != (other.whole is None):
            return False
        return all(
            (a is None and b is None)
            or (a is not None and b is not None and (a.known == b.known).all())
            for a, b in zip(self.axes, other.axes, strict=True)
        )

    def of_slices(self) -> "Fact":
        """Of every slice along the first axis."""
        return Fact(self.shape[1:], self.whole, self.axes[1:])

    def of_stack(self) -> "Fact":
        """Of such values along a new first axis."""
        return Fact((None, *self.shape), self.whole, (None, *self.axes))


def _where_equal(alongs: Sequence[Along | None]) -> Along | None:
    """Where all are known to be the same number."""
    first = alongs[0]
    if first is None or any(x is None for x in alongs):
        return None
    known = functools.reduce(
        np.logical_and, [x.known & (x.number == first.number) for x in alongs if x]
    )
    return _along(known, first.number)


def _along(known: np.ndarray, number: np.ndarray) -> Along | None:
    return Along(known, number) if known.any() else None


def unknown(value: Value) -> Fact:
    return Fact(value.shape, None, (None,) * len(value.shape))


def fact_of_array(array: Any, kept: Sequence[np.ndarray | None]) -> Fact:
    """What is known of an array, if only the positions that are kept count."""
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):  # a random key
        return Fact(array.shape, None, (None,) * array.ndim)
    array = np.asarray(array)
    if array.size == 0 or (
        array.dtype.kind not in "biufV" and array.dtype.name != "bfloat16"
    ):
        return Fact(array.shape, None, (None,) * array.ndim)
    is_zero = array == 0
    nonzero = ~is_zero[
        np.ix_(
            *(
                np.arange(n) if k is None else k
                for n, k in zip(array.shape, kept, strict=True)
            )
        )
    ]
    whole = (
        array.flat[0]
        if (array.size == 1 or (array.size < 1024 and (array == array.flat[0]).all()))
        else None
    )
    axes = []
    for axis, n in enumerate(array.shape):
        if array.size == n:  # each position is one number
            axes.append(Along(np.ones(n, bool), array.reshape(n)))
            continue
        zero = ~nonzero.any(axis=tuple(i for i in range(array.ndim) if i != axis))
        known = np.zeros(n, bool)
        known[slice(None) if kept[axis] is None else kept[axis]] = zero
        axes.append(_along(known, np.zeros(n, array.dtype)))
    return Fact(array.shape, whole, tuple(axes))


class Liveness:
    """A pass over a program: what is known of its values, and which units are read.

    Attributes:
        pruned: for each unit, whether a slice of a matrix is zero: others may have the
            same value for every input, but by design.
        readers: for each unit, the first step that reads it, as an index of `names`.
        constants: for each product with a bias, the terms that may be folded into it:
            the value of each unit, 0 where there is none.
        known: for each scan, what is known in every round of its constants and carry.
    """

    def __init__(
        self, table: UnitTable, folds: dict[Step, Fold], pruned: np.ndarray
    ) -> None:
        self.table = table
        self.folds = folds
        self.pruned = pruned
        self.constants: dict[Step, np.ndarray] = {}
        self.known: dict[Step, list[Fact]] = {}
        self.readers = np.zeros(table.size, np.int32)
        self.names = [""]

    def run(self, program: Program, ins: Sequence[Fact | None]) -> list[Fact]:
        """What is known of the results, given what is known of the arguments."""
        facts = {
            value: unknown(value) if fact is None else fact
            for value, fact in zip(program.ins, ins, strict=True)
        }

        def fact_of(value: Value) -> Fact:
            if value not in facts:  # a literal, or an array that is closed over
                array = np.asarray(value.constant) if _is_number(value) else None
                facts[value] = (
                    unknown(value)
                    if array is None
                    else fact_of_array(array, [None] * array.ndim)
                )
            return facts[value]

        for step in program.steps:
            known = [fact_of(value) for value in step.ins]
            if step.name in calls.FACTS:
                outs = calls.FACTS[step.name](step, known, self)
            else:
                rule = RULES.get(step.name)
                find = _FACTS.get(rule.facts) if rule else None
                outs = find(step, known) if find else [unknown(v) for v in step.outs]
            facts.update(zip(step.outs, outs, strict=True))
            for one in step.sums:
                zero = np.zeros(len(one.units), bool)
                for value, axis in one.factors:
                    zero |= facts[value].zero(axis).reshape(-1, len(zero)).all(axis=0)
                if step in self.folds:
                    zero |= self._find_constants(step, facts, zero)
                if not zero.all():
                    read = np.unique(self.table.resolve(one.units)[~zero])
                    if step.name not in self.names:
                        self.names.append(step.name)
                    new = read[self.readers[read] == 0]
                    self.readers[new] = self.names.index(step.name)
        return [fact_of(value) for value in program.outs]

    def _find_constants(
        self, step: Step, facts: dict[Value, Fact], zero: np.ndarray
    ) -> np.ndarray:
        """Which units of a product have constant terms, that can be folded."""
        value, axis = self.folds[step].x
        along = facts[value].along(axis)
        if along is None:
            return np.zeros(len(zero), bool)
        units = self.table.resolve(step.sums[0].units)
        constant = along.known & np.isfinite(along.number.astype(np.float64))
        constant &= self.pruned[units].any(axis=1)
        self.constants[step] = np.where(constant & ~zero, along.number, 0)
        return constant


def _is_number(value: Value) -> bool:
    return value.constant is not None and not jnp.issubdtype(
        value.dtype, jax.dtypes.extended
    )


# What is known of the results of primitives: a function for each name in `rules`.


@functools.lru_cache(maxsize=100_000)
def _number(primitive: Any, params: tuple, args: tuple) -> Any:
    """The primitive of numbers, as it would be computed in an array."""
    arrays = [np.array(x, dtype) for dtype, x in args]
    with jax.ensure_compile_time_eval():
        return np.asarray(primitive.bind(*arrays, **dict(params)))[()]


def _apply(step: Step, numbers: Sequence[np.ndarray]) -> np.ndarray:
    """The primitive of vectors of numbers, each row of which is computed once."""
    params = tuple(step.params.items())
    dtypes = [value.dtype for value in step.ins]
    rows = list(zip(*(x.tolist() for x in numbers), strict=True))
    found = {
        row: _number(step.primitive, params, tuple(zip(dtypes, row, strict=True)))
        for row in set(rows)
    }
    return np.array([found[row] for row in rows], step.outs[0].dtype)


def _elementwise(step: Step, ins: list[Fact]) -> list[Fact]:
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
    """What is known along an axis of a value, as broadcast to a size."""
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
    if step.name == "select_n" and (same := _where_equal(alongs[1:])):
        known |= same.known
        number[same.known] = same.number[same.known]
    if all(along is not None for along in alongs):
        rest = functools.reduce(np.logical_and, [x.known for x in alongs if x]) & ~known
        if rest.any():
            number[rest] = _apply(step, [x.number[rest] for x in alongs if x])
            known |= rest
    return _along(known, number)


def _one_by_one(step: Step, ins: list[Fact]) -> list[Fact]:
    return ins


def _wired(step: Step, ins: list[Fact], combine: Any) -> list[Fact]:
    """Each axis of a result by those of arguments that have its symbol."""
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


def _passes(step: Step, ins: list[Fact]) -> list[Fact]:
    results = _wired(step, ins[:1], lambda found: found[0])  # and not of indices
    return [fact._replace(whole=ins[0].whole) for fact in results]


def _only_zeros(along: Along | None) -> Along | None:
    return None if along is None else _along(along.zero, along.number)


def _passes_zeros(step: Step, ins: list[Fact]) -> list[Fact]:
    if step.name in ("reduce_window_max", "reduce_window_min"):
        for size, pads in zip(
            step.params["window_dimensions"], step.params["padding"], strict=True
        ):
            if max(pads) >= size:  # of a window of padding alone, that is infinite
                return [unknown(value) for value in step.outs]
    results = _wired(step, ins[:1], lambda found: _only_zeros(found[0]))
    is_zero = ins[0].whole is not None and ins[0].whole == 0
    return [fact._replace(whole=ins[0].whole if is_zero else None) for fact in results]


def _product(step: Step, ins: list[Fact]) -> list[Fact]:
    """Zero where a factor is."""

    def combine(found):
        zeros = [x.zero for x in found if x is not None]
        if not zeros:
            return None
        zero = functools.reduce(np.logical_or, zeros)
        return _along(zero, np.zeros(len(zero), step.outs[0].dtype))

    results = _wired(step, ins, combine)
    is_zero = any(fact.whole is not None and fact.whole == 0 for fact in ins)
    whole = np.zeros((), step.outs[0].dtype)[()] if is_zero else None
    return [fact._replace(whole=whole) for fact in results]


def _convolution(step: Step, ins: list[Fact]) -> list[Fact]:
    _, right, out = step.params["dimension_numbers"]
    value = step.outs[0]
    axes: list[Along | None] = [None] * len(value.shape)
    zero = ins[1].zero(right[0])
    axes[out[1]] = _along(zero, np.zeros(len(zero), value.dtype))
    return [Fact(value.shape, None, tuple(axes))]


def _all_equal(step: Step, ins: list[Fact]) -> list[Fact]:
    return _wired(step, ins, _where_equal)


def _all_zero(step: Step, ins: list[Fact]) -> list[Fact]:
    return _wired(step, ins, lambda found: _only_zeros(_where_equal(found)))


def _squeeze(step: Step, ins: list[Fact]) -> list[Fact]:
    shape = step.ins[0].shape
    gone = [i % len(shape) for i in step.params["dimensions"]]
    axes = tuple(x for i, x in enumerate(ins[0].axes) if i not in gone)
    return [Fact(step.outs[0].shape, ins[0].whole, axes)]


def _reshape(step: Step, ins: list[Fact]) -> list[Fact]:
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
    """Known in a merged axis is what is known in one of the axes that it holds."""
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
        found.append(_along(is_same, numbers[:, 0]))
    return found


def _concatenate(step: Step, ins: list[Fact]) -> list[Fact]:
    out, axis = step.outs[0], step.params["dimension"]
    axes: list[Along | None] = [
        None
        if i == axis or out.axes[i] is None
        else _where_equal([f.along(i) for f in ins])
        for i in range(len(out.shape))
    ]
    if out.axes[axis] is not None:
        parts = [
            fact.along(axis) or Along(np.zeros(n, bool), np.zeros(n, out.dtype))
            for fact in ins
            for n in [fact.shape[axis]]
        ]
        known, number = (np.concatenate(x) for x in zip(*parts, strict=True))
        axes[axis] = _along(known, number)
    return [Fact(out.shape, None, tuple(axes))]


def _moved(step: Step, ins: list[Fact]) -> list[Fact]:
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
            axes.append(_along(known, number))
        whole = fact.whole
        if is_padded and (pad is None or whole is None or pad != whole):
            whole = None
        results.append(Fact(value.shape, whole, tuple(axes)))
    return results


_FACTS = {
    "elementwise": _elementwise,
    "one_by_one": _one_by_one,
    "passes": _passes,
    "passes_zeros": _passes_zeros,
    "product": _product,
    "convolution": _convolution,
    "all_equal": _all_equal,
    "all_zero": _all_zero,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "concatenate": _concatenate,
    "moved": _moved,
}


class Unread(NamedTuple):
    """What `unread` finds.

    Attributes:
        removed: a boolean for each unit: whether it can be removed.
        leaves: the parameters, with constants of removed units in the biases.
        folded: how many units became part of a bias, by its index.
        liveness: of the last pass, in which nothing more was found.
        facts: what is known of the parameters.
    """

    removed: np.ndarray
    leaves: list[Any]
    folded: dict[int, int]
    liveness: Liveness
    facts: list[Fact]


def unread(program: Program, leaves: Sequence[Any], table: UnitTable) -> Unread:
    """Which units can be removed without a difference in the results, to a fixed point.

    Of the positions of any axis, at least one is kept.

    Args:
        program: with the units of its axes; its first arguments are the parameters.
        leaves: the parameters.
        table: of the units.
    """
    values = program.ins[: len(leaves)]
    units = [[None if u is None else table.resolve(u) for u in v.axes] for v in values]
    in_params = np.zeros(table.size, bool)
    for one in (u for axes in units for u in axes if u is not None):
        in_params[one] = True
    in_params[0] = False
    removed, protected = np.zeros((2, table.size), bool)
    axes = distinct_axes(program, table)
    inputs = [None] * (len(program.ins) - len(leaves))
    leaves, folded = list(leaves), {}
    folds = find_folds(program, len(leaves))
    while True:
        facts = [
            fact_of_array(
                leaf,
                [
                    None if u is None else np.asarray(~removed[u].any(axis=1))
                    for u in of_leaf
                ],
            )
            for leaf, of_leaf in zip(leaves, units, strict=True)
        ]
        pruned = np.zeros(table.size, bool)
        for of_leaf, fact in zip(units, facts, strict=True):
            for axis, one in enumerate(of_leaf):
                if one is not None and max(fact.shape) < math.prod(fact.shape):
                    pruned[one[fact.zero(axis)]] = True
        liveness = Liveness(table, folds, pruned)
        liveness.run(program, [*facts, *inputs])
        found = removed | (in_params & (liveness.readers == 0) & ~protected)
        _protect_one(axes, found, removed, protected)
        if (found == removed).all():
            return Unread(removed, leaves, folded, liveness, facts)
        done = []
        for step, constants in liveness.constants.items():
            rows = table.resolve(step.sums[0].units)
            gone = found[rows].any(axis=1) & ~removed[rows].any(axis=1)
            constants = np.where(gone, constants, 0)
            if constants.any():
                fold = folds[step]
                fold.apply(leaves, constants)
                done.append((fold, constants))
                num = int(np.count_nonzero(constants))
                folded[fold.bias] = folded.get(fold.bias, 0) + num
        for fold, constants in done:  # after all: products may share weights
            fold.clear(leaves, constants)
        removed = found


def distinct_axes(program: Program, table: UnitTable) -> list[np.ndarray]:
    """The units of all axes along which something can be removed, each once."""
    found = {}
    for value in program.all_values():
        for units in value.axes:
            if units is not None:
                units = table.resolve(units)
                if units.size:
                    found[units.shape, units.tobytes()] = units
    return list(found.values())


def _protect_one(
    axes: list[np.ndarray],
    found: np.ndarray,
    removed: np.ndarray,
    protected: np.ndarray,
) -> None:
    """Keeps one position of each axis of which none would be left."""
    for units in axes:
        if found[units].any(axis=1).all():
            first = (~removed[units].any(axis=1)).argmax()
            found[units[first]] = False
            protected[units[first]] = True
