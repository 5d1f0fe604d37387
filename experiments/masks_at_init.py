"""Pruning at initialisation: the rails below what training and pruning can reach.

All weights but a share go at once, before any training. A score for each tells which:
the smallest go, over the whole network.
"""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.data import Split
from experiments.functional import Network, Variables

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
    paper divides by the sum of all, which changes no order. What starts at zero scores
    zero and is the first to go: biases, as in the authors' code, and shifts of norms.

    Source: Lee, Ajanthan and Torr, `SNIP: Single-shot Network Pruning based on
    Connection Sensitivity <https://arxiv.org/abs/1810.02340>`_, 2019, equations 5, 6.
    """
    key = jax.random.fold_in(jax.random.key(seed), FOLD)
    batch = jax.random.permutation(key, len(data.labels))[:batch_size]
    images, labels = (jnp.asarray(x)[batch] for x in data)
    grads, _ = jax.grad(network.loss, has_aux=True)(*variables, images, labels)
    return jax.tree.map(lambda g, w: jnp.abs(g * w), grads, variables.params)


def random_scores(params: Any, seed: int | jax.Array) -> Any:
    """Returns numbers that are drawn at random from (0, 1], a tree like `params`."""
    key = jax.random.fold_in(jax.random.key(seed), FOLD + 1)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    # Not 0, and all of them different with hardly an exception.
    return jax.tree.unflatten(
        structure,
        [
            1 - jax.random.uniform(key, w.shape)
            for key, w in zip(keys, leaves, strict=True)
        ],
    )
