"""A toy language: words whose translation has the same letters in reverse."""

import numpy as np

from experiments.data.corpus import Corpus, Pairs

LETTERS = "abcdefghij"
SHORTEST, LONGEST = 3, 8
NUM_TRAIN, NUM_HELD_OUT = 20_000, 1_000


def load() -> Corpus:
    """Returns words such as "bda", with the target "adb", no word in two splits."""
    rng = np.random.default_rng(0)
    words: dict[str, None] = {}  # each once, in the order they were drawn
    while len(words) < NUM_TRAIN + 2 * NUM_HELD_OUT:
        length = rng.integers(SHORTEST, LONGEST + 1)
        words["".join(rng.choice(list(LETTERS), length))] = None
    sources = list(words)
    rng.shuffle(sources)
    validation, test, train = (
        Pairs(part, [word[::-1] for word in part])
        for part in (
            sources[:NUM_HELD_OUT],
            sources[NUM_HELD_OUT : 2 * NUM_HELD_OUT],
            sources[2 * NUM_HELD_OUT :],
        )
    )
    return Corpus(train, validation, lambda: test)
