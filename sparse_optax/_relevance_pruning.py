"""The complete method of relevance decay and pruning, around any optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

from sparse_optax import _relevance
from sparse_optax._arguments import ScalarOrSchedule
from sparse_optax._caps import Caps
from sparse_optax._compaction.groups import ChannelGroups
from sparse_optax._hide_pruned import check_optimizer, hide_pruned
from sparse_optax._layers import StructureArgument
from sparse_optax._leaves import Mask
from sparse_optax._pruning import prune_by_magnitude
from sparse_optax._relevance import IrrelevanceFn
from sparse_optax._restart import StepsSincePruning
from sparse_optax._structures import Unstructured


def relevance_pruning(
    optimizer: optax.GradientTransformation,
    strength: ScalarOrSchedule,
    scale: ScalarOrSchedule = 1.0,
    fraction: ScalarOrSchedule | Mapping[str, ScalarOrSchedule] = 0.1,
    *,
    irrelevance_fn: IrrelevanceFn | None = None,
    structure: StructureArgument = Unstructured(),
    min_kept: Caps | None = None,
    max_sparsity: Caps | None = None,
    decoupled: bool = False,
    mask: Mask | None = "matrices",
) -> optax.GradientTransformationExtraArgs:
    """Shrinks irrelevant weights and prunes the smallest, around any optimizer.

    It is `hide_pruned(chain(add_relevance_decay(strength, scale), optimizer),
    prune_by_magnitude(fraction))`: pruned weights are hidden from the optimizer. For
    other criteria or schedules, write out that expression.

    Args:
        optimizer: any optax optimizer, including its learning rate. Put wrappers that
            skip or discard steps, such as `optax.MultiSteps`, around the whole instead.
        strength: gamma >= 0, or an optax schedule of the number of updates since the
            last pruning step.
        scale: alpha > 0, in the units of the gradient, or a schedule like `strength`.
        fraction: the fraction of the remaining weights that a pruning step removes, in
            [0, 1], or an optax schedule of the number of pruning steps so far.
        irrelevance_fn: the irrelevance I, as in `add_relevance_decay`.
        structure: which weights are removed together, as in `prune_by_magnitude`. With
            groups of units, the decay also shrinks whole units.
        min_kept: as in `prune_by_magnitude`.
        max_sparsity: as in `prune_by_magnitude`.
        decoupled: subtract the decay 2 * strength * I * w from the final update, as
            `optax.adamw` does, instead of adding it to the gradient. `strength` is then
            the learning rate times gamma.
        mask: which leaves decay and may be pruned, as in `prune_by_magnitude`, or which
            groups.

    Returns:
        A transformation with the state `HidePrunedState`, like `hide_pruned`.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: as for `add_relevance_decay`, `prune_by_magnitude` and
            `hide_pruned`.

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
        >>> print(state.optimizer[1][0].mu.round(1))  # Adam's first moment
        [[0.1 0.  0.1 0. ]]

    References:
        Bonetta et al, `Regularization-based Pruning of Irrelevant Weights
        <https://arxiv.org/abs/2204.04977>`_, 2022. Hiding pruned weights and
        `decoupled` are not in the paper.
    """
    if not isinstance(decoupled, bool):
        raise TypeError(f"decoupled must be a boolean; got {decoupled!r}.")
    check_optimizer("optimizer", optimizer)
    pruning = prune_by_magnitude(
        fraction,
        structure=structure,
        min_kept=min_kept,
        max_sparsity=max_sparsity,
        mask=mask,
    )
    units = structure if isinstance(structure, ChannelGroups) else None
    if decoupled:
        decayed = _decoupled(optimizer, strength, scale, irrelevance_fn, mask, units)
    else:
        decay = _relevance.add_relevance_decay(
            strength, scale, irrelevance_fn=irrelevance_fn, mask=mask, structure=units
        )
        decayed = optax.chain(decay, optimizer)
    return hide_pruned(decayed, pruning)


class DecoupledState(NamedTuple):
    """State of the optimizer inside `relevance_pruning(decoupled=True)`."""

    decay: StepsSincePruning
    optimizer: optax.OptState


def _decoupled(optimizer, strength, scale, irrelevance_fn, mask, units):
    """An optimizer with a decoupled decay of irrelevant weights."""
    optimizer = optax.with_extra_args_support(optimizer)
    init_decay, shrinkage_fn = _relevance.relevance_shrinkage(
        strength, scale, irrelevance_fn, mask, units
    )

    def init_fn(params) -> Any:
        return DecoupledState(init_decay(params), optimizer.init(params))

    def update_fn(updates, state, params=None, **extra_args) -> Any:
        shrinkage, decay = shrinkage_fn(updates, state.decay, params)
        updates, inner = optimizer.update(
            updates, state.optimizer, params, **extra_args
        )
        shrinkage = jax.tree.map(lambda s: -s, shrinkage)
        updates = _relevance.add_shrinkage(updates, shrinkage, params)
        return updates, DecoupledState(decay, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
