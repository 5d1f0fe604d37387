"""Floors: how many weights of a leaf are kept, whatever a threshold says.

One threshold for a whole network may empty the small layers of it. A floor is given as
a number of weights or as a sparsity, for all leaves or for some, and kept by the state
of a pruning link as a number for each leaf.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_optax import _arguments, _trees
from sparse_optax._trees import PyTree

# A number for all leaves; numbers by patterns of their names; or a tree of numbers.
Floors = Any


def check_floors(min_kept: Floors | None, max_sparsity: Floors | None) -> None:
    """Raises unless these are numbers, or hold numbers, in range."""
    for name, floors in (("min_kept", min_kept), ("max_sparsity", max_sparsity)):
        for pattern in _patterns(floors) or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"{name} has {pattern!r}, which is no regular expression: {error}."
                ) from error
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
        masks: of the pruning link, which say what is prunable.

    Returns:
        A vector of `uint32`, in the order of the leaves of `masks`.

    Raises:
        ValueError: if a pattern matches no leaf, or a tree does not fit `params`.
    """
    if min_kept is None and max_sparsity is None:
        return None
    params, masks = _trees.unbox(params), _trees.unbox(masks)
    fewest = _by_leaf("min_kept", min_kept, params, default=0)
    sparsest = _by_leaf("max_sparsity", max_sparsity, params, default=1)

    def floor(mask, leaf, fewest, sparsest):
        if _trees.is_masked(mask):
            return None
        size = int(np.prod(jnp.shape(leaf), dtype=np.int64))
        # In the arithmetic of a prune to that sparsity, exactly.
        at_most = round(Fraction(float(np.float32(sparsest))) * size)
        return max(min(int(fewest), size), size - at_most)

    floors = jax.tree.leaves(
        jax.tree.map(floor, masks, params, fewest, sparsest, is_leaf=_trees.is_masked)
    )
    if max(floors, default=0) >= 1 << 32:  # which the state cannot hold
        raise ValueError(
            f"max_sparsity keeps {max(floors)} weights of a leaf; it must keep less "
            "than 2^32."
        )
    return jnp.array(floors, jnp.uint32)


def _by_leaf(name: str, floors: Floors, params: PyTree, default: float) -> PyTree:
    """A tree like `params` of numbers."""
    if floors is None:
        floors = default
    if (patterns := _patterns(floors)) is not None:
        return _by_pattern(name, patterns, params, default)
    try:
        return jax.tree.broadcast(_trees.unbox(floors), params)
    except ValueError as error:
        raise ValueError(
            f"{name} does not fit the tree of params, nor is it a dict of patterns of "
            f"names such as {[n for n, _ in _trees.named_leaves(params)][:3]}."
        ) from error


def _patterns(floors: Floors | None) -> dict[str, float] | None:
    """The numbers by pattern, or None if they are not given so."""
    if isinstance(floors, Mapping) and all(
        isinstance(key, str) and jax.tree_util.all_leaves([value])
        for key, value in floors.items()
    ):
        return dict(floors)
    return None


def _by_pattern(
    name: str, floors: dict[str, float], params: PyTree, default: float
) -> PyTree:
    """The number of the first pattern that matches the name of a leaf, or above it."""
    unused = set(floors)

    def find(path, _):
        parts = _trees.leaf_name(path).split("/")
        above = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
        for pattern, value in floors.items():
            # A name itself counts as well: it may have characters of patterns in it.
            if pattern in above or any(re.fullmatch(pattern, x) for x in above):
                unused.discard(pattern)
                return value
        return default

    # What other links prune is there as well, if only by name.
    found = jax.tree_util.tree_map_with_path(find, params, is_leaf=_trees.is_masked)
    if unused and jax.tree.leaves(params):
        names = [n for n, _ in _trees.named_leaves(params)]
        raise ValueError(
            f"{name} has patterns that are the first to match no leaf: "
            f"{sorted(unused)}; there are {names}."
        )
    return found
