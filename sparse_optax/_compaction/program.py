"""A traced function as steps between values, which have the units of their axes.

Inner functions under `jit` are inlined. Other equations with inner functions (`scan`,
`cond`, custom derivatives) have these as `programs`. Each equation gets its own copy:
JAX may share a jaxpr between equations, but their units are different.

Only this module uses interfaces of JAX that are not public.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from sparse_optax._compaction.units import AxisUnits, Units

_INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_vmap_call": "call",
}


@dataclasses.dataclass(eq=False)
class Value:
    """An array between steps.

    Attributes:
        shape: integers, or symbols of `jax.export`.
        dtype: the dtype of its elements.
        constant: its elements, if they are the same in every call.
        is_input: whether it depends on inputs alone, not on parameters.
        axes: the units of each axis; empty before they are known.
    """

    shape: tuple[Any, ...]
    dtype: Any
    constant: Any = None
    is_input: bool = False
    axes: list[AxisUnits] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class Sum:
    """An axis that a step sums over.

    Attributes:
        units: the units of the axis.
        factors: the values and axes whose elements are multiplied before the sum.
    """

    units: Units
    factors: list[tuple[Value, int]]


@dataclasses.dataclass(eq=False)
class Step:
    """An equation.

    Attributes:
        primitive: what it computes.
        params: its parameters.
        ins: what it reads.
        outs: what it writes.
        programs: its inner functions, by name. A custom derivative rule is added only
            when needed, because it may call its own function.
        sums: the axes that it sums over.
        wiring: the symbols of its axes, if its rule is a wiring.
        gathered: the axes of its result that are indexed after the step.
        has_effects: whether it has side effects.
    """

    primitive: Any
    params: dict[str, Any]
    ins: list[Value]
    outs: list[Value]
    programs: dict[str, "Program"] = dataclasses.field(default_factory=dict)
    sums: list[Sum] = dataclasses.field(default_factory=list)
    wiring: Any = None
    gathered: list[int] = dataclasses.field(default_factory=list)
    has_effects: bool = False

    @property
    def name(self) -> str:
        return self.primitive.name

    def bind(self, args: Sequence[Any], params: dict[str, Any]) -> list[Any]:
        """Applies the primitive."""
        return _bind(self.primitive, args, params)


@dataclasses.dataclass(eq=False)
class Program:
    """A traced function.

    Attributes:
        ins: its arguments.
        steps: what it computes, in order.
        outs: its results.
        constants: the arrays that it closes over.
    """

    ins: list[Value]
    steps: list[Step]
    outs: list[Value]
    constants: list[Value]

    def all_steps(self) -> list[Step]:
        """All steps, including those of inner programs."""
        inner = [
            s
            for step in self.steps
            for p in step.programs.values()
            for s in p.all_steps()
        ]
        return self.steps + inner

    def read_values(self) -> set[Value]:
        """The values that a step reads, and the results."""
        return {*self.outs, *(value for step in self.steps for value in step.ins)}

    def all_values(self) -> list[Value]:
        """Every value of this program and of inner programs."""
        programs = [self, *(p for s in self.all_steps() for p in s.programs.values())]
        values = [v for p in programs for v in (*p.ins, *p.constants)]
        values += [v for step in self.all_steps() for v in (*step.ins, *step.outs)]
        return list(dict.fromkeys(values))


def trace(fn: Callable, *args: Any) -> tuple[Program, Any]:
    """Traces a function; returns its program and the tree of shapes that it returns."""
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    return read(closed), shape


def read(closed: Any) -> Program:
    """The program of a closed jaxpr, or of an open one without constants."""
    jaxpr, constants = closed, []
    if isinstance(closed, core.ClosedJaxpr):
        jaxpr, constants = closed.jaxpr, closed.consts
    ins = [_value(var) for var in jaxpr.invars]
    program = Program(ins, [], [], [])
    program.outs = _read(jaxpr, constants, ins, program)
    live, steps = set(program.outs), []
    for step in reversed(program.steps):  # without unused steps
        if step.has_effects or any(value in live for value in step.outs):
            steps.append(step)
            live.update(step.ins)
    program.steps = steps[::-1]
    return program


def _read(
    jaxpr: Any, constants: Any, ins: list[Value], program: Program
) -> list[Value]:
    """Adds the equations of a jaxpr to a program, and returns the results."""
    values = dict(zip(jaxpr.invars, ins, strict=True))
    for var, constant in zip(jaxpr.constvars, constants, strict=True):
        values[var] = dataclasses.replace(_value(var), constant=constant)
        program.constants.append(values[var])

    def read_atom(atom: Any) -> Value:
        if isinstance(atom, core.Literal):
            return dataclasses.replace(_value(atom), constant=atom.val)
        return values[atom]

    for eqn in jaxpr.eqns:
        ins = [read_atom(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        if name in _INLINED:
            inner = eqn.params[_INLINED[name]]
            outs = _read(inner.jaxpr, inner.consts, ins, program)
        else:
            outs = [_value(var) for var in eqn.outvars]
            programs = _inner_programs(eqn)
            program.steps.append(
                Step(
                    *(eqn.primitive, dict(eqn.params), ins, outs, programs),
                    has_effects=bool(eqn.effects),
                )
            )
        values.update(zip(eqn.outvars, outs, strict=True))
    return [read_atom(atom) for atom in jaxpr.outvars]


def _value(atom: Any) -> Value:
    return Value(
        tuple(getattr(atom.aval, "shape", ())), getattr(atom.aval, "dtype", None)
    )


def _inner_programs(eqn: Any) -> dict[str, Program]:
    """The inner functions of an equation, if there is a rule for it."""
    name, params = eqn.primitive.name, eqn.params
    if name in ("scan", "remat2", "checkpoint"):
        return {"body": read(params["jaxpr"])}
    if name == "while":
        return {"cond": read(params["cond_jaxpr"]), "body": read(params["body_jaxpr"])}
    if name == "cond":
        return {str(i): read(branch) for i, branch in enumerate(params["branches"])}
    if name in ("custom_jvp_call", "custom_vjp_call"):
        return {"body": read(params["call_jaxpr"])}
    return {}


def derivative_of(step: Step) -> Program:
    """The custom JVP or VJP rule of a step, as a program."""
    args = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in step.ins]
    make = _jvp if step.name == "custom_jvp_call" else _vjp
    return read(make(lambda *args: step.bind(args, step.params), args))


def is_differentiable(x: Any) -> bool:
    """Whether an argument or a result has a tangent."""
    return jax.numpy.issubdtype(x.dtype, np.inexact)


def _jvp(call: Callable, avals: list[Any]) -> Any:
    """The custom JVP rule of `call`, as a jaxpr of arguments and tangents."""

    def rule(args, tangents):
        given = iter(tangents)
        tangents = [
            next(given)
            if is_differentiable(x)
            else np.zeros(x.shape, jax.dtypes.float0)
            for x in args
        ]
        outs, out_tangents = jax.jvp(call, args, tangents)
        return outs, [t for t in out_tangents if t.dtype != jax.dtypes.float0]

    return jax.make_jaxpr(rule)(avals, list(filter(is_differentiable, avals)))


def _vjp(call: Callable, avals: list[Any]) -> Any:
    """The custom VJP rule of `call`, as a jaxpr of arguments and cotangents."""

    def rule(args, cotangents):
        given = iter(cotangents)
        outs, pull_back = jax.vjp(call, *args)
        cotangents = [
            next(given)
            if is_differentiable(x)
            else np.zeros(x.shape, jax.dtypes.float0)
            for x in outs
        ]
        return [
            g
            for g, x in zip(pull_back(cotangents), args, strict=True)
            if is_differentiable(x)
        ]

    outs = jax.eval_shape(call, *avals)
    return jax.make_jaxpr(rule)(avals, list(filter(is_differentiable, outs)))


def _bind(primitive: Any, args: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    functions, params = (), primitive.get_bind_params(params)
    if isinstance(params, tuple):  # before jax 0.10
        functions, params = params
    outs = primitive.bind(*functions, *args, **params)
    return list(outs) if primitive.multiple_results else [outs]
