"""Batches of few shapes, each compiled for once: sequences of like length together.

A pair belongs to the smallest of the lengths 8, 12, 16, 24, 32, 48, 64, 96, ... that
neither of its sequences exceeds; where too few belong to one for a batch, they belong
to the next. The shape of a length is that of the longest sources and targets which
belong to it or to a smaller one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.text.tokenizer import PADDING

LENGTHS = np.array([[8 << k, 12 << k] for k in range(16)]).reshape(-1)


class Batch(NamedTuple):
    """Sequences of tokens, `[B, S]` and `[B, T]`, padded; targets have both ends."""

    source: jax.Array
    target: jax.Array


class Sequences(NamedTuple):
    """Many sequences in one array, int32: number i lies between two of the bounds.

    Behind the last one is a token of padding.
    """

    tokens: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> "Sequences":
        """Returns the sequences in one array."""
        lengths = [len(row) for row in rows]
        tokens = np.concatenate([*rows, [PADDING]], dtype=np.int32)
        return cls(tokens, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    @property
    def lengths(self) -> np.ndarray:
        """How many tokens each of them has."""
        return np.diff(self.bounds)

    def padded(self, index: np.ndarray, length: int) -> np.ndarray:
        """Returns some of them as `[B, length]`, padded at the end."""
        places = self.bounds[index][:, None] + np.arange(length)
        there = places < self.bounds[index + 1][:, None]
        return self.tokens[np.where(there, places, -1)]


class Batches:
    """The batches of every epoch, in an order of its own.

    Args:
      sources: what is read.
      targets: what is written, with both ends.
      batch_size: pairs a batch. As many as do not make a whole one are left out, at
        random in every epoch.
      seed: determines the order.

    Attributes:
      shapes: all that sources and targets of a batch can have, one for each length.
      per_epoch: how many batches make an epoch.
    """

    def __init__(
        self, sources: Sequences, targets: Sequences, batch_size: int, seed: int
    ):
        self._sides = sources, targets
        self._batch_size = batch_size
        self._seed = seed
        longest = np.maximum(sources.lengths, targets.lengths)
        self._lengths = merged(np.searchsorted(LENGTHS, longest), batch_size)
        self.shapes = [
            tuple(
                int(side.lengths[self._lengths <= number].max()) for side in self._sides
            )
            for number in range(self._lengths.max() + 1)
        ]
        self.per_epoch = len(longest) // batch_size
        self._epoch, self._order = -1, np.zeros(0, int)

    def at(self, step: int) -> Batch:
        """Returns the batch of an update, counted from the first of the run."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return self._batch(self._order[place])

    def sample(self, number: int) -> Batch:
        """Returns one drawn at random from all pairs, as wide as the widest.

        Those of updates have pairs of like length, and so no use for the last positions
        if that is short.

        Args:
          number: of the draw; one that is no epoch's.
        """
        rng = np.random.default_rng([self._seed, number])
        index = rng.choice(len(self._lengths), self._batch_size, replace=False)
        return self._padded(index, self.shapes[-1])

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Returns which pairs are in each batch of an epoch, `[N, batch_size]`."""
        rng = np.random.default_rng([self._seed, epoch])
        chosen = rng.permutation(len(self._lengths))
        chosen = chosen[: self.per_epoch * self._batch_size]
        chosen = chosen[np.argsort(self._lengths[chosen], kind="stable")]
        return rng.permutation(chosen.reshape(-1, self._batch_size))

    def _batch(self, index: np.ndarray) -> Batch:
        # A batch of two lengths is as wide as the wider.
        return self._padded(index, self.shapes[self._lengths[index].max()])

    def _padded(self, index: np.ndarray, shape: tuple[int, ...]) -> Batch:
        return Batch(
            *(
                jnp.asarray(side.padded(index, length))
                for side, length in zip(self._sides, shape, strict=True)
            )
        )


def merged(lengths: np.ndarray, smallest: int) -> np.ndarray:
    """Returns groups of lengths, numbered from 0, for lengths given as numbers.

    A group has `smallest` members or more, if there are as many: a length with fewer
    goes with the next one, and the longest with the one before.
    """
    ends, members = [], 0
    numbers, counts = np.unique(lengths, return_counts=True)
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        members += count
        if members >= smallest:
            ends.append(number)
            members = 0
    return np.minimum(np.searchsorted(ends, lengths), max(len(ends) - 1, 0))


def reading_batches(
    sources: Sequences, batch_size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns all sources once, shortest first, to be read and not learnt from.

    Returns:
      Which ones are in each batch, `[B]`, and their tokens, `[B, S]`, of a few lengths
      S. The last batch is filled up with its last source.
    """
    order = np.argsort(sources.lengths, kind="stable")
    order = np.pad(order, (0, -len(order) % batch_size), mode="edge")
    longest = max(int(sources.lengths.max()), 1)  # there may be empty texts
    batches = []
    for index in order.reshape(-1, batch_size):
        length = int(LENGTHS[np.searchsorted(LENGTHS, sources.lengths[index].max())])
        batches.append((index, sources.padded(index, min(length, longest))))
    return batches
