"""The whole method around any optimizer, which never sees a pruned weight."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparse_optax import _arguments, _fit, _pruning, _relevance, _trees
from sparse_optax._arguments import ScalarOrSchedule, Scope
from sparse_optax._floors import Floors
from sparse_optax._leaves import Mask
from sparse_optax._masks import zero_pruned
from sparse_optax._prune_state import PruneState
from sparse_optax._relevance import IrrelevanceFn, RelevanceDecayState


class RelevancePruningState(NamedTuple):
    """State of the transformation returned by `relevance_pruning`.

    Attributes:
        decay: counts the updates for the schedules of the decay.
        optimizer: the state of the optimizer inside.
        pruning: has the masks.
    """

    decay: RelevanceDecayState
    optimizer: optax.OptState
    pruning: PruneState


def relevance_pruning(
    optimizer: optax.GradientTransformation,
    strength: ScalarOrSchedule,
    scale: ScalarOrSchedule = 1.0,
    fraction: ScalarOrSchedule = 0.1,
    *,
    irrelevance_fn: IrrelevanceFn | None = None,
    scope: Scope = "global",
    min_kept: Floors | None = None,
    max_sparsity: Floors | None = None,
    decoupled: bool = False,
    mask: Mask | None = "matrices",
) -> optax.GradientTransformationExtraArgs:
    """Shrinks irrelevant weights and prunes the smallest, around any optimizer.

    It does what the chain of `add_relevance_decay(strength, scale)`, `optimizer` and
    `prune_by_magnitude(fraction)` does, and hides pruned weights from the optimizer:
    their gradients are zeroed before it, and its moments of them are cleared at a
    pruning step. In the chain they would be inert there, but not gone: whatever looks
    at norms (clipping, lamb, muon, adafactor) would see a network that is not there.
    State that is not shaped like its weight is not cleared: the memory of `lbfgs`, the
    factored moments of `adafactor` and `sm3`, the subspace of `galore`.

    Args:
        optimizer: any optax optimizer, learning rate included. What skips or discards
            steps, such as `optax.MultiSteps`, belongs around the whole, not in here.
        strength: gamma >= 0, or an optax schedule of the updates since the last prune.
        scale: alpha > 0, in the units of the gradient, or such a schedule.
        fraction: of the remaining weights that a pruning step removes, in [0, 1], or an
            optax schedule of the number of pruning steps so far.
        irrelevance_fn: the irrelevance I, as in `add_relevance_decay`.
        scope: "global" or "leaf", as in `prune_by_magnitude`.
        min_kept: floors, as in `prune_by_magnitude`.
        max_sparsity: floors, as in `prune_by_magnitude`.
        decoupled: take the decay 2 * strength * I * w from the finished update, as
            `optax.adamw` does, instead of adding it to the gradient. `strength` then
            stands for learning rate times gamma.
        mask: which leaves decay and may be pruned, as in `prune_by_magnitude`.

    Returns:
        A transformation with the state `RelevancePruningState`. `update` needs params,
        returns updates in their dtypes, and obeys the extra argument `prune` as
        `prune_by_magnitude` does. It does not pass `prune` on to `optimizer`, but all
        other extra arguments (so line searches and `optax.lbfgs` work inside). Before
        such an update it restarts the schedules of every `add_relevance_decay` in it.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: as for `add_relevance_decay` and `prune_by_magnitude`, or if
            `optimizer` holds one of these that prunes by the argument `prune`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> tx = sparse_optax.relevance_pruning(
        ...     optax.adam(0.1), strength=1e-4, scale=1e-3, fraction=0.5
        ... )
        >>> params = jnp.array([[0.3, -0.1, 2.0, 0.2]])
        >>> state = tx.init(params)
        >>> updates, state = tx.update(jnp.ones((1, 4)), state, params, prune=True)
        >>> params = optax.apply_updates(params, updates)
        >>> print(params.round(1))
        [[0.2 0.  1.9 0. ]]
        >>> print(state.optimizer[0].mu.round(1))  # Adam's first moment
        [[0.1 0.  0.1 0. ]]

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
        strength, scale, irrelevance_fn, mask
    )
    pruning = _pruning.prune_by_magnitude(
        fraction,
        scope=scope,
        min_kept=min_kept,
        max_sparsity=max_sparsity,
        mask=mask,
    )

    def init_fn(params) -> Any:
        decay = init_decay(params)  # first, since it checks the params
        inner = optimizer.init(params)
        _check_nothing_waits_for_prune(inner)
        pruning_state = cast(PruneState, pruning.init(params))
        return RelevancePruningState(decay, inner, pruning_state)

    def update_fn(updates, state, params=None, *, prune=False, **extra_args) -> Any:
        _arguments.check_params(params)
        _arguments.check_state(state, RelevancePruningState)
        _fit.check_masks_fit(state.pruning.masks, params, "params")
        flag = _arguments.as_flag(prune)
        shrinkage, decay = shrinkage_fn(
            updates, state.decay, params, prune=flag, **extra_args
        )
        if not decoupled:
            updates = _relevance.add_shrinkage(updates, shrinkage, params)
        # The optimizer sees a network of the kept weights only. It gets no `prune`:
        # many optimizers refuse extra arguments that they do not know.
        updates = zero_pruned(updates, state.pruning.masks)
        inner = _restart_decays(state.optimizer, flag)
        updates, inner = optimizer.update(updates, inner, params, **extra_args)
        if decoupled:
            shrinkage = jax.tree.map(jnp.negative, shrinkage)
            updates = _relevance.add_shrinkage(updates, shrinkage, params)
        updates, pruned = pruning.update(
            updates, state.pruning, params, prune=flag, **extra_args
        )
        pruned = cast(PruneState, pruned)

        if flag is True:
            inner = clear_pruned(inner, pruned.masks)
        elif flag is not False:
            inner = lax.cond(flag, clear_pruned, lambda s, _: s, inner, pruned.masks)
        return updates, RelevancePruningState(decay, inner, pruned)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _restart_decays(opt_state: optax.OptState, prune: bool | jax.Array) -> Any:
    """The state of an optimizer in which schedules begin anew if `prune` is true."""

    def is_decay(node):
        return isinstance(node, RelevanceDecayState)

    def restart(node):
        return _relevance.restart_if(prune, node) if is_decay(node) else node

    return jax.tree.map(restart, opt_state, is_leaf=is_decay)


