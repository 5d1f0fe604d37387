"""The state of a pruning transformation: how it begins, and whether it still fits."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparse_optax import _arguments, _fit, _floors, _leaves, _trees
from sparse_optax._floors import Floors
from sparse_optax._leaves import Mask


class PruneState(NamedTuple):
    """State of `prune_by_magnitude` and of `prune_to_sparsity`.

    Attributes:
        masks: booleans shaped and sharded like the params, True for the weights that
            are kept; `optax.MaskedNode()` for leaves that are never pruned.
        num_prunes: how many times weights were pruned.
        revived: of each prunable leaf, in the order of the leaves of `masks`, how many
            weights the last pruning step was given that `masks` call pruned and that
            are not zero; 2^32 - 1 for all numbers above. It is not 0 where something
            after the pruning transformation moves weights that were pruned.
        num_updates: how many updates were made. Only `prune_to_sparsity` is driven by
            them, and counts them.
        min_kept: how many weights of each prunable leaf are kept at the least, in the
            order of the leaves of `masks`; None where a link has no floors.
        shortfall: how many weights more should have gone the last time that a prune was
            due, but for floors; 2^32 - 1 for all numbers above.
    """

    masks: optax.Params  # bool
    num_prunes: jax.Array  # shape=(), dtype=int32.
    revived: jax.Array  # shape=(L,), dtype=uint32; one element if L is 0.
    num_updates: jax.Array | None = None  # shape=(), dtype=int32.
    min_kept: jax.Array | None = None  # shape=(L,), dtype=uint32; as `revived`.
    shortfall: jax.Array | None = None  # shape=(), dtype=uint32.


class PrunableLeaves(NamedTuple):
    """The arguments that say which leaves are pruned, and how far at the most."""

    mask: Mask | None
    min_kept: Floors | None
    max_sparsity: Floors | None

    def init(self, params: optax.Params) -> PruneState:
        """The state before any pruning step: all kept where weights may be pruned."""
        masks = params
        if jax.tree.leaves(params):
            masks = jax.tree.map(
                lambda s, p: jnp.ones_like(p, dtype=bool) if s else optax.MaskedNode(),
                _leaves.select_leaves(self.mask, params),
                params,
            )
        floors = self.floors(params, masks)
        num_leaves = max(len(jax.tree.leaves(masks)), 1)  # Orbax saves no empty array
        return PruneState(
            masks,
            num_prunes=jnp.zeros([], jnp.int32),
            min_kept=floors,
            shortfall=None if floors is None else jnp.zeros([], jnp.uint32),
            revived=jnp.zeros([num_leaves], jnp.uint32),
        )

    def floors(self, params: optax.Params, masks: optax.Params) -> jax.Array | None:
        return _floors.floors_of(self.min_kept, self.max_sparsity, params, masks)

    def check(self, state: Any, params: Any, *, counts_updates: bool) -> PruneState:
        """The state with the floors of these arguments, or an error if it is another's.

        A state may be one from a checkpoint, and the arguments others than then.
        """
        _arguments.check_params(params)
        _arguments.check_state(state, PruneState)
        _fit.check_masks_fit(state.masks, params, "params")
        anew = (
            "Begin with tx.init(params), and set_masks(state, masks) keeps the masks."
        )
        if (state.num_updates is not None) != counts_updates:
            kinds = ["prune_by_magnitude", "prune_to_sparsity"]
            raise ValueError(
                f"state is that of {kinds[not counts_updates]}, and this is "
                f"{kinds[counts_updates]}. {anew}"
            )

        def check(path, mask, selected):
            if _trees.is_masked(mask) == selected:
                raise ValueError(
                    "mask selects other leaves than those with masks in the state; "
                    f"they differ first at {_trees.leaf_name(path)}. {anew}"
                )

        jax.tree_util.tree_map_with_path(
            check,
            *(
                _trees.unbox(state.masks),
                _trees.unbox(_leaves.select_leaves(self.mask, params)),
            ),
            is_leaf=_trees.is_masked,
        )
        floors = self.floors(params, state.masks)
        if (floors is None) != (state.min_kept is None):
            raise ValueError(
                "min_kept and max_sparsity are part of the state: the state has "
                f"{'none' if state.min_kept is None else 'some'}, this transformation "
                f"has {'none' if floors is None else 'some'}. {anew}"
            )
        return state._replace(min_kept=floors)
