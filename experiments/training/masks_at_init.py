"""Pruning at initialisation: the rails below what training and pruning can reach.

All weights but a share go at once, before any training. A score for each tells which:
the smallest go, over the whole network. Norms are spared, as in the code of SNIP's
authors: a scale that is gone takes a whole channel with it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.data import Split
from experiments.networks.functional import Network, Variables

FOLD = 2**29  # into a seed that has other uses


def snip_scores(
    network: Network,
    variables: Variables,
    data: Split,
    batch_size: int,
    seed: int | jax.Array,
) -> Any:
    """Returns |g * w|, with g the gradient of the loss of a batch drawn at random.

    How much the loss would change at first, were the weight to lose its connection. The
    paper divides by the sum of all, which changes no order. Biases start at zero, so
    score zero and are the first to go, as in the authors' code. Norms score infinity.

    Source: Lee, Ajanthan and Torr, `SNIP: Single-shot Network Pruning based on
    Connection Sensitivity <https://arxiv.org/abs/1810.02340>`_, 2019, equations 5, 6.
    """
    key = jax.random.fold_in(jax.random.key(seed), FOLD)
    batch = jax.random.permutation(key, len(data.labels))[:batch_size]
    images, labels = (jnp.asarray(x)[batch] for x in data)
    grads, _ = jax.grad(network.loss, has_aux=True)(*variables, images, labels)
    return sensitivity(grads, variables.params)


def sensitivity(grads: Any, params: Any) -> Any:
    """Returns |g * w|, of norms infinity."""
    return spare_norms(jax.tree.map(lambda g, w: jnp.abs(g * w), grads, params))


def random_scores(params: Any, seed: int | jax.Array) -> Any:
    """Returns numbers drawn at random from (0, 1], of norms infinity, for `params`."""
    key = jax.random.fold_in(jax.random.key(seed), FOLD + 1)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    # Not 0, and all of them different with hardly an exception.
    scores = [
        1 - jax.random.uniform(key, w.shape)
        for key, w in zip(keys, leaves, strict=True)
    ]
    return spare_norms(jax.tree.unflatten(structure, scores))


def spare_norms(scores: Any) -> Any:
    """Returns the scores with those of norms, known by their names, infinite."""

    def spare(path: Any, score: jax.Array) -> jax.Array:
        is_norm = "norm" in jax.tree_util.keystr(path)
        return jnp.full_like(score, jnp.inf) if is_norm else score

    return jax.tree.map_with_path(spare, scores)
