"""Evaluates a program on smaller arrays, without the removed units.

Each equation is applied as before, with smaller sizes in its parameters. Arrays that
the function creates itself (`iota`, random bits, constants that it closes over) are
created at full size and then indexed, so that their values stay the same.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sparse_optax._compaction import calls
from sparse_optax._compaction.moves import Masks, small_shape
from sparse_optax._compaction.program import Program, Step, Value
from sparse_optax._compaction.rules import RULES
from sparse_optax._compaction.units import UnitTable


class Evaluation:
    """Evaluates programs without the removed units.

    Args:
        table: the units.
        removed: for each unit, whether it is removed.
    """

    def __init__(self, table: UnitTable, removed: np.ndarray) -> None:
        self.table = table
        self._removed = removed
        self._masks: dict[Value, Masks] = {}

    def masks(self, value: Value) -> Masks:
        """Which positions of each axis are kept; None for all."""
        if value not in self._masks:
            self._masks[value] = [
                self.table.kept(units, self._removed) for units in value.axes
            ]
        return self._masks[value]

    def shape(self, value: Value) -> tuple:
        """The shape of a value without the removed units."""
        return small_shape(value.shape, self.masks(value))

    def is_whole(self, value: Value) -> bool:
        """Whether nothing is removed from a value."""
        return all(mask is None for mask in self.masks(value))

    def shrink(self, value: Value, array: Any) -> Any:
        """The kept positions of an array."""
        for axis, mask in enumerate(self.masks(value)):
            if mask is not None:
                array = jnp.take(array, np.flatnonzero(mask), axis=axis)
        return array

    def run(self, program: Program, args: Sequence[Any]) -> list[Any]:
        """Computes the results from smaller arguments."""
        arrays = dict(zip(program.ins, args, strict=True))

        def read(value: Value) -> Any:
            if value not in arrays:
                return self.shrink(value, value.constant)
            return arrays[value]

        for step in program.steps:
            outs = self._run_step(step, [read(value) for value in step.ins])
            arrays.update(zip(step.outs, outs, strict=True))
        return [read(value) for value in program.outs]

    def _run_step(self, step: Step, args: list[Any]) -> list[Any]:
        values = [*step.ins, *step.outs]
        for program in step.programs.values():
            values += program.all_values()
        if all(map(self.is_whole, values)):
            return step.bind(args, step.params)
        if step.name in calls.CALLS:
            return list(calls.CALLS[step.name].run(step, args, self))
        rule = RULES[step.name]
        if step.is_whole:
            outs = step.bind(args, step.params)
            return [self.shrink(v, x) for v, x in zip(step.outs, outs, strict=True)]
        params = step.params
        if rule.resize is not None:
            ins, outs = ([self.masks(v) for v in vs] for vs in (step.ins, step.outs))
            params = rule.resize(step, ins, outs)
        return step.bind(args, params)
