"""A toy language: words, whose translation is the same letters backwards."""

import numpy as np

from experiments.text.corpus import Corpus, Pairs

LETTERS = "abcdefghij"
SHORTEST, LONGEST = 3, 8
NUM_TRAIN, NUM_HELD_OUT = 20_000, 1_000


def load() -> Corpus:
    """Returns words such as "bda", to become "adb", none of them in two splits."""
    rng = np.random.default_rng(0)
    words: dict[str, None] = {}  # each once, in the order they were drawn
    while len(words) < NUM_TRAIN + 2 * NUM_HELD_OUT:
        length = rng.integers(SHORTEST, LONGEST + 1)
        words["".join(rng.choice(list(LETTERS), length))] = None
    sources = list(words)
    rng.shuffle(sources)
    pairs = [
        Pairs(part, [word[::-1] for word in part])
        for part in (
            sources[2 * NUM_HELD_OUT :],
            sources[:NUM_HELD_OUT],
            sources[NUM_HELD_OUT : 2 * NUM_HELD_OUT],
        )
    ]
    return Corpus(pairs[0], pairs[1], lambda: pairs[2])
