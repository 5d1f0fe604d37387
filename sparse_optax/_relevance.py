"""Relevance of weights, and the decay that shrinks the irrelevant ones.

A weight is relevant if the loss reacts to it: with g = dL/dw, its irrelevance is
`I = exp(-|g| / scale)`, 1 for a gradient of zero and near 0 for a large one. Adding the
penalty R = strength * sum_i I_i w_i^2 with I held constant shrinks the irrelevant
weights and leaves the relevant ones to the usual update. The gradient of R is known in
closed form, so one backward pass is enough.

Source: Bonetta, Ribero and Cancelliere, `Regularization-based Pruning of Irrelevant
Weights in Deep Neural Architectures <https://arxiv.org/abs/2204.04977>`_, 2022. There,
`strength` is gamma and `scale` is alpha.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparse_optax import _arguments, _fit, _leaves, _trees, _unit_decays
from sparse_optax._arguments import ScalarOrSchedule
from sparse_optax._compaction.groups import ChannelGroups
from sparse_optax._exponential import exp_of_minus
from sparse_optax._leaves import Mask
from sparse_optax._restart import StepsSincePruning, restart
from sparse_optax._trees import PyTree

IrrelevanceFn = Callable[[jax.Array, jax.Array], jax.Array]


def irrelevance(grads: optax.Updates, scale: float | jax.Array = 1.0) -> optax.Updates:
    r"""How irrelevant each weight is, by the size of its gradient.

    .. math:: I_i = \exp(-|g_i| / \alpha)

    Args:
        grads: the gradient of the unregularised loss.
        scale: alpha > 0, in the units of the gradient.

    Returns:
        A tree like `grads` of `float32` in [0, 1], where 1 is irrelevant, with an
        absolute error below 1e-6; subnormal gradients may count as zeros. It is NaN
        where the gradient is NaN. Leaves that are not arrays of real floating numbers
        of 16 bits or more become `optax.MaskedNode()`.

    Raises:
        TypeError: if `scale` is not a number, or if a leaf of `grads` is not an array.
        ValueError: if `scale` is not above 0.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> grads = {"w": jnp.array([0.0, 0.5, -2.0])}
        >>> held = sparse_optax.irrelevance(grads, scale=0.5)["w"]
        >>> print(jnp.array_str(held, precision=3))
        [1.    0.368 0.018]

    References:
        Bonetta et al, `Regularization-based Pruning of Irrelevant Weights
        <https://arxiv.org/abs/2204.04977>`_, 2022.
    """
    _arguments.check_number("scale", scale, open_low=True, finite=False, schedule=False)
    _fit.check_tree(grads, "grads")
    scale = jnp.asarray(scale, jnp.float32)
    return jax.tree.map(
        lambda g: (
            _irrelevance_of(g, scale, exponential)
            if _trees.is_weight(g)
            else optax.MaskedNode()
        ),
        grads,
        is_leaf=_trees.is_sparse_array,
    )


def is_relevant(
    grads: optax.Updates,
    scale: float | jax.Array = 1.0,
    threshold: float | jax.Array = 0.5,
) -> optax.Updates:
    """Which weights are relevant: their irrelevance is below `threshold`.

    Args:
        grads: the gradient of the unregularised loss.
        scale: alpha > 0, in the units of the gradient.
        threshold: in [0, 1]; at 0.5, weights are relevant if `|g|` > 0.69 * scale.

    Returns:
        A tree like `grads` of booleans, True for relevant weights. False where the
        gradient is NaN. Leaves that are not arrays of real floating numbers of 16 bits
        or more become `optax.MaskedNode()`.

    Raises:
        TypeError: if `scale` or `threshold` is not a number.
        ValueError: if `scale` is not above 0, or `threshold` not in [0, 1].

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> grads = {"w": jnp.array([0.0, 0.5, -2.0])}
        >>> print(sparse_optax.is_relevant(grads, scale=0.5)["w"])
        [False  True  True]
    """
    _arguments.check_number("threshold", threshold, high=1.0, schedule=False)
    return jax.tree.map(lambda i: i < threshold, irrelevance(grads, scale))


def relevance_penalty(
    params: optax.Params,
    grads: optax.Updates,
    strength: float | jax.Array,
    scale: float | jax.Array = 1.0,
    mask: Mask | None = "matrices",
) -> jax.Array:
    r"""The penalty on irrelevant weights, with their relevance held constant.

    .. math:: R = \gamma \sum_i \exp(-|g_i| / \alpha) \, w_i^2

    Its gradient with respect to `params` is what `add_relevance_decay` adds; use the
    penalty for logging, or with a loss that is not trained by an optax chain.

    Args:
        params: the weights w.
        grads: the gradient g of the unregularised loss, a tree like `params`.
        strength: gamma >= 0.
        scale: alpha > 0, in the units of the gradient.
        mask: the leaves to penalise, as in `add_relevance_decay`.

    Returns:
        A `float32` scalar. Gradients do not flow into `grads`.

    Raises:
        TypeError: if `strength` or `scale` is not a number.
        ValueError: if a number is out of range, or if `grads` or `mask` does not fit.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> params, grads = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 50.0]])
        >>> print(sparse_optax.relevance_penalty(params, grads, strength=0.1))
        0.1
    """
    _arguments.check_number("strength", strength, schedule=False)
    _arguments.check_number("scale", scale, open_low=True, finite=False, schedule=False)
    scale = jnp.asarray(scale, jnp.float32)

    def penalty(selected, w, g):
        if not selected:
            return jnp.float32(0)
        held = jax.lax.stop_gradient(_irrelevance_of(g, scale, exponential))
        return jnp.sum(held * jnp.square(jnp.asarray(w, jnp.float32)))

    _fit.check_fits(params, grads, "grads", like="params")
    selected = _leaves.select_leaves(mask, params)
    terms = jax.tree.leaves(jax.tree.map(penalty, selected, params, grads))
    return jnp.asarray(strength, jnp.float32) * sum(terms, jnp.float32(0))


def add_relevance_decay(
    strength: ScalarOrSchedule,
    scale: ScalarOrSchedule = 1.0,
    *,
    irrelevance_fn: IrrelevanceFn | None = None,
    structure: ChannelGroups | None = None,
    mask: Mask | None = "matrices",
) -> optax.GradientTransformationExtraArgs:
    r"""Shrinks irrelevant weights: adds the gradient of `relevance_penalty`.

    .. math:: u_i = g_i + 2 \gamma \exp(-|g_i| / \alpha) \, w_i

    It must be the first transformation of a chain, where updates are still the raw
    gradient. As scale grows, it becomes `optax.add_decayed_weights(2 * strength)`; as
    scale approaches 0, only weights with a gradient of exactly zero decay.

    `optax.inject_hyperparams` evaluates schedules itself, and counts all updates, not
    those since the last pruning step. List schedules that should restart in its
    `static_args`, along with `irrelevance_fn` and `mask`.

    Args:
        strength: gamma >= 0, or an optax schedule of the number of updates since the
            last pruning step. It is 0 at the first update after `init` or
            `sparse_optax.prune`, and at an update with `prune=True`. Inside
            `hide_pruned` it is 0 at every pruning step, including gradual ones. The
            paper's linear decay over N updates is
            `optax.linear_schedule(strength, 0.0, N)`.
        scale: alpha > 0, in the units of the gradient, or a schedule like `strength`.
        irrelevance_fn: takes `|g|` (`float32`, of the shape of the leaf) and the scale,
            and returns the irrelevance I instead of `exp(-|g| / scale)`.
        structure: groups of units (see `channel_groups`), to shrink whole units, which
            is not in the paper: the irrelevance of a unit u is computed from the mean
            size of its gradients, also those of pruned weights, and a weight decays by
            the sum over its units,
            :math:`2 \gamma \sum_{u \ni i} \exp(-\mathrm{mean}_{j \in u} |g_j| / \alpha)
            \, w_i`.
        mask: which leaves decay, as in `prune_by_magnitude`; or which groups, as in
            `ChannelGroups`.

    Returns:
        A transformation with the state `StepsSincePruning`. `update` needs params.
        Relevance is computed in `float32`, and so is the decay (in `float64` for
        `float64` weights); the updates have the dtype that `optax.add_decayed_weights`
        would give them.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a number is out of range, if `mask` does not fit or selects
            nothing, if `irrelevance_fn` returns another shape, or if `update` gets no
            params.

    Examples:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> tx = sparse_optax.add_relevance_decay(strength=0.05, scale=0.1)
        >>> params, grads = jnp.array([[1.0, 1.0]]), jnp.array([[0.0, 3.0]])
        >>> updates, state = tx.update(grads, tx.init(params), params)
        >>> print(updates)  # only the weight without gradient decays
        [[0.1 3. ]]

    References:
        Bonetta et al, `Regularization-based Pruning of Irrelevant Weights
        <https://arxiv.org/abs/2204.04977>`_, 2022.
    """
    init_fn, shrinkage_fn = relevance_shrinkage(
        strength, scale, irrelevance_fn, mask, structure
    )

    def update_fn(updates, state, params=None, **extra_args):
        shrinkage, state = shrinkage_fn(updates, state, params, **extra_args)
        return add_shrinkage(updates, shrinkage, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def relevance_shrinkage(
    strength: ScalarOrSchedule,
    scale: ScalarOrSchedule,
    irrelevance_fn: IrrelevanceFn | None,
    mask: Mask | None,
    structure: ChannelGroups | None = None,
) -> tuple[Callable[..., Any], Callable[..., tuple[PyTree, StepsSincePruning]]]:
    """`init` and `update` of the decay alone, which is 2 * strength * I * w.

    `update` returns the decay instead of the updates, with `optax.MaskedNode()` for
    leaves that do not decay.
    """
    _arguments.check_number("strength", strength)
    _arguments.check_number("scale", scale, open_low=True, finite=False)
    mask, structure = _unit_decays.check_structure(mask, structure)
    _leaves.check_mask(mask)
    if irrelevance_fn is not None:
        _arguments.check_callable("irrelevance_fn", irrelevance_fn)
    irrelevance_of = irrelevance_fn or exponential

    def init_fn(params):
        _leaves.select_leaves(mask, params)  # errors belong here, not in the first step
        return StepsSincePruning(jnp.zeros([], jnp.int32))

    def update_fn(updates, state, params=None, *, prune=False, **extra_args):
        del extra_args
        _arguments.check_params(params)
        _arguments.check_state(state, StepsSincePruning)
        _fit.check_fits(params, updates, "updates", like="params")
        state = restart(state, _arguments.as_flag(prune))
        steps = state.num_steps
        strength_now = _arguments.value_at("strength", strength, steps)
        strength_now = jnp.where(strength_now > 0, strength_now, 0)
        scale_now = _arguments.value_at("scale", scale, steps)

        def irrelevance_now(g):
            held = _irrelevance_of(g, scale_now, irrelevance_of)
            # Relevance is unknown where the gradient is not finite: do not decay there.
            return jnp.where(jnp.isfinite(g), held, 0)

        def of_units(total, num):
            return irrelevance_now(total / num)

        def shrink(selected, held, w):
            if not selected:
                return optax.MaskedNode()
            held = irrelevance_now(held) if structure is None else held
            w = jnp.asarray(w, _trees.common_dtype(w, jnp.float32))
            return jnp.asarray(2 * strength_now * held, w.dtype) * w

        selected = _leaves.select_leaves(mask, params)
        held = updates
        if structure is not None:
            sizes = jax.tree.map(lambda g: jnp.abs(jnp.asarray(g, jnp.float32)), held)
            held = _unit_decays.factors(structure, sizes, of_units)
        shrinkage = jax.tree.map(shrink, selected, held, params)
        return shrinkage, StepsSincePruning(jnp.asarray(optax.safe_increment(steps)))

    return init_fn, update_fn


def add_shrinkage(updates: PyTree, shrinkage: PyTree, params: PyTree) -> PyTree:
    """`updates + shrinkage`, in the common dtype of the updates and params."""

    def add(s, u, w):
        wide, dtype = _trees.common_dtype(u, s), _trees.common_dtype(u, w)
        return (jnp.asarray(u, wide) + jnp.asarray(s, wide)).astype(dtype)

    return _trees.map_masks(add, shrinkage, updates, params)


def exponential(abs_grad: jax.Array, scale: jax.Array) -> jax.Array:
    """exp(-|g| / scale), the paper's irrelevance."""
    # If a schedule takes the scale to 0, a gradient of zero would give 0 / 0.
    return exp_of_minus(abs_grad / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny))


def _irrelevance_of(g: jax.Array, scale: jax.Array, fn: IrrelevanceFn) -> jax.Array:
    abs_grad = jnp.abs(jnp.asarray(g, jnp.float32))
    result = jnp.asarray(fn(abs_grad, scale), jnp.float32)
    if result.shape not in ((), abs_grad.shape):
        raise ValueError(
            f"irrelevance_fn must keep the shape {abs_grad.shape} of a leaf; it "
            f"returned shape {result.shape}."
        )
    return result
