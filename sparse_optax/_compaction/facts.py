"""What is known about a value: where all its elements are the same number.

A fact has what is known along each axis, and last what is known of the whole value.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_optax._compaction.labels import FROZEN, fills_with_zeros_or_nan
from sparse_optax._compaction.moves import ALL, positions_from, reshape_groups
from sparse_optax._compaction.program import Step, Value


class Along(NamedTuple):
    """What is known about the positions of an axis; size 1 stands for all positions.

    Attributes:
        known: for each position, whether all its elements are the same number.
        number: that number; arbitrary where it is not known.
    """

    known: np.ndarray
    number: np.ndarray

    @property
    def zero(self) -> np.ndarray:
        return self.known & (self.number == 0)

    def spread(self, size: int) -> "Along":
        return Along(*(np.broadcast_to(x, size) for x in self))


Fact = tuple[Along, ...]
Combine = Callable[[Step, list[Along]], Along]
UNKNOWN = Along(np.zeros(1, bool), np.zeros(1))


def unknown(value: Value) -> Fact:
    """The fact that nothing is known about a value."""
    return (UNKNOWN,) * (len(value.shape) + 1)


def make_fact(axes: Sequence[Along], whole: Along) -> Fact:
    """What is known along the axes: if the whole is known, that."""
    return (*((whole,) * len(axes) if whole.known[0] else axes), whole)


def either(*facts: Fact) -> Fact:
    """What is known about a value that may be any of these."""
    return tuple(where_equal(alongs) for alongs in zip(*facts, strict=True))


def fact_of_array(array: Any, kept: Sequence[np.ndarray | None]) -> Fact:
    """What is known about an array, considering only the kept positions."""
    is_number = not jnp.issubdtype(array.dtype, jax.dtypes.extended)  # but a random key
    array = np.asarray(array) if is_number else array
    if array.size == 0 or not is_number:
        return (UNKNOWN,) * (array.ndim + 1)
    kept = [
        np.arange(n)[... if k is None else k]
        for n, k in zip(array.shape, kept, strict=True)
    ]
    nonzero = (array != 0)[np.ix_(*kept)]
    is_whole = array.size == 1 or (array.size < 1024 and (array == array.flat[0]).all())
    axes = []
    for axis, n in enumerate(array.shape):
        if array.size == n:  # each position is one number
            axes.append(Along(np.ones(n, bool), array.reshape(n)))
            continue
        known = np.zeros(n, bool)
        others = tuple(i for i in range(array.ndim) if i != axis)
        known[kept[axis]] = ~nonzero.any(axis=others)
        axes.append(Along(known, np.zeros(n, array.dtype)))
    return make_fact(axes, Along(np.array([is_whole]), array.reshape(-1)[:1]))


# Rules made of a wiring: what is known along an axis follows from what is known along
# the axes of the arguments with its symbol, or about arguments without it.


def wired(combine: Combine, args: slice = slice(None)):
    def facts(step: Step, ins: list[Fact]) -> list[Fact]:
        found = list(zip(ins, step.wiring.ins, strict=True))[args]

        def along(symbol):
            return combine(
                step, [f[s.index(symbol)] if symbol in s else f[-1] for f, s in found]
            )

        whole = along("whole")
        if whole.known[0]:
            return [(whole,) * (len(value.shape) + 1) for value in step.outs]
        return [
            (*(UNKNOWN if s is FROZEN else along(s) for s in symbols), whole)
            for symbols in step.wiring.outs
        ]

    return facts


def only_zeros(step: Step, alongs: list[Along]) -> Along:
    return Along(alongs[0].zero, alongs[0].number)


def any_zero(step: Step, alongs: list[Along]) -> Along:
    zero = functools.reduce(np.logical_or, [x.zero for x in alongs])
    return Along(zero, np.zeros(len(zero), step.outs[0].dtype))


def where_equal(alongs: Sequence[Along]) -> Along:
    """Where all are known to be the same number."""
    number = alongs[0].number
    same = [x.known & (x.number == number) for x in alongs]
    known = functools.reduce(np.logical_and, same)
    return Along(known, np.broadcast_to(number, len(known)))


def _computed(step: Step, alongs: list[Along]) -> Along:
    """Applies the primitive to known numbers; zero where a factor is zero."""
    (size,) = np.broadcast_shapes(*(x.known.shape for x in alongs))
    alongs = [x.spread(size) for x in alongs]
    known, number = np.zeros(size, bool), np.zeros(size, step.outs[0].dtype)
    for along in {"mul": alongs, "div": alongs[:1]}.get(step.name, []):
        known |= along.zero
    if step.name == "select_n":
        same = where_equal(alongs[1:])
        known |= same.known
        number[known] = same.number[known]
    rest = functools.reduce(np.logical_and, [x.known for x in alongs]) & ~known
    if rest.any():
        number[rest] = _apply(step, [x.number[rest] for x in alongs])
    return Along(known | rest, number)


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


elementwise = wired(_computed)
passes = wired(lambda step, alongs: alongs[0], slice(1))
product = wired(any_zero)
all_equal = wired(lambda step, alongs: where_equal(alongs))
written = wired(lambda step, alongs: where_equal(alongs), slice(0, 2))
scattered = wired(lambda step, alongs: where_equal(alongs), slice(0, None, 2))
added = wired(
    lambda step, alongs: only_zeros(step, [where_equal(alongs)]), slice(0, None, 2)
)
_passes_zeros = wired(only_zeros, slice(1))


def passes_zeros(step: Step, ins: list[Fact]) -> list[Fact]:
    """Zero where the argument is zero; other numbers become unknown."""
    params = step.params
    if step.name in ("reduce_window_max", "reduce_window_min"):
        windows = zip(params["window_dimensions"], params["padding"], strict=True)
        if any(max(pads) >= size for size, pads in windows):
            return [unknown(value) for value in step.outs]  # infinite, of padding alone
    if step.name == "gather" and not fills_with_zeros_or_nan(step):
        return [unknown(value) for value in step.outs]
    return _passes_zeros(step, ins)


def one_by_one(step: Step, ins: list[Fact]) -> list[Fact]:
    """Each result is one of the arguments."""
    return ins


def convolution(step: Step, ins: list[Fact]) -> list[Fact]:
    """Zero where the kernel is zero or, if it is depthwise, where the input is zero.

    Larger groups are left out: removing a feature from all groups would drop its term
    from the gradients of a zero input.
    """
    left, right, out = step.params["dimension_numbers"]
    fact = list(unknown(step.outs[0]))
    factors, num = [ins[1][right[0]]], step.ins[1].shape[right[0]]
    if num == step.params["feature_group_count"] == step.ins[0].shape[left[1]]:
        factors.append(ins[0][left[1]])
    fact[out[1]] = any_zero(step, factors)
    return [tuple(fact)]


def reshape(step: Step, ins: list[Fact]) -> list[Fact]:
    """A position of a merged axis is known if it is known along one of its parts."""
    (fact,), old, new = ins, step.ins[0].shape, step.outs[0].shape
    axes: list[Along] = []
    for group, new_group in reshape_groups(old, new):
        alongs = [fact[i] for i in group]
        sizes, new_sizes = [old[i] for i in group], [new[i] for i in new_group]
        if len(group) == len(new_group) == 1:
            axes += alongs
            continue
        if not any(x.known.any() for x in alongs) or not all(
            isinstance(n, int) for n in [*sizes, *new_sizes]
        ):
            axes += [UNKNOWN] * len(new_group)
            continue
        known, number = np.zeros(sizes, bool), np.zeros(sizes, step.outs[0].dtype)
        for axis, along in enumerate(alongs):
            shape = [-1 if i == axis else 1 for i in range(len(sizes))]
            mine, its = (np.broadcast_to(x.reshape(shape), sizes) for x in along)
            number[mine] = its[mine]
            known |= mine
        for axis, n in enumerate(new_sizes):
            rows, numbers = (
                np.moveaxis(x.reshape(new_sizes), axis, 0).reshape(n, -1)
                for x in (known, number)
            )
            is_same = rows.all(axis=1) & (numbers == numbers[:, :1]).all(axis=1)
            axes.append(Along(is_same, numbers[:, 0]))
    return [make_fact(axes, fact[-1])]


def concatenate(step: Step, ins: list[Fact]) -> list[Fact]:
    """What is known about the parts, concatenated."""
    axis = step.params["dimension"]
    sizes = [value.shape[axis] for value in step.ins]
    parts = [UNKNOWN]
    if all(isinstance(n, int) for n in sizes):
        parts = [f[axis].spread(n) for f, n in zip(ins, sizes, strict=True)]
    along = Along(*map(np.concatenate, zip(*parts, strict=True)))
    fact = either(*((*f[:axis], *f[axis + 1 :]) for f in ins))
    return [make_fact([*fact[:axis], along, *fact[axis:-1]], fact[-1])]


def moved(step: Step, ins: list[Fact]) -> list[Fact]:
    """What is known about the positions that are taken, and about padding."""
    fact, results = ins[0], []
    for k in range(len(step.outs)):
        positions = positions_from(step, k)
        axes = []
        for axis, taken in enumerate(positions):
            along = fact[axis]
            if taken is FROZEN:
                along = UNKNOWN
            elif taken is not ALL:
                known, number = along.spread(step.ins[0].shape[axis])
                along = Along(known[taken] & (taken >= 0), number[taken])
            axes.append(along)
        whole = fact[-1]
        if step.name == "pad" and any(x is not ALL for x in positions):
            *axes, whole = (where_equal([x, ins[1][-1]]) for x in (*axes, whole))
        results.append(make_fact(axes, whole))
    return results