def _check_nothing_waits_for_prune(opt_state: optax.OptState) -> None:
    """Raises if an optimizer holds a transformation that `prune` would drive."""

    def is_pruning(node):
        return isinstance(node, PruneState)

    for node in jax.tree.leaves(opt_state, is_leaf=is_pruning):
        if is_pruning(node) and node.num_updates is None:
            raise ValueError(
                "optimizer has a prune_by_magnitude or a relevance_pruning in it, "
                "which would never prune: relevance_pruning does that itself, and does "
                "not pass `prune` on."
            )


def clear_pruned(opt_state: optax.OptState, masks: optax.Params) -> optax.OptState:
    """Zeroes what an optimizer's state remembers of pruned weights.

    These are the floating arrays, of the shape of their weight, in any part of the
    state that has the tree of the params, as moments have.
    """
    masks = _trees.unbox(masks)
    if not jax.tree.leaves(masks) or getattr(masks, "shape", None) == ():
        return opt_state  # a lone scalar cannot be told from a hyperparameter

    def is_like_params(node):
        try:
            _trees.map_aligned(lambda *_: None, masks, node)
        except ValueError:
            return False
        return True

    def clear_leaf(_, mask, x):
        if _trees.is_masked(mask) or _trees.is_masked(x):
            return x
        if getattr(x, "shape", None) != mask.shape or not _is_floating(x):
            return x
        return _keep(mask, x)

    def clear(node):
        if not is_like_params(node):
            return node
        return _trees.map_aligned(clear_leaf, masks, node)

    return jax.tree.map(clear, opt_state, is_leaf=is_like_params)


def _is_floating(x):
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


@jax.jit  # so that outside of jit too it is compiled
def _keep(mask, x):
    return jnp.where(mask, x, jnp.zeros_like(x))
