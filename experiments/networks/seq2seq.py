"""The encoder-decoder in functional form: its loss, and what it writes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.data.batches import Batch
from experiments.data.tokenizer import PADDING
from experiments.networks import decoding
from experiments.networks.encoder_decoder import (
    Dropout,
    EncoderDecoder,
    Shape,
    make_dropout,
    no_dropout,
)


class Seq2Seq(NamedTuple):
    """An encoder-decoder without its arrays."""

    structure: Any  # a graphdef of flax
    label_smoothing: float
    dtype: Any = jnp.float32  # of its computations; params and gradients are float32

    def loss(
        self,
        params: Any,
        batch: Batch,
        dropout: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """Returns the mean of the smoothed cross-entropy over the tokens of a batch.

        With logits z, the next token y and label smoothing s it is

            log sum_v exp(z_v) - (1 - s) z_y - s mean_v z_v.

        `dropout` is its rate and its key.
        """
        drop = no_dropout if dropout is None else make_dropout(*dropout)
        logits = self.logits(params, batch.source, batch.target[:, :-1], drop)
        labels = batch.target[:, 1:]
        right = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        losses = (
            jax.nn.logsumexp(logits, axis=-1)
            - (1 - self.label_smoothing) * right
            - self.label_smoothing * logits.mean(axis=-1)
        )
        there = labels != PADDING
        return jnp.where(there, losses, 0.0).sum() / there.sum()

    def logits(
        self,
        params: Any,
        source: jax.Array,
        target: jax.Array,
        drop: Dropout = no_dropout,
    ) -> jax.Array:
        """Returns the logits `[B, T, V]` of the next tokens of `target`, `[B, T]`."""
        network, mask = self.network(params), source_mask(source)
        read = network.encode(source, mask, drop)
        return network.decode(target, read, mask, drop)

    def write(
        self, params: Any, source: jax.Array, length: int, beam: int, penalty: float
    ) -> jax.Array:
        """Returns tokens `[B, length]` for `[B, S]`, by beam search or greedily (1)."""
        network, mask = self.network(params), source_mask(source)
        read = network.encode(source, mask)
        mask, read = jax.tree.map(lambda x: jnp.repeat(x, beam, axis=0), (mask, read))

        def step(tokens, index, cache):
            return network.step(tokens, index, cache, read, mask)

        start = step, network.empty_cache(read, length), len(source), length
        if beam == 1:
            return decoding.greedy(*start)
        return decoding.beam_search(*start, beam=beam, length_penalty=penalty)[0]

    def network(self, params: Any) -> EncoderDecoder:
        return nnx.merge(self.structure, optax.tree.cast(params, self.dtype))


def source_mask(source: jax.Array) -> jax.Array:
    """Returns the mask of attention to `source`, `[B, S]`: `[B, 1, 1, S]`."""
    return (source != PADDING)[:, None, None]


def init_seq2seq(
    shape: Shape,
    label_smoothing: float,
    seed: int | jax.Array,
    dtype: Any = jnp.float32,
) -> tuple[Seq2Seq, Any]:
    """Returns a network and its initial params, a dict."""
    module = EncoderDecoder(shape, nnx.Rngs(jax.random.key(seed)))
    structure, params = nnx.split(module, nnx.Param)
    params = nnx.to_pure_dict(params)
    return Seq2Seq(structure, label_smoothing, dtype), params
