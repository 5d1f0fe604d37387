"""Pruning without an optimizer, and training through masks."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import optax

from sparse_optax import _criteria, _masks, _pruning, _states
from sparse_optax._caps import Caps
from sparse_optax._criteria import Criterion, Scores
from sparse_optax._find_states import get_masks
from sparse_optax._layers import StructureArgument
from sparse_optax._leaves import Mask
from sparse_optax._prune_state import Distribution
from sparse_optax._states import Amount
from sparse_optax._structures import Unstructured


def one_shot(
    params: optax.Params,
    sparsity: Amount | None = None,
    *,
    count: int | jax.Array | Mapping[str, int] | None = None,
    criterion: Criterion | None = None,
    scores: Scores | None = None,
    structure: StructureArgument = Unstructured(),
    distribution: Distribution = "global",
    stacked: Mapping[str, int] | None = None,
    min_kept: Caps | None = None,
    max_sparsity: Caps | None = None,
    mask: Mask | None = "matrices",
) -> tuple[optax.Params, optax.Params]:
    """Prunes a network once, without an optimizer.

    Args:
        params: the weights.
        sparsity: the sparsity of the prunable units, in [0, 1]; or a dict from regular
            expressions of names to sparsities.
        count: the number of units to remove, instead of `sparsity`.
        criterion: how to rank units, from weights alone; by default `magnitude`.
        scores: a tree of scores like `params`, instead of `criterion`:
            `saliency(params, grads)` at initialisation is SNIP.
        structure: as in `prune_by`.
        distribution: as in `prune_by`.
        stacked: as in `prune_by`.
        min_kept: as in `prune_by`.
        max_sparsity: as in `prune_by`.
        mask: as in `prune_by`.

    Returns:
        `(params, masks)`: the pruned weights, and masks like those from `get_masks`,
        for `set_masks`, `save_sparse` and `straight_through`. Works inside `jit`.

    Raises:
        TypeError: as for `prune_by` and `prune`.
        ValueError: as for `prune_by` and `prune`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> params, masks = sparse_optax.one_shot(jnp.array([[0.3, -0.1, 2.0]]), 0.67)
        >>> print(params, masks)
        [[0. 0. 2.]] [[False False  True]]
    """
    tx = _pruning.prune_by(
        criterion or _criteria.magnitude,
        structure=structure,
        distribution=distribution,
        stacked=stacked,
        min_kept=min_kept,
        max_sparsity=max_sparsity,
        mask=mask,
    )
    params, state = _states.prune(
        params,
        tx.init(params),
        sparsity=sparsity,
        count=count,
        criterion=criterion,
        scores=scores,
    )
    return params, get_masks(state)


def straight_through(params: optax.Params, masks: optax.Params) -> optax.Params:
    """Masks weights in the forward pass, but passes gradients to all of them.

    Use it inside the loss, with masks made there by `one_shot`: pruned weights continue
    to train, and may come back. The chain then has no pruning transformation.

    Args:
        params: the weights.
        masks: as returned by `one_shot` or `get_masks`.

    Returns:
        `apply_masks(params, masks)`, with gradients as if nothing were masked.

    Raises:
        TypeError: as for `apply_masks`.
        ValueError: as for `apply_masks`.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> def loss(params):
        ...     _, masks = sparse_optax.one_shot(params, 0.5)
        ...     return jnp.sum((sparse_optax.straight_through(params, masks) - 1) ** 2)
        >>> print(jax.grad(loss)(jnp.array([[3.0, 2.0]])))
        [[ 4. -2.]]

    References:
        Bengio et al, `Estimating or Propagating Gradients Through Stochastic Neurons
        <https://arxiv.org/abs/1308.3432>`_, 2013; for masks Zhou et al, `Learning N:M
        Fine-grained Structured Sparse Neural Networks From Scratch
        <https://arxiv.org/abs/2102.04010>`_, 2021.
    """
    return jax.tree.map(_pass_gradient, params, _masks.apply_masks(params, masks))


@jax.custom_jvp
def _pass_gradient(weight, masked):
    del weight
    return masked


@_pass_gradient.defjvp
def _pass_gradient_jvp(primals, tangents):
    _, masked = primals
    gradient, _ = tangents
    return masked, gradient
