"""Floors: how many weights of a leaf are kept, whatever a threshold says.

One threshold for a whole network may empty the small layers of it. A floor is given as
a number of weights or as a sparsity, for all leaves or for some, and kept by the state
of a pruning transformation as a number for each leaf.
"""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_optax import _arguments, _leaves, _trees
from sparse_optax._trees import PyTree

# A number for all leaves; numbers by patterns of their names; or a tree of numbers.
Floors = Any


def check_floors(min_kept: Floors | None, max_sparsity: Floors | None) -> None:
    """Raises unless these are numbers, or hold numbers, in range."""
    for name, floors in (("min_kept", min_kept), ("max_sparsity", max_sparsity)):
        _leaves.check_patterns(name, floors)
        for path, value in jax.tree_util.tree_leaves_with_path(floors):
            place = name if floors is value else f"{name} at {_trees.leaf_name(path)}"
            if isinstance(value, jax.Array):
                raise TypeError(
                    f"{place} must be a Python number; got {value!r}. Under "
                    f"optax.inject_hyperparams list {name!r} in static_args."
                )
            if name == "max_sparsity":
                _arguments.check_number(place, value, high=1.0, schedule=False)
                continue
            _arguments.check_integer(place, value, low=0)
            if value >= 1 << 32:
                raise ValueError(f"{place} must be below 2^32; got {value!r}.")


def floors_of(
    min_kept: Floors | None, max_sparsity: Floors | None, params: PyTree, masks: PyTree
) -> jax.Array | None:
    """The fewest weights that are kept of each prunable leaf, or None without floors.

    Args:
        min_kept: a number of weights, of which a leaf may have less.
        max_sparsity: of a leaf; where both are given, the higher floor counts.
        params: the weights, or what has their shapes.
        masks: of the pruning transformation, which say what is prunable.

    Returns:
        A vector of `uint32`, in the order of the leaves of `masks`; of one element
        where there is none, as Orbax saves no empty array.

    Raises:
        ValueError: if a pattern matches no leaf, or a tree does not fit `params`.
    """
    if min_kept is None and max_sparsity is None:
        return None
    params, masks = _trees.unbox(params), _trees.unbox(masks)
    fewest = _by_leaf("min_kept", min_kept, params, default=0)
    sparsest = _by_leaf("max_sparsity", max_sparsity, params, default=1)

    def floor(mask, leaf, fewest, sparsest):
        if _trees.is_leaf(mask):
            return None
        size = int(np.prod(jnp.shape(leaf), dtype=np.int64))
        # In the arithmetic of a pruning step to that sparsity, exactly.
        at_most = round(Fraction(float(np.float32(sparsest))) * size)
        return max(min(int(fewest), size), size - at_most)

    floors = jax.tree.leaves(
        jax.tree.map(floor, masks, params, fewest, sparsest, is_leaf=_trees.is_leaf)
    )
    if max(floors, default=0) >= 1 << 32:  # which the state cannot hold
        raise ValueError(
            f"max_sparsity keeps {max(floors)} weights of a leaf; it must keep less "
            "than 2^32."
        )
    return jnp.array(floors or [0], jnp.uint32)


def _by_leaf(name: str, floors: Floors, params: PyTree, default: float) -> PyTree:
    """A tree like `params` of numbers."""
    if floors is None:
        floors = default
    if (patterns := _leaves.as_patterns(floors)) is not None:
        values = [default, *patterns.values()]
        indices = _leaves.match_patterns(name, patterns, params)
        return jax.tree.map(lambda index: values[index + 1], indices)
    try:
        return jax.tree.broadcast(_trees.unbox(floors), params)
    except ValueError as error:
        raise ValueError(
            f"{name} does not fit the tree of params, nor is it a dict of patterns of "
            f"names such as {[n for n, _ in _trees.named_leaves(params)][:3]}."
        ) from error
