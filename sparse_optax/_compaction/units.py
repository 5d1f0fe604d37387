"""Units: what is removed as a whole, and which positions of an axis belong to them.

A position of an axis belongs to some units, and is kept iff all of them are kept. A
hidden feature belongs to one unit. Position `i * dim + j` of an axis of heads times
dimensions belongs to two: head `i` and dimension `j`. A position without units is
always kept.

The units of an axis are a matrix of integers with a row for each position; 0 is no
unit. An axis whose units are unknown, such as one of symbolic size, has None instead,
and is always kept.
"""

import math
from collections.abc import Sequence

import numpy as np

Units = np.ndarray  # [positions, units of each]
AxisUnits = Units | None

_TOO_LARGE = 1 << 24  # positions; longer merged axes are frozen


class UnitTable:
    """Which units are the same, and which units stand for others.

    A unit stands for itself, for one other (they were joined), for several (it is
    removed iff one of these is), or for none (it is frozen: never removed). `freeze`
    and `join` only ever restrict what can be removed, so results are correct for any
    order of calls.
    """

    def __init__(self) -> None:
        self._stands_for = np.zeros((1, 1), np.int32)
        self._is_root = np.ones(1, bool)
        self._reason = np.zeros(1, np.int32)  # why a unit is frozen; an index
        self._reasons = [""]
        self.is_in_derivative = False  # while its rule is being labelled

    def new(self, size: int) -> Units:
        """New units for an axis, one for each position."""
        start, width = self._stands_for.shape
        units = np.arange(start, start + size, dtype=np.int32)
        more = np.zeros((size, width), np.int32)
        more[:, 0] = units
        self._stands_for = np.concatenate([self._stands_for, more])
        self._is_root = np.concatenate([self._is_root, np.ones(size, bool)])
        self._reason = np.concatenate([self._reason, np.zeros(size, np.int32)])
        return units[:, None]

    @property
    def size(self) -> int:
        """The number of units, including 0, which is no unit."""
        return len(self._is_root)

    def resolve(self, units: Units) -> Units:
        """Replaces units by the ones that they stand for."""
        while not self._is_root[units].all():
            units = self._stands_for[units].reshape(len(units), -1)
            units = units[:, units.any(axis=0)]
        if units.shape[1] > 1:
            _, first = np.unique(units, axis=1, return_index=True)
            units = units[:, np.sort(first)]
            units = units[:, units.any(axis=0)]
        elif not units.any():
            units = units[:, :0]
        return units

    def kept(self, units: AxisUnits, removed: np.ndarray) -> np.ndarray | None:
        """Which positions of an axis are kept; None for all.

        Args:
            units: the units of the axis.
            removed: for each unit, whether it is removed.
        """
        if units is None:
            return None
        kept = np.asarray(~removed[self.resolve(units)].any(axis=1))
        return None if kept.all() else kept

    def freeze(self, units: AxisUnits, reason: str) -> None:
        """Makes sure that units are never removed."""
        if units is not None:
            roots = np.unique(self.resolve(units))
            self._bind(roots, np.zeros((len(roots), 1), np.int32), reason)

    def join(self, a: AxisUnits, b: AxisUnits, reason: str) -> None:
        """Makes sure that positions of two axes are removed together.

        `reason` is recorded for units that this freezes.
        """
        if a is None or b is None:
            self.freeze(b if a is None else a, reason)
            return
        while True:
            a, b = self.resolve(a), self.resolve(b)
            if a.shape == b.shape and (a == b).all():
                return
            if a.shape[1] == b.shape[1]:
                column = int((a != b).any(axis=0).argmax())  # the first that differs
                self._join_column(a[:, column], b[:, column], reason)
            elif _is_simple(a, b):
                self._bind(a[:, 0], b, reason)
            elif _is_simple(b, a):
                self._bind(b[:, 0], a, reason)
            else:
                self.freeze(a, reason)
                self.freeze(b, reason)

    def _join_column(self, a: np.ndarray, b: np.ndarray, reason: str) -> None:
        """Joins the units of two columns; for a repeated unit, only the first pair."""
        larger, smaller = np.maximum(a, b), np.minimum(a, b)
        larger, smaller = larger[a != b], smaller[a != b]
        larger, first = np.unique(larger, return_index=True)
        self._bind(larger, smaller[first, None], reason)

    def _bind(self, roots: np.ndarray, units: Units, reason: str) -> None:
        """Lets each of `roots` stand for its row of `units`."""
        width = self._stands_for.shape[1]
        if units.shape[1] > width:
            more = ((0, 0), (0, units.shape[1] - width))
            self._stands_for = np.pad(self._stands_for, more)
        units, roots = units[roots > 0], roots[roots > 0]
        self._stands_for[roots] = 0
        self._stands_for[roots, : units.shape[1]] = units
        self._is_root[roots] = False
        if frozen := roots[~units.any(axis=1)].tolist():
            if reason not in self._reasons:
                self._reasons.append(reason)
            self._reason[frozen] = self._reasons.index(reason)

    def why_frozen(self, units: AxisUnits) -> list[str]:
        """The reasons why some of these units (not resolved ones) are frozen."""
        found, todo = set(), np.zeros(0, np.int32) if units is None else units
        while todo.size:
            todo = np.unique(todo)
            found |= set(self._reason[todo].tolist())
            todo = self._stands_for[todo[~self._is_root[todo]]]
        return [self._reasons[i] for i in sorted(found - {0})]

    def merge(self, axes: Sequence[AxisUnits], sizes: Sequence[int]) -> AxisUnits:
        """The units of several axes merged into one, in row-major order."""
        if len(axes) == 1:
            return axes[0]
        if all(units is None for units in axes):
            return None
        total = math.prod(sizes)
        if total > _TOO_LARGE:
            for units in axes:
                self.freeze(units, "merges into too long an axis")
            return None
        columns = []
        for axis, units in enumerate(axes):
            if units is not None:
                shape = [1] * len(sizes)
                shape[axis] = sizes[axis]
                for column in self.resolve(units).T:
                    spread = np.broadcast_to(column.reshape(shape), sizes)
                    columns.append(spread.reshape(total))
        return np.stack(columns, 1) if columns else np.zeros((total, 0), np.int32)

    def split(
        self, units: AxisUnits, sizes: Sequence[int], reason: str
    ) -> list[AxisUnits]:
        """The units of several axes that one axis is reshaped into.

        Units that vary along only one of these become units of that axis. Other units
        then stand for a unit of each axis that they vary along.
        """
        if len(sizes) == 1 or units is None:
            return [units] * len(sizes)
        while True:
            units = self.resolve(units)
            columns: list[list[np.ndarray]] = [[] for _ in sizes]
            for column in units.T:
                grid = column.reshape(sizes)
                along = [
                    axis
                    for axis in range(len(sizes))
                    if (grid != grid.take([0], axis)).any()
                ]
                if len(along) > 1:  # replace them, and try again
                    parts = [
                        self.new(n) if axis in along else None
                        for axis, n in enumerate(sizes)
                    ]
                    self.join(column[:, None], self.merge(parts, sizes), reason)
                    break
                axis = along[0] if along else 0
                first = [slice(None) if x == axis else 0 for x in range(len(sizes))]
                columns[axis].append(grid[tuple(first)])
            else:
                return [
                    np.stack(x, 1) if x else np.zeros((n, 0), np.int32)
                    for x, n in zip(columns, sizes, strict=True)
                ]


def _is_simple(a: Units, b: Units) -> bool:
    """Whether each position of `a` has one unit, which is unique and not in `b`."""
    return (
        a.shape[1] == 1
        and bool(a.all())
        and len(np.unique(a)) == len(a)
        and not np.isin(a, b).any()
    )
