"""Finds the masks inside an optimizer state, however it is wrapped.

An optimizer state is a tree, and the states of this package are nodes of it, wherever
`chain`, `masked`, `multi_transform`, `MultiSteps`, `nnx.Optimizer` and others put them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparse_optax import _trees
from sparse_optax._prune_state import PruneState


def get_masks(opt_state: optax.OptState) -> optax.Params:
    """The masks of all pruning transformations in a state, as one tree.

    Args:
        opt_state: the state of an optimizer with a pruning transformation in it.

    Returns:
        A tree of booleans like the params, without flax's boxes: True for kept weights,
        and `optax.MaskedNode()` for leaves that are never pruned. Where several
        transformations prune the same leaf, a weight is kept if all of them keep it.

    Raises:
        ValueError: if `opt_state` has no masks, or masks of several networks.

    Examples:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> tx = optax.chain(optax.adam(0.1), sparse_optax.prune_by_magnitude(0.5))
        >>> params = jnp.array([[0.3, -0.1, 2.0, 0.2]])
        >>> params, state = sparse_optax.prune(params, tx.init(params), 0.5)
        >>> print(sparse_optax.get_masks(state))
        [[ True False  True False]]
    """
    networks = masks_of_networks(opt_state)
    if len(networks) > 1:
        raise ValueError(
            f"opt_state has the masks of {len(networks)} networks of different trees; "
            "give the state of one optimizer."
        )
    return networks[0]


def masks_of_networks(opt_state: optax.OptState) -> list[optax.Params]:
    """The masks of each network that the optimizers in a training state prune.

    Masks of one tree are assumed to belong to one network.
    """

    def both(_, a, b):
        if _trees.is_masked(a) or _trees.is_masked(b):
            return b if _trees.is_masked(a) else a
        if a.shape != b.shape:
            raise ValueError("masks of different networks")
        return a & b

    networks: list[optax.Params] = []
    for state in prune_states(opt_state):
        for i, masks in enumerate(networks):
            try:
                networks[i] = _trees.map_aligned(both, masks, state.masks)
                break
            except ValueError:
                continue
        else:
            networks.append(state.masks)
    return networks


def prune_states(opt_state: optax.OptState) -> list[PruneState]:
    """The states of all pruning transformations; raises if there are none."""
    found = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, PruneState))
    states = [_trees.unbox(state) for state in found if isinstance(state, PruneState)]
    if states:
        return states
    if any(map(_was_prune_state, jax.tree.leaves(opt_state, is_leaf=_was_prune_state))):
        raise ValueError(
            "opt_state has plain dicts in place of its types. Restore it "
            "into tx.init(params), which has them; pass the opt_state of an "
            "nnx.Optimizer."
        )
    raise ValueError(
        "opt_state has no masks: its optimizer has no prune_by, prune_by_magnitude, "
        "prune_to_sparsity, relevance_pruning or sparse_training."
    )


def _was_prune_state(node: Any) -> bool:
    return isinstance(node, Mapping) and {"masks", "num_pruning_steps"} <= set(node)


def num_pruning_steps(opt_state: Any) -> jax.Array:
    """How many pruning steps all transformations together have made."""
    counts = [state.num_pruning_steps for state in prune_states(opt_state)]
    return jnp.sum(jnp.stack(counts))
