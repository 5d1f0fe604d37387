"""Scores for pruning at initialisation, the baselines of pruning in training.

The weights of the lowest scores are removed before any training. Norms are spared, as
in the code of the authors of SNIP: a scale of zero removes a whole channel.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr

from experiments.data.images import Split
from experiments.networks.functional import Network, Variables

FOLD = 2**29  # into the seed


def snip_scores(
    network: Network,
    variables: Variables,
    data: Split,
    batch_size: int,
    seed: int | jax.Array,
) -> Any:
    """Returns |g * w|, with g the gradient of the loss of a random batch.

    Biases start at zero, so they score zero and are removed first, as in the authors'
    code. Norms score infinity.

    Source: Lee, Ajanthan and Torr, `SNIP: Single-shot Network Pruning based on
    Connection Sensitivity <https://arxiv.org/abs/1810.02340>`_, 2019, equations 5, 6.
    """
    key = jax.random.fold_in(jax.random.key(seed), FOLD)
    batch = jax.random.permutation(key, len(data.labels))[:batch_size]
    images, labels = (jnp.asarray(x)[batch] for x in data)
    grads, _ = jax.grad(network.loss, has_aux=True)(*variables, images, labels)
    scores = jax.tree.map(lambda g, w: jnp.abs(g * w), grads, variables.params)
    return spare_norms(scores)


def random_scores(params: Any, seed: int | jax.Array) -> Any:
    """Returns random numbers in (0, 1] for `params`, infinity for norms."""
    key = jax.random.fold_in(jax.random.key(seed), FOLD + 1)
    numbers = optax.tree.random_like(key, params, jax.random.uniform)
    return spare_norms(jax.tree.map(lambda x: 1 - x, numbers))


def spare_norms(scores: Any) -> Any:
    """Returns the scores, infinity for norms, which their names show."""

    def spare(path: Any, score: jax.Array) -> jax.Array:
        return jnp.full_like(score, jnp.inf) if "norm" in keystr(path) else score

    return jax.tree.map_with_path(spare, scores)
