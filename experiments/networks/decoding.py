"""How a network that gives probabilities of a next token writes whole sequences.

Both ways are compiled loops over batches. A sequence has at most a given number of
tokens: one that has not ended by then counts as if it had.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.text.tokenizer import FIRST, LAST

# From tokens [N], their place, and a cache with leading axes N, to logits [N, V] of
# the tokens that follow, and the cache for these.
Step = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def greedy(step: Step, cache: Any, number: int, length: int) -> jax.Array:
    """Writes the most probable token, one after the other.

    Args:
      step: the network.
      cache: before the first token.
      number: sequences to write, N.
      length: tokens of each, at the most: T.

    Returns:
      The tokens, `[N, T]`, without the first one; behind the last one all are it.
    """

    def going_on(state):
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
    return jax.lax.while_loop(going_on, write, state)[1][:, 1:]


class Hypotheses(NamedTuple):
    """Some sequences for each of B: their tokens `[B, K, T+1]` and scores `[B, K]`."""

    tokens: jax.Array
    scores: jax.Array

    def best(self, number: int) -> tuple["Hypotheses", jax.Array]:
        """Returns those of the highest scores, and where they were, `[B, number]`."""
        scores, places = jax.lax.top_k(self.scores, number)
        return Hypotheses(take(self.tokens, places), scores), places

    def beside(self, other: "Hypotheses") -> "Hypotheses":
        """Returns the sequences of both."""
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
    """Writes the best sequence that is found by keeping `beam` beginnings at a time.

    The score of a sequence y of n tokens, the last one included, is

        log p(y) / n^length_penalty,

    and the search ends when no beginning can lead to a better one than was found.

    Args:
      step: the network, for B * beam tokens at a time.
      cache: before the first token; its leading axes are B * beam, too.
      number: sequences to write, B.
      length: tokens of each, at the most: T.
      beam: beginnings that are kept.
      length_penalty: 0 or more; the larger, the longer what is written.

    Returns:
      The tokens, `[B, T]`, without the first one, behind the last one all are it; and
      the scores, `[B]`.
    """

    def score(log_probs: jax.Array, num_tokens: int | jax.Array) -> jax.Array:
        return log_probs / jnp.asarray(num_tokens, jnp.float32) ** length_penalty

    def going_on(state):
        index, live, done, _ = state
        # Probabilities only fall, so that no live one can end with a better score.
        hope = score(live.scores.max(axis=1), length)
        return (index < length) & (hope > done.scores.max(axis=1)).any()

    def write(state):
        index, live, done, cache = state
        logits, cache = step(live.tokens[:, :, index].reshape(-1), index, cache)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        log_probs = log_probs.reshape(number, beam, -1)
        vocabulary = log_probs.shape[-1]
        scores = (live.scores[..., None] + log_probs).reshape(number, -1)
        # No more than one continuation of each beginning is its end.
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
    index, live, done, _ = jax.lax.while_loop(going_on, write, state)
    cut_off = jnp.where(index == length, score(live.scores, length), -jnp.inf)
    best, _ = done.beside(live._replace(scores=cut_off)).best(1)
    return best.tokens[:, 0, 1:], best.scores[:, 0]


def take(x: jax.Array, places: jax.Array) -> jax.Array:
    """Returns `x[b, places[b, k]]` for `x`, `[B, K, ...]`."""
    return jnp.take_along_axis(x, places[..., None], axis=1)
