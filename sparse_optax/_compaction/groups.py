"""Groups of units: a structure for pruning, which can also be inspected."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparse_optax import _exact_sums, _leaves, _trees
from sparse_optax._selection import Units
from sparse_optax._structures import Arrays, Shape


class Member(NamedTuple):
    """A part of an axis whose positions belong to the units of a group.

    Position `start + (i * size + unit) * after + j` belongs to `unit`, for all i below
    `before` and j below `after`, where `size` is the size of the group.

    Attributes:
        leaf: the name of the leaf.
        axis: the axis of the leaf.
        start: the first position of the part.
        before: how often the units are repeated.
        after: how many consecutive positions belong to a unit.
    """

    leaf: str
    axis: int
    start: int = 0
    before: int = 1
    after: int = 1


class ChannelGroup(NamedTuple):
    """Units with slices of the same leaves: all slices of a unit are removed together.

    Attributes:
        name: the output axis of the first layer that has the units, such as
            `"dense/kernel:1"` for flax or `"layers/0/weight:0"` for equinox.
        size: the number of units.
        members: where their slices are.
        kind: `"hidden"`; `"input"` for features of an input; or `"normalized"` if the
            function sums over the units without weights, as norms do. These are mostly
            the units of a residual stream.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    kind: str = "hidden"


class FrozenAxis(NamedTuple):
    """An axis of a leaf that has no units, and the reason.

    Attributes:
        leaf: the name of the leaf.
        axis: the axis of the leaf.
        reason: what in the function has no rule, or fixes the axis.
    """

    leaf: str
    axis: int
    reason: str


