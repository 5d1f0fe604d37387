"""The encoder-decoder in functional form: what it loses, and what it writes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.networks import decoding
from experiments.networks.encoder_decoder import (
    EncoderDecoder,
    Shape,
    make_dropout,
    no_dropout,
)
from experiments.text.batches import Batch
from experiments.text.tokenizer import PADDING


class Seq2Seq(NamedTuple):
    """An encoder-decoder without its arrays.

    Attributes:
      structure: what flax makes it from, with params.
      label_smoothing: of the loss.
      dtype: what it computes in. Params and gradients are float32.
    """

    structure: Any
    label_smoothing: float
    dtype: Any = jnp.float32

    def loss(
        self,
        params: Any,
        batch: Batch,
        dropout: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """Returns the mean over the tokens of a batch of the smoothed cross-entropy.

        Tokens of short sequences, which are in batches together, so weigh more.

        With z the logits, y the token that follows, and s the label smoothing,

            log sum_v exp(z_v) - (1 - s) z_y - s mean_v z_v.

        Args:
          params: of the network.
          batch: what is to be learnt.
          dropout: its rate and its key, or None for none.
        """
        network = self._network(params)
        drop = no_dropout if dropout is None else make_dropout(*dropout)
        mask = source_mask(batch.source)
        read = network.encode(batch.source, mask, drop)
        logits = network.decode(batch.target[:, :-1], read, mask, drop)
        labels = batch.target[:, 1:]
        right = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        losses = (
            jax.nn.logsumexp(logits, axis=-1)
            - (1 - self.label_smoothing) * right
            - self.label_smoothing * logits.mean(axis=-1)
        )
        there = labels != PADDING
        return jnp.where(there, losses, 0.0).sum() / there.sum()

    def greedy(self, params: Any, source: jax.Array, length: int) -> jax.Array:
        """Returns the likeliest tokens `[B, T]`, one by one, for `source`, `[B, S]`."""
        network = self._network(params)
        mask = source_mask(source)
        read = network.encode(source, mask)

        def step(tokens, index, cache):
            return network.step(tokens, index, cache, read, mask)

        cache = network.empty_cache(read, length)
        return decoding.greedy(step, cache, len(source), length)

    def beam_search(
        self,
        params: Any,
        source: jax.Array,
        length: int,
        *,
        beam: int,
        length_penalty: float,
    ) -> jax.Array:
        """Returns the tokens `[B, T]` that beam search finds for `source`, `[B, S]`."""
        network = self._network(params)
        # Each beginning is a row of a batch of its own.
        mask = source_mask(source)
        read = network.encode(source, mask)
        mask, read = jax.tree.map(lambda x: jnp.repeat(x, beam, axis=0), (mask, read))

        def step(tokens, index, cache):
            return network.step(tokens, index, cache, read, mask)

        return decoding.beam_search(
            step,
            network.empty_cache(read, length),
            len(source),
            length,
            beam=beam,
            length_penalty=length_penalty,
        )[0]

    def _network(self, params: Any) -> EncoderDecoder:
        params = jax.tree.map(lambda w: w.astype(self.dtype), params)
        return nnx.merge(self.structure, params)


def source_mask(source: jax.Array) -> jax.Array:
    """Returns where `source`, `[B, S]`, can be attended to: `[B, 1, 1, S]`."""
    return (source != PADDING)[:, None, None]


def init_seq2seq(
    shape: Shape,
    label_smoothing: float,
    seed: int | jax.Array,
    dtype: Any = jnp.float32,
) -> tuple[Seq2Seq, Any]:
    """Returns a network and its initial params, a dict.

    Args:
      shape: the sizes of the network.
      label_smoothing: of the loss.
      seed: of the initial params.
      dtype: what it computes in; the params are float32.
    """
    module = EncoderDecoder(shape, nnx.Rngs(jax.random.key(seed)))
    structure, params = nnx.split(module, nnx.Param)
    params = nnx.to_pure_dict(params)
    return Seq2Seq(structure, label_smoothing, dtype), params
