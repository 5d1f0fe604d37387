"""Hides pruned weights from an optimizer, with any pruning transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparse_optax import _arguments, _find_states, _pruning, _trees
from sparse_optax._masks import zero_pruned
from sparse_optax._prune_state import PruneState
from sparse_optax._restart import restart


class HidePrunedState(NamedTuple):
    """State of the transformation returned by `hide_pruned`.

    Attributes:
        optimizer: the state of the optimizer inside.
        pruning: the state of the pruning transformation, which has the masks.
    """

    optimizer: optax.OptState
    pruning: optax.OptState


def hide_pruned(
    optimizer: optax.GradientTransformation, pruning: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Prunes, and hides pruned weights from an optimizer.

    A pruning step comes first. Then the optimizer updates only the remaining network:
    pruned weights, their gradients and their moments are zero. In a plain chain of
    `optimizer` and `pruning`, the optimizer still sees pruned weights and their
    gradients, and includes them in norms (clipping, lamb, muon, adafactor). State that
    is not shaped like its weight is not cleared: the memory of `lbfgs`, the factored
    moments of `adafactor` and `sm3`, the subspace of `galore`. `adabelief`, `adamax`
    and `acprop` add an epsilon to all moments in every update, pruned or not.

    Args:
        optimizer: any optax optimizer, including its learning rate. Put wrappers that
            skip or discard steps, such as `optax.MultiSteps`, around the whole instead.
        pruning: any pruning transformation: `prune_by`, `prune_to_sparsity`, or one of
            them in wrappers such as `optax.masked`. It receives the gradients.

    Returns:
        A transformation with the state `HidePrunedState`. `update` needs params, and
        returns updates in their dtypes. It passes the extra argument `prune` only to
        `pruning`, and all others to both (so line searches and `optax.lbfgs` work
        inside). At a pruning step of any kind it restarts the counters of updates in
        `optimizer` (`StepsSincePruning`).

    Raises:
        TypeError: if an argument is not an optax transformation.
        ValueError: from `init`, if `pruning` does not prune or contains an optimizer,
            or if `optimizer` contains a transformation that prunes on the argument
            `prune`; from `update`, as for `pruning`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> tx = sparse_optax.hide_pruned(
        ...     optax.adam(0.1), sparse_optax.prune_by(sparse_optax.saliency, 0.5)
        ... )
        >>> params, grads = jnp.array([[0.3, -0.1, 2.0, 0.2]]), jnp.ones((1, 4))
        >>> updates, state = tx.update(grads, tx.init(params), params, prune=True)
        >>> print(optax.apply_updates(params, updates).round(1))
        [[0.2 0.  1.9 0. ]]
        >>> print(state.optimizer[0].mu.round(1))  # Adam's first moment
        [[0.1 0.  0.1 0. ]]
    """
    check_optimizer("optimizer", optimizer)
    check_optimizer("pruning", pruning)
    optimizer = optax.with_extra_args_support(optimizer)
    pruning = optax.with_extra_args_support(pruning)

    def init_fn(params) -> Any:
        pruning_state = pruning.init(params)  # first, since it checks the params
        try:
            _find_states.prune_states(pruning_state)
        except ValueError as error:
            raise ValueError(
                "pruning must be a pruning transformation such as prune_by_magnitude, "
                "and comes after the optimizer: hide_pruned(optimizer, pruning); got "
                f"{pruning}, without masks in its state."
            ) from error
        _check_hides_nothing(pruning_state)
        inner = optimizer.init(params)
        _check_nothing_waits_for_prune(inner)
        return HidePrunedState(inner, pruning_state)

    def update_fn(
        updates, state, params: Any = None, *, prune=False, **extra_args
    ) -> Any:
        _arguments.check_params(params)
        _arguments.check_state(state, HidePrunedState)
        before = _find_states.num_pruning_steps(state.pruning)
        # Its updates are discarded: only the masks in its state are needed here.
        with_grad = {"grad": updates, **extra_args}
        _, pruning_state = pruning.update(
            updates, state.pruning, params, prune=prune, **with_grad
        )
        masks = _find_states.get_masks(pruning_state)
        has_pruned = _find_states.num_pruning_steps(pruning_state) > before
        inner = restart(state.optimizer, has_pruned)
        updates, inner = update_hidden(
            optimizer, updates, inner, params, masks, **extra_args
        )
        return updates, HidePrunedState(inner, pruning_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def update_hidden(
    optimizer: optax.GradientTransformationExtraArgs,
    updates: optax.Updates,
    opt_state: optax.OptState,
    params: optax.Params,
    masks: optax.Params,
    **extra_args: Any,
) -> tuple[optax.Updates, optax.OptState]:
    """An optimizer's update of the remaining network; sets pruned weights to 0."""
    # Clear moments only here, in the pass that updates them: if the new moments were
    # masked too, XLA would write both to memory.
    opt_state = clear_pruned(opt_state, masks)
    hidden, weights = hide(updates, masks), hide(params, masks)
    if "grad" in extra_args:
        extra_args["grad"] = hide(extra_args["grad"], masks)
    updates, opt_state = optimizer.update(hidden, opt_state, weights, **extra_args)
    return _pruning.make_zero(updates, masks, params), opt_state


def check_optimizer(name: str, value: Any) -> None:
    """Raises unless `value` is one of optax's transformations."""
    if isinstance(value, optax.MultiSteps):
        raise TypeError(f"{name} must not be optax.MultiSteps: put MultiSteps outside.")
    if not isinstance(value, optax.GradientTransformation):
        raise TypeError(f"{name} must be an optax transformation; got {value!r}.")


def hide(tree: Any, masks: optax.Params) -> Any:
    """Zeros where weights are pruned."""
    return _trees.rebox(zero_pruned(_trees.unbox(tree), masks), like=tree)


def _check_nothing_waits_for_prune(opt_state: optax.OptState) -> None:
    """Raises if an optimizer contains a transformation that waits for `prune`."""

    def is_pruning(node):
        return isinstance(node, PruneState)

    for node in jax.tree.leaves(opt_state, is_leaf=is_pruning):
        if is_pruning(node) and node.num_updates is None:
            raise ValueError(
                "optimizer contains a pruning transformation that would never prune: "
                "hide_pruned does not pass `prune` to the optimizer. Pass it as "
                "`pruning`."
            )


def _check_hides_nothing(pruning_state: optax.OptState) -> None:
    """Raises if `pruning` contains an optimizer."""

    def is_hiding(node):
        return isinstance(node, HidePrunedState)

    if any(map(is_hiding, jax.tree.leaves(pruning_state, is_leaf=is_hiding))):
        raise ValueError(
            "pruning must be a pruning transformation alone; got one that has an "
            "optimizer inside: hide_pruned, relevance_pruning or sparse_training."
        )


def clear_pruned(opt_state: optax.OptState, masks: optax.Params) -> optax.OptState:
    """Zeroes the moments of pruned weights in an optimizer's state."""
    boxed, opt_state = opt_state, _trees.unbox(opt_state)
    of_memory = memory_masks(opt_state, masks)
    return _trees.rebox(_trees.map_masks(_keep, of_memory, opt_state), like=boxed)


def memory_masks(opt_state: optax.OptState, masks: optax.Params) -> optax.Params:
    """The masks of the moments, or similar arrays, in a state without boxes.

    Such arrays are floating, have the shape of their weight, and are in a part of the
    state that has the tree of the params. Elsewhere there is `optax.MaskedNode()`.
    """
    masks = _trees.unbox(masks)
    if not jax.tree.leaves(masks) or getattr(masks, "shape", None) == ():
        # A single scalar cannot be distinguished from a hyperparameter.
        return jax.tree.map(lambda _: optax.MaskedNode(), opt_state)

    def is_like_params(node):
        try:
            _trees.map_aligned(lambda *_: None, masks, node)
        except ValueError:
            return False
        return True

    def mask_of(_, mask, x):
        is_memory = getattr(x, "shape", None) == getattr(mask, "shape", None)
        if _trees.is_masked(mask) or not (is_memory and _is_floating(x)):
            return optax.MaskedNode()
        return mask

    def find(node):
        if not is_like_params(node):
            return optax.MaskedNode()
        return _trees.map_aligned(mask_of, masks, node)

    return jax.tree.map(find, opt_state, is_leaf=is_like_params)


def _is_floating(x):
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


@jax.jit  # compile it outside of jit too
def _keep(mask, x):
    return jnp.where(mask, x, jnp.zeros_like(x))
