"""Which slices of which leaves belong together: `channel_groups`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sparse_optax import _arguments, _fit
from sparse_optax._compaction import analysis
from sparse_optax._compaction.analysis import Analysis
from sparse_optax._compaction.groups import (
    ChannelGroup,
    ChannelGroups,
    FrozenAxis,
    Member,
)


def channel_groups(
    fn: Callable, params: Any, *inputs: Any, round_to: int = 1
) -> ChannelGroups:
    r"""Finds which slices of which arrays belong to the same unit.

    A unit is a hidden feature, a channel of a convolution, a head, a dimension of all
    heads or a feature of an embedding. It has a slice of every leaf that writes, scales
    or reads it. For `y = x @ W1 @ W2`, unit j has column j of `W1` and row j of `W2`.
    The function is traced, and its equations determine which axes have the same units,
    whatever the framework. Axes that no rule covers are left out and reported.

    Args:
        fn: a function `fn(params, *inputs)` that returns arrays.
        params: a tree of arrays or shapes.
        inputs: the other arguments of `fn`: arrays or shapes, of any batch size.
        round_to: pruning keeps a multiple of this many units in each group, see
            `ChannelGroups`.

    Returns:
        `ChannelGroups`: print them, index them by name, exclude groups with `drop` and
        `freeze`, and pass them as `structure` to prune whole units.

    Raises:
        TypeError: if `fn` is not a function, or if a leaf of params is not an array.
        ValueError: if `round_to` is below 1.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> def fn(params, x):
        ...     return jax.nn.relu(x @ params["w1"] + params["b"]) @ params["w2"]
        >>> params = {"w1": jnp.ones((4, 3)), "b": jnp.ones(3), "w2": jnp.ones((3, 2))}
        >>> groups = sparse_optax.channel_groups(fn, params, jnp.ones((1, 4)))
        >>> print(groups)
        w1:1: 3 units
            b, axis 0
            w1, axis 1
            w2, axis 0
        w1:0: 4 units, input
            w1, axis 0
        frozen: w2, axis 1: an axis of the output

    References:
        Ainsworth et al, `Git Re-Basin <https://arxiv.org/abs/2209.04836>`_, 2023, write
        such couplings by hand; Fang et al, `DepGraph
        <https://arxiv.org/abs/2301.12900>`_, 2023, find them in PyTorch modules.
    """
    _fit.check_function("fn", fn, inputs)
    _arguments.check_integer("round_to", round_to, low=1)
    found = analysis.analyse(fn, params, inputs, freeze_results=True)
    groups, frozen = find_groups(found)
    values = zip(found.names, found.program.ins, strict=False)
    shapes = tuple((name, tuple(value.shape)) for name, value in values)
    of_function = tuple(group for group, _ in groups)
    return ChannelGroups(of_function, shapes, frozen, round_to)


def find_groups(
    found: Analysis,
) -> tuple[list[tuple[ChannelGroup, np.ndarray]], tuple[FrozenAxis, ...]]:
    """The groups, each with its units in the table, and the axes without units.

    Units are in the same group if they are in the same columns of the same axes.
    """
    table = found.table
    columns: dict[tuple[str, int, int], np.ndarray] = {}
    where: dict[int, list[tuple[str, int, int]]] = {}
    frozen = []
    for name, value in zip(found.names, found.program.ins, strict=False):
        for axis, units in enumerate(value.axes):
            if units is None or value.shape[axis] == 1:
                continue
            resolved = table.resolve(units)
            reasons = table.why_frozen(units)
            if not resolved.any() and reasons:
                frozen.append(FrozenAxis(name, axis, ", ".join(reasons)))
            for k, column in enumerate(resolved.T):
                columns[name, axis, k] = column
                for unit in np.unique(column[column > 0]).tolist():
                    where.setdefault(unit, []).append((name, axis, k))
    alike: dict[tuple, list[int]] = {}
    for key, column in columns.items():
        for unit in dict.fromkeys(column.tolist()):  # in order
            if unit and where[unit][0] == key:
                alike.setdefault(tuple(where[unit]), []).append(unit)
    kinds, read = _kinds(found), _read_axes(found)
    groups: dict[str, tuple[ChannelGroup, np.ndarray]] = {}
    for keys, units in alike.items():
        members: list[Member] = []
        for name, axis, k in keys:
            parts = _members(name, axis, columns[name, axis, k], units)
            members += parts
            if not parts:
                frozen.append(
                    FrozenAxis(name, axis, "its units follow no regular pattern")
                )
        if not all(any(m[:2] == key[:2] for m in members) for key in keys):
            continue
        if len(units) == 1:  # an axis of size 1 that holds a whole layer
            continue
        first = _first_member(members, found, read)
        name = f"{first.leaf}:{first.axis}"
        if first[2:] != (0, 1, 1) or name in groups:
            name += f"[{first.start}+{first.before}x{len(units)}x{first.after}]"
        kind = next((k for k, its in kinds.items() if its[units].any()), "hidden")
        groups[name] = (
            ChannelGroup(name, len(units), tuple(members), kind),
            np.array(units),
        )
    return list(groups.values()), tuple(frozen)


def _members(
    name: str, axis: int, column: np.ndarray, units: list[int]
) -> list[Member]:
    """The parts of an axis that belong to the given units; [] if not in order."""
    index = {unit: i for i, unit in enumerate(units)}
    places = np.array([index.get(unit, -1) for unit in column.tolist()])
    is_in = np.concatenate([[False], places >= 0, [False]])
    edges = np.flatnonzero(is_in[1:] != is_in[:-1])
    found = []
    for start, end in edges.reshape(-1, 2).tolist():
        part = places[start:end]
        after = int((part != part[0]).argmax()) or len(part)
        before, rest = divmod(len(part), after * len(units))
        pattern = np.arange(len(part)) // after % len(units)
        if rest or (part != pattern).any():
            return []
        found.append(Member(name, axis, start, before, after))
    return found


def _read_axes(found: Analysis) -> set[tuple[str, int]]:
    """The axes of leaves that a step sums over, such as axis 0 of `w` in `x @ w`.

    A table that is gathered from writes its features, even if it is read too.
    """
    ins = dict(zip(found.program.ins, found.names, strict=False))
    leaf_of = {value: value for value in ins}  # through moves, into inner programs
    read, gathered = set(), set()
    for step in found.program.all_steps():
        for one in step.sums:
            for value, axis in one.factors:
                if value in leaf_of:  # a moved axis is the same object
                    axes = leaf_of[value].axes
                    same = [i for i, u in enumerate(axes) if u is value.axes[axis]]
                    read |= {(ins[leaf_of[value]], i) for i in same}
        pairs = [
            pair
            for inner in step.programs.values()
            for pair in zip(inner.ins[::-1], step.ins[::-1], strict=False)
        ]
        if step.name in ("transpose", "convert_element_type", "copy"):
            pairs.append((step.outs[0], step.ins[0]))
        elif step.name == "gather" and step.ins[0] in leaf_of:
            gathered.add(ins[leaf_of[step.ins[0]]])
        leaf_of |= {new: leaf_of[old] for new, old in pairs if old in leaf_of}
    return {(name, axis) for name, axis in read if name not in gathered}


def _first_member(
    members: list[Member], found: Analysis, read: set[tuple[str, int]]
) -> Member:
    """The member that names a group: an output axis of the first layer that has it.

    Where it is unknown which axis is one, the last is, as in flax. A bias may be a
    matrix too, but the kernel of its layer takes precedence.
    """

    def rank(member: Member) -> int:
        return len(found.program.ins[found.names.index(member.leaf)].shape)

    outputs = [m for m in members if rank(m) > 1 and m[:2] not in read]
    last = [m for m in outputs if m.axis == rank(m) - 1]
    first = (last or outputs or members)[0]
    layer, slash, _ = first.leaf.rpartition("/")
    same_layer = [m for m in outputs if slash and m.leaf.startswith(layer + slash)]
    last = [m for m in same_layer if m.axis == rank(m) - 1]
    return max(last or same_layer or [first], key=rank)


def _kinds(found: Analysis) -> dict[str, np.ndarray]:
    """For each kind except "hidden", which units are of that kind."""
    table, size = found.table, found.table.size
    kinds = {kind: np.zeros(size, bool) for kind in ("normalized", "input")}
    for step in found.program.all_steps():
        for one in step.sums:
            if len(one.factors) == 1:
                kinds["normalized"][table.resolve(one.units)] = True
    flat = [
        s.outs[0] for s in found.program.steps if s.name == "reshape" and s.is_whole
    ]
    for value in (*found.program.ins[len(found.names) :], *flat):
        for units in value.axes:
            if units is not None:
                kinds["input"][table.resolve(units)] = True
    return kinds
