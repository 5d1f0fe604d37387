"""A corpus: texts, and the text to be written for each."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.settings import ExperimentError, check


class Pairs(NamedTuple):
    """Texts, and the text that belongs to each."""

    sources: list[str]
    targets: list[str]


class Corpus(NamedTuple):
    train: Pairs
    validation: Pairs  # they decide about pruning steps
    read_test: Callable[[], Pairs]  # only the end of a run calls it
    tags: tuple[str, ...] = ()  # words that each become one piece of the vocabulary
    # Of a source that is too long, keep the end, as of a dialogue. Otherwise such pairs
    # are not trained on, and elsewhere the beginning is kept.
    keeps_end: bool = False
    num_left_out: int = 0  # training pairs that are not in `train`

    def reduced(self, number: int | None) -> "Corpus":
        """Returns the corpus with `number` of its training pairs, or with all."""
        if number is None:
            return self
        size = len(self.train.sources)
        check("num_train", number, number <= size, f"{size} or less")
        chosen = np.sort(np.random.default_rng(0).permutation(size)[:number])
        train = Pairs(*([texts[i] for i in chosen] for texts in self.train))
        return self._replace(train=train, num_left_out=size - number)


def check_pairs(pairs: Pairs, where: str) -> Pairs:
    sources, targets = map(len, pairs)
    if sources != targets:
        raise ExperimentError(
            f"{where} has {sources:,} sources, but {targets:,} targets."
        )
    if not all(any(map(str.strip, texts)) for texts in pairs):
        raise ExperimentError(f"{where} contains no texts.")
    return pairs
