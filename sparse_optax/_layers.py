"""The layers of leaves: which structure each leaf has, and where layers are stacked.

Under `nn.scan`, `nnx.vmap` and the like, one leaf holds the weights of many layers,
along an axis. Structures, distributions and caps treat each layer as a separate leaf.
"""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import jax

from sparse_optax import _leaves, _trees
from sparse_optax._selection import Units
from sparse_optax._structures import Arrays, LeafStructure, Shape, Structure

# A structure, or a dict of leaf structures by regular expressions of names.
StructureArgument = Structure | LeafStructure | Mapping[str, LeafStructure]


@dataclasses.dataclass(frozen=True)
class ByLeaf:
    """A structure in which each unit lies within one leaf.

    Attributes:
        structures: the structure of each prunable leaf, by name.
        axes: the axis of stacked layers, by the names of the leaves that have one.
    """

    structures: tuple[tuple[str, LeafStructure], ...]
    axes: tuple[tuple[str, int], ...] = ()

    def check(self, shapes: Mapping[str, Shape]) -> None:
        for name, axis in self.axes:
            if not -len(shapes[name]) <= axis < len(shapes[name]):
                raise ValueError(
                    f"stacked has axis {axis} for {name}, of shape {shapes[name]}."
                )
        layer_shapes = self.layer_shapes(shapes)
        for name, structure in self.structures:
            try:
                structure.check(layer_shapes[name])
            except ValueError as error:
                raise ValueError(f"structure does not fit {name}: {error}.") from error

    def to_units(self, scores: Arrays, masks: Arrays) -> dict[str, Units]:
        axes, units = dict(self.axes), {}
        for name, structure in self.structures:
            to_units = structure.to_units
            if name in axes:
                to_units = jax.vmap(to_units, axes[name])
            units[name] = to_units(scores[name], masks[name])
        return units

    def to_masks(self, kept: Arrays, masks: Arrays) -> dict[str, jax.Array]:
        axes, new = dict(self.axes), {}
        for name, structure in self.structures:
            to_mask = structure.to_mask
            if name in axes:
                to_mask = jax.vmap(to_mask, (0, axes[name]), axes[name])
            new[name] = to_mask(kept[name], masks[name])
        return new

    def num_layers(self, shapes: Mapping[str, Shape]) -> dict[str, int]:
        axes = dict(self.axes)
        return {
            name: shapes[name][axes[name]] if name in axes else 0
            for name, _ in self.structures
        }

    def layer_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """The shape of a layer of each leaf."""
        axes, found = dict(self.axes), {}
        for name, _ in self.structures:
            shape = list(shapes[name])
            if name in axes:
                del shape[axes[name]]
            found[name] = tuple(shape)
        return found


def is_unstructured(structure: Structure) -> bool:
    """Whether every unit is a weight, with the score of the weight."""
    return isinstance(structure, ByLeaf) and all(
        type(leaf_structure).to_units is LeafStructure.to_units
        for _, leaf_structure in structure.structures
    )


def highest_sparsity(structure: StructureArgument) -> float | Fraction:
    """The highest sparsity that a structure allows for any leaf."""
    return max(_sparsities(structure), default=1)


def lowest_sparsity(structure: StructureArgument) -> float | Fraction:
    """The lowest of the sparsities that a structure allows for its leaves."""
    return min(_sparsities(structure), default=1)


def _sparsities(structure: StructureArgument) -> list[float | Fraction]:
    is_dict = isinstance(structure, Mapping)
    structures: list[Any] = list(structure.values()) if is_dict else [structure]
    return [getattr(x, "max_sparsity", 1) for x in structures]


def resolve(
    structure: StructureArgument,
    stacked: Mapping[str, int] | None,
    params: Any,
    shapes: Mapping[str, Shape],
) -> Structure:
    """The structure of these params, given the shapes of their prunable leaves.

    Raises:
        TypeError: if `structure` or `stacked` is of the wrong type.
        ValueError: if it does not fit a leaf, which is named, if a pattern matches no
            leaf, or if a prunable leaf matches no pattern.
    """
    check_structure(structure, stacked)
    axes = stacked_axes(stacked, params)
    axes = {name: axis for name, axis in axes.items() if name in shapes}
    if isinstance(structure, LeafStructure):
        structures = dict.fromkeys(shapes, structure)
    elif isinstance(structure, Mapping):
        structures = _by_name("structure", structure, params)
        if missing := [name for name in shapes if name not in structures]:
            raise ValueError(
                f"structure has no pattern for {missing}; use Unstructured() for "
                "leaves whose weights are removed one by one."
            )
    else:
        if axes:
            raise ValueError(
                "stacked cannot be used with structures of several leaves."
            )
        structure.check(shapes)
        return structure
    resolved = ByLeaf(
        tuple((name, structures[name]) for name in shapes), tuple(axes.items())
    )
    resolved.check(shapes)
    return resolved


def stacked_axes(stacked: Mapping[str, int] | None, params: Any) -> dict[str, int]:
    """The axes of stacked layers, by the names of the leaves that have one."""
    return _by_name("stacked", stacked or {}, params)


def check_structure(structure: Any, stacked: Any) -> None:
    """Raises if these cannot be valid for any params."""
    _leaves.check_patterns("structure", structure)
    is_dict = isinstance(structure, Mapping)
    for value in structure.values() if is_dict else [structure]:
        of_tree = hasattr(value, "num_layers") and not is_dict
        if isinstance(value, type) or not (isinstance(value, LeafStructure) or of_tree):
            raise TypeError(
                "structure must be a structure such as NM(2, 4), or a dict from "
                f"regular expressions to structures of a leaf; got {value!r}."
            )
        if type(value).__eq__ is object.__eq__:
            raise TypeError(
                "structure must compare by its values, as a frozen dataclass does; "
                f"got {value!r}."
            )
    _leaves.check_patterns("stacked", stacked)
    if stacked is None:
        return
    if not isinstance(stacked, Mapping):
        raise TypeError(
            "stacked must be a dict from regular expressions of names to axes; got "
            f"{stacked!r}."
        )
    for name, axis in stacked.items():
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise TypeError(f"stacked must have integers; got {axis!r} at {name!r}.")


def _by_name(argument: str, patterns: Mapping[str, Any], params: Any) -> dict[str, Any]:
    """The values of the leaves that a pattern matches."""
    values = list(patterns.values())
    indices = _leaves.match_patterns(argument, patterns, params)
    return {
        name: values[index]
        for (name, _), index in zip(
            _trees.named_leaves(params), jax.tree.leaves(indices), strict=True
        )
        if index >= 0
    }
