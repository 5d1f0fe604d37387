"""A table of rules for primitives, by name.

A primitive without a rule freezes the axes of its arguments, and nothing can be
removed along the axes of its results.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from sparse_optax._compaction import facts, labels, moves
from sparse_optax._compaction.facts import Fact
from sparse_optax._compaction.labels import Wiring, connect, freeze_all, new_axes
from sparse_optax._compaction.moves import Masks
from sparse_optax._compaction.program import Program, Step, Sum
from sparse_optax._compaction.units import UnitTable

Facts = Callable[[Step, list[Fact]], list[Fact]]
Resize = Callable[[Step, list[Masks], list[Masks]], dict[str, Any]]


class Rule(NamedTuple):
    """How the axes of a primitive share units, and how it runs on smaller arrays.

    Attributes:
        label: sets the axes of the results, and joins or freezes those of arguments.
        facts: returns facts about the results, given facts about the arguments; None if
            nothing is known.
        resize: returns the parameters for smaller arrays, given the kept positions.
    """

    label: Callable[[Step, UnitTable], None]
    facts: Facts | None = None
    resize: Resize | None = None


def label(program: Program, table: UnitTable) -> None:
    """Sets the axes of all values, given those of the arguments of the program."""
    for step in program.steps:
        for value in step.ins:
            if len(value.axes) != len(value.shape):  # a constant
                value.axes = new_axes(value, table)
        if step.name in RULES:
            RULES[step.name].label(step, table)
        else:
            freeze_all(step, table)
        others = [value for value in step.ins if value.constant is None]
        for value in step.outs:
            value.is_input = bool(others) and all(x.is_input for x in others)
    for value in program.outs:
        if len(value.axes) != len(value.shape):
            value.axes = new_axes(value, table)


def wired(
    wire: Callable[[Step], Wiring],
    facts_of: Facts | None = None,
    resize: Resize | None = None,
    *,
    sums: bool = False,
) -> Rule:
    """Makes a rule from a wiring."""

    def label_step(step, table):
        connect(step, table, wire(step), sums=sums)

    return Rule(label_step, facts_of, resize)


def _convolution(step: Step, table: UnitTable) -> None:
    """Features are split into `groups`; spatial axes are frozen."""
    if step.params["batch_group_count"] != 1:
        freeze_all(step, table, "fixed by a convolution in groups of the batch")
        return
    left, right, out = step.params["dimension_numbers"]
    (x, kernel), y = step.ins, step.outs[0]
    groups = step.params["feature_group_count"]
    reason = "fixed by conv_general_dilated"
    for i in left[2:]:
        table.freeze(x.axes[i], reason)
    for i in right[2:]:
        table.freeze(kernel.axes[i], reason)
    n_in, n_out = kernel.shape[right[1]], kernel.shape[right[0]] // groups
    group, feature = (
        table.split(x.axes[left[1]], (groups, n_in), reason)
        if groups > 1
        else (None, x.axes[left[1]])
    )
    table.join(feature, kernel.axes[right[1]], reason)
    new = kernel.axes[right[0]]
    if groups > 1:
        group_out, feature_out = table.split(new, (groups, n_out), reason)
        table.join(group, group_out, reason)
        new = table.merge([group, feature_out], (groups, n_out))
    y.axes = [None] * len(y.shape)
    y.axes[out[0]], y.axes[out[1]] = x.axes[left[0]], new
    if feature is not None:
        step.sums.append(Sum(feature, [(x, left[1]), (kernel, right[1])]))


def _resize_convolution(
    step: Step, ins: list[Masks], outs: list[Masks]
) -> dict[str, Any]:
    left, right, _ = step.params["dimension_numbers"]
    x, kernel = (
        moves.small_shape(v.shape, m) for v, m in zip(step.ins, ins, strict=True)
    )
    return step.params | {"feature_group_count": x[left[1]] // kernel[right[1]]}


def _made(step: Step, table: UnitTable) -> None:
    """For primitives that create a result from nothing, or from keys and seeds."""
    freeze_all(step, table, f"fixed by {step.name}")
    for value in step.outs:
        value.axes = new_axes(value, table)
    step.is_whole = True


_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt
ceil clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq
erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite
le lgamma log log1p logistic lt max min mul name ne neg nextafter not or
population_count pow real reduce_precision rem round rsqrt select_n shift_left
shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub
tan tanh xor
""".split()  # noqa: SIM905

RULES: dict[str, Rule] = {
    **{name: wired(labels.elementwise, facts.elementwise) for name in _ELEMENTWISE},
    "optimization_barrier": wired(labels.one_by_one, facts.one_by_one),
    "bitcast_convert_type": wired(labels.bitcast),
    "reduce_sum": wired(labels.without("axes"), facts.passes_zeros, sums=True),
    **{
        name: wired(labels.without("axes"), facts.passes)
        for name in ("reduce_max", "reduce_min", "reduce_and", "reduce_or")
    },
    **{
        name: wired(labels.without("axes"))
        for name in ("reduce_prod", "argmax", "argmin")
    },
    "dot_general": wired(labels.dot_general, facts.product, sums=True),
    "conv_general_dilated": Rule(_convolution, facts.convolution, _resize_convolution),
    **{
        name: wired(labels.window, facts.passes_zeros)
        for name in ("reduce_window_sum", "reduce_window_max", "reduce_window_min")
    },
    **{
        name: wired(labels.along("axis"), facts.passes_zeros)
        for name in ("cumsum", "cumprod", "cummax", "cummin")
    },
    "cumlogsumexp": wired(labels.along("axis")),
    "sort": wired(labels.along("dimension")),
    "top_k": wired(labels.along("axis")),
    "transpose": wired(labels.transpose, facts.passes),
    "broadcast_in_dim": wired(
        labels.broadcast_in_dim, facts.passes, moves.resize_to("shape")
    ),
    "stack": wired(labels.stack, facts.all_equal),
    "unstack": wired(labels.unstack, facts.passes),
    "squeeze": wired(labels.without("dimensions"), facts.passes),
    "reshape": Rule(moves.reshape, facts.reshape, moves.resize_to("new_sizes")),
    "concatenate": Rule(moves.concatenate, facts.concatenate),
    "slice": Rule(moves.moved, facts.moved, moves.resize_slice),
    "split": Rule(moves.moved, facts.moved, moves.resize_split),
    "rev": Rule(moves.moved, facts.moved),
    "tile": Rule(moves.moved, facts.moved),
    "pad": Rule(moves.moved, facts.moved),
    "gather": wired(labels.gather, facts.passes_zeros, moves.resize_slice_sizes),
    "scatter": wired(labels.scatter, facts.scattered),
    "scatter-add": wired(labels.scatter, facts.added),
    "dynamic_slice": wired(
        labels.dynamic_slice, facts.passes, moves.resize_slice_sizes
    ),
    "dynamic_update_slice": wired(labels.dynamic_update_slice, facts.written),
    "iota": Rule(_made),
    "random_bits": Rule(_made),
}
