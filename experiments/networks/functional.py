"""A flax network in functional form: its arrays apart from its structure."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx


class Variables(NamedTuple):
    params: Any  # a dict
    statistics: Any  # running ones of batch norms, a dict; may be empty


class Network(NamedTuple):
    """A flax network without its arrays."""

    training: Any  # graphdef in which norms use the statistics of the batch
    inference: Any  # graphdef in which they use running ones
    white: int  # value of a white pixel
    dtype: Any = jnp.float32  # of its computations; params and gradients are float32

    def logits(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Returns the logits `[B, K]` of uint8 `images`, `[B, H, W, C]`."""
        params, statistics = variables
        network = nnx.merge(
            self.inference, optax.tree.cast(params, self.dtype), statistics
        )
        return network(self._scale(images)).astype(jnp.float32)

    def loss(
        self, params: Any, statistics: Any, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Returns the mean cross-entropy in training, and new running statistics."""
        params = optax.tree.cast(params, self.dtype)
        network = nnx.merge(self.training, params, statistics, copy=True)
        logits = network(self._scale(images)).astype(jnp.float32)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        statistics = nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))
        return loss, statistics

    def _scale(self, images: jax.Array) -> jax.Array:
        return images.astype(self.dtype) / self.white


def init_network(
    network: Callable[..., nnx.Module],
    shape: tuple[int, ...],
    white: int,
    seed: int | jax.Array,
    dtype: Any = jnp.float32,
) -> tuple[Network, Variables]:
    """Returns a network for images of `shape`, and its initial variables."""
    module = network(shape, rngs=nnx.Rngs(jax.random.key(seed)))
    module.eval()
    inference = nnx.graphdef(module)
    module.train()
    training, *states = nnx.split(module, nnx.Param, nnx.BatchStat)
    variables = Variables(*map(nnx.to_pure_dict, states))
    return Network(training, inference, white, dtype), variables
