"""Scores of written texts."""

import sacrebleu

from experiments.metrics import BLEU, EXACT_MATCH, Metric


def score(
    metric: Metric, written: list[str], references: list[str]
) -> tuple[float, str]:
    """Returns the score of texts against one reference each, and its signature.

    BLEU is that of sacrebleu: of whole texts, cased, with its tokenizer 13a. An exact
    match is the fraction of texts that equal their reference.

    Source: Post, `A Call for Clarity in Reporting BLEU Scores
    <https://arxiv.org/abs/1804.08771>`_, 2018.
    """
    if metric == EXACT_MATCH:
        right = sum(map(str.__eq__, written, references))
        return right / len(references), ""
    assert metric == BLEU
    bleu = sacrebleu.BLEU()
    value = bleu.corpus_score(written, [references]).score
    return value, str(bleu.get_signature())
