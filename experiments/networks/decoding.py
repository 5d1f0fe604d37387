"""Greedy decoding and beam search, as compiled loops over batches.

A sequence that has not ended at the maximum length counts as if it had.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.data.tokenizer import FIRST, LAST

# From tokens [N], their position and a cache with leading axes N, to the logits [N, V]
# of the next tokens and the next cache.
Step = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def greedy(step: Step, cache: Any, number: int, length: int) -> jax.Array:
    """Returns the most probable token at each step, `[number, length]`.

    They are without `FIRST`, and filled up with `LAST`. The cache is that before the
    first token.
    """

    def is_unfinished(state):
        index, _, _, done = state
        return (index < length) & ~done.all()

    def write(state):
        index, tokens, cache, done = state
        logits, cache = step(tokens[:, index], index, cache)
        new = jnp.where(done, LAST, logits.argmax(-1).astype(jnp.int32))
        tokens = tokens.at[:, index + 1].set(new)
        return index + 1, tokens, cache, done | (new == LAST)

    tokens = jnp.full((number, length + 1), LAST, jnp.int32)
    tokens = tokens.at[:, 0].set(FIRST)
    state = (jnp.int32(0), tokens, cache, jnp.zeros(number, bool))
    return jax.lax.while_loop(is_unfinished, write, state)[1][:, 1:]


class Hypotheses(NamedTuple):
    """K sequences for each of B: their tokens `[B, K, T+1]` and scores `[B, K]`."""

    tokens: jax.Array
    scores: jax.Array

    def best(self, number: int) -> tuple["Hypotheses", jax.Array]:
        """Returns those of the highest scores, and their places, `[B, number]`."""
        scores, places = jax.lax.top_k(self.scores, number)
        return Hypotheses(take(self.tokens, places), scores), places

    def beside(self, other: "Hypotheses") -> "Hypotheses":
        return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), self, other)


def beam_search(
    step: Step,
    cache: Any,
    number: int,
    length: int,
    *,
    beam: int,
    length_penalty: float,
) -> tuple[jax.Array, jax.Array]:
    """Returns the best sequence that a beam search finds.

    The score of a sequence y of n tokens, `LAST` included, is

        log p(y) / n^length_penalty,

    and the search ends when no hypothesis can lead to a better one. Tokens and cache of
    `step` have leading axes of `number * beam`.

    Returns:
      The tokens, `[number, length]`, without `FIRST`, filled up with `LAST`; and the
      scores, `[number]`.
    """

    def score(log_probs: jax.Array, num_tokens: int | jax.Array) -> jax.Array:
        return log_probs / jnp.asarray(num_tokens, jnp.float32) ** length_penalty

    def is_unfinished(state):
        index, live, done, _ = state
        # Probabilities only fall: no live one can end with a better score.
        hope = score(live.scores.max(axis=1), length)
        return (index < length) & (hope > done.scores.max(axis=1)).any()

    def write(state):
        index, live, done, cache = state
        logits, cache = step(live.tokens[:, :, index].reshape(-1), index, cache)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        log_probs = log_probs.reshape(number, beam, -1)
        vocabulary = log_probs.shape[-1]
        scores = (live.scores[..., None] + log_probs).reshape(number, -1)
        # At most one continuation of each hypothesis is its end.
        scores, places = jax.lax.top_k(scores, 2 * beam)
        parents, new = places // vocabulary, places % vocabulary
        tokens = take(live.tokens, parents).at[:, :, index + 1].set(new)
        ended = new == LAST
        finished = jnp.where(ended, score(scores, index + 1), -jnp.inf)
        done, _ = done.beside(Hypotheses(tokens, finished)).best(beam)
        unfinished = jnp.where(ended, -jnp.inf, scores)
        live, kept = Hypotheses(tokens, unfinished).best(beam)
        parents = jnp.take_along_axis(parents, kept, axis=1)
        rows = (jnp.arange(number)[:, None] * beam + parents).reshape(-1)
        cache = jax.tree.map(lambda x: x[rows], cache)
        return index + 1, live, done, cache

    tokens = jnp.full((number, beam, length + 1), LAST, jnp.int32)
    tokens = tokens.at[:, :, 0].set(FIRST)
    nothing = jnp.full((number, beam), -jnp.inf)
    live = Hypotheses(tokens, nothing.at[:, 0].set(0.0))  # they are all the same
    state = (jnp.int32(0), live, Hypotheses(tokens, nothing), cache)
    index, live, done, _ = jax.lax.while_loop(is_unfinished, write, state)
    cut_off = jnp.where(index == length, score(live.scores, length), -jnp.inf)
    best, _ = done.beside(live._replace(scores=cut_off)).best(1)
    return best.tokens[:, 0, 1:], best.scores[:, 0]


def take(x: jax.Array, places: jax.Array) -> jax.Array:
    """Returns `x[b, places[b, k]]` for `x`, `[B, K, ...]`."""
    return jnp.take_along_axis(x, places[..., None], axis=1)
