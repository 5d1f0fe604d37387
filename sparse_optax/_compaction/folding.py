"""Folds constant units into the biases of the layers that read them.

If all incoming weights of a unit are zero, it has the same value for every input,
f(bias). Where a product sums over it, its term is a constant vector, which can be added
to a bias: a parameter that is used nowhere else and is broadcast and added to the
product, with only additions, casts and moves of axes in between.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from sparse_optax._compaction.moves import reshape_groups
from sparse_optax._compaction.program import Program, Step, Value

_COPIES = ("stop_gradient", "copy", "copy_p")


def _is_linear(step: Step) -> bool:
    """Whether a step only copies numbers, or casts floats to floats."""
    is_cast = step.name == "convert_element_type" and all(
        jnp.issubdtype(v.dtype, jnp.floating) for v in (*step.ins, *step.outs)
    )
    return is_cast or step.name in _COPIES


@dataclasses.dataclass(frozen=True)
class Fold:
    """A product whose constant terms can become part of a bias.

    Attributes:
        x: the factor that may have constant units, and their axis.
        weights: the index of the other factor, a parameter.
        axis: the axis of the weights that is summed over.
        free: the axes of the weights that the result has, in the order of the bias.
        bias: the index of the bias, a parameter.
    """

    x: tuple[Value, int]
    weights: int
    axis: int
    free: tuple[int, ...]
    bias: int

    def apply(self, leaves: list[Any], constants: np.ndarray) -> None:
        """Adds the terms of constant units to the bias.

        Args:
            leaves: the parameters.
            constants: the value of each unit; 0 for units that are not folded.
        """
        weights, bias = (np.asarray(leaves[i]) for i in (self.weights, self.bias))
        rest = (i for i in range(weights.ndim) if i not in (self.axis, *self.free))
        wide = weights.astype(np.float64)
        ordered = wide.transpose(self.axis, *self.free, *rest)
        ordered = ordered.reshape(*ordered.shape[: 1 + len(self.free)], -1).sum(-1)
        term = np.tensordot(constants.astype(np.float64), ordered, 1)
        leaves[self.bias] = (bias.astype(np.float64) + term).astype(bias.dtype)

    def clear(self, leaves: list[Any], constants: np.ndarray) -> None:
        """Sets the weights to zero after their terms have moved to the bias."""
        weights = np.array(leaves[self.weights])
        weights[(slice(None),) * self.axis + (np.flatnonzero(constants),)] = 0
        leaves[self.weights] = weights


def find_folds(program: Program, num_params: int) -> dict[Step, Fold]:
    """The products that can be folded, except those in inner programs."""
    params = {value: i for i, value in enumerate(program.ins[:num_params])}
    uses = program.uses()
    readers = {v: step for step in program.steps for v in step.ins}
    writers = {v: step for step in program.steps for v in step.outs}
    folds = {}
    for step in program.steps:
        found = _product(step, params)
        if found is None:
            continue
        x, weights, axis, free = found
        bias = _bias_of(step.outs[0], free, params, uses, readers, writers)
        if bias is not None:
            folds[step] = Fold(x, params[weights], axis, *bias)
    return folds


def _product(step: Step, params: dict[Value, int]) -> Any:
    """The factor x, the weights, the axis that is summed over, and the free axes.

    The free axes are those of the weights, by the axes of the result.
    """
    if step.name == "dot_general":
        sums, batch = step.params["dimension_numbers"]
        sides = [i for i in (0, 1) if step.ins[i] in params]
        if len(sides) != 1 or len(sums[0]) != 1 or batch[0]:
            return None
        (side,) = sides
        x, weights = step.ins[1 - side], step.ins[side]
        free = [i for i in range(len(weights.shape)) if i != sums[side][0]]
        start = 0 if side == 0 else len(step.outs[0].shape) - len(free)
        where = {start + i: axis for i, axis in enumerate(free)}
        return (x, sums[1 - side][0]), weights, sums[side][0], where
    if step.name == "conv_general_dilated":
        params_of, (x, weights) = step.params, step.ins
        left, right, out = params_of["dimension_numbers"]
        is_plain = (
            params_of["feature_group_count"] == 1 == params_of["batch_group_count"]
        )
        is_inside = all(tuple(pad) == (0, 0) for pad in params_of["padding"])
        is_inside &= all(n == 1 for n in params_of["lhs_dilation"])
        if weights not in params or not (is_plain and is_inside):
            return None
        return (x, left[1]), weights, right[1], {out[1]: right[0]}
    return None


def _bias_of(
    value, free, params, uses, readers, writers
) -> tuple[tuple[int, ...], int] | None:
    """Finds the bias that is added to a value.

    Args:
        free: the axes of the weights, by those of the value.

    Returns:
        The axes of the weights in the order of the bias, and its index.
    """
    while uses[value] == 1 and value in readers:
        step = readers[value]
        if step.name == "add":
            (other,) = [v for v in step.ins if v is not value] or [None]
            bias, axes = _parameter(other, params, uses, writers)
            same_rank = other is not None and len(other.shape) == len(value.shape)
            if axes is not None and same_rank and axes.keys() == free.keys():
                places = sorted(free, key=axes.__getitem__)
                return tuple(free[axis] for axis in places), bias
        elif (moved := _moved(free, step)) is not None:
            free = moved
        else:
            return None
        value = step.outs[0]
    return None


def _parameter(value, params, uses, writers) -> tuple[int, dict[int, int] | None]:
    """The parameter that a value is made of, and its axes by those of the value."""
    if value is None or uses[value] != 1:
        return 0, None
    if value in params:
        return params[value], {axis: axis for axis in range(len(value.shape))}
    if value not in writers or not writers[value].ins:
        return 0, None
    index, axes = _parameter(writers[value].ins[0], params, uses, writers)
    return index, None if axes is None else _moved(axes, writers[value])


def _moved(axes: dict[int, int], step: Step) -> dict[int, int] | None:
    """Axes after a step, or None if it does not keep them whole, or is not linear."""
    if _is_linear(step):
        return axes
    old, new, moved = step.ins[0].shape, step.outs[0].shape, {}
    if step.name == "transpose":
        moved = {i: j for j, i in enumerate(step.params["permutation"])}
    elif step.name == "broadcast_in_dim":
        pairs = enumerate(step.params["broadcast_dimensions"])
        moved = {i: j for i, j in pairs if old[i] == new[j]}
    elif step.name == "reshape":
        for ins, outs in reshape_groups(old, new):
            ins = [i for i in ins if old[i] != 1]
            outs = [i for i in outs if new[i] != 1]
            if len(ins) == len(outs) == 1:
                moved[ins[0]] = outs[0]
    else:
        return None
    if axes.keys() - moved.keys():
        return None
    return {moved[i]: axis for i, axis in axes.items()}
