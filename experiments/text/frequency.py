"""What is left of the embeddings of frequent tokens, and of rare ones."""

from collections.abc import Sequence

import numpy as np

PARTS = 4


def counts(tokens: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Returns how often each of `size` tokens, `[V]`, is in any of some arrays."""
    return np.sum([np.bincount(x, minlength=size) for x in tokens], axis=0)


def sparsity(embedding: np.ndarray, counts: np.ndarray) -> list[float]:
    """Returns the shares of zeros in the embeddings of a quarter of the tokens each.

    The first quarter has the most frequent tokens, the last one the rarest. Of equally
    frequent ones those with low numbers come first.

    Args:
      embedding: `[V, F]`, a row for each token.
      counts: `[V]`, how often each one is there.
    """
    order = np.argsort(-counts, kind="stable")
    return [
        float((rows == 0).mean()) for rows in np.array_split(embedding[order], PARTS)
    ]
