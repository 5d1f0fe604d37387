"""What is known about a value: where all its elements are the same number."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_optax._compaction.program import Value


class Along(NamedTuple):
    """What is known about the positions of an axis.

    Attributes:
        known: for each position, whether all its elements are the same number.
        number: that number; arbitrary where it is not known.
    """

    known: np.ndarray
    number: np.ndarray

    @property
    def zero(self) -> np.ndarray:
        return self.known & (self.number == 0)


class Fact(NamedTuple):
    """What is known about a value.

    Attributes:
        shape: its shape.
        whole: the number that all its elements equal, or None.
        axes: what is known along each axis, or None.
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
        """What is known about a value that may be either of two."""
        is_same = self.whole is not None and self.whole == other.whole
        axes = [
            where_equal([self.along(i), other.along(i)]) if isinstance(n, int) else None
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
        """What is known about every slice along the first axis."""
        return Fact(self.shape[1:], self.whole, self.axes[1:])

    def of_stack(self, length: int) -> "Fact":
        """What is known about a stack of such values along a new first axis."""
        return Fact((length, *self.shape), self.whole, (None, *self.axes))


def where_equal(alongs: Sequence[Along | None]) -> Along | None:
    """Where all are known to be the same number."""
    first = alongs[0]
    if first is None or any(x is None for x in alongs):
        return None
    known = functools.reduce(
        np.logical_and, [x.known & (x.number == first.number) for x in alongs if x]
    )
    return make_along(known, first.number)


def make_along(known: np.ndarray, number: np.ndarray) -> Along | None:
    """What is known along an axis, or None if nothing is."""
    return Along(known, number) if known.any() else None


def unknown(value: Value) -> Fact:
    """The fact that nothing is known about a value."""
    return Fact(value.shape, None, (None,) * len(value.shape))


def fact_of_array(array: Any, kept: Sequence[np.ndarray | None]) -> Fact:
    """What is known about an array, considering only the kept positions."""
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):  # a random key
        return Fact(array.shape, None, (None,) * array.ndim)
    array = np.asarray(array)
    if array.size == 0 or (
        array.dtype.kind not in "biufcV" and array.dtype.name != "bfloat16"
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
        axes.append(make_along(known, np.zeros(n, array.dtype)))
    return Fact(array.shape, whole, tuple(axes))
