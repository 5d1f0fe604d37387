"""Reaching the masks inside an optimizer state, however it is wrapped.

A state is a tree, and the states of this package are nodes of it, wherever `chain`,
`masked`, `multi_transform`, `MultiSteps`, `nnx.Optimizer` and others have put them.
They are replaced in place; nothing else of the tree changes.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_optax import _arguments, _pruning, _trees
from sparse_optax._arguments import Scope
from sparse_optax._masks import is_zero, zero_pruned
from sparse_optax._pruning import PruneState
from sparse_optax._relevance import RelevanceDecayState
from sparse_optax._relevance_pruning import RelevancePruningState, clear_pruned
from sparse_optax._trees import Mask

_STATES = (PruneState, RelevanceDecayState, RelevancePruningState)


def prune(
    params: optax.Params,
    opt_state: optax.OptState,
    fraction: float | jax.Array | None = None,
    *,
    sparsity: float | jax.Array | None = None,
    scope: Scope = "global",
) -> tuple[optax.Params, optax.OptState]:
    """Prunes outside a training step: the smallest weights become zero for good.

    Give either `fraction`, of the weights still kept, or `sparsity`, of all prunable
    weights. After an ordinary update it gives the params and masks that
    `tx.update(..., prune=True)` would have given with the same fraction and scope: the
    ones given here count, those of the link play no part. Its floors do, `min_kept` and
    `max_sparsity`, which are in the state. It also does what else a prune does: the
    schedules of `add_relevance_decay` restart, and `relevance_pruning` clears its
    optimizer's moments of what is gone.

    Where a state holds several pruning links, as under `optax.multi_transform`, each
    prunes its own weights by that fraction or to that sparsity.

    Args:
        params: the weights.
        opt_state: the state of an optimizer with a pruning link anywhere in it.
        fraction: of the remaining prunable weights of each link, in [0, 1].
        sparsity: of the prunable weights of each link, in [0, 1]. At most what is
            already reached does nothing but count as a prune.
        scope: "global" or "leaf", as in `prune_by_magnitude`.

    Returns:
        New `(params, opt_state)`, of the same structure. What was given is not donated;
        `jax.jit(sparse_optax.prune, donate_argnums=(0, 1))` overwrites it, which is
        faster where there are many weights. Compiled once for each tree; usable inside
        `jit`.

    Raises:
        TypeError: if a number is of the wrong type.
        ValueError: if one is out of range, if both or none are given, if `opt_state`
            has no masks, or if they are not those of `params`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> tx = optax.chain(optax.adam(0.1), sparse_optax.prune_by_magnitude(0.5))
        >>> params = jnp.array([0.3, -0.1, 2.0, 0.2])
        >>> params, state = sparse_optax.prune(params, tx.init(params), sparsity=0.75)
        >>> print(params)
        [0. 0. 2. 0.]
    """
    if (fraction is None) == (sparsity is None):
        raise ValueError(
            "give either fraction or sparsity; got "
            f"fraction={fraction!r} and sparsity={sparsity!r}."
        )
    for name, value in (("fraction", fraction), ("sparsity", sparsity)):
        if value is not None:
            _arguments.check_number(name, value, high=1.0, schedule=False)
    _arguments.check_scope(scope)
    weights = _trees.unbox(params)

    def prune_link(state: PruneState) -> PruneState:
        nonlocal weights
        _trees.check_masks_fit(state.masks, weights, "params")
        weights, state = _prune(weights, state, fraction, sparsity, scope)
        return state

    def restart(state: RelevanceDecayState) -> RelevanceDecayState:
        return RelevanceDecayState(jnp.zeros_like(state.steps_since_prune))

    opt_state = _replace_states(opt_state, prune_link, restart)
    return _trees.rebox(weights, like=params), opt_state


@functools.partial(jax.jit, static_argnames="scope")
def _prune(params, state, fraction, sparsity, scope):
    if fraction is not None:
        amount = _pruning.fraction_of_remaining(fraction)
    else:
        amount = _pruning.up_to_sparsity(sparsity)
    state = _pruning.drop_weights(state, params, amount, scope)
    return zero_pruned(params, state.masks), state


def masks_from_zeros(
    params: optax.Params, opt_state: optax.OptState, mask: Mask | None = None
) -> optax.OptState:
    """Marks every weight that is exactly zero as pruned.

    With it one goes on from a network that is already sparse.

    Args:
        params: the weights.
        opt_state: the state of an optimizer with a pruning link anywhere in it.
        mask: the leaves in which zeros are pruned weights: a tree of booleans, a prefix
            of one, or a function from params to one. By default all that the pruning
            links take part in; mind biases, which start at zero.

    Returns:
        The state with new masks. Weights pruned before stay so; no prune is counted.

    Raises:
        TypeError: if `mask` holds something else than booleans.
        ValueError: if `opt_state` has no masks, if they are not those of `params`, or
            if `mask` does not fit or selects nothing.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> params = jnp.array([0.0, -0.1, 2.0, 0.0])
        >>> tx = sparse_optax.prune_by_magnitude(0.1)
        >>> state = sparse_optax.masks_from_zeros(params, tx.init(params))
        >>> print(sparse_optax.get_masks(state))
        [False  True  True False]
    """
    weights = _trees.unbox(params)
    selected = _trees.select_leaves(mask, weights)

    def mark_link(state: PruneState) -> PruneState:
        _trees.check_masks_fit(state.masks, weights, "params")
        masks = _trees.map_masks(
            lambda m, _, w, s: m & ~is_zero(w) if s else m,
            *(state.masks, state.masks, weights, selected),
        )
        return state._replace(masks=masks)

    return _replace_states(opt_state, mark_link, lambda decay: decay)


def get_masks(opt_state: optax.OptState) -> optax.Params:
    """The masks of all pruning links in a state, as one tree.

    Args:
        opt_state: the state of an optimizer with a pruning link anywhere in it.

    Returns:
        A tree like the params of booleans, True for the weights that are kept, with
        `optax.MaskedNode()` for leaves that no link prunes. Where several links prune
        the same leaf, a weight is kept if all of them keep it.

    Raises:
        ValueError: if `opt_state` has no masks.

    Examples:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> tx = optax.chain(optax.adam(0.1), sparse_optax.prune_by_magnitude(0.5))
        >>> params = jnp.array([0.3, -0.1, 2.0, 0.2])
        >>> params, state = sparse_optax.prune(params, tx.init(params), 0.5)
        >>> print(sparse_optax.get_masks(state))
        [ True False  True False]
    """

    def both(a, b):
        if _trees.is_masked(a) or _trees.is_masked(b):
            return b if _trees.is_masked(a) else a
        return a & b

    masks = [state.masks for state in prune_states(opt_state)]
    return functools.reduce(functools.partial(_trees.map_aligned, both), masks)


def check_sparsity(params: optax.Params, opt_state: optax.OptState) -> None:
    """Raises if weights that the masks call pruned are not zero.

    What comes after a pruning link, or wraps it and keeps weights of its own, can bring
    pruned weights back without a word. Zeros are kept by `optax.chain` (the pruning
    link last), `masked`, `multi_transform`, `MultiSteps`, `apply_if_finite` and
    `inject_hyperparams`. They are lost by a link after the pruning one, by `lookahead`
    (in its slow weights), by `contrib.mechanize`, by `contrib.schedule_free` (inside
    the chain, in its evaluation weights), and by a moving average of the params;
    `apply_masks` restores them. Call this on the weights that will be used.

    Args:
        params: concrete weights (not inside `jit`).
        opt_state: the state of an optimizer with a pruning link anywhere in it.

    Raises:
        TypeError: if a mask was cast to another dtype, naming its path.
        ValueError: if `opt_state` has no masks, if they do not fit `params`, or if
            weights are not zero where they should be, naming their paths.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> tx = sparse_optax.prune_by_magnitude(0.1)
        >>> params = {"w": jnp.array([0.0, -0.1, 2.0, 0.0])}
        >>> state = sparse_optax.masks_from_zeros(params, tx.init(params))
        >>> sparse_optax.check_sparsity(params, state)
        >>> sparse_optax.check_sparsity({"w": params["w"] + 1}, state)
        Traceback (most recent call last):
        ...
        ValueError: pruned weights are not zero: 2 of 2 at w.
    """
    weights = _trees.unbox(params)
    revived = []
    for state in prune_states(opt_state):
        _trees.check_masks_fit(state.masks, weights, "params")

        def check(path, mask, weight):
            if _trees.is_masked(mask):
                return
            nonzero = int(np.count_nonzero(~mask & ~is_zero(jnp.asarray(weight))))
            if nonzero:
                pruned = int(np.count_nonzero(~mask))
                revived.append(f"{nonzero} of {pruned} at {_trees.leaf_name(path)}")

        jax.tree_util.tree_map_with_path(
            check, state.masks, weights, is_leaf=_trees.is_masked
        )
    if revived:
        raise ValueError(f"pruned weights are not zero: {'; '.join(revived)}.")


def prune_states(opt_state: optax.OptState) -> list[PruneState]:
    """The states of all pruning links, or an error if there is none."""
    found = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, PruneState))
    found = [_trees.unbox(state) for state in found if isinstance(state, PruneState)]
    if not found:
        raise ValueError(
            "opt_state has no masks: its optimizer has no prune_by_magnitude, "
            "prune_to_sparsity or relevance_pruning."
        )
    return found


def _replace_states(
    opt_state: optax.OptState,
    new_pruning: Callable[[PruneState], PruneState],
    new_decay: Callable[[RelevanceDecayState], RelevanceDecayState],
) -> optax.OptState:
    """Replaces the states of this package, which the functions get without boxes."""
    prune_states(opt_state)  # an error if there is none

    def replace(state):
        match state:
            case PruneState():
                return new_pruning(state)
            case RelevanceDecayState():
                return new_decay(state)
            case RelevancePruningState():
                pruning = new_pruning(state.pruning)
                return RelevancePruningState(
                    decay=new_decay(state.decay),
                    optimizer=clear_pruned(walk(state.optimizer), pruning.masks),
                    pruning=pruning,
                )

    def visit(node):
        if not isinstance(node, _STATES):
            return node
        return _trees.rebox(replace(_trees.unbox(node)), like=node)

    def walk(tree):
        return jax.tree.map(visit, tree, is_leaf=lambda x: isinstance(x, _STATES))

    return walk(opt_state)