@dataclasses.dataclass(frozen=True, repr=False)
class ChannelGroups:
    """The groups of a function: a structure for pruning, which can also be inspected.

    As the `structure` of a pruning transformation, they make it remove whole units:
    their slices of all leaves, including biases and norms. The score of a unit is the
    root mean square of the scores of its remaining weights. `mask` selects groups by a
    dict from regular expressions for their names to booleans; by default, all groups of
    kind `"hidden"`. A group may lose all of its units; without a residual connection
    the network then has a constant output. `min_kept` or `distribution="uniform"`
    prevents this.

    Attributes:
        groups: the groups.
        shapes: the names and shapes of the leaves.
        frozen: the axes that have no units.
        round_to: pruning removes this many units of a group at a time, lowest scores
            first, so that each group keeps a multiple of it, or none. An amount for all
            groups together is exact: if multiples cannot give it, one group keeps
            another number. For an amount per group (`distribution="uniform"`, or a
            dict), and for `min_kept` and `max_sparsity`, the number of kept units is
            rounded up to a multiple; `shortfall` counts what is not removed.
    """

    groups: tuple[ChannelGroup, ...]
    shapes: tuple[tuple[str, Shape], ...]
    frozen: tuple[FrozenAxis, ...] = ()
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
        """A copy without this group, so that its units are kept."""
        group = self[name]
        return dataclasses.replace(
            self, groups=tuple(g for g in self.groups if g != group)
        )

    def freeze(self, leaf: str, axis: int) -> "ChannelGroups":
        """A copy without the groups that use this axis, so that it keeps its size.

        Raises:
            KeyError: if there is no such leaf.
            ValueError: if it has no such axis.
        """
        shapes = dict(self.shapes)
        if leaf not in shapes:
            raise KeyError(f"no leaf {leaf!r}; there are {list(shapes)}.")
        shape = shapes[leaf]
        if not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"axis must be one of {leaf}, of shape {shape}; got {axis}."
            )
        place = leaf, axis % len(shape)
        left = [g for g in self if place not in [m[:2] for m in g.members]]
        return dataclasses.replace(self, groups=tuple(left))

    def select(self, mask: Any) -> "ChannelGroups":
        """The groups that the `mask` of a pruning transformation selects.

        Raises:
            TypeError: if `mask` is a tree, a function or an unknown string.
            ValueError: if it selects no group, or has a pattern that matches no group.
        """
        if mask is None or (isinstance(mask, str) and mask == "matrices"):
            left = [group for group in self if group.kind == "hidden"]
        elif isinstance(mask, Mapping) and all(
            isinstance(k, str) and isinstance(v, bool) for k, v in mask.items()
        ):
            _leaves.check_patterns("mask", mask)
            for pattern in mask:
                if not any(_matches(pattern, group.name) for group in self):
                    names = [group.name for group in self]
                    raise ValueError(
                        f"mask has {pattern!r}, which matches no group of {names}."
                    )
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
            raise ValueError(
                f"mask selects none of the groups {kinds}. By default only hidden ones "
                "are pruned; give mask a dict with the names of others. Units of kind "
                "input are those of an argument of fn: close over it if it is not data."
            )
        return dataclasses.replace(self, groups=tuple(left))

    def __str__(self) -> str:
        lines, shapes = [], dict(self.shapes)
        for group in self:
            kind = "" if group.kind == "hidden" else f", {group.kind}"
            lines.append(f"{group.name}: {group.size} units{kind}")
            lines += [
                f"    {_describe(member, group.size, shapes[member.leaf])}"
                for member in group.members
            ]
        lines += [f"frozen: {x.leaf}, axis {x.axis}: {x.reason}" for x in self.frozen]
        return "\n".join(lines)

    __repr__ = __str__

    # The methods of a `Structure`.

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Raises a `ValueError` unless the leaves have the shapes of the groups."""
        expected = dict(self.shapes)
        for name in self.leaves():
            if shapes.get(name) != expected[name]:
                found = f"has {shapes[name]}" if name in shapes else "does not exist"
                raise ValueError(
                    f"structure has groups for {name} of shape {expected[name]}, which "
                    f"{found} here. Call channel_groups again, with these params."
                )

    def mask_of_leaves(self, params: Any) -> Any:
        """Which leaves have units, as a `mask`.

        Raises:
            ValueError: if one of them is missing or has a different shape.
        """
        named = _trees.named_leaves(params)
        self.check({k: jnp.shape(x) for k, x in named if not _trees.is_masked(x)})
        names = set(self.leaves())
        return jax.tree_util.tree_map_with_path(
            lambda path, _: _trees.leaf_name(path) in names, params
        )

    def leaves(self) -> list[str]:
        """The names of the leaves that have units."""
        return list(dict.fromkeys(m.leaf for group in self for m in group.members))

    def to_units(self, scores: Arrays, masks: Arrays) -> dict[str, Units]:
        """The scores of the units of each group, and which units are kept."""
        units = {}
        for group in self:
            # In one array: an exact sum for each member would take long to compile.
            weights, mask = (
                jnp.concatenate(
                    [
                        by_unit(x[m.leaf].astype(dtype), m, group.size)
                        for m in group.members
                    ],
                    axis=1,
                )
                for x, dtype in ((scores, jnp.float32), (masks, bool))
            )
            squares = jnp.square(weights)
            mean = jnp.sqrt(_exact_sums.mean_of_kept(squares, mask, [1])[:, 0])
            kept = jnp.any(mask, axis=1)
            if self.round_to > 1:
                mean = _best_of_bundle(mean, kept, self.round_to)
            units[group.name] = Units(mean, kept)
        return units

    def to_masks(self, kept: Arrays, masks: Arrays) -> dict[str, jax.Array]:
        """Masks that keep the weights whose units are all kept."""
        new = dict(masks)
        for group in self:
            for member in group.members:
                mask = new[member.leaf]
                spread = spread_units(kept[group.name], member, mask.shape, True)
                new[member.leaf] = mask & spread
        return new

    def num_layers(self, shapes: Mapping[str, Shape]) -> dict[str, int]:
        """0 for each group: its units are not stacked by layer."""
        del shapes
        return dict.fromkeys((group.name for group in self), 0)


def select_groups(mask: Any, structure: Any) -> tuple[Any, Any]:
    """The `mask` of leaves, and the structure with the groups that `mask` selects."""
    if not isinstance(structure, ChannelGroups):
        return mask, structure
    structure = structure.select(mask)
    return structure.mask_of_leaves, structure


def _matches(pattern: str, name: str) -> bool:
    return pattern == name or bool(re.fullmatch(pattern, name))


def _describe(member: Member, size: int, shape: Shape) -> str:
    text = f"{member.leaf}, axis {member.axis}"
    if size != shape[member.axis]:
        factors = [f"{member.before}", f"[{size}]", f"{member.after}"]
        text += f", {' x '.join(factors)} from {member.start}"
    return text


def _best_of_bundle(scores: jax.Array, kept: jax.Array, size: int) -> jax.Array:
    """For each unit, the best score of its bundle of `size` units in order of score."""
    descending = jnp.where(jnp.isnan(scores), -jnp.inf, -scores)  # NaN is largest
    order = jnp.argsort(jnp.where(kept, descending, jnp.inf))
    place = jnp.argsort(order)
    return scores[order[place // size * size]]


def by_unit(x: jax.Array, member: Member, size: int) -> jax.Array:
    """A leaf with its units along the first axis, and the rest along the second."""
    length = member.before * size * member.after
    x = jax.lax.slice_in_dim(x, member.start, member.start + length, axis=member.axis)
    x = jnp.moveaxis(x, member.axis, 0)
    x = x.reshape(member.before, size, member.after, -1)
    return jnp.moveaxis(x, 1, 0).reshape(size, -1)


def spread_units(x: jax.Array, member: Member, shape: Shape, fill: Any) -> jax.Array:
    """Broadcasts a vector of units to a leaf; `fill` where the leaf has none."""
    part = jnp.tile(jnp.repeat(x, member.after), member.before)
    rest = shape[member.axis] - member.start - len(part)
    line = jnp.pad(part, (member.start, rest), constant_values=fill)
    others = [axis for axis in range(len(shape)) if axis != member.axis]
    return jnp.expand_dims(line, others)
