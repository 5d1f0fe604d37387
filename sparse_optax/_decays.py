"""Decays that shrink weights before they are removed: l1 and LOBSTER.

Like `add_relevance_decay`, they restart their schedules at every pruning step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparse_optax import (
    _arguments,
    _fit,
    _leaves,
    _relevance,
    _trees,
    _unit_decays,
)
from sparse_optax._arguments import ScalarOrSchedule
from sparse_optax._compaction.groups import ChannelGroups
from sparse_optax._leaves import Mask
from sparse_optax._restart import StepsSincePruning, restart


def add_l1_decay(
    strength: ScalarOrSchedule,
    *,
    structure: ChannelGroups | None = None,
    mask: Mask | None = "matrices",
) -> optax.GradientTransformationExtraArgs:
    r"""Shrinks all weights alike: adds the gradient of an l1 penalty.

    .. math:: u_i = g_i + \gamma \, \mathrm{sign}(w_i)

    Put it first in a chain, where updates are the gradient. For decoupled decay, put it
    between an optimizer without learning rate and `optax.scale_by_learning_rate`.

    Args:
        strength: gamma >= 0, or an optax schedule of the number of updates since the
            last pruning step, as in `add_relevance_decay`.
        structure: groups of units (see `channel_groups`), for the group lasso in place
            of l1: :math:`\gamma \sum_{u \ni i} w_i / \lVert w_u \rVert`, summed over
            the units of a weight.
        mask: which leaves decay, as in `prune_by_magnitude`; or which groups, as in
            `ChannelGroups`.

    Returns:
        A transformation with the state `StepsSincePruning`. `update` needs params. The
        updates have the dtype that `optax.add_decayed_weights` would give them.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if `strength` is out of range, if `mask` or `structure` does not fit
            or selects nothing, or if `update` gets no params.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> tx = sparse_optax.add_l1_decay(0.5)
        >>> params, grads = jnp.array([[3.0, -0.1, 0.0]]), jnp.ones((1, 3))
        >>> updates, state = tx.update(grads, tx.init(params), params)
        >>> print(updates)
        [[1.5 0.5 1. ]]

    References:
        Tibshirani, `Regression Shrinkage and Selection via the Lasso
        <https://doi.org/10.1111/j.2517-6161.1996.tb02080.x>`_, 1996; for pruning Han et
        al, `Learning both Weights and Connections for Efficient Neural Networks
        <https://arxiv.org/abs/1506.02626>`_, 2015; for groups Wen et al, `Learning
        Structured Sparsity in Deep Neural Networks <https://arxiv.org/abs/1608.03665>`_,
        2016.
    """
    mask, structure = _unit_decays.check_structure(mask, structure)
    if structure is None:
        return _add_decay(strength, mask, lambda gamma, w, _: gamma * jnp.sign(w))

    def inverse_norm(total, _):
        return jnp.where(total > 0, jax.lax.rsqrt(jnp.where(total > 0, total, 1)), 0)

    def inverse_norms(params):
        squares = jax.tree.map(
            lambda w: jnp.square(jnp.asarray(w, jnp.float32)), params
        )
        return _unit_decays.factors(structure, squares, inverse_norm)

    return _add_decay(
        strength,
        mask,
        lambda gamma, w, factor: gamma * factor.astype(w.dtype) * w,
        of_params=inverse_norms,
    )


def add_lobster_decay(
    strength: ScalarOrSchedule, *, mask: Mask | None = "matrices"
) -> optax.GradientTransformationExtraArgs:
    r"""Shrinks weights that the loss is not sensitive to, in a finished update.

    .. math:: u_i' = u_i - \lambda \max(0, 1 - |g_i|) \, w_i

    Put it after the optimizer and its learning rate, before the pruning transformation.
    Updates are no longer gradients there, so `update` takes the gradients as `grad`.
    The paper also chooses a pruning threshold by the validation loss; this does not.

    Args:
        strength: lambda >= 0, or an optax schedule of the number of updates since the
            last pruning step, as in `add_relevance_decay`.
        mask: which leaves decay, as in `prune_by_magnitude`.

    Returns:
        A transformation with the state `StepsSincePruning`. `update` needs params and
        the extra argument `grad`, a tree like params: g, or any estimate of `|g|`. A
        weight does not decay where `grad` is NaN. Under `optax.MultiSteps`, `grad` is
        the gradient of the last mini-batch.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if `strength` is out of range, if `mask` does not fit or selects
            nothing, or if `update` gets no params or no `grad`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> tx = optax.chain(optax.sgd(0.1), sparse_optax.add_lobster_decay(0.5))
        >>> params, grads = jnp.array([[1.0, 1.0]]), jnp.array([[0.0, 3.0]])
        >>> updates, state = tx.update(grads, tx.init(params), params, grad=grads)
        >>> print(updates)  # only the weight without gradient decays
        [[-0.5 -0.3]]

    References:
        Tartaglione et al, `LOSS-Based SensiTivity rEgulaRization: towards deep sparse
        neural networks <https://arxiv.org/abs/2011.09905>`_, 2022.
    """

    def decay(gamma, w, grad):
        abs_grad = jnp.abs(jnp.asarray(grad, w.dtype))
        return -(gamma * jnp.where(abs_grad < 1, 1 - abs_grad, 0) * w)

    return _add_decay(strength, mask, decay, needs_grad="add_lobster_decay")


def _add_decay(
    strength: ScalarOrSchedule,
    mask: Mask | None,
    decay: Callable[..., jax.Array],
    needs_grad: str | None = None,
    of_params: Callable[[optax.Params], optax.Params] = lambda params: params,
) -> optax.GradientTransformationExtraArgs:
    """Adds `decay(strength, w, x)` to updates, with a strength that restarts.

    Here x is the gradient if `needs_grad`, else a leaf of `of_params(params)`.
    """
    _arguments.check_number("strength", strength)
    _leaves.check_mask(mask)

    def init_fn(params):
        _leaves.select_leaves(mask, params)  # errors belong here, not in the first step
        return StepsSincePruning(jnp.zeros([], jnp.int32))

    def update_fn(
        updates, state, params: Any = None, *, prune=False, grad=None, **extra_args
    ) -> Any:
        del extra_args
        _arguments.check_params(params)
        _arguments.check_state(state, StepsSincePruning)
        _fit.check_fits(params, updates, "updates", like="params")
        if needs_grad:
            if grad is None:
                raise ValueError(
                    f"{needs_grad} needs the gradients, and grad is None: give update "
                    "the extra argument grad=grads."
                )
            _fit.check_fits(params, grad, "grad", like="params")
        state = restart(state, _arguments.as_flag(prune))
        steps = state.num_steps
        strength_now = _arguments.value_at("strength", strength, steps)
        strength_now = jnp.where(strength_now > 0, strength_now, 0)

        def shrink(selected, w, g):
            if not selected:
                return optax.MaskedNode()
            w = jnp.asarray(w, _trees.common_dtype(w, jnp.float32))
            return decay(strength_now.astype(w.dtype), w, g)

        selected = _leaves.select_leaves(mask, params)
        others = grad if needs_grad else of_params(params)
        shrinkage = jax.tree.map(shrink, selected, params, others)
        updates = _relevance.add_shrinkage(updates, shrinkage, params)
        return updates, StepsSincePruning(jnp.asarray(optax.safe_increment(steps)))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
