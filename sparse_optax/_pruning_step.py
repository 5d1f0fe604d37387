"""A pruning step: removes the units with the lowest scores from masks."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sparse_optax import _amounts, _counts, _layers, _prunable, _selection
from sparse_optax._amounts import Kind, Target
from sparse_optax._criteria import Scores
from sparse_optax._masks import is_zero
from sparse_optax._prunable import Resolved
from sparse_optax._prune_state import PruneState
from sparse_optax._selection import Units
from sparse_optax._sharding import let_compiler_shard


@functools.partial(jax.jit, static_argnames="kind")  # so that it is compiled once
def remove_units(
    state: PruneState,
    params: optax.Params,
    scores: Scores | None,
    kind: Kind | None,
    value: jax.Array | None,
) -> PruneState:
    """The state after a pruning step, with the lowest of the kept units removed.

    Args:
        state: the state before.
        params: the weights; pruned ones should already be zero.
        scores: a tree like `params`; None for the magnitudes of `params`.
        kind: the kind of amount; None removes all that the structure allows.
        value: the amount: a number, or one for each layer.
    """
    step = functools.partial(_remove_units, kind=kind)
    return let_compiler_shard(step, like=state)(state, params, scores, value)


def _remove_units(state, params, scores, value, kind):
    masks = _prunable.prunable_leaves(state.masks, state.masks)
    if not masks:
        return state._replace(
            num_pruning_steps=optax.safe_increment(state.num_pruning_steps)
        )
    # The choice of removed weights is not differentiable.
    params, scores = lax.stop_gradient((params, scores))
    weights = _prunable.prunable_leaves(state.masks, params)
    rules = _prunable.resolve(state.rules, state.masks)
    structure, layers = rules.structure, tuple(rules.num_layers.values())
    # The magnitudes of weights are recomputed in every pass, and take no memory.
    by_magnitude = scores is None and _layers.is_unstructured(structure)
    if scores is not None:
        ranked = _prunable.prunable_leaves(state.masks, scores)
    elif by_magnitude:
        ranked = weights
    else:
        ranked = {name: jnp.abs(weight) for name, weight in weights.items()}
    units = structure.to_units(ranked, masks)
    with _counts.exact_numbers():
        pruned, revived = zip(
            *(count_pruned(mask, weights[name]) for name, mask in masks.items()),
            strict=True,
        )
        if by_magnitude and not any(layers):  # what was just counted
            removed = jnp.stack([n.astype(jnp.int64) for n in pruned])
        else:
            removed = count_removed(units, layers)
        target = _target_of(rules, state, removed, kind, value)
        by_layer = _is_by_layer(state, value)
        removal = _selection.remove_lowest(
            list(units.values()),
            target.most,
            jnp.sum(target.most) if by_layer else target.total,
            layers=layers,
            by_magnitude=by_magnitude,
            by_layer=by_layer,
        )
        shortfall = _counts.to_uint32(target.total - removal.total)
        revived = jnp.stack([_counts.to_uint32(n) for n in revived])
    kept = dict(zip(units, removal.kept, strict=True))
    return state._replace(
        masks=_prunable.with_leaves(state.masks, structure.to_masks(kept, masks)),
        num_pruning_steps=optax.safe_increment(state.num_pruning_steps),
        shortfall=shortfall if kind else jnp.zeros_like(shortfall),
        revived=revived,
    )


@functools.partial(jax.jit, static_argnames="kind")
def is_needed(
    state: PruneState, kind: Kind, value: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Whether a pruning step to this amount would remove anything, and its shortfall.

    Where the structure allows no more, only the pruning step itself can find that.
    """
    like = jnp.zeros([], bool), state.shortfall
    check = functools.partial(_is_needed, kind=kind)
    return let_compiler_shard(check, like=like)(state, value)


def _is_needed(state, value, kind):
    masks = _prunable.prunable_leaves(state.masks, state.masks)
    if not masks:
        return jnp.zeros([], bool), state.shortfall
    rules = _prunable.resolve(state.rules, state.masks)
    scores = {name: jnp.zeros(mask.shape, jnp.float32) for name, mask in masks.items()}
    units = rules.structure.to_units(scores, masks)
    with _counts.exact_numbers():
        removed = count_removed(units, tuple(rules.num_layers.values()))
        target = _target_of(rules, state, removed, kind, value)
        missing = target.total - jnp.sum(removed)
        needed = (missing > 0) & jnp.any(target.most > removed)
        return needed, _counts.to_uint32(jnp.maximum(missing, 0))


def _target_of(
    rules: Resolved, state: PruneState, removed: jax.Array, kind: Any, value: Any
) -> Target:
    """How much to remove from the layers, in `int64`."""
    return _amounts.target_of(
        kind,
        value,
        state.rules.distribution,
        removed,
        rules.sizes,
        rules.max_removed,
        rules.shapes,
        rules.round_to,
    )


def _is_by_layer(state: PruneState, value: Any) -> bool:
    return state.rules.distribution != "global" or np.ndim(value) == 1


def count_removed(units: Mapping[str, Units], layers: tuple[int, ...]) -> jax.Array:
    """How many units of each layer are removed: `int64`."""
    counts = [
        _count_false(unit.kept, n).reshape(n or 1)
        for unit, n in zip(units.values(), layers, strict=True)
    ]
    return jnp.concatenate(counts).astype(jnp.int64)


@functools.partial(jax.jit, static_argnames="num_layers")
def _count_false(kept, num_layers):
    axes = range(1 if num_layers else 0, kept.ndim)
    return _counts.count_with_complement(~kept, axes)


@jax.jit
def count_pruned(mask, weight):
    """How many weights are pruned by a mask, and how many of these are not zero."""
    mask = lax.optimization_barrier(mask)  # a constant would be counted by the compiler
    revived = ~mask & ~is_zero(jnp.asarray(weight))
    return _counts.count_true([~mask, revived], range(mask.ndim))
