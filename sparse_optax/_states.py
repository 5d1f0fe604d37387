"""Prunes outside a training step, and puts masks into a state.

All of it works through wrappers: a state is a tree, and the states of this package are
nodes of it. These nodes are replaced; the rest of the tree is unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from sparse_optax import (
    _amount_arguments,
    _arguments,
    _fit,
    _leaves,
    _pruning_step,
    _scores,
    _trees,
)
from sparse_optax._criteria import Criterion, Scores
from sparse_optax._find_states import get_masks, prune_states
from sparse_optax._hide_pruned import HidePrunedState, clear_pruned
from sparse_optax._leaves import Mask
from sparse_optax._masks import is_zero, nonzero, zero_pruned
from sparse_optax._prune_state import PruneState
from sparse_optax._restart import restart

Amount = float | jax.Array | Mapping[str, float | jax.Array]


def prune(
    params: optax.Params,
    opt_state: optax.OptState,
    fraction: Amount | None = None,
    *,
    sparsity: Amount | None = None,
    count: int | jax.Array | Mapping[str, int] | None = None,
    criterion: Criterion | None = None,
    scores: Scores | None = None,
) -> tuple[optax.Params, optax.OptState]:
    """Prunes outside a training step: the lowest weights become zero for good.

    Give one of `fraction`, `sparsity` and `count`, to override the amount of the
    transformation. Its other settings (structure, distribution, caps, leaves) are in
    the state and apply here too. As in `update(..., prune=True)`, counters of updates
    since the last pruning step restart, and `hide_pruned` clears its optimizer's
    moments of pruned weights.

    If a state has several pruning transformations, as under `optax.multi_transform`,
    each prunes its own weights by this amount.

    Args:
        params: the weights.
        opt_state: the state of an optimizer with a pruning transformation in it.
        fraction: the fraction of each transformation's remaining units to remove, in
            [0, 1], or a dict from regular expressions of names to fractions.
        sparsity: the sparsity of each transformation's units, in [0, 1], or such a
            dict. If it is already reached, nothing is removed, but the step counts.
        count: the number of units to remove, or such a dict.
        criterion: how to rank units, from weights alone: `magnitude`, `random(key)`.
            Needed if the transformation has a criterion other than `magnitude`.
        scores: a tree of precomputed scores like `params`, instead of `criterion`: for
            example `saliency(params, grads)`, or statistics of activations.

    Returns:
        New `(params, opt_state)`, of the same structure. The arguments are not donated;
        `jax.jit(sparse_optax.prune, donate_argnums=(0, 1))` donates them, which is
        faster for many weights. Compiled once for all trees of the same shapes.

    Raises:
        TypeError: if an argument is of the wrong type, or if a leaf of `params` with a
            mask is not a weight.
        ValueError: if a number is out of range, if more than one amount is given or
            none where one is needed, if neither `criterion` nor `scores` is given where
            one is needed, if both are given, if `opt_state` has no masks, or if the
            masks or `scores` do not fit `params`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> tx = optax.chain(optax.adam(0.1), sparse_optax.prune_by_magnitude(0.5))
        >>> params = jnp.array([[0.3, -0.1, 2.0, 0.2]])
        >>> params, state = sparse_optax.prune(params, tx.init(params), sparsity=0.75)
        >>> print(params)
        [[0. 0. 2. 0.]]
    """
    if _trees.is_array(opt_state):
        raise TypeError(
            "opt_state must be the state of an optimizer; got "
            f"{_trees.describe(opt_state)}. Pass the parts of a training state: "
            "prune(state.params, state.opt_state, fraction)."
        )
    if criterion is not None:
        _arguments.check_callable("criterion", criterion)
        if scores is not None:
            raise ValueError("give either criterion or scores; got both.")
    _fit.check_tree(params, "params")
    weights = _trees.unbox(params)
    amounts = {"fraction": fraction, "sparsity": sparsity, "count": count}

    def drop(state: PruneState) -> PruneState:
        nonlocal weights
        _fit.check_masks_fit(state.masks, params, "params")
        structure = state.rules.structure.value
        kind, value = _amount_arguments.the_amount(structure, schedule=False, **amounts)
        _amount_arguments.check_amount_is_given(kind, structure)
        ranking = scores
        if scores is not None:
            _scores.check_scores(state.masks, scores)
        elif criterion is not None:
            ranking = _scores.scores_of(criterion, state.masks, weights, None)
        elif not state.rules.by_magnitude:
            raise ValueError(
                "the transformation does not rank by magnitude, and opt_state does not "
                "contain its criterion: pass criterion, or scores such as "
                "saliency(params, grads)."
            )
        _amount_arguments.check_amount_fits(kind, value, state)
        amount = _amount_arguments.amount_at(
            kind, value, state.num_pruning_steps, state
        )
        weights, state = _drop(weights, state, ranking, kind, amount)
        return state

    opt_state = replace_pruning(opt_state, drop)
    return _trees.rebox(weights, like=params), restart(opt_state)


@functools.partial(jax.jit, static_argnames="kind")
def _drop(params, state, scores, kind, amount):
    state = _pruning_step.remove_units(state, params, scores, kind, amount)
    return zero_pruned(params, state.masks), state


def replace_pruning(
    opt_state: optax.OptState, new_pruning: Callable[[PruneState], PruneState]
) -> optax.OptState:
    """Replaces each state of a pruning transformation by `new_pruning(unboxed state)`.

    Inside `hide_pruned`, the optimizer's moments of pruned weights are cleared.
    """
    prune_states(opt_state)  # raises if there are none
    kinds = PruneState, HidePrunedState

    def replace(node):
        if isinstance(node, PruneState):
            return _trees.rebox(new_pruning(_trees.unbox(node)), like=node)
        if isinstance(node, HidePrunedState):
            pruning, inner = walk(node.pruning), walk(node.optimizer)
            return HidePrunedState(clear_pruned(inner, get_masks(pruning)), pruning)
        return node

    def walk(tree):
        return jax.tree.map(replace, tree, is_leaf=lambda x: isinstance(x, kinds))

    return walk(opt_state)


def masks_from_zeros(
    params: optax.Params,
    opt_state: optax.OptState,
    mask: Mask | None = "matrices",
) -> optax.OptState:
    """Marks every weight that is exactly zero as pruned.

    Use it to resume from an already sparse network whose masks are not stored.
    `set_masks` puts given masks into a state.

    Args:
        params: the weights.
        opt_state: the state of an optimizer with a pruning transformation in it.
        mask: the leaves in which zeros are pruned weights, as in `prune_by_magnitude`;
            leaves that no transformation prunes are left out. By default, only
            matrices, since biases often start at zero.

    Returns:
        The state with new masks. Weights pruned before stay pruned; no pruning step is
        counted.

    Raises:
        TypeError: if `mask` contains leaves that are not booleans, or if a leaf of
            `params` with a mask is not a weight.
        ValueError: if `opt_state` has no masks, if they do not fit `params`, or if
            `mask` does not fit or selects nothing.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> params = jnp.array([[0.0, -0.1, 2.0, 0.0]])
        >>> tx = sparse_optax.prune_by_magnitude(0.1)
        >>> state = sparse_optax.masks_from_zeros(params, tx.init(params))
        >>> print(sparse_optax.get_masks(state))
        [[False  True  True False]]
    """
    _fit.check_tree(params, "params")
    for state in prune_states(opt_state):
        _fit.check_masks_fit(state.masks, params, "params")
    weights = _trees.unbox(params)
    selected = _leaves.select_leaves(mask, weights)

    def keep(mask, weight, flag):
        if _trees.is_masked(mask) or not flag:
            return mask
        return mask & ~is_zero(jnp.asarray(weight))

    def mark(state: PruneState) -> PruneState:
        masks = jax.tree.map(
            keep, state.masks, weights, selected, is_leaf=_trees.is_masked
        )
        return state._replace(masks=masks)

    return replace_pruning(opt_state, mark)


def set_masks(opt_state: optax.OptState, masks: optax.Params) -> optax.OptState:
    """Replaces the masks in a state.

    Use it for masks of another optimizer or run: a rewound network (a lottery ticket),
    a new head, another pruning transformation. Masks that are True everywhere release
    all weights. The weights are not changed; `apply_masks` sets them to zero.

    Args:
        opt_state: the state of an optimizer with a pruning transformation in it.
        masks: a tree of booleans like the params, True for kept weights, as returned by
            `get_masks`; `optax.MaskedNode()` for a leaf without pruned weights. They
            are copied to the devices of the masks in the state.

    Returns:
        The state with these masks; no pruning step is counted. Inside `hide_pruned`,
        the optimizer's moments of pruned weights are cleared.

    Raises:
        TypeError: if a leaf of `masks` is not boolean.
        ValueError: if `opt_state` has no masks, if `masks` have another tree or other
            shapes, or if they prune a leaf that no transformation prunes.

    Examples:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> tx = optax.chain(optax.adam(0.1), sparse_optax.prune_by_magnitude(0.5))
        >>> params = jnp.array([[0.3, -0.1, 2.0, 0.2]])
        >>> masks = jnp.array([[True, False, True, False]])
        >>> state = sparse_optax.set_masks(tx.init(params), masks)
        >>> params = sparse_optax.apply_masks(params, masks)
        >>> print(params)
        [[0.3 0.  2.  0. ]]

    References:
        Frankle and Carbin, `The Lottery Ticket Hypothesis
        <https://arxiv.org/abs/1803.03635>`_, 2018, for rewinding.
    """
    _fit.check_tree(masks, "masks")
    _fit.check_boolean(masks)
    wanted = _trees.unbox(masks)
    unused: list[dict[str, Any]] = []  # masks that a transformation does not use

    def put(state: PruneState) -> PruneState:
        unused.append({})

        def new_mask(path, old, new):
            if _trees.is_masked(old):
                unused[-1].update(_trees.named_leaves(new, path))
                return old
            if _trees.is_masked(new):  # for a leaf, or for a subtree
                return jax.tree.map(jnp.ones_like, old)
            _fit.check_shape(path, old, new, "masks", like="those in the state")
            return _copy_to(old, new)

        new = _fit.map_aligned(
            new_mask, state.masks, wanted, "masks", like="those in the state"
        )
        return state._replace(masks=new, revived=jnp.zeros_like(state.revived))

    opt_state = replace_pruning(opt_state, put)
    for name in set.intersection(*map(set, unused)):
        mask = unused[0][name]
        is_whole = _trees.is_masked(mask) or (
            not isinstance(mask, Tracer) and mask.all()
        )
        if not is_whole:
            raise ValueError(
                f"masks has pruned weights at {name}, which no pruning transformation "
                "of opt_state prunes."
            )
    return opt_state


def _copy_to(old, new):
    """A copy of `new` that is placed like `old`, and can be donated like it."""
    new = jnp.array(new, copy=True)
    if isinstance(old, Tracer) or isinstance(new, Tracer):
        return new
    return jax.device_put(new, getattr(old, "sharding", None))


def check_sparsity(params: optax.Params, opt_state: optax.OptState) -> None:
    """Raises if pruned weights are not zero.

    A transformation after the pruning one, or a wrapper that keeps its own weights, can
    silently bring pruned weights back. Zeros survive `optax.chain` (with the pruning
    transformation last), `masked`, `multi_transform`, `MultiSteps`, `apply_if_finite`
    and `inject_hyperparams`. They do not survive a transformation after the pruning
    one, `lookahead` (in its slow weights), `contrib.mechanize`, `contrib.schedule_free`
    (inside the chain, in its evaluation weights), or a moving average of the params;
    `apply_masks` restores them. Call this on the weights that will be used.

    Args:
        params: concrete weights (not inside `jit`).
        opt_state: the state of an optimizer with a pruning transformation in it.

    Raises:
        TypeError: if a mask was cast to another dtype, naming its path; if a leaf of
            `params` with a mask is not a weight; or if an array is traced.
        ValueError: if `opt_state` has no masks, if they do not fit `params`, or if
            weights are not zero where they should be, naming their paths.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> tx = sparse_optax.prune_by_magnitude(0.1)
        >>> params = {"w": jnp.array([[0.0, -0.1, 2.0, 0.0]])}
        >>> state = sparse_optax.masks_from_zeros(params, tx.init(params))
        >>> sparse_optax.check_sparsity(params, state)
        >>> changed = {"w": params["w"] + 1}
        >>> sparse_optax.check_sparsity(changed, state)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: pruned weights are not zero: 2 of 2 at w. Put ...
    """
    _fit.check_tree(params, "params")
    states = prune_states(opt_state)
    _fit.check_concrete(
        (params, states),
        "check_sparsity",
        "Inside, a pruning step counts such weights in the state, as `revived`.",
    )
    revived = []
    for state in states:
        _fit.check_masks_fit(state.masks, params, "params")

        def check(path, mask, weight):
            if _trees.is_masked(mask):
                return
            pruned = ~np.asarray(mask)
            num_nonzero = np.count_nonzero(pruned & nonzero(np.asarray(weight)))
            if num_nonzero:
                num_pruned = np.count_nonzero(pruned)
                name = _trees.leaf_name(path)
                revived.append(f"{num_nonzero} of {num_pruned} at {name}")

        jax.tree_util.tree_map_with_path(
            check, state.masks, _trees.unbox(params), is_leaf=_trees.is_masked
        )
    if revived:
        raise ValueError(
            f"pruned weights are not zero: {'; '.join(revived)}. Put the pruning "
            "transformation last in the chain. If the params were replaced, call "
            "apply_masks(params, get_masks(opt_state))."
        )
