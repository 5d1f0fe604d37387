"""Batches of few shapes, compiled once each: pairs of similar length together.

The bucket of a pair is the smallest of the lengths 8, 12, 16, 24, 32, 48, 64, 96, ...
that neither of its sequences exceeds; buckets with too few pairs for a batch are merged
with the next. The shape of a bucket is that of the longest sources and targets in it or
in a smaller one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.tokenizer import PADDING

LENGTHS = np.array([[8 << k, 12 << k] for k in range(16)]).reshape(-1)


class Batch(NamedTuple):
    """Tokens `[B, S]` and `[B, T]`, padded; targets have `FIRST` and `LAST`."""

    source: jax.Array
    target: jax.Array


class Sequences(NamedTuple):
    """Many sequences in one int32 array, which ends with a token of padding.

    Sequence i is `tokens[bounds[i] : bounds[i + 1]]`.
    """

    tokens: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> "Sequences":
        lengths = [len(row) for row in rows]
        tokens = np.concatenate([*rows, [PADDING]], dtype=np.int32)
        return cls(tokens, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.bounds)

    def padded(self, index: np.ndarray, length: int) -> np.ndarray:
        """Returns some of them as `[B, length]`, padded at the end."""
        places = self.bounds[index][:, None] + np.arange(length)
        there = places < self.bounds[index + 1][:, None]
        return self.tokens[np.where(there, places, -1)]


class Batches:
    """The batches of every epoch, each epoch in another order.

    The pairs of an incomplete last batch are left out, other ones in each epoch.
    """

    def __init__(
        self, sources: Sequences, targets: Sequences, batch_size: int, seed: int
    ):
        self._sides = sources, targets
        self._batch_size = batch_size
        self._seed = seed
        longest = np.maximum(sources.lengths, targets.lengths)
        self._buckets = merged(np.searchsorted(LENGTHS, longest), batch_size)
        self.shapes = [  # of sources and targets, for each bucket
            [int(side.lengths[self._buckets <= number].max()) for side in self._sides]
            for number in range(self._buckets.max() + 1)
        ]
        self.per_epoch = len(longest) // batch_size
        self._epoch, self._order = -1, np.zeros(0, int)

    def at(self, step: int) -> Batch:
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        index = self._order[place]
        # A batch of two buckets has the shape of the larger.
        shape = self.shapes[self._buckets[index].max()]
        source, target = (
            jnp.asarray(side.padded(index, length))
            for side, length in zip(self._sides, shape, strict=True)
        )
        return Batch(source, target)

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Returns which pairs are in each batch of an epoch, `[N, batch_size]`."""
        rng = np.random.default_rng([self._seed, epoch])
        chosen = rng.permutation(len(self._buckets))
        chosen = chosen[: self.per_epoch * self._batch_size]
        chosen = chosen[np.argsort(self._buckets[chosen], kind="stable")]
        return rng.permutation(chosen.reshape(-1, self._batch_size))


def merged(buckets: np.ndarray, smallest: int) -> np.ndarray:
    """Returns buckets, numbered from 0, of at least `smallest` members each.

    One with fewer is merged with the next one, the last with the one before.
    """
    ends, members = [], 0
    numbers, counts = np.unique(buckets, return_counts=True)
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        members += count
        if members >= smallest:
            ends.append(number)
            members = 0
    return np.minimum(np.searchsorted(ends, buckets), max(len(ends) - 1, 0))


def reading_batches(
    sources: Sequences, batch_size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns all sources once, shortest first: indices `[B]`, and tokens `[B, S]`.

    There are few lengths S. Copies of the last source fill the last batch.
    """
    order = np.argsort(sources.lengths, kind="stable")
    order = np.pad(order, (0, -len(order) % batch_size), mode="edge")
    longest = max(int(sources.lengths.max()), 1)  # there may be empty texts
    batches = []
    for index in order.reshape(-1, batch_size):
        length = int(LENGTHS[np.searchsorted(LENGTHS, sources.lengths[index].max())])
        batches.append((index, sources.padded(index, min(length, longest))))
    return batches
