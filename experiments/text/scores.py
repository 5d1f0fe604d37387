"""How good texts are that a network has written."""

from typing import NamedTuple

import sacrebleu

from experiments.metrics import BLEU, EXACT_MATCH, Metric


class Score(NamedTuple):
    """A score, and how it came about."""

    value: float
    signature: str


def score(metric: Metric, written: list[str], references: list[str]) -> Score:
    """Returns how good texts are, measured against one reference each.

    BLEU is that of sacrebleu: of whole texts, cased, cut into words by its own rules
    for WMT, 13a. An exact match is the share of texts that are as the reference.

    Source: Post, `A Call for Clarity in Reporting BLEU Scores
    <https://arxiv.org/abs/1804.08771>`_, 2018.
    """
    if metric == EXACT_MATCH:
        right = sum(map(str.__eq__, written, references))
        return Score(right / len(references), "")
    assert metric == BLEU
    bleu = sacrebleu.BLEU()
    value = bleu.corpus_score(written, [references]).score
    return Score(value, str(bleu.get_signature()))
