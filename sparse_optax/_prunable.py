"""Which leaves a pruning transformation prunes: its initial state, and checks of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparse_optax import _arguments, _fit, _floors, _leaves, _trees
from sparse_optax._floors import Floors
from sparse_optax._leaves import Mask
from sparse_optax._prune_state import PruneState

_ANEW = "Begin with tx.init(params), and set_masks(state, masks) keeps the masks."


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
        if counts_updates and state.num_updates is None:
            raise ValueError(
                "state is that of prune_by_magnitude, and this is prune_to_sparsity. "
                + _ANEW
            )
        if not counts_updates and state.num_updates is not None:
            raise ValueError(
                "state is that of prune_to_sparsity, and this is prune_by_magnitude. "
                + _ANEW
            )
        self._check_mask(state, params)
        floors = self.floors(params, state.masks)
        if (floors is None) != (state.min_kept is None):
            raise ValueError(
                "min_kept and max_sparsity are part of the state: the state has "
                f"{'none' if state.min_kept is None else 'some'}, this transformation "
                f"has {'none' if floors is None else 'some'}. {_ANEW}"
            )
        return state._replace(min_kept=floors)

    def _check_mask(self, state: PruneState, params: optax.Params) -> None:
        try:
            selected = _leaves.select_leaves(self.mask, params)
        except jax.errors.ConcretizationTypeError:
            return  # a function that looks at the values of weights, as init may

        def check(path, mask, flag):
            if _trees.is_masked(mask) == flag:
                raise ValueError(
                    "mask selects other leaves than those with masks in the state; "
                    f"they differ first at {_trees.leaf_name(path)}. {_ANEW}"
                )

        masks, selected = _trees.unbox(state.masks), _trees.unbox(selected)
        jax.tree_util.tree_map_with_path(
            check, masks, selected, is_leaf=_trees.is_masked
        )
