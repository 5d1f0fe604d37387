"""A pruning step: how many weights to drop, and the state without them.

Which weights are dropped is decided in `_selection`.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparse_optax import _counts, _masks, _selection, _trees
from sparse_optax._arguments import Scope
from sparse_optax._counts import Count
from sparse_optax._prune_state import PruneState

# What a pruning step drops: a share of the weights that are left, or what a share of
# all weights still lacks.
Of = Literal["remaining", "all"]


def _amount(share: jax.Array, of: Of, remaining: Count, total: Count) -> Count:
    """How many weights to drop."""
    if of == "remaining":
        return _counts.fraction_of(share, remaining)
    pruned = _counts.subtract(total, remaining)
    return _counts.subtract(_counts.fraction_of(share, total), pruned)


def drop_weights(
    state: PruneState,
    weights: optax.Params,
    given: optax.Params,
    share: jax.Array,
    of: Of,
    scope: Scope,
) -> PruneState:
    """The state after a pruning step: with the smallest of the kept weights dropped.

    Args:
        state: before.
        weights: what is ranked.
        given: the weights that the pruning step was given, of which those that are
            pruned already should be zero.
        share: in [0, 1].
        of: the weights that `share` is a share of.
        scope: as in `prune_by_magnitude`.
    """
    masks = jax.tree.leaves(state.masks)
    prunable = jax.tree.leaves(
        jax.tree.map(_weight, state.masks, weights, is_leaf=_trees.is_masked)
    )
    k, most, shortfall = _how_many(state, share, of, scope)
    if scope == "global":
        dropped = _selection.drop_smallest(prunable, masks, k, most)
    else:
        dropped = _selection.drop_smallest_of_each(prunable, masks, k)
    return state._replace(
        masks=jax.tree.unflatten(jax.tree.structure(state.masks), dropped),
        num_prunes=optax.safe_increment(state.num_prunes),
        shortfall=shortfall,
        revived=_masks.count_revived(state.masks, given) if masks else state.revived,
    )


def _weight(mask, weight):
    return mask if _trees.is_masked(mask) else weight


def _how_many(
    state: PruneState, share: jax.Array, of: Of, scope: Scope
) -> tuple[Count, Count | None, jax.Array | None]:
    """What a pruning step drops: how many, at most of each leaf, and its shortfall.

    The first is one number for all leaves, or one for each, as the scope says.
    """
    masks = lax.optimization_barrier(jax.tree.leaves(state.masks))
    if not masks:
        return _counts.constant(0), None, state.shortfall
    if scope == "global":
        total = _counts.constant(sum(mask.size for mask in masks))
        k = _amount(share, of, _counts.count_true_in(masks), total)
    else:
        sizes = _counts.stack([_counts.constant(mask.size) for mask in masks])
        k = jax.vmap(functools.partial(_amount, share, of))(
            _counts.count_true_in_each(masks), sizes
        )
    if state.min_kept is None:
        return k, None, None
    floors = Count(jnp.zeros_like(state.min_kept), state.min_kept)
    most = _counts.subtract(_counts.count_true_in_each(masks), floors)
    if scope == "global":
        allowed = _counts.minimum(k, _counts.total(most))
        missing = _counts.subtract(k, allowed)
    else:
        allowed = _counts.minimum(k, most)
        missing = _counts.total(_counts.subtract(k, allowed))
    return allowed, most, _counts.as_word(missing)


@functools.partial(jax.jit, static_argnames="scope")
def is_due(is_step_due, state, sparsity, scope):
    """Whether to prune to `sparsity` now, and there is something to drop; shortfall."""

    def anything_to_drop():
        k, _, shortfall = _how_many(state, sparsity, "all", scope)
        return ~jnp.all(_counts.is_zero(k)), shortfall

    def not_now():
        return jnp.zeros([], bool), state.shortfall

    return lax.cond(is_step_due, anything_to_drop, not_now)
