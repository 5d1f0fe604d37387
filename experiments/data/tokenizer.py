"""Byte-pair encoding, as SentencePiece learns it from the training texts.

Source: Sennrich, Haddow and Birch, `Neural Machine Translation of Rare Words with
Subword Units <https://arxiv.org/abs/1508.07909>`_, 2016.
"""

import io
from collections.abc import Sequence

import numpy as np
import sentencepiece

from experiments.settings import ExperimentError

PADDING, FIRST, LAST, UNKNOWN = range(4)  # targets begin with FIRST, end with LAST
USUAL_LENGTH = 4_192  # bytes of the longest text that SentencePiece reads by default


class Tokenizer:
    """Pieces of words as numbers: `size` of them, in a `model` of SentencePiece."""

    def __init__(self, model: bytes):
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size = self._processor.get_piece_size()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the pieces of each text, int32, without `FIRST` and `LAST`."""
        # One by one: lists of numbers take much more memory than arrays.
        return [np.asarray(self._processor.encode(x), np.int32) for x in texts]

    def decode(self, rows: Sequence[np.ndarray] | np.ndarray) -> list[str]:
        """Returns the text of each row of pieces, up to its `LAST`."""
        ends = (int(np.argmax(np.append(row, LAST) == LAST)) for row in rows)
        pieces = [row[:end].tolist() for row, end in zip(rows, ends, strict=True)]
        return self._processor.decode(pieces)


def learn(texts: Sequence[str], size: int, tags: Sequence[str]) -> Tokenizer:
    """Returns the encoding of `size` pieces, special ones included, learnt from texts.

    Every character in them has a piece; others become the unknown one. Each of the
    `tags` is one piece.
    """
    file = io.BytesIO()
    longest = max((len(text.encode()) for text in texts), default=0)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=file,
            model_type="bpe",
            vocab_size=size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            user_defined_symbols=list(tags),
            pad_id=PADDING,
            bos_id=FIRST,
            eos_id=LAST,
            unk_id=UNKNOWN,
            unk_surface="",
            max_sentence_length=max(longest, USUAL_LENGTH),  # or it skips longer ones
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        # After the line of the source code and the condition that failed.
        reason = str(error).strip().split("\n")[-1].rpartition("] ")[2]
        raise ExperimentError(
            f"--vocabulary-size {size} does not suit these texts: {reason}"
        ) from error
    return Tokenizer(file.getvalue())
