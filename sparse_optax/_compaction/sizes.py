"""How many weights and multiplications a network has, by layer, before and after."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sparse_optax._compaction.evaluate import Evaluation
from sparse_optax._compaction.program import Program, Step

_NO_LAYER = "(products of activations)"


class Size(NamedTuple):
    """The size of a layer.

    Attributes:
        weights: the number of weights.
        num_bytes: the bytes of all arrays.
        multiplications: their number in a call with inputs like the sample.
    """

    weights: int = 0
    num_bytes: int = 0
    multiplications: int = 0


Sizes = dict[str, tuple[Size, Size]]  # before and after, by layer


def layer_sizes(
    program: Program, names: Sequence[str], evaluation: Evaluation
) -> Sizes:
    """The sizes of layers: leaves with the same name up to the last slash."""
    sizes: Sizes = {}

    def add(layer: str, before: Size, after: Size) -> None:
        old = sizes.get(layer, (Size(), Size()))
        sizes[layer] = add_up(old[0], before), add_up(old[1], after)

    for name, value in zip(names, program.ins, strict=False):
        width = getattr(value.dtype, "itemsize", 0)
        counts = math.prod(value.shape), math.prod(evaluation.shape(value))
        add(_layer(name), *(Size(n, n * width) for n in counts))
    owners = [*map(_layer, names), *[_NO_LAYER] * (len(program.ins) - len(names))]
    _add_multiplications(program, owners, evaluation, add, 1)
    return sizes


def add_up(*sizes: Size) -> Size:
    return Size(*map(sum, zip(*sizes, strict=True)))


def _layer(name: str) -> str:
    return name.rpartition("/")[0] or name


def _add_multiplications(
    program: Program,
    owners: Sequence[str | None],
    evaluation: Evaluation,
    add: Callable[[str, Size, Size], None],
    times: int,
) -> list[str | None]:
    """Adds the multiplications of each product to the layer of its weights.

    Returns:
        The layer of each result: that of its weights, `_NO_LAYER` if it depends on an
        input, and None if it is constant.
    """
    layers = dict(zip(program.ins, owners, strict=True))
    for step in program.steps:
        found = [layers.get(value) for value in step.ins]
        owner = next((x for x in found[::-1] if x not in (None, _NO_LAYER)), None)
        counts = _count_products(step, evaluation)
        if counts is not None:
            before, after = (Size(multiplications=times * n) for n in counts)
            add(owner or _NO_LAYER, before, after)
        outs = [_NO_LAYER if _NO_LAYER in found else owner] * len(step.outs)
        rounds = times * step.params["length"] if step.name == "scan" else times
        bodies = [body for name, body in step.programs.items() if name != "rule"]
        for body in bodies[-1:]:  # the last branch of `cond`, one iteration of `while`
            given = found[len(found) - len(body.ins) :]
            outs = _add_multiplications(body, given, evaluation, add, rounds)
        layers.update(zip(step.outs, outs, strict=True))
    return [layers.get(value) for value in program.outs]


def _count_products(step: Step, evaluation: Evaluation) -> tuple[int, int] | None:
    """How many multiplications a product takes, before and after."""
    if step.name == "dot_general":
        axes, factor = step.params["dimension_numbers"][0][0], step.ins[0]
    elif step.name == "conv_general_dilated":
        axes, factor = step.params["dimension_numbers"].rhs_spec[1:], step.ins[1]
    else:
        return None
    result = step.outs[0]
    small, small_result = evaluation.shape(factor), evaluation.shape(result)
    return (
        math.prod(result.shape) * math.prod(factor.shape[i] for i in axes),
        math.prod(small_result) * math.prod(small[i] for i in axes),
    )
