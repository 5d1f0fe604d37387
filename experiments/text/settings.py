"""What a run on text depends on."""

import dataclasses
from typing import Any, Literal

from experiments.config import Config, ExperimentError, check
from experiments.metrics import BLEU, EXACT_MATCH, Metric


@dataclasses.dataclass(frozen=True)
class TextConfig(Config):
    """The settings of a run that learns to write one text from another."""

    vocabulary_size: int = 8_000
    """Pieces of the byte-pair encoding, or of each one. It is learnt from the training
    texts."""
    joint_vocabulary: bool = True
    """Whether both languages have one vocabulary, and the network one embedding."""
    max_source: int = 64
    """Pieces of a source at the most."""
    max_target: int = 64
    """Pieces of a target at the most, the end among them."""

    num_layers: int = 2
    """Layers of the encoder, and as many of the decoder."""
    features: int = 256
    """Features of a piece, in every layer."""
    hidden: int = 256
    """Features in the middle of the feed-forward parts."""
    heads: int = 4
    """Heads of each attention."""
    dropout: float = 0.2
    """Share of the features that are left out at random, after every part."""
    adjust_dropout: bool = False
    """Whether that share falls as weights go, with the square root of the share of
    weights that are kept: a smaller network needs less of it."""

    label_smoothing: float = 0.1
    """Share of the probability that a target gives to all pieces alike."""
    accumulation: int = 1
    """Batches whose gradients make one update."""
    beam: int = 4
    """Beginnings that the search for a text of the test set keeps; 1 is greedy."""
    validation_beam: int = 1
    """The same on the validation split, whose metric allows prunes."""
    length_penalty: float = 1.0
    """Power of its length by which the logarithm of a text's probability is divided."""

    @property
    def metric(self) -> Metric:
        """What is measured of a network: BLEU, unless there is one right answer."""
        return EXACT_MATCH if self.dataset == "toy" else BLEU

    def validate(self) -> None:
        """Raises `ExperimentError` for the first value that makes no sense."""
        super().validate()
        fields: dict[str, Any] = vars(self)
        for name, low in (
            *(("max_source", 2), ("max_target", 2), ("num_layers", 1), ("features", 1)),
            *(("hidden", 1), ("heads", 1), ("accumulation", 1), ("beam", 1)),
            *(("validation_beam", 1), ("length_penalty", 0), ("vocabulary_size", 5)),
        ):
            check(name, fields[name], fields[name] >= low, f"{low} or more")
            check(name, fields[name], fields[name] < 2**31, "below 2**31")
        for name in ("dropout", "label_smoothing"):
            check(name, fields[name], 0 <= fields[name] < 1, "in [0, 1)")
        if self.adjust_dropout and not self.dropout:
            raise ExperimentError("--adjust-dropout plays no part with --dropout 0.")
        layers, heads = self.num_layers, self.heads
        check("num_layers", layers, layers < 100, "below 100")
        check(
            "heads", heads, self.features % heads == 0, f"a divisor of {self.features}"
        )
        if self.form.measure == "per-example":
            raise ExperimentError("--measure per-example is for images only.")


@dataclasses.dataclass(frozen=True)
class DialogueConfig(TextConfig):
    """The settings of a run that learns to answer."""

    edition: Literal["tm1", "tm4"] = "tm4"
    """Which Taskmaster: the first, of 2019, or the fourth, of 2024."""
