"""A network that is timed and not trained: a small language model."""

from typing import Any, NamedTuple

import jax
import optax
from flax import nnx

from experiments.networks.functional import Variables


class Timed(NamedTuple):
    """A flax network in functional form, whose inputs need no scaling."""

    graphdef: Any
    rest: Any  # all variables that are no parameters

    def loss(
        self, params: Any, statistics: Any, inputs: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Returns the mean cross-entropy of `labels`, one for each row of logits."""
        logits = nnx.merge(self.graphdef, params, self.rest)(inputs)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, statistics


def split(network: nnx.Module) -> tuple[Timed, Variables]:
    """Returns a network in functional form, and its variables."""
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    return Timed(graphdef, rest), Variables(nnx.to_pure_dict(params), {})


class Layer(nnx.Module):
    """A layer of a transformer: causal attention, and a hidden layer."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.hidden1 = nnx.Linear(width, 4 * width, rngs=rngs)
        self.hidden2 = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, T, width]`."""
        x = x + self.attention(self.norm1(x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.hidden2(nnx.relu(self.hidden1(self.norm2(x))))


class LanguageModel(nnx.Module):
    """A transformer of two layers over a small vocabulary: 3.6 million parameters."""

    VOCABULARY, WIDTH = 8_000, 256

    def __init__(self, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(self.VOCABULARY, self.WIDTH, rngs=rngs)
        self.layers = nnx.List(Layer(self.WIDTH, rngs) for _ in range(2))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns the logits of the token after each of `tokens`, `[B, T]`."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.embedding.attend(x)
