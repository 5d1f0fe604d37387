"""An encoder-decoder transformer in the shape of BART.

Post-norm, with learned positions; embeddings are scaled by sqrt(features), normalised,
and tied to the output. With one vocabulary, both sides share one embedding. Shapes are
those of B sequences of S source and T target tokens, F features, H heads and V pieces.

Sources: Vaswani et al., `Attention Is All You Need <https://arxiv.org/abs/1706.03762>`_,
2017; Lewis et al., `BART <https://arxiv.org/abs/1910.13461>`_, 2019.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

KeysValues = tuple[jax.Array, jax.Array]  # [B, S, H, F / H] each
Attended = tuple[KeysValues, jax.Array]  # what is attended to, and its mask
Dropout = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Shape:
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
    return x


def make_dropout(rate: jax.Array, key: jax.Array) -> Dropout:
    """Returns dropout whose rate may be traced, as that of flax may not."""
    rngs = nnx.Rngs(dropout=key)

    def dropout(x: jax.Array) -> jax.Array:
        there = jax.random.bernoulli(rngs.dropout(), 1 - rate, x.shape)
        return jnp.where(there, x / (1 - rate).astype(x.dtype), 0)

    return dropout


class Attention(nnx.Module):
    """Softmax(Q K^T / sqrt(F / H)) V for each head, then a projection."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.heads = shape.heads
        size = shape.features
        self.query = nnx.Linear(size, size, rngs=rngs)
        self.key = nnx.Linear(size, size, rngs=rngs)
        self.value = nnx.Linear(size, size, rngs=rngs)
        self.output = nnx.Linear(size, size, rngs=rngs)

    def keys_values(self, x: jax.Array) -> KeysValues:
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
        return self.output(nnx.gelu(self.hidden(x), approximate=False))


class Residual(nnx.Module):
    """norm(x + dropout(y)), with y what a sublayer makes of x."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(shape.features, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: jax.Array, y: jax.Array, dropout: Dropout) -> jax.Array:
        return self.norm(x + dropout(y))


class Layer(nnx.Module):
    """Self-attention, in the decoder cross-attention, then a feed-forward network."""

    def __init__(self, crosses: bool, shape: Shape, rngs: nnx.Rngs):
        self.attention = Attention(shape, rngs)
        self.attention_residual = Residual(shape, rngs)
        if crosses:
            self.cross_attention = Attention(shape, rngs)
            self.cross_attention_residual = Residual(shape, rngs)
        self.feed_forward = FeedForward(shape, rngs)
        self.feed_forward_residual = Residual(shape, rngs)

    def __call__(
        self, x: jax.Array, dropout: Dropout, own: Attended, read: Attended | None
    ) -> jax.Array:
        x = self.attention_residual(x, self.attention(x, *own), dropout)
        if read is not None:
            y = self.cross_attention(x, *read)
            x = self.cross_attention_residual(x, y, dropout)
        return self.feed_forward_residual(x, self.feed_forward(x), dropout)


class Positions(nnx.Module):
    """norm(sqrt(F) * embedding + position), the first layer of each side."""

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


class Side(nnx.Module):
    """The positions and layers of the encoder, or of the decoder.

    Layers have the names 00, 01, ..., so that params are dicts of dicts.
    """

    def __init__(self, crosses: bool, number: int, shape: Shape, rngs: nnx.Rngs):
        self.positions = Positions(number, shape, rngs)
        self.layers = nnx.Dict(
            {
                f"{place:02}": Layer(crosses, shape, rngs)
                for place in range(shape.layers)
            }
        )

    def in_order(self) -> list[Layer]:
        return [self.layers[name] for name in sorted(self.layers)]


class EncoderDecoder(nnx.Module):
    """The whole network: `encode` and `decode` whole sequences, or `step` by step."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        def embedding(vocabulary: int) -> nnx.Embed:
            return nnx.Embed(vocabulary, shape.features, rngs=rngs)

        self.embedding = embedding(shape.target_vocabulary)
        self.source_embedding = (
            self.embedding if shape.shared else embedding(shape.source_vocabulary)
        )
        self.encoder = Side(False, shape.source_positions, shape, rngs)
        self.decoder = Side(True, shape.target_positions, shape, rngs)

    def encode(
        self, source: jax.Array, mask: jax.Array, dropout: Dropout = no_dropout
    ) -> list[KeysValues]:
        """Returns keys and values of `source`, `[B, S]`, for each decoder layer."""
        x = self.encoder.positions(self.source_embedding(source), 0, dropout)
        for layer in self.encoder.in_order():
            x = layer(x, dropout, (layer.attention.keys_values(x), mask), None)
        return [
            layer.cross_attention.keys_values(x) for layer in self.decoder.in_order()
        ]

    def decode(
        self,
        target: jax.Array,
        read: list[KeysValues],
        read_mask: jax.Array,
        dropout: Dropout = no_dropout,
    ) -> jax.Array:
        """Returns the logits `[B, T, V]` of the next tokens of `target`, `[B, T]`."""
        length = target.shape[1]
        before = jnp.tril(jnp.ones((1, 1, length, length), bool))
        x = self.decoder.positions(self.embedding(target), 0, dropout)
        for layer, keys_values in zip(self.decoder.in_order(), read, strict=True):
            own = layer.attention.keys_values(x), before
            x = layer(x, dropout, own, (keys_values, read_mask))
        return self._logits(x)

    def empty_cache(self, read: list[KeysValues], length: int) -> list[KeysValues]:
        return jax.tree.map(
            lambda x: jnp.zeros((x.shape[0], length, *x.shape[2:]), x.dtype), read
        )

    def step(
        self,
        tokens: jax.Array,
        index: jax.Array,
        cache: list[KeysValues],
        read: list[KeysValues],
        read_mask: jax.Array,
    ) -> tuple[jax.Array, list[KeysValues]]:
        """Returns the logits `[B, V]` of the next tokens, and the next cache.

        The `tokens`, `[B]`, are at position `index`, the cache is of those before.
        """
        x = self.decoder.positions(self.embedding(tokens[:, None]), index, no_dropout)
        length = cache[0][0].shape[1]
        written_mask = (jnp.arange(length) <= index)[None, None, None]
        longer = []
        layers = self.decoder.in_order()
        for layer, old, keys_values in zip(layers, cache, read, strict=True):
            new = layer.attention.keys_values(x)
            written = tuple(
                jax.lax.dynamic_update_slice_in_dim(was, now, index, axis=1)
                for was, now in zip(old, new, strict=True)
            )
            longer.append(written)
            x = layer(x, no_dropout, (written, written_mask), (keys_values, read_mask))
        return self._logits(x)[:, 0], longer

    def _logits(self, x: jax.Array) -> jax.Array:
        """Returns `[B, T, V]` in float32 for `x`, `[B, T, F]`, of any dtype."""
        table = self.embedding.embedding[...]
        return jnp.einsum("btf,vf->btv", x, table, preferred_element_type=jnp.float32)
