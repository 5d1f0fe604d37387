"""A transformer that reads one sequence and writes another, in the shape of BART.

Normalised after every residual sum, as in the first transformer; positions are learned;
embeddings are scaled by sqrt(features), normalised, and tied to the output. Where both
sides have one vocabulary the encoder's are the decoder's, too: one tensor.

Sources: Vaswani et al., `Attention Is All You Need <https://arxiv.org/abs/1706.03762>`_,
2017; Lewis et al., `BART <https://arxiv.org/abs/1910.13461>`_, 2019.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

KeysValues = tuple[jax.Array, jax.Array]  # [B, S, H, D] each
Dropout = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a network."""

    source_vocabulary: int
    target_vocabulary: int
    shared: bool  # whether the two vocabularies are one, and so their embeddings
    layers: int  # of the encoder, and as many of the decoder
    features: int
    hidden: int
    heads: int
    source_positions: int
    target_positions: int


def no_dropout(x: jax.Array) -> jax.Array:
    """Leaves all features in."""
    return x


def make_dropout(rate: jax.Array, key: jax.Array) -> Dropout:
    """Returns what leaves features out, others each time, and divides the rest.

    That of flax compiles the rate into a program; here it may be traced, since it
    changes in the course of a run.

    Args:
      rate: the share that is left out, a float32. What is left is divided by
        1 - `rate`, so that the mean stays.
      key: determines which.
    """
    rngs = nnx.Rngs(dropout=key)

    def dropout(x: jax.Array) -> jax.Array:
        there = jax.random.bernoulli(rngs.dropout(), 1 - rate, x.shape)
        return jnp.where(there, x / (1 - rate).astype(x.dtype), 0)

    return dropout


