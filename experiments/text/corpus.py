"""A corpus: texts, and what is to be written of each."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.config import ExperimentError, check


class Pairs(NamedTuple):
    """Texts, and what belongs to each of them."""

    sources: list[str]
    targets: list[str]


class Corpus(NamedTuple):
    """A corpus as the experiments use it.

    Attributes:
      train: what the networks are trained on.
      validation: what decides about prunes.
      read_test: reads the test set: only the end of a run does.
      tags: words with a meaning of their own, each a piece of the vocabulary.
      keeps_end: whether of a source that is too long its end is kept, as of a dialogue.
        Otherwise such pairs are not trained on, and of others the beginning is kept.
      num_left_out: training pairs there are besides those in `train`.
    """

    train: Pairs
    validation: Pairs
    read_test: Callable[[], Pairs]
    tags: tuple[str, ...] = ()
    keeps_end: bool = False
    num_left_out: int = 0

    @property
    def num_whole(self) -> int:
        """How many training pairs there are in all."""
        return len(self.train.sources) + self.num_left_out

    def reduced(self, number: int | None) -> "Corpus":
        """Returns the corpus with `number` of its training pairs, or with all.

        Raises:
          ExperimentError: there are not as many.
        """
        if number is None:
            return self
        size = len(self.train.sources)
        check("num_train", number, number <= size, f"{size} or less")
        chosen = np.sort(np.random.default_rng(0).permutation(size)[:number])
        train = Pairs(*([texts[i] for i in chosen] for texts in self.train))
        return self._replace(train=train, num_left_out=size - number)


def check_pairs(pairs: Pairs, where: str) -> Pairs:
    """Returns the pairs.

    Raises:
      ExperimentError: there are none, none but blank ones, or sources and targets
        differ in number.
    """
    numbers = [len(texts) for texts in pairs]
    if numbers[0] != numbers[1]:
        raise ExperimentError(
            f"{where} has {numbers[0]:,} sources, but {numbers[1]:,} targets."
        )
    if not all(any(map(str.strip, texts)) for texts in pairs):
        raise ExperimentError(f"{where} holds no texts.")
    return pairs
