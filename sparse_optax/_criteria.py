"""Criteria: scores that decide which weights are kept.

A criterion is a function `(params, grads) -> scores`. The scores are a tree of floating
arrays like `params`, and a pruning step removes the weights of the lowest scores.
`params` and `grads` have the prunable leaves, and `optax.MaskedNode()` elsewhere;
`grads` is None if a pruning step is not given gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparse_optax import _arguments, _exact_sums, _trees
from sparse_optax._relevance import irrelevance

Scores = Any  # a tree of floating arrays
Criterion = Callable[[optax.Params, optax.Updates | None], Scores]


def magnitude(params: optax.Params, grads: optax.Updates | None = None) -> Scores:
    """The absolute value of a weight, `|w|`: the criterion of `prune_by_magnitude`.

    Args:
        params: the weights.
        grads: not used.

    Returns:
        The scores, of the dtypes of the weights.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> print(sparse_optax.magnitude(jnp.array([0.5, -2.0])))
        [0.5 2. ]
    """
    del grads
    return jax.tree.map(jnp.abs, params)


def saliency(params: optax.Params, grads: optax.Updates | None) -> Scores:
    """The change of the loss, to first order, if a weight is removed: `|w * g|`.

    Args:
        params: the weights.
        grads: the gradient of the loss.

    Returns:
        The scores, `float32`; `float64` where an argument is.

    Raises:
        ValueError: if `grads` is None.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> params, grads = jnp.array([0.5, -2.0]), jnp.array([3.0, 0.1])
        >>> print(sparse_optax.saliency(params, grads))
        [1.5 0.2]

    References:
        Lee et al, `SNIP: Single-shot Network Pruning based on Connection Sensitivity
        <https://arxiv.org/abs/1810.02340>`_, 2018, with `one_shot` at initialisation.
        Molchanov et al, `Importance Estimation for Neural Network Pruning
        <https://arxiv.org/abs/1906.10771>`_, 2019.
    """
    _check_grads("saliency", grads)
    return jax.tree.map(lambda w, g: jnp.abs(jnp.multiply(*_wide(w, g))), params, grads)


def random(key: jax.Array) -> Criterion:
    """Random scores, the same at every pruning step, so that masks are nested.

    Args:
        key: a key of `jax.random`.

    Returns:
        A criterion with `float32` scores in [0, 1), the same for every sharding.

    Raises:
        TypeError: if `key` is not a key of `jax.random`.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> criterion = sparse_optax.random(jax.random.key(0))
        >>> scores = criterion({"w": jnp.ones((2, 3))}, None)
        >>> scores["w"].shape
        (2, 3)
    """
    _arguments.check_key("key", key)

    def criterion(params, grads=None):
        del grads
        leaves, structure = jax.tree.flatten(params)
        scores = [
            jax.random.uniform(jax.random.fold_in(key, i), jnp.shape(leaf), jnp.float32)
            for i, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(structure, scores)

    return criterion


def relevance(scale: float | jax.Array = 1.0) -> Criterion:
    r"""Magnitude times relevance: irrelevant weights have low scores.

    .. math:: |w_i| \, (1 - \exp(-|g_i| / \alpha))

    Args:
        scale: alpha > 0, in the units of the gradient, as in `add_relevance_decay`.

    Returns:
        A criterion that needs gradients. Its scores are `float32`; `float64` where an
        argument is.

    Raises:
        TypeError: if `scale` is not a number.
        ValueError: if `scale` is not above 0; from the criterion, if `grads` is None.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> params, grads = jnp.array([0.5, -2.0]), jnp.array([3.0, 0.0])
        >>> print(sparse_optax.relevance(scale=0.1)(params, grads))
        [0.5 0. ]

    References:
        Bonetta et al, `Regularization-based Pruning of Irrelevant Weights
        <https://arxiv.org/abs/2204.04977>`_, 2022, for the irrelevance. Its use as a
        criterion is not from the paper.
    """
    _arguments.check_number("scale", scale, open_low=True, finite=False, schedule=False)

    def criterion(params, grads):
        _check_grads("relevance", grads)
        return jax.tree.map(
            lambda w, i: jnp.multiply(*_wide(jnp.abs(w), 1 - i)),
            params,
            irrelevance(grads, scale),
        )

    return criterion


def per_leaf(criterion: Criterion) -> Criterion:
    """Divides the scores of each leaf by their norm, to make leaves comparable.

    Use it with the distribution "global" where layers have weights of different sizes.

    Args:
        criterion: any criterion.

    Returns:
        A criterion with `float32` scores. The norm ignores scores that are not finite,
        and a leaf of zeros stays zero.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> criterion = sparse_optax.per_leaf(sparse_optax.magnitude)
        >>> print(criterion({"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.1])}, None))
        {'a': Array([0.6, 0.8], dtype=float32), 'b': Array([1.], dtype=float32)}
    """
    _arguments.check_callable("criterion", criterion)

    def normalised(params, grads):
        return jax.tree.map(_exact_sums.divide_by_norm, criterion(params, grads))

    return normalised


def _check_grads(name: str, grads: Any) -> None:
    if grads is None:
        raise ValueError(
            f"the criterion {name} needs gradients at a pruning step, and grads is "
            "None. Put the optimizer and the pruning transformation into hide_pruned, "
            "which passes them, or give update the extra argument grad=grads; give "
            f"prune scores={name}(params, grads)."
        )


def _wide(*xs: jax.Array) -> list[jax.Array]:
    """Converts arrays to `float32`, or to `float64` if one of them is."""
    dtype = _trees.common_dtype(jnp.float32, *xs)
    return [jnp.asarray(x, dtype) for x in xs]
