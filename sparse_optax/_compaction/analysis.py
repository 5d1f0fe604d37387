"""Traces a function and finds the units of its axes; all other steps build on this."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from sparse_optax import _fit, _trees
from sparse_optax._compaction import rules
from sparse_optax._compaction.program import Program, trace
from sparse_optax._compaction.units import UnitTable

RESULT = "an axis of the output"


class Analysis(NamedTuple):
    """A traced function with the units of its axes.

    Attributes:
        program: the function; its first arguments are the leaves of the parameters.
        table: its units.
        names: the names of the leaves.
        returns: the tree of shapes that the function returns.
    """

    program: Program
    table: UnitTable
    names: list[str]
    returns: Any


def analyse(
    fn: Callable, params: Any, inputs: tuple, *, freeze_results: bool
) -> Analysis:
    """Traces a function and finds the units of all axes.

    Raises:
        TypeError: if params has leaves that are not arrays.
        ValueError: if two leaves have the same name.
    """
    _fit.check_tree(params, "params")
    with_path = jax.tree_util.tree_leaves_with_path(_trees.unbox(params))
    names = [_trees.leaf_name(path) for path, _ in with_path]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"params has two leaves named {min(twice)}.")
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type),
        jax.eval_shape(lambda *args: args, params, inputs),
    )
    program, returns = trace(lambda params, inputs: fn(params, *inputs), *shapes)
    for value in program.ins[len(jax.tree.leaves(params)) :]:
        value.is_input = True
    table = UnitTable()
    for value in program.ins:
        value.axes = rules.new_axes(value, table)
    rules.label(program, table)
    uses = program.uses()
    for value in program.ins[: len(jax.tree.leaves(params))]:
        if not uses[value]:
            for units in value.axes:
                table.freeze(units, "the function does not read it")
    if freeze_results:
        for value in program.outs:
            for units in value.axes:
                table.freeze(units, RESULT)
    return Analysis(program, table, names, returns)
