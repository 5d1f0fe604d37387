"""Decays of whole units: one factor for each unit, computed from all its weights.

With groups of channels as `structure`, `add_relevance_decay` shrinks units by the mean
size of their gradients, and `add_l1_decay` becomes the group lasso.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparse_optax import _trees
from sparse_optax._compaction.groups import (
    ChannelGroups,
    by_unit,
    select_groups,
    spread_units,
)
from sparse_optax._trees import PyTree


def check_structure(
    mask: Any, structure: ChannelGroups | None
) -> tuple[Any, ChannelGroups | None]:
    """The `mask` of leaves and the groups that it selects, if there are groups.

    Raises:
        TypeError: if `structure` is not groups of units.
    """
    if structure is not None and not isinstance(structure, ChannelGroups):
        raise TypeError(
            "structure must be groups of units, as channel_groups returns them, or "
            f"None; got {structure!r}."
        )
    return select_groups(mask, structure)


def factors(
    groups: ChannelGroups,
    tree: PyTree,
    f: Callable[[jax.Array, int], jax.Array],
) -> PyTree:
    r"""The factor of each weight: the sum of a number for each of its units.

    .. math:: c_i = \sum_{u \ni i} f\Big(\sum_{j \in u} x_j, |u|\Big)

    Args:
        groups: the units.
        tree: x, like the params.
        f: maps the sums of x over units, a vector, and the size of a unit to numbers.

    Returns:
        A tree like `tree`, of arrays that broadcast to its leaves; 0 without units.
    """
    names = [name for name, leaf in _trees.named_leaves(_trees.unbox(tree))]
    leaves = dict(
        zip(names, jax.tree.leaves(tree, is_leaf=_trees.is_leaf), strict=True)
    )
    groups.check(
        {k: jnp.shape(x) for k, x in leaves.items() if not _trees.is_masked(x)}
    )
    found = dict.fromkeys(names, jnp.zeros([], jnp.float32))
    for group in groups:
        parts = [by_unit(leaves[m.leaf], m, group.size) for m in group.members]
        total = jnp.sum(jnp.concatenate(parts, axis=1), axis=1)
        number = f(total, sum(part.shape[1] for part in parts))
        for member in group.members:
            shape = jnp.shape(leaves[member.leaf])
            found[member.leaf] += spread_units(number, member, shape, 0)
    structure = jax.tree.structure(tree, is_leaf=_trees.is_leaf)
    return jax.tree.unflatten(
        structure,
        [x if _trees.is_masked(x) else found[name] for name, x in leaves.items()],
    )
