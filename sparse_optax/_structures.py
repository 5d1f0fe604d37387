"""Structures: what a pruning step removes as a whole.

A structure maps the scores of weights to units, which are kept or removed as a whole,
and what is kept of these back to masks of weights. `_selection` ranks units, whatever
they are. Here are the structures whose units lie in one leaf each.
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
Arrays = Mapping[str, jax.Array]  # those of the prunable leaves, by name


class Structure(Protocol):
    """What `prune_by(structure=...)` takes where units extend over several leaves.

    It is hashable, and equal to another if its values are. Trees come as dicts from the
    names of the prunable leaves to arrays.
    """

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Raises a `ValueError` if leaves of these shapes cannot be structured so."""
        ...

    def to_units(self, scores: Arrays, masks: Arrays) -> Mapping[str, Units]:
        """The units, in arrays of any shapes, under any names."""
        ...

    def to_masks(self, kept: Arrays, masks: Arrays) -> Arrays:
        """The masks of weights, given which units are kept, and the masks before."""
        ...

    def num_layers(self, shapes: Mapping[str, Shape]) -> Mapping[str, int]:
        """Of each array of units, how many layers are stacked along its first axis.

        0 if that is an axis like others.
        """
        ...


class LeafStructure:
    """A structure of each leaf by itself; derive others from this class.

    A subclass is a frozen dataclass. What is defined here is that every weight is a
    unit of its own.
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
        """The share of units that may be removed at the most."""
        return Fraction(1)


@dataclasses.dataclass(frozen=True)
class Unstructured(LeafStructure):
    """Each weight is a unit: the default."""


@dataclasses.dataclass(frozen=True)
class NM(LeafStructure):
    """At most `n` weights that are not zero of every `m` consecutive ones.

    The units are weights. Of each group of `m`, those beyond its `n` best may be
    removed, and amounts drop the lowest of them over all groups: so a gradual schedule
    that ends at a sparsity of 1 - n/m ends at exactly N:M. Without an amount, all that
    may be removed are.

    Args:
        n: how many of a group are kept at the least.
        m: the size of a group.
        axis: along which groups are consecutive, the axis that a product with the
            activations sums over: -2 of flax's kernels `(in, out)`; -1 of equinox's
            weights `(out, in)`; of convolutions `(h, w, in, out)` also -2; of flax's
            attention kernels 0 of `(features, heads, dim)`.

    Raises:
        TypeError: if an argument is not an integer.
        ValueError: if n is not in [1, m]; where it is used, if a leaf has no such axis,
            or one with a length that `m` does not divide.

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
        """`m` divides the length of the axis."""
        _check_divides(self.m, shape, self.axis, f"NM({self.n}, {self.m})")

    def to_units(self, scores: jax.Array, mask: jax.Array) -> Units:
        """The weights, and which are not among the best of their group."""
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
            # NaNs are the largest, and of equal scores later ones are better.
            is_equal = (other == grouped) | (its_nan & is_nan)
            is_larger = (other > grouped) | (its_nan & ~is_nan)
            num_better += its_kept & (is_larger | (is_equal & (i > place)))
        is_best = (num_better < self.n).reshape(scores.shape)
        return Units(scores, mask, mask & ~is_best)


@dataclasses.dataclass(frozen=True)
class Block(LeafStructure):
    """Blocks of weights.

    Args:
        shape: of a block.
        axes: those that it extends along, as many; by default the last ones. Along the
            others it is one weight wide.
        pool: what makes one score of those of a block, "mean" or "max".

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a number is out of range, or if there is not one axis for each
            number of the shape; where it is used, if a leaf has no such axis, or one
            with a length that the block does not divide.

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
        """A block divides the length of each axis."""
        for length, axis in zip(self.shape, self.axes, strict=True):
            _check_divides(length, shape, axis, f"Block({self.shape})")
        _check_different(self.axes, shape)

    def to_units(self, scores: jax.Array, mask: jax.Array) -> Units:
        """The blocks, in an array with an element for each."""
        split, axes = self._split(scores.shape)
        return _pool(scores.reshape(split), mask.reshape(split), axes, self.pool)

    def to_mask(self, kept: jax.Array, mask: jax.Array) -> jax.Array:
        """The weights of the blocks that are kept."""
        split, axes = self._split(mask.shape)
        return (mask.reshape(split) & jnp.expand_dims(kept, axes)).reshape(mask.shape)

    def _split(self, shape: Shape) -> tuple[Shape, Shape]:
        """The shape with an axis for each axis of a block after its own, and these."""
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
    """Whole slices: all weights of one index along an axis.

    Args:
        axis: by default the last one, output channels or neurons of flax's kernels.
        pool: what makes one score of those of a slice, "mean" or "max".

    Raises:
        TypeError: if `axis` is not an integer.
        ValueError: if `pool` is neither; where it is used, if a leaf has no such axis.

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
        """There is such an axis."""
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
    """Units that are each of the weights along some axes; kept if one of them is."""
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
        raise ValueError(f"Block has axes {axes}, twice the same of shape {shape}")


def _check_pool(pool: str) -> None:
    if pool not in ("mean", "max"):
        raise ValueError(f"pool must be 'mean' or 'max'; got {pool!r}.")
