"""The whole method around any optimizer, which never sees a pruned weight."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparse_optax import _arguments, _pruning, _relevance, _trees
from sparse_optax._arguments import ScalarOrSchedule, Scope
from sparse_optax._floors import Floors
from sparse_optax._masks import zero_pruned
from sparse_optax._pruning import PruneState
from sparse_optax._relevance import RelevanceDecayState
from sparse_optax._trees import Mask


class RelevancePruningState(NamedTuple):
    """State of the transformation returned by `relevance_pruning`."""

    decay: RelevanceDecayState
    optimizer: optax.OptState  # of the optimizer inside
    pruning: PruneState


def relevance_pruning(
    optimizer: optax.GradientTransformation,
    strength: ScalarOrSchedule,
    scale: ScalarOrSchedule = 1.0,
    fraction: ScalarOrSchedule = 0.1,
    *,
    scope: Scope = "global",
    min_kept: Floors | None = None,
    max_sparsity: Floors | None = None,
    decoupled: bool = False,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Shrinks irrelevant weights and prunes the smallest, around any optimizer.

    It does what the chain of `add_relevance_decay(strength, scale)`, `optimizer` and
    `prune_by_magnitude(fraction)` does, and hides pruned weights from the optimizer:
    their gradients are zeroed before it, and its moments of them are cleared at a
    prune. In the chain they would be inert there, but not gone: whatever looks at norms
    (clipping, lamb, muon, adafactor) would see a network that is not there.

    Args:
        optimizer: any optax optimizer, learning rate included. What skips or discards
            steps, such as `optax.MultiSteps`, belongs around the whole, not in here.
        strength: gamma >= 0, or an optax schedule of the updates since the last prune.
        scale: alpha > 0, in the units of the gradient, or such a schedule.
        fraction: of the remaining weights that a prune drops, in [0, 1], or an optax
            schedule of the number of prunes so far.
        scope: "global" or "leaf", as in `prune_by_magnitude`.
        min_kept: floors, as in `prune_by_magnitude`.
        max_sparsity: floors, as in `prune_by_magnitude`.
        decoupled: take the decay 2 * strength * I * w from the finished update, as
            `optax.adamw` does, instead of adding it to the gradient. `strength` then
            stands for learning rate times gamma.
        mask: which leaves decay and may be pruned: a tree of booleans, a prefix of one,
            or a function from params to one, such as `matrices_only`. By default every
            floating leaf.

    Returns:
        A transformation with the state `RelevancePruningState`. `update` needs params,
        returns updates in their dtypes, obeys the extra argument `prune` as
        `prune_by_magnitude` does, and passes all extra arguments on to `optimizer`.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: as for `add_relevance_decay` and `prune_by_magnitude`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> tx = sparse_optax.relevance_pruning(
        ...     optax.adam(0.1), strength=1e-4, scale=1e-3, fraction=0.5
        ... )
        >>> params = jnp.array([0.3, -0.1, 2.0, 0.2])
        >>> state = tx.init(params)
        >>> updates, state = tx.update(jnp.ones(4), state, params, prune=True)
        >>> params = optax.apply_updates(params, updates)
        >>> print(params.round(1))
        [0.2 0.  1.9 0. ]
        >>> print(state.optimizer[0].mu.round(1))  # Adam's first moment
        [0.1 0.  0.1 0. ]

    References:
        Bonetta et al, `Regularization-based Pruning of Irrelevant Weights
        <https://arxiv.org/abs/2204.04977>`_, 2022. Hiding pruned weights and
        `decoupled` go beyond it.
    """
    if not isinstance(optimizer, optax.GradientTransformation | optax.MultiSteps):
        raise TypeError(f"optimizer must be an optax optimizer; got {optimizer!r}.")
    if not isinstance(decoupled, bool):
        raise TypeError(f"decoupled must be a boolean; got {decoupled!r}.")
    optimizer = optax.with_extra_args_support(optimizer)
    init_decay, shrinkage_fn = _relevance.relevance_shrinkage(
        strength, scale, None, mask
    )
    pruning = _pruning.prune_by_magnitude(
        fraction,
        scope=scope,
        min_kept=min_kept,
        max_sparsity=max_sparsity,
        mask=mask,
    )

    def init_fn(params) -> Any:
        return RelevancePruningState(
            decay=init_decay(params),
            optimizer=optimizer.init(params),
            pruning=cast(PruneState, pruning.init(params)),
        )

    def update_fn(updates, state, params=None, *, prune=False, **extra_args) -> Any:
        _arguments.check_params(params)
        _trees.check_masks_fit(state.pruning.masks, params, "params")
        extra_args["prune"] = flag = _arguments.as_flag(prune)
        shrinkage, decay = shrinkage_fn(updates, state.decay, params, **extra_args)
        if not decoupled:
            updates = _relevance.add_shrinkage(updates, shrinkage, params)
        # The optimizer sees a network of the kept weights only.
        updates = zero_pruned(updates, state.pruning.masks)
        updates, inner = optimizer.update(
            updates, state.optimizer, params, **extra_args
        )
        if decoupled:
            shrinkage = jax.tree.map(jnp.negative, shrinkage)
            updates = _relevance.add_shrinkage(updates, shrinkage, params)
        updates, pruned = pruning.update(updates, state.pruning, params, **extra_args)
        pruned = cast(PruneState, pruned)

        if flag is True:
            inner = clear_pruned(inner, pruned.masks)
        elif flag is not False:
            inner = lax.cond(flag, clear_pruned, lambda s, _: s, inner, pruned.masks)
        return updates, RelevancePruningState(decay, inner, pruned)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def clear_pruned(opt_state: optax.OptState, masks: optax.Params) -> optax.OptState:
    """Zeroes what an optimizer's state remembers of pruned weights.

    These are the arrays in any part of the state that has the tree of the params,
    as moments have, which are floating and of the shape of their weight.
    """
    if not jax.tree.leaves(masks) or getattr(masks, "shape", None) == ():
        return opt_state  # a lone scalar cannot be told from a hyperparameter

    def is_like_params(node):
        try:
            _trees.map_aligned(lambda *_: None, masks, node)
        except ValueError:
            return False
        return True

    def clear_leaf(mask, x):
        if _trees.is_masked(mask) or _trees.is_masked(x):
            return x
        if getattr(x, "shape", None) != mask.shape or not _trees.is_floating(x):
            return x
        return _keep(mask, x)

    def clear(node):
        if not is_like_params(node):
            return node
        return _trees.map_aligned(clear_leaf, masks, node)

    return jax.tree.map(clear, opt_state, is_leaf=is_like_params)


@jax.jit  # so that outside of jit too it is compiled
def _keep(mask, x):
    return jnp.where(mask, x, jnp.zeros_like(x))
