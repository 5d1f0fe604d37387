"""Primitives with inner functions: control flow, custom derivatives, `remat`.

For each one: which axes have the same units, what is known about the results (see
`liveness`), and how to evaluate it on smaller arrays. Custom derivative rules are
traced as programs of their own, so that they are kept, and not replaced by derivatives
of the function.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sparse_optax._compaction import rules
from sparse_optax._compaction.facts import UNKNOWN, either, make_fact, unknown
from sparse_optax._compaction.program import Program, Step, Value, trace
from sparse_optax._compaction.rules import Rule
from sparse_optax._compaction.units import AxisUnits, UnitTable


def _label(program: Program, axes: Sequence[list[AxisUnits]], table: UnitTable) -> None:
    for value, units in zip(program.ins, axes, strict=True):
        value.axes = list(units)
    rules.label(program, table)


def _join(a: list[AxisUnits], b: list[AxisUnits], step: Step, table: UnitTable) -> None:
    for one, other in zip(a, b, strict=True):
        table.join(one, other, f"{step.name} with a fixed axis")


# remat2


def _label_body(step: Step, table: UnitTable) -> None:
    body = step.programs["body"]
    _label(body, [v.axes for v in step.ins], table)
    for out, value in zip(step.outs, body.outs, strict=True):
        out.axes = list(value.axes)


def _facts_of_body(step: Step, ins: list[Any], liveness: Any) -> list[Any]:
    return liveness.run(step.programs["body"], ins)


def _remat(step: Step, args: Sequence[Any], evaluation: Any) -> list[Any]:
    params = {k: step.params[k] for k in ("prevent_cse", "policy")}
    return jax.checkpoint(
        lambda *args: evaluation.run(step.programs["body"], args), **params
    )(*args)


# custom_jvp_call, custom_vjp_call


def _is_differentiable(x: Any) -> bool:
    return jax.numpy.issubdtype(x.dtype, np.inexact)


def _differentiable(xs: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """Those that have a tangent, by the dtypes of `like`."""
    return [x for x, y in zip(xs, like, strict=True) if _is_differentiable(y)]


def _with_zeros(given: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """The given tangents, and zeros for what has no tangent."""
    found = iter(given)
    return [
        next(found) if _is_differentiable(x) else np.zeros(x.shape, jax.dtypes.float0)
        for x in like
    ]


def _derivative_of(step: Step) -> Program:
    """The custom JVP or VJP rule of a step: of arguments and (co)tangents."""

    def call(*args):
        return step.bind(args, step.params)

    def jvp(args, tangents):
        outs, found = jax.jvp(call, args, _with_zeros(tangents, args))
        return outs, _differentiable(found, outs)

    def vjp(args, cotangents):
        outs, pull_back = jax.vjp(call, *args)
        return _differentiable(pull_back(_with_zeros(cotangents, outs)), args)

    args, outs = (
        [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values]
        for values in (step.ins, step.outs)
    )
    if step.name == "custom_jvp_call":
        return trace(jvp, args, _differentiable(args, args))[0]
    return trace(vjp, args, _differentiable(outs, outs))[0]


def _label_custom(step: Step, table: UnitTable) -> None:
    _label_body(step, table)
    if not table.is_in_derivative:  # a rule may call its own function
        _add_derivative(step, table)


def _tangents(step: Step) -> list[Value]:
    """The values whose tangents or cotangents a derivative rule takes."""
    values = step.ins if step.name == "custom_jvp_call" else step.outs
    return _differentiable(values, values)


def _add_derivative(step: Step, table: UnitTable) -> None:
    """Adds the derivative rule of a step, and labels it."""
    rule = step.programs["rule"] = _derivative_of(step)
    outer, table.is_in_derivative = table.is_in_derivative, True
    _label(rule, [v.axes for v in (*step.ins, *_tangents(step))], table)
    table.is_in_derivative = outer
    outs = _differentiable(step.ins, step.ins)
    if step.name == "custom_jvp_call":
        outs = [*step.outs, *_differentiable(step.outs, step.outs)]
    for value, mine in zip(rule.outs, outs, strict=True):
        _join(value.axes, mine.axes, step, table)


def _derivative(step: Step, args: Sequence[Any], evaluation: Any) -> list[Any]:
    if "rule" not in step.programs:
        _add_derivative(step, evaluation.table)
    return evaluation.run(step.programs["rule"], args)


def _facts_of_custom(step: Step, ins: list[Any], liveness: Any) -> list[Any]:
    if "rule" in step.programs:
        tangents = map(unknown, _tangents(step))
        liveness.run(step.programs["rule"], [*ins, *tangents])
    return _facts_of_body(step, ins, liveness)


def _custom_jvp(step: Step, args: Sequence[Any], evaluation: Any) -> list[Any]:
    @jax.custom_jvp
    def call(*args):
        return evaluation.run(step.programs["body"], args)

    @call.defjvp
    def rule(args, tangents):
        given = [*args, *_differentiable(tangents, args)]
        results = _derivative(step, given, evaluation)
        outs, found = results[: len(step.outs)], results[len(step.outs) :]
        return outs, _with_zeros(found, outs)

    return call(*args)


def _custom_vjp(step: Step, args: Sequence[Any], evaluation: Any) -> list[Any]:
    @jax.custom_vjp
    def call(*args):
        return evaluation.run(step.programs["body"], args)

    def backward(args, cotangents):
        given = [*args, *_differentiable(cotangents, cotangents)]
        found = _derivative(step, given, evaluation)
        return tuple(_with_zeros(found, args))

    call.defvjp(lambda *args: (call(*args), args), backward)
    return call(*args)


# cond


def _label_cond(step: Step, table: UnitTable) -> None:
    for program in step.programs.values():
        _label(program, [v.axes for v in step.ins[1:]], table)
    first, *others = step.programs.values()
    for k, out in enumerate(step.outs):
        out.axes = list(first.outs[k].axes)
        for program in others:
            _join(out.axes, program.outs[k].axes, step, table)


def _facts_of_cond(step: Step, ins: list[Any], liveness: Any) -> list[Any]:
    branches = [liveness.run(program, ins[1:]) for program in step.programs.values()]
    return [either(*x) for x in zip(*branches, strict=True)]


def _cond(step: Step, args: Sequence[Any], evaluation: Any) -> list[Any]:
    branches = [
        lambda *args, program=program: evaluation.run(program, args)
        for program in step.programs.values()
    ]
    if step.params.get("branches_platforms"):
        by_platform = {
            name or "default": branch
            for names, branch in zip(
                step.params["branches_platforms"], branches, strict=True
            )
            for name in names or [None]
        }
        return jax.lax.platform_dependent(*args[1:], **by_platform)
    return jax.lax.switch(args[0], branches, *args[1:])


# while


def _parts_of_while(step: Step, xs: Sequence[Any]) -> tuple[list, list, list]:
    n, m = step.params["cond_nconsts"], step.params["body_nconsts"]
    return list(xs[:n]), list(xs[n : n + m]), list(xs[n + m :])


def _label_while(step: Step, table: UnitTable) -> None:
    cond_consts, body_consts, carry = _parts_of_while(step, [v.axes for v in step.ins])
    _label(step.programs["cond"], [*cond_consts, *carry], table)
    _label(step.programs["body"], [*body_consts, *carry], table)
    for out, value, axes in zip(
        step.outs, step.programs["body"].outs, carry, strict=True
    ):
        _join(value.axes, axes, step, table)
        out.axes = list(axes)


def _facts_of_while(step: Step, ins: list[Any], liveness: Any) -> list[Any]:
    cond_consts, body_consts, carry = _parts_of_while(step, ins)
    carry = _until_stable(
        lambda c: liveness.run(step.programs["body"], [*body_consts, *c]), carry
    )
    liveness.run(step.programs["cond"], [*cond_consts, *carry])
    return carry


def _until_stable(body: Callable[[list], list], carry: list) -> list:
    """What is known about a carry in every iteration, given what is known initially."""
    while True:
        after = [either(a, b) for a, b in zip(carry, body(carry), strict=True)]
        alongs = zip(sum(carry, ()), sum(after, ()), strict=True)
        if all((a.known == b.known).all() for a, b in alongs):
            return carry
        carry = after


def _while(step: Step, args: Sequence[Any], evaluation: Any) -> list[Any]:
    cond_consts, body_consts, carry = _parts_of_while(step, args)
    return jax.lax.while_loop(
        lambda carry: evaluation.run(step.programs["cond"], [*cond_consts, *carry])[0],
        lambda carry: evaluation.run(step.programs["body"], [*body_consts, *carry]),
        carry,
    )


# scan


def _parts_of_scan(step: Step, xs: Sequence[Any]) -> tuple[list, list, list]:
    n, m = step.params["num_consts"], step.params["num_carry"]
    return list(xs[:n]), list(xs[n : n + m]), list(xs[n + m :])


def _label_scan(step: Step, table: UnitTable) -> None:
    consts, carry, xs = _parts_of_scan(step, [v.axes for v in step.ins])
    for axes in xs:
        table.freeze(axes[0], "the axis of a scan")
    body = step.programs["body"]
    _label(body, [*consts, *carry, *(axes[1:] for axes in xs)], table)
    for k, (out, value) in enumerate(zip(step.outs, body.outs, strict=True)):
        if k < len(carry):
            _join(value.axes, carry[k], step, table)
            out.axes = list(carry[k])
        else:
            out.axes = [None, *value.axes]


def _facts_of_scan(step: Step, ins: list[Any], liveness: Any) -> list[Any]:
    consts, carry, xs = _parts_of_scan(step, ins)
    xs = [fact[1:] for fact in xs]
    results: list[Any] = []

    def body(carry):
        results[:] = liveness.run(step.programs["body"], [*consts, *carry, *xs])
        return results[: len(carry)]

    carry = _until_stable(body, carry)
    liveness.known[step] = [*consts, *carry]
    return [
        *carry,
        *(make_fact([UNKNOWN, *x[:-1]], x[-1]) for x in results[len(carry) :]),
    ]


def _scan(step: Step, args: Sequence[Any], evaluation: Any) -> list[Any]:
    consts, carry, xs = _parts_of_scan(step, args)

    def body(carry, xs):
        results = evaluation.run(step.programs["body"], [*consts, *carry, *xs])
        return results[: len(carry)], results[len(carry) :]

    names = "length", "reverse", "unroll", "_split_transpose"
    options = {name: step.params[name] for name in names if name in step.params}
    carry, ys = jax.lax.scan(body, carry, xs, **options)
    return [*carry, *ys]


class Call(NamedTuple):
    """How a primitive with inner functions is labelled, known and evaluated."""

    label: Callable
    facts: Callable
    run: Callable


CALLS = {
    "remat2": Call(_label_body, _facts_of_body, _remat),
    "checkpoint": Call(_label_body, _facts_of_body, _remat),
    "custom_jvp_call": Call(_label_custom, _facts_of_custom, _custom_jvp),
    "custom_vjp_call": Call(_label_custom, _facts_of_custom, _custom_vjp),
    "cond": Call(_label_cond, _facts_of_cond, _cond),
    "while": Call(_label_while, _facts_of_while, _while),
    "scan": Call(_label_scan, _facts_of_scan, _scan),
}
rules.RULES.update({name: Rule(call.label) for name, call in CALLS.items()})
