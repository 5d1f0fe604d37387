"""Finds units that nothing reads: their terms are zero wherever they are summed over.

A fact about a value says that all its elements at a position of an axis are the same
number. For parameters, facts come from pruning; for results, they follow from facts
about the arguments. A unit is read where an axis with one of its positions is summed
over, unless a factor of the term is known to be zero.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_optax._compaction import calls
from sparse_optax._compaction.facts import Fact, fact_of_array, unknown
from sparse_optax._compaction.folding import Fold, find_folds
from sparse_optax._compaction.program import Program, Step, Value
from sparse_optax._compaction.rules import RULES
from sparse_optax._compaction.units import UnitTable


class Liveness:
    """A pass over a program: what is known about values, and which units are read.

    Attributes:
        pruned: for each unit, whether a slice of a matrix is zero. Other units may have
            the same value for every input too, but by design.
        readers: for each unit, the first step that reads it, as an index into `names`.
        constants: for each product with a bias, the values of the units that may be
            folded into it, and 0 for the others.
        known: for each scan, facts about its constants and carry in every iteration.
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

    def run(self, program: Program, ins: Sequence[Fact]) -> list[Fact]:
        """Returns facts about the results, given facts about the arguments."""
        facts = dict(zip(program.ins, ins, strict=True))

        def fact_of(value: Value) -> Fact:
            if value not in facts:  # a literal, or a closed-over array
                array = np.asarray(value.constant) if _is_number(value) else None
                facts[value] = (
                    unknown(value)
                    if array is None
                    else fact_of_array(array, [None] * array.ndim)
                )
            return facts[value]

        for step in program.steps:
            known = [fact_of(value) for value in step.ins]
            if step.name in calls.CALLS:
                outs = calls.CALLS[step.name].facts(step, known, self)
            else:
                rule = RULES.get(step.name)
                if rule is None or rule.facts is None:
                    outs = [unknown(value) for value in step.outs]
                else:
                    outs = rule.facts(step, known)
            facts.update(zip(step.outs, outs, strict=True))
            for one in step.sums:
                if not len(one.units):
                    continue  # a sum of nothing
                zero = np.zeros(len(one.units), bool)
                for value, axis in one.factors:
                    its = facts[value][axis].spread(value.shape[axis]).zero
                    zero |= its.reshape(-1, len(zero)).all(axis=0)
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
        """Which units of a product have constant terms that can be folded."""
        value, axis = self.folds[step].x
        along = facts[value][axis]
        if np.iscomplexobj(along.number):
            return np.zeros(len(zero), bool)
        units = self.table.resolve(step.sums[0].units)
        constant = along.known & np.isfinite(along.number.astype(np.float64))
        constant = constant & self.pruned[units].any(axis=1)
        self.constants[step] = np.where(constant & ~zero, along.number, 0)
        return constant


def _is_number(value: Value) -> bool:
    return value.constant is not None and not jnp.issubdtype(
        value.dtype, jax.dtypes.extended
    )


class Unread(NamedTuple):
    """What `unread` finds.

    Attributes:
        removed: for each unit, whether it can be removed.
        leaves: the parameters, with removed constant units folded into the biases.
        folded: how many units were folded into each bias, by its index.
        liveness: the last pass, which found nothing more.
        facts: what is known about the parameters.
    """

    removed: np.ndarray
    leaves: list[Any]
    folded: dict[int, int]
    liveness: Liveness
    facts: list[Fact]


def unread(program: Program, leaves: Sequence[Any], table: UnitTable) -> Unread:
    """Finds units that can be removed without changing the results, to a fixed point.

    At least one position of each axis is kept.

    Args:
        program: has the units of its axes; its first arguments are the parameters.
        leaves: the parameters.
        table: the units.
    """
    values = program.ins[: len(leaves)]
    units = [[None if u is None else table.resolve(u) for u in v.axes] for v in values]
    in_params = np.zeros(table.size, bool)
    for one in (u for axes in units for u in axes if u is not None):
        in_params[one] = True
    in_params[0] = False
    removed, protected = np.zeros((2, table.size), bool)
    axes = distinct_axes(program, table)
    inputs = [unknown(value) for value in program.ins[len(leaves) :]]
    leaves, folded = list(leaves), {}
    folds = find_folds(program, len(leaves))
    while True:
        facts = [
            unknown(value)
            if np.size(leaf) == 1  # such as a gate, whose gradient matters at zero too
            else fact_of_array(leaf, [table.kept(u, removed) for u in of_leaf])
            for value, leaf, of_leaf in zip(values, leaves, units, strict=True)
        ]
        pruned = np.zeros(table.size, bool)
        for value, of_leaf, fact in zip(values, units, facts, strict=True):
            for axis, one in enumerate(of_leaf):
                if one is not None and max(value.shape) < math.prod(value.shape):
                    pruned[one[fact[axis].spread(len(one)).zero]] = True
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
        for fold, constants in done:  # at the end: products may share weights
            fold.clear(leaves, constants)
        removed = found


def distinct_axes(program: Program, table: UnitTable) -> list[np.ndarray]:
    """The distinct units of all axes along which something can be removed."""
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
    """Keeps one position of each axis that would lose all of them."""
    for units in axes:
        if found[units].any(axis=1).all():
            first = (~removed[units].any(axis=1)).argmax()
            found[units[first]] = False
            protected[units[first]] = True
