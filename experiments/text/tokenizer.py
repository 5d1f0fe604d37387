"""Byte-pair encoding, as SentencePiece learns it from the training texts.

Source: Sennrich, Haddow and Birch, `Neural Machine Translation of Rare Words with
Subword Units <https://arxiv.org/abs/1508.07909>`_, 2016.
"""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import sentencepiece

from experiments.config import ExperimentError

PADDING, FIRST, LAST, UNKNOWN = range(4)  # all targets begin and end by two
ENCODED_AT_ONCE = 100_000  # texts
USUAL_LENGTH = 4_192  # bytes of a text that SentencePiece learns from, at the most


class Tokenizer:
    """Pieces of words, by numbers.

    Attributes:
      model: what SentencePiece keeps of it in a file.
      size: how many pieces there are.
    """

    def __init__(self, model: bytes):
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size = self._processor.get_piece_size()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the pieces of each text, int32, without ends."""
        return [
            np.asarray(pieces, np.int32)
            for start in range(0, len(texts), ENCODED_AT_ONCE)
            for pieces in self._processor.encode(
                list(texts[start : start + ENCODED_AT_ONCE])
            )
        ]

    def decode(self, rows: Iterable[np.ndarray]) -> list[str]:
        """Returns the text of each row of pieces, up to its end."""
        return self._processor.decode(
            [
                row[: int(np.argmax(np.append(row, LAST) == LAST))].tolist()
                for row in rows
            ]
        )


def learn(texts: Iterable[str], size: int, tags: Sequence[str]) -> Tokenizer:
    """Returns the encoding of `size` pieces that is learnt from texts.

    Every character of theirs has a piece; those never seen become the unknown one.

    Args:
      texts: what it is learnt from.
      size: number of pieces, with padding, both ends, and the unknown one.
      tags: what is one piece each, whatever the texts are.

    Raises:
      ExperimentError: the texts have too many characters, or too few words.
    """
    texts, file = list(texts), io.BytesIO()
    longest = max((len(text.encode()) for text in texts), default=0)
    # Longer ones than usual would be left out.
    lengths: dict[str, Any] = (
        {"max_sentence_length": longest} if longest > USUAL_LENGTH else {}
    )
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
            **lengths,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        # Behind the line of its source and the condition that did not hold.
        reason = str(error).strip().split("\n")[-1].rpartition("] ")[2]
        raise ExperimentError(
            f"--vocabulary-size {size} does not suit these texts: {reason}"
        ) from error
    return Tokenizer(file.getvalue())
