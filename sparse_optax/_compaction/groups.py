"""Which slices of which leaves belong together: `channel_groups`, and its result."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_optax import _arguments, _counts, _exact_sums
from sparse_optax._compaction import analysis
from sparse_optax._compaction.analysis import Analysis
from sparse_optax._selection import Units
from sparse_optax._structures import Arrays, Shape


class Member(NamedTuple):
    """A part of an axis whose positions belong to the units of a group.

    Position `start + (i * size + unit) * after + j` belongs to `unit`, for all i below
    `before` and j below `after`, where `size` is that of the group.

    Attributes:
        leaf: the name of the leaf.
        axis: of the leaf.
        start: the first position of the part.
        before: how often the units are repeated.
        after: how many positions in a row belong to a unit.
    """

    leaf: str
    axis: int
    start: int = 0
    before: int = 1
    after: int = 1


class ChannelGroup(NamedTuple):
    """Units with slices of the same leaves: all slices of a unit are removed together.

    Attributes:
        name: that of its first member, such as `"dense/kernel:1"`.
        size: how many units there are.
        members: where their slices are.
        kind: `"hidden"`; `"input"`, for features of an input; or `"normalized"`, where
            the function sums over the units by themselves, as norms do: mostly those of
            a residual stream.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    kind: str = "hidden"


class FrozenAxis(NamedTuple):
    """An axis of a leaf that has no units, because of something in the function.

    Attributes:
        leaf: the name of the leaf.
        axis: of the leaf.
        reason: what in the function has no rule, or fixes the axis.
    """

    leaf: str
    axis: int
    reason: str