class Attention(nnx.Module):
    """Softmax(Q K^T / sqrt(D)) V for H heads of D features each, then a projection."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.heads = shape.heads
        size = shape.features
        self.query = nnx.Linear(size, size, rngs=rngs)
        self.key = nnx.Linear(size, size, rngs=rngs)
        self.value = nnx.Linear(size, size, rngs=rngs)
        self.output = nnx.Linear(size, size, rngs=rngs)

    def keys_values(self, x: jax.Array) -> KeysValues:
        """Returns what can be attended to in `x`, `[B, S, F]`."""
        return self._split(self.key(x)), self._split(self.value(x))

    def __call__(
        self, x: jax.Array, keys_values: KeysValues, mask: jax.Array
    ) -> jax.Array:
        """Returns `[B, T, F]`: `x` attends where `mask`, `[B, 1, T, S]`, is true."""
        query = self._split(self.query(x))
        found = jax.nn.dot_product_attention(query, *keys_values, mask=mask)
        return self.output(found.reshape(x.shape))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, -1)


class FeedForward(nnx.Module):
    """W2 gelu(W1 x + b1) + b2."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(shape.features, shape.hidden, rngs=rngs)
        self.output = nnx.Linear(shape.hidden, shape.features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, T, F]` for `x`, `[B, T, F]`."""
        return self.output(nnx.gelu(self.hidden(x), approximate=False))


class Residual(nnx.Module):
    """norm(x + dropout(y)), for what a part of a layer makes of x."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(shape.features, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: jax.Array, y: jax.Array, dropout: Dropout) -> jax.Array:
        """Returns `[B, T, F]`."""
        return self.norm(x + dropout(y))


class EncoderLayer(nnx.Module):
    """Attention of the source to itself, then a network for each position."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.attention = Attention(shape, rngs)
        self.attention_residual = Residual(shape, rngs)
        self.feed_forward = FeedForward(shape, rngs)
        self.feed_forward_residual = Residual(shape, rngs)

    def __call__(self, x: jax.Array, mask: jax.Array, dropout: Dropout) -> jax.Array:
        """Returns `[B, S, F]` for `x`, `[B, S, F]`."""
        y = self.attention(x, self.attention.keys_values(x), mask)
        x = self.attention_residual(x, y, dropout)
        return self.feed_forward_residual(x, self.feed_forward(x), dropout)


class DecoderLayer(nnx.Module):
    """Attention to what is written, then to what was read, then as in the encoder."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.attention = Attention(shape, rngs)
        self.attention_residual = Residual(shape, rngs)
        self.cross_attention = Attention(shape, rngs)
        self.cross_attention_residual = Residual(shape, rngs)
        self.feed_forward = FeedForward(shape, rngs)
        self.feed_forward_residual = Residual(shape, rngs)

    def __call__(
        self,
        x: jax.Array,
        written: KeysValues,
        written_mask: jax.Array,
        read: KeysValues,
        read_mask: jax.Array,
        dropout: Dropout,
    ) -> jax.Array:
        """Returns `[B, T, F]` for `x`, `[B, T, F]`."""
        y = self.attention(x, written, written_mask)
        x = self.attention_residual(x, y, dropout)
        y = self.cross_attention(x, read, read_mask)
        x = self.cross_attention_residual(x, y, dropout)
        return self.feed_forward_residual(x, self.feed_forward(x), dropout)


class Positions(nnx.Module):
    """norm(sqrt(F) * embedding + position), the first layer of either side."""

    def __init__(self, number: int, shape: Shape, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(number, shape.features, rngs=rngs)
        self.norm = nnx.LayerNorm(shape.features, epsilon=1e-5, rngs=rngs)

    def __call__(
        self, x: jax.Array, first: int | jax.Array, dropout: Dropout
    ) -> jax.Array:
        """Returns `[B, T, F]` for embeddings of the T positions from `first` on."""
        positions = self.embedding(first + jnp.arange(x.shape[1]))
        x = self.norm(x * jnp.sqrt(x.shape[-1]).astype(x.dtype) + positions)
        return dropout(x)


def named(layers: Iterable[nnx.Module]) -> nnx.Dict:
    """Returns layers under names, 00, 01, ..., whose order is that of the layers.

    Params are then dicts of dicts, which files and checkpoints give back as they are.
    """
    return nnx.Dict({f"{place:02}": layer for place, layer in enumerate(layers)})


def in_order(layers: nnx.Dict) -> list[Any]:
    """Returns layers by their names' order."""
    return [layers[name] for name in sorted(layers)]


class Encoder(nnx.Module):
    """The layers that read."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.positions = Positions(shape.source_positions, shape, rngs)
        self.layers = named(EncoderLayer(shape, rngs) for _ in range(shape.layers))


class Decoder(nnx.Module):
    """The layers that write."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.positions = Positions(shape.target_positions, shape, rngs)
        self.layers = named(DecoderLayer(shape, rngs) for _ in range(shape.layers))


class EncoderDecoder(nnx.Module):
    """The whole network.

    Where it reads, in `encode`, and learns to write, in `decode`, it takes sequences at
    once. Where it writes, `step` goes on from the keys and values of what is written.
    """

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        def embedding(vocabulary: int) -> nnx.Embed:
            return nnx.Embed(vocabulary, shape.features, rngs=rngs)

        self.embedding = embedding(shape.target_vocabulary)
        self.source_embedding = (
            self.embedding if shape.shared else embedding(shape.source_vocabulary)
        )
        self.encoder = Encoder(shape, rngs)
        self.decoder = Decoder(shape, rngs)

    def encode(
        self, source: jax.Array, mask: jax.Array, dropout: Dropout = no_dropout
    ) -> list[KeysValues]:
        """Reads `source`, `[B, S]`, where `mask`, `[B, 1, 1, S]`, is true.

        Returns:
          What the layers of the decoder can attend to, one after the other.
        """
        x = self.encoder.positions(self.source_embedding(source), 0, dropout)
        for layer in in_order(self.encoder.layers):
            x = layer(x, mask, dropout)
        return [
            layer.cross_attention.keys_values(x)
            for layer in in_order(self.decoder.layers)
        ]

    def decode(
        self,
        target: jax.Array,
        read: list[KeysValues],
        read_mask: jax.Array,
        dropout: Dropout = no_dropout,
    ) -> jax.Array:
        """Returns the logits `[B, T, V]` of what follows each token of `target`."""
        length = target.shape[1]
        before = jnp.tril(jnp.ones((1, 1, length, length), bool))
        x = self.decoder.positions(self.embedding(target), 0, dropout)
        layers = in_order(self.decoder.layers)
        for layer, keys_values in zip(layers, read, strict=True):
            written = layer.attention.keys_values(x)
            x = layer(x, written, before, keys_values, read_mask, dropout)
        return self._logits(x)

    def empty_cache(self, read: list[KeysValues], length: int) -> list[KeysValues]:
        """Returns room for the keys and values of `length` tokens to be written."""

        def empty(x: jax.Array) -> jax.Array:
            return jnp.zeros((x.shape[0], length, *x.shape[2:]), x.dtype)

        return [(empty(keys), empty(values)) for keys, values in read]

    def step(
        self,
        tokens: jax.Array,
        index: jax.Array,
        cache: list[KeysValues],
        read: list[KeysValues],
        read_mask: jax.Array,
    ) -> tuple[jax.Array, list[KeysValues]]:
        """Returns the logits `[B, V]` of what follows `tokens`, and a longer cache.

        Args:
          tokens: `[B]`, those at place `index`.
          index: a scalar.
          cache: of the tokens before.
          read: what `encode` returns.
          read_mask: `[B, 1, 1, S]`.
        """
        x = self.decoder.positions(self.embedding(tokens[:, None]), index, no_dropout)
        length = cache[0][0].shape[1]
        written_mask = (jnp.arange(length) <= index)[None, None, None]
        longer = []
        layers = in_order(self.decoder.layers)
        for layer, old, keys_values in zip(layers, cache, read, strict=True):
            new = layer.attention.keys_values(x)
            written = tuple(
                jax.lax.dynamic_update_slice_in_dim(was, now, index, axis=1)
                for was, now in zip(old, new, strict=True)
            )
            longer.append(written)
            x = layer(x, written, written_mask, keys_values, read_mask, no_dropout)
        return self._logits(x)[:, 0], longer

    def _logits(self, x: jax.Array) -> jax.Array:
        """Returns `[B, T, V]` in float32, whatever `x`, `[B, T, F]`, is in."""
        table = self.embedding.embedding[...]
        return jnp.einsum("btf,vf->btv", x, table, preferred_element_type=jnp.float32)
