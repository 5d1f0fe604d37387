"""A traced function as steps between values, which have the units of their axes.

Inner functions under `jit` are inlined. Other equations with inner functions (`scan`,
`cond`, custom derivatives) have these as `programs`. Each equation gets its own copy:
JAX may share a jaxpr between equations, but their units are different.

Only this module uses interfaces of JAX that are not public.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
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
        is_whole: whether its results are computed at full size and then indexed.
        has_effects: whether it has side effects.
    """

    primitive: Any
    params: dict[str, Any]
    ins: list[Value]
    outs: list[Value]
    programs: dict[str, "Program"] = dataclasses.field(default_factory=dict)
    sums: list[Sum] = dataclasses.field(default_factory=list)
    wiring: Any = None
    is_whole: bool = False
    has_effects: bool = False

    @property
    def name(self) -> str:
        return self.primitive.name

    def bind(self, args: Sequence[Any], params: dict[str, Any]) -> list[Any]:
        """Applies the primitive."""
        functions, params = (), self.primitive.get_bind_params(params)
        if isinstance(params, tuple):  # before jax 0.10
            functions, params = params
        outs = self.primitive.bind(*functions, *args, **params)
        return list(outs) if self.primitive.multiple_results else [outs]


@dataclasses.dataclass(eq=False)
class Program:
    """A traced function.

    Attributes:
        ins: its arguments.
        steps: what it computes, in order.
        outs: its results.
    """

    ins: list[Value]
    steps: list[Step]
    outs: list[Value]

    def all_steps(self) -> list[Step]:
        """All steps, including those of inner programs."""
        inner = [
            s
            for step in self.steps
            for p in step.programs.values()
            for s in p.all_steps()
        ]
        return self.steps + inner

    def uses(self) -> Counter[Value]:
        """How often each value is read by a step or is a result."""
        steps = self.all_steps()
        inner = [p for step in steps for p in step.programs.values()]
        return Counter(
            [v for step in steps for v in step.ins]
            + [v for program in (self, *inner) for v in program.outs]
        )

    def all_values(self) -> list[Value]:
        """Every value of this program and of inner programs."""
        programs = [self, *(p for s in self.all_steps() for p in s.programs.values())]
        values = [v for p in programs for v in p.ins]
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
    read: list[Step] = []
    outs = _read(jaxpr, constants, ins, read)
    live, steps = set(outs), []
    for step in reversed(read):  # without unused steps
        if step.has_effects or any(value in live for value in step.outs):
            steps.append(step)
            live.update(step.ins)
    return Program(ins, steps[::-1], outs)


def _read(
    jaxpr: Any, constants: Any, ins: list[Value], steps: list[Step]
) -> list[Value]:
    """Adds the equations of a jaxpr to `steps`, and returns the results."""
    values = dict(zip(jaxpr.invars, ins, strict=True))
    for var, constant in zip(jaxpr.constvars, constants, strict=True):
        values[var] = dataclasses.replace(_value(var), constant=constant)

    def read_atom(atom: Any) -> Value:
        if isinstance(atom, core.Literal):
            return dataclasses.replace(_value(atom), constant=atom.val)
        return values[atom]

    for eqn in jaxpr.eqns:
        ins = [read_atom(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        if name in _INLINED:
            inner = eqn.params[_INLINED[name]]
            outs = _read(inner.jaxpr, inner.consts, ins, steps)
        else:
            outs = [_value(var) for var in eqn.outvars]
            step = Step(
                eqn.primitive, dict(eqn.params), ins, outs, _inner_programs(eqn)
            )
            step.has_effects = bool(eqn.effects)
            steps.append(step)
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