@dataclasses.dataclass(frozen=True)
class ChannelGroups:
    """The groups of a function: a structure for pruning, and data to look through.

    As `structure` of a pruning transformation, whole units are removed: their slices
    of all leaves, biases and norms included. A unit is ranked by the root mean square
    of the scores of its weights that are kept. `mask` selects groups: a dict from
    regular expressions of their names to booleans; by default, all of the kind
    `"hidden"`.

    Attributes:
        groups: the groups.
        shapes: of the leaves, with their names.
        declined: the axes that have no units.
        round_to: pruning removes so many units of a group at once, the lowest, and so
            keeps a multiple of it. Where that does not fit an exact amount, one group
            keeps another number.
    """

    groups: tuple[ChannelGroup, ...]
    shapes: tuple[tuple[str, Shape], ...]
    declined: tuple[FrozenAxis, ...] = ()
    round_to: int = 1

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> ChannelGroup:
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(f"no group {name!r}; there are {[g.name for g in self.groups]}.")

    def drop(self, name: str) -> "ChannelGroups":
        """The others: units of this group are never removed."""
        group = self[name]
        return dataclasses.replace(
            self, groups=tuple(g for g in self.groups if g != group)
        )

    def freeze(self, leaf: str, axis: int) -> "ChannelGroups":
        """Those without a member along an axis, which so keeps its size.

        Raises:
            KeyError: if there is no such leaf.
            ValueError: if it has no such axis.
        """
        shape = dict(self.shapes)[leaf]
        if not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"axis must be one of {leaf}, of shape {shape}; got {axis}."
            )
        place = leaf, axis % len(shape)
        left = [g for g in self if place not in [m[:2] for m in g.members]]
        return dataclasses.replace(self, groups=tuple(left))

    def select(self, mask: Any) -> "ChannelGroups":
        """The groups that `mask` selects, as it is given to a pruning transformation.

        Raises:
            TypeError: if `mask` is a tree or a function.
            ValueError: if it selects no group, or has a pattern that matches none.
        """
        if mask is None or isinstance(mask, str):
            left = [group for group in self if group.kind == "hidden"]
        elif isinstance(mask, Mapping) and all(isinstance(x, str) for x in mask):
            for pattern in mask:
                if not any(_matches(pattern, group.name) for group in self):
                    names = [group.name for group in self]
                    raise ValueError(f"mask has {pattern!r}, no group of {names}.")
            left = [
                group
                for group in self
                if next((v for k, v in mask.items() if _matches(k, group.name)), False)
            ]
        else:
            raise TypeError(
                "mask must be a dict from regular expressions of names of groups to "
                f"booleans, where structure has groups; got {mask!r}."
            )
        if not left:
            kinds = {group.name: group.kind for group in self}
            raise ValueError(f"mask selects no group of {kinds}.")
        return dataclasses.replace(self, groups=tuple(left))

    def __str__(self) -> str:
        lines = []
        for group in self:
            kind = "" if group.kind == "hidden" else f", {group.kind}"
            lines.append(f"{group.name}: {group.size} units{kind}")
            lines += [
                f"    {_describe(member, group.size)}" for member in group.members
            ]
        lines += [f"frozen: {x.leaf}, axis {x.axis}: {x.reason}" for x in self.declined]
        return "\n".join(lines)

    # The methods of a `Structure`.

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Raises a `ValueError` unless these are the leaves that the groups are of."""
        expected = dict(self.shapes)
        for name in self.leaves():
            if shapes.get(name) != expected[name]:
                found = shapes.get(name, "not there")
                raise ValueError(
                    f"structure has groups of {name} of shape {expected[name]}; it is "
                    f"{found}. Find them again, of the params that are pruned."
                )

    def leaves(self) -> list[str]:
        """The names of the leaves that have units."""
        return list(dict.fromkeys(m.leaf for group in self for m in group.members))

    def to_units(self, scores: Arrays, masks: Arrays) -> dict[str, Units]:
        """The units of each group."""
        units = {}
        for group in self:
            with _counts.exact_numbers():
                total, num = 0, 0
                for member in group.members:
                    mask = masks[member.leaf]
                    square = jnp.square(scores[member.leaf].astype(jnp.float32))
                    total += _sum_by_unit(
                        jnp.where(mask, square, 0), member, group.size
                    )
                    num += _sum_by_unit(mask, member, group.size)
                mean = jnp.sqrt(total / jnp.maximum(num, 1)).astype(jnp.float32)
                kept = jnp.asarray(num > 0)
                if self.round_to > 1:
                    mean = _best_of_bundle(mean, kept, self.round_to)
                units[group.name] = Units(mean, kept)
        return units

    def to_masks(self, kept: Arrays, masks: Arrays) -> dict[str, jax.Array]:
        """The masks of the weights all of whose units are kept."""
        new = dict(masks)
        for group in self:
            for member in group.members:
                mask = new[member.leaf]
                spread = spread_units(kept[group.name], member, mask.shape, True)
                new[member.leaf] = mask & spread
        return new

    def num_layers(self, shapes: Mapping[str, Shape]) -> dict[str, int]:
        """0 for each group."""
        del shapes
        return dict.fromkeys((group.name for group in self), 0)


def select_groups(mask: Any, structure: Any) -> tuple[Any, Any]:
    """The `mask` of leaves and the structure, where `mask` may be one of groups."""
    if not isinstance(structure, ChannelGroups):
        return mask, structure
    structure = structure.select(mask)
    return {re.escape(name): True for name in structure.leaves()}, structure


def _matches(pattern: str, name: str) -> bool:
    return pattern == name or bool(re.fullmatch(pattern, name))


def _describe(member: Member, size: int) -> str:
    text = f"{member.leaf}, axis {member.axis}"
    if member.start or (member.before, member.after) != (1, 1):
        factors = [f"{member.before}", f"[{size}]", f"{member.after}"]
        text += f", {' x '.join(factors)} from {member.start}"
    return text


def _best_of_bundle(scores: jax.Array, kept: jax.Array, size: int) -> jax.Array:
    """For each unit the best score of its bundle: so many in the order of scores."""
    descending = jnp.where(jnp.isnan(scores), -jnp.inf, -scores)  # NaN is largest
    order = jnp.argsort(jnp.where(kept, descending, jnp.inf))
    place = jnp.argsort(order)
    return scores[order[place // size * size]]


def by_unit(x: jax.Array, member: Member, size: int) -> jax.Array:
    """A leaf with its units along the first axis, and all else along the second."""
    length = member.before * size * member.after
    x = jax.lax.slice_in_dim(x, member.start, member.start + length, axis=member.axis)
    x = jnp.moveaxis(x, member.axis, 0)
    x = x.reshape(member.before, size, member.after, -1)
    return jnp.moveaxis(x, 1, 0).reshape(size, -1)


def _sum_by_unit(x: jax.Array, member: Member, size: int) -> jax.Array:
    return _exact_sums.sum_along(by_unit(x, member, size), [1])[:, 0]


def spread_units(x: jax.Array, member: Member, shape: Shape, fill: Any) -> jax.Array:
    """What a leaf of a shape has of a vector of units; `fill` where it has none."""
    part = jnp.tile(jnp.repeat(x, member.after), member.before)
    rest = shape[member.axis] - member.start - len(part)
    line = jnp.pad(part, (member.start, rest), constant_values=fill)
    others = [axis for axis in range(len(shape)) if axis != member.axis]
    return jnp.expand_dims(line, others)


def channel_groups(
    fn: Callable, params: Any, *inputs: Any, round_to: int = 1
) -> ChannelGroups:
    r"""Finds out which slices of which weights belong together.

    A hidden feature, a channel of a convolution, a head or a dimension of all heads, a
    feature of an embedding: each is a unit, with a slice of every leaf that writes,
    scales or reads it. For `y = x @ W1 @ W2`, unit j has column j of `W1` and row j of
    `W2`. The function is traced, and its equations say which axes have the same units,
    whatever the framework. What no rule covers is left out, and named.

    Args:
        fn: `fn(params, *inputs)` returns arrays.
        params: a tree of arrays or shapes.
        inputs: what else it takes: arrays or shapes, of any batch size.
        round_to: for pruning: of what the number of units of a group stays a multiple,
            see `ChannelGroups`.

    Returns:
        `ChannelGroups`: print it, index it by name, leave out groups by `drop` and
        `freeze`, and use it as `structure` to prune whole units.

    Raises:
        TypeError: if `fn` is not a function, or if params has other leaves than arrays.
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

    References:
        Ainsworth et al, `Git Re-Basin <https://arxiv.org/abs/2209.04836>`_, 2023, state
        couplings like these by hand; Fang et al, `DepGraph
        <https://arxiv.org/abs/2301.12900>`_, 2023, find them in modules of PyTorch.
    """
    _arguments.check_integer("round_to", round_to, low=1)
    found = analysis.analyse(fn, params, inputs, freeze_results=True)
    groups, declined = find_groups(found)
    values = zip(found.names, found.program.ins, strict=False)
    shapes = tuple((name, tuple(value.shape)) for name, value in values)
    of_function = tuple(group for group, _ in groups)
    return ChannelGroups(of_function, shapes, declined, round_to)


def find_groups(
    found: Analysis,
) -> tuple[list[tuple[ChannelGroup, np.ndarray]], tuple[FrozenAxis, ...]]:
    """The groups, each with its units in the table, and the axes without units.

    Units are of one group if they are in the same columns of the same axes.
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
            reasons = [r for r in table.why_frozen(units) if r != analysis.RESULT]
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
    kinds = _kinds(found)
    groups: dict[str, tuple[ChannelGroup, np.ndarray]] = {}
    for keys, units in alike.items():
        members: list[Member] = []
        for name, axis, k in keys:
            parts = _members(name, axis, columns[name, axis, k], units)
            members += parts
            if not parts:
                frozen.append(FrozenAxis(name, axis, "its units are in no order"))
        if not all(any(m[:2] == key[:2] for m in members) for key in keys):
            continue
        first = next((m for m in members if _is_last_of_many(m, found)), members[0])
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
    """The parts of an axis whose positions belong to some units; [] in no order."""
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


def _is_last_of_many(member: Member, found: Analysis) -> bool:
    """Whether a member is the last axis of a matrix: what a layer writes, in flax."""
    rank = len(found.program.ins[found.names.index(member.leaf)].shape)
    return rank > 1 and member.axis == rank - 1


def _kinds(found: Analysis) -> dict[str, np.ndarray]:
    """For each kind but "hidden", which units are of it."""
    table, size = found.table, found.table.size
    kinds = {kind: np.zeros(size, bool) for kind in ("normalized", "input")}
    for step in found.program.all_steps():
        for one in step.sums:
            if len(one.factors) == 1:
                kinds["normalized"][table.resolve(one.units)] = True
        for axis in step.gathered:
            units = step.outs[0].axes[axis]
            if units is not None:
                kinds["input"][table.resolve(units)] = True
    for value in found.program.ins[len(found.names) :]:
        for units in value.axes:
            if units is not None:
                kinds["input"][table.resolve(units)] = True
    return kinds
