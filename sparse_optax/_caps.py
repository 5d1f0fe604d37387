"""`min_kept` and `max_sparsity`: caps on how much of a leaf may be removed.

Ranking a whole network together may empty its small layers. A cap is a number of units
or a sparsity, for all leaves or for some, and applies to each layer of a leaf.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from sparse_optax import _arguments, _leaves, _trees
from sparse_optax._trees import PyTree

# A number for all leaves; numbers by patterns of their names; or a tree of numbers.
Caps = Any


def check_caps(min_kept: Caps | None, max_sparsity: Caps | None) -> None:
    """Raises unless these are numbers in range, or contain only such numbers."""
    for name, caps in (("min_kept", min_kept), ("max_sparsity", max_sparsity)):
        _leaves.check_patterns(name, caps)
        for path, value in jax.tree_util.tree_leaves_with_path(caps):
            place = name if caps is value else f"{name} at {_trees.leaf_name(path)}"
            if isinstance(value, jax.Array):
                raise TypeError(
                    f"{place} must be a Python number; got {value!r}. Under "
                    f"optax.inject_hyperparams list {name!r} in static_args."
                )
            if name == "max_sparsity":
                _arguments.check_number(place, value, high=1.0, schedule=False)
            else:
                _arguments.check_integer(place, value, low=0)


def max_removed(
    min_kept: Caps | None,
    max_sparsity: Caps | None,
    params: PyTree,
    sizes: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """How many units of each layer may be removed, by leaf name.

    Args:
        min_kept: the least number of units to keep; smaller layers keep all.
        max_sparsity: of a layer; the cap that keeps more units wins.
        params: the weights, or anything with their shapes, without boxes.
        sizes: how many units the layers of each leaf have.

    Raises:
        ValueError: if a pattern matches no leaf, or a tree does not fit `params`.
    """
    fewest = _by_name("min_kept", min_kept, params, default=0)
    sparsest = _by_name("max_sparsity", max_sparsity, params, default=1)

    def most(name, size):
        # Exactly the arithmetic of a pruning step to that sparsity.
        share = Fraction(float(np.float32(sparsest(name))))
        return min(round(share * size), max(size - int(fewest(name)), 0))

    return {
        name: np.array([most(name, int(size)) for size in sizes[name]], np.int64)
        for name in sizes
    }


def _by_name(name: str, caps: Caps | None, params: PyTree, default: float) -> Any:
    """A function from the name of a leaf to its number."""
    if caps is None:
        caps = default
    if isinstance(caps, int | float | np.number):
        return lambda _: caps
    if (patterns := _leaves.as_patterns(caps)) is not None:
        values = [default, *patterns.values()]
        indices = _leaves.match_patterns(name, patterns, params)
        tree = jax.tree.map(lambda index: values[index + 1], indices)
    else:
        try:
            tree = jax.tree.broadcast(_trees.unbox(caps), params)
        except ValueError as error:
            names = [n for n, _ in _trees.named_leaves(params)]
            raise ValueError(
                f"{name} does not fit the tree of params, nor is it a dict of patterns "
                f"of names such as {names[:3]}."
            ) from error
    # Leaves that a tree leaves out are never looked up.
    return dict(_trees.named_leaves(tree)).__getitem__
