"""Scores of the prunable leaves, from a criterion or given directly."""

from typing import Any

import jax
import optax
from jax import lax

from sparse_optax import _criteria, _fit, _trees
from sparse_optax._criteria import Criterion, Scores


def check_criterion(criterion: Any) -> None:
    """Raises a `TypeError` unless this is a hashable function, and not a factory."""
    for factory in (_criteria.random, _criteria.relevance, _criteria.per_leaf):
        if criterion is factory:
            name = factory.__name__
            raise TypeError(f"{name} makes a criterion: give {name}(...); got {name}.")
    is_hashable = getattr(criterion, "__hash__", None) is not None
    if not (callable(criterion) and is_hashable):
        raise TypeError(
            "criterion must be a hashable function from params and gradients to "
            "scores; got "
            f"{criterion!r}. Under optax.inject_hyperparams list 'criterion' in "
            "static_args."
        )


def scores_of(
    criterion: Criterion,
    masks: optax.Params,
    params: optax.Params,
    grads: optax.Updates | None,
) -> Scores | None:
    """The scores of the prunable leaves, or None for the magnitudes of `params`."""
    if criterion is _criteria.magnitude:
        return None
    if grads is not None:
        _fit.check_masks_fit(masks, grads, "grad")
        grads = only_prunable(masks, grads)
    # The choice of removed weights is not differentiable.
    given = lax.stop_gradient((only_prunable(masks, params), grads))
    scores = criterion(*given)
    check_scores(masks, scores)
    return scores


def check_scores(masks: optax.Params, scores: Scores) -> None:
    """Raises unless these are floating arrays with the shapes of the masks."""
    _fit.check_masks_fit(masks, scores, "scores")


def only_prunable(masks, tree):
    """The leaves of `tree` that have a mask; `MaskedNode`s in place of the others."""
    masks, tree = _trees.unbox(masks), _trees.unbox(tree)
    return jax.tree.map(
        lambda m, x: m if _trees.is_masked(m) else x,
        masks,
        tree,
        is_leaf=_trees.is_masked,
    )
