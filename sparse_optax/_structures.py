"""Structures: which weights a pruning step removes together.

A structure maps the scores of weights to units, which are kept or removed as a whole,
and maps the kept units back to masks of weights. `_selection` ranks units of any kind.
This file has the structures in which each unit lies within one leaf.
"""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal, Protocol

import jax
import jax.numpy as jnp

from sparse_optax import _arguments, _exact_sums
from sparse_optax._selection import Units

Shape = tuple[int, ...]
Arrays = Mapping[str, jax.Array]  # arrays of the prunable leaves, by name


class Structure(Protocol):
    """The type of `prune_by(structure=...)` for units that span several leaves.

    It is hashable and compares by value. Trees are passed as dicts from the names of
    the prunable leaves to arrays. If it has an attribute `round_to`, amounts of each
    array of units, `min_kept` and `max_sparsity` keep multiples of that.
    """

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Raises a `ValueError` if this does not fit leaves of these shapes."""
        ...

    def to_units(self, scores: Arrays, masks: Arrays) -> Mapping[str, Units]:
        """The units, in arrays of any shapes, under any names."""
        ...

    def to_masks(self, kept: Arrays, masks: Arrays) -> Arrays:
        """The masks of weights, given which units are kept, and the masks before."""
        ...

    def num_layers(self, shapes: Mapping[str, Shape]) -> Mapping[str, int]:
        """For each array of units, how many layers are stacked along its first axis.

        0 if the first axis is not an axis of layers.
        """
        ...


class LeafStructure:
    """A structure of each leaf by itself; the base class of such structures.

    A subclass is a frozen dataclass. By default, every weight is its own unit.
    """

    def check(self, shape: Shape) -> None:
        """Raises a `ValueError` if a leaf of this shape cannot have this structure."""

    def to_units(self, scores: jax.Array, mask: jax.Array) -> Units:
        """The units of a leaf: their scores, which are kept, which may be removed."""
        return Units(scores, mask)

    def to_mask(self, kept: jax.Array, mask: jax.Array) -> jax.Array:
        """The mask of the weights, given which units are kept, and the mask before."""
        del mask
        return kept

    @property
    def max_sparsity(self) -> Fraction:
        """The largest share of units that may be removed."""
        return Fraction(1)


@dataclasses.dataclass(frozen=True)
class Unstructured(LeafStructure):
    """Each weight is a unit: the default."""


@dataclasses.dataclass(frozen=True)
class NM(LeafStructure):
    """Keeps `n` of every `m` consecutive weights: N:M sparsity.

    The units are weights. A pruning step may remove all but the `n` best of each group
    of `m`. An amount removes the lowest of these over all groups, and without an amount
    all of them are removed. So the highest sparsity is 1 - n/m, where exactly `n` are
    left in each group: 0.5 for `NM(2, 4)`, 0.75 for `NM(1, 4)`, 0.9 for `NM(1, 10)`.

    Args:
        n: how many weights of a group always stay.
        m: the size of a group.
        axis: the axis of the groups, which a product with the activations sums over: -2
            for flax's kernels `(in, out)` and convolutions `(h, w, in, out)`, -1 for
            equinox's weights `(out, in)`, 0 for flax's attention kernels
            `(features, heads, dim)`.

    Raises:
        TypeError: if an argument is not an integer.
        ValueError: if n is not in [1, m]; when used, if a leaf has no such axis, or if
            `m` does not divide its length.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> kernel = jnp.array([[0.1, -3.0], [0.5, 1.0], [-0.4, 2.0], [0.2, 0.3]])
        >>> structure = sparse_optax.NM(2, 4)
        >>> params, masks = sparse_optax.one_shot(kernel, structure=structure)
        >>> print(params)
        [[ 0.  -3. ]
         [ 0.5  0. ]
         [-0.4  2. ]
         [ 0.   0. ]]

    References:
        Zhou et al, `Learning N:M Fine-grained Structured Sparse Neural Networks From
        Scratch <https://arxiv.org/abs/2102.04010>`_, 2021.
    """

    n: int
    m: int
    axis: int = -2

    def __post_init__(self) -> None:
        _arguments.check_integer("m", self.m, low=1)
        _arguments.check_integer("n", self.n, low=1)
        _arguments.check_integer("axis", self.axis)
        if self.n > self.m:
            raise ValueError(f"n must be at most m; got n={self.n}, m={self.m}.")

    @property
    def max_sparsity(self) -> Fraction:
        """1 - n/m."""
        return Fraction(self.m - self.n, self.m)

    def check(self, shape: Shape) -> None:
        """Raises unless `m` divides the length of the axis."""
        _check_divides(self.m, shape, self.axis, f"NM({self.n}, {self.m})")

    def to_units(self, scores: jax.Array, mask: jax.Array) -> Units:
        """The weights; those not among the best of their group may be removed."""
        axis = self.axis % scores.ndim
        length = scores.shape[axis] // self.m
        shape = (*scores.shape[:axis], length, self.m, *scores.shape[axis + 1 :])
        grouped, kept = scores.reshape(shape), mask.reshape(shape)
        is_nan = jnp.isnan(grouped)
        place = jax.lax.broadcasted_iota(jnp.int32, shape, axis + 1)
        num_better = jnp.zeros(shape, jnp.int32)  # of the others in a group
        for i in range(self.m):
            other, its_kept, its_nan = (
                jax.lax.index_in_dim(x, i, axis + 1) for x in (grouped, kept, is_nan)
            )
            # NaNs are largest, and among equal scores, later ones are better.
            is_equal = (other == grouped) | (its_nan & is_nan)
            is_larger = (other > grouped) | (its_nan & ~is_nan)
            num_better += its_kept & (is_larger | (is_equal & (i > place)))
        is_best = (num_better < self.n).reshape(scores.shape)
        return Units(scores, mask, mask & ~is_best)


@dataclasses.dataclass(frozen=True)
class Block(LeafStructure):
    """Blocks of weights.

    Args:
        shape: the shape of a block.
        axes: the axes of `shape` in the leaf, as many; by default the last ones. Along
            other axes, a block is one weight wide.
        pool: how to combine the scores of a block, "mean" or "max".

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a number is out of range, or if `axes` and `shape` differ in
            length; when used, if a leaf has no such axis, or if the block does not
            divide its length.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> kernel = jnp.array([[1.0, 2.0, 0.1, 0.2], [1.0, 2.0, 0.1, 5.0]])
        >>> structure = sparse_optax.Block((1, 2))
        >>> params, masks = sparse_optax.one_shot(kernel, 0.25, structure=structure)
        >>> print(params)
        [[1.  2.  0.  0. ]
         [1.  2.  0.1 5. ]]
    """

    shape: Shape
    axes: Shape = ()
    pool: Literal["mean", "max"] = "mean"

    def __post_init__(self) -> None:
        for name, value in (("shape", self.shape), ("axes", self.axes)):
            if not isinstance(value, tuple | list):
                raise TypeError(f"{name} must be a tuple of integers; got {value!r}.")
        axes = self.axes or range(-len(self.shape), 0)
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "axes", tuple(axes))
        for length in self.shape:
            _arguments.check_integer("shape", length, low=1)
        for axis in self.axes:
            _arguments.check_integer("axes", axis)
        if len(self.axes) != len(self.shape) or not self.shape:
            raise ValueError(
                f"shape and axes must be of one length, at least 1; got {self.shape} "
                f"and {self.axes}."
            )
        _check_pool(self.pool)

    def check(self, shape: Shape) -> None:
        """Raises unless blocks divide the length of each axis."""
        for length, axis in zip(self.shape, self.axes, strict=True):
            _check_divides(length, shape, axis, f"Block({self.shape})")
        _check_different(self.axes, shape)

    def to_units(self, scores: jax.Array, mask: jax.Array) -> Units:
        """The blocks, in an array with one element per block."""
        split, axes = self._split(scores.shape)
        return _pool(scores.reshape(split), mask.reshape(split), axes, self.pool)

    def to_mask(self, kept: jax.Array, mask: jax.Array) -> jax.Array:
        """The weights of the blocks that are kept."""
        split, axes = self._split(mask.shape)
        return (mask.reshape(split) & jnp.expand_dims(kept, axes)).reshape(mask.shape)

    def _split(self, shape: Shape) -> tuple[Shape, Shape]:
        """The shape with each axis of blocks split in two, and the axes within them."""
        lengths = {
            axis % len(shape): length
            for length, axis in zip(self.shape, self.axes, strict=True)
        }
        split, axes = [], []
        for axis, size in enumerate(shape):
            if axis in lengths:
                split += [size // lengths[axis], lengths[axis]]
                axes.append(len(split) - 1)
            else:
                split.append(size)
        return tuple(split), tuple(axes)


@dataclasses.dataclass(frozen=True)
class Channel(LeafStructure):
    """Whole slices: all weights with the same index along an axis.

    Args:
        axis: by default the last one: output channels, or neurons, of flax's kernels.
        pool: how to combine the scores of a slice, "mean" or "max".

    Raises:
        TypeError: if `axis` is not an integer.
        ValueError: if `pool` is neither; when used, if a leaf has no such axis.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> kernel = jnp.array([[1.0, 0.1, 3.0], [0.0, 0.2, 1.0]])
        >>> structure = sparse_optax.Channel()
        >>> params, masks = sparse_optax.one_shot(kernel, count=1, structure=structure)
        >>> print(params)
        [[1. 0. 3.]
         [0. 0. 1.]]

    References:
        Li et al, `Pruning Filters for Efficient ConvNets
        <https://arxiv.org/abs/1608.08710>`_, 2017.
    """

    axis: int = -1
    pool: Literal["mean", "max"] = "mean"

    def __post_init__(self) -> None:
        _arguments.check_integer("axis", self.axis)
        _check_pool(self.pool)

    def check(self, shape: Shape) -> None:
        """Raises unless the leaf has such an axis."""
        _check_divides(1, shape, self.axis, "Channel")

    def to_units(self, scores: jax.Array, mask: jax.Array) -> Units:
        """The slices, in a vector."""
        return _pool(scores, mask, self._others(mask), self.pool)

    def to_mask(self, kept: jax.Array, mask: jax.Array) -> jax.Array:
        """The weights of the slices that are kept."""
        return mask & jnp.expand_dims(kept, self._others(mask))

    def _others(self, x: jax.Array) -> Shape:
        axis = self.axis % x.ndim
        return tuple(other for other in range(x.ndim) if other != axis)


def _pool(scores: jax.Array, mask: jax.Array, axes: Shape, pool: str) -> Units:
    """Pools weights along some axes into units; a unit is kept if any weight is."""
    if pool == "mean":
        pooled = _exact_sums.mean_of_kept(scores, mask, axes)
    else:
        lowest = jnp.where(mask, scores, -jnp.inf)
        pooled = jnp.max(lowest, axis=axes, keepdims=True)
    kept = jnp.any(mask, axis=axes)
    return Units(pooled.reshape(kept.shape), kept)


def _check_divides(length: int, shape: Shape, axis: int, name: str) -> None:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{name} has axis {axis}, and the leaf has shape {shape}")
    if shape[axis] % length:
        raise ValueError(
            f"{name} does not divide axis {axis} of length {shape[axis]}: choose "
            "another axis or size for this leaf, by a dict of structures by name, or "
            "leave it out by `mask`"
        )


def _check_different(axes: Shape, shape: Shape) -> None:
    if len({axis % len(shape) for axis in axes}) < len(axes):
        raise ValueError(f"Block has axes {axes}, one of them twice for shape {shape}")


def _check_pool(pool: str) -> None:
    if pool not in ("mean", "max"):
        raise ValueError(f"pool must be 'mean' or 'max'; got {pool!r}.")
