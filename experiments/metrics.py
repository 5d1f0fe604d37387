"""What is measured of networks, and how it is written."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Metric(NamedTuple):
    """A figure of merit; larger is better."""

    name: str
    key: str  # the end of its names in a summary
    largest: int  # possible value
    unit: str  # of a hundredth of that; may be empty

    def hundredths(self, value: float) -> float:
        return 100 * value / self.largest

    def text(self, value: float) -> str:
        """Returns a value with two decimals and its unit."""
        return f"{self.hundredths(value):.2f} {self.unit}".rstrip()

    @property
    def axis(self) -> str:
        return self.name + (f" ({self.unit})" if self.unit else "")


ACCURACY = Metric("accuracy", "accuracy", 1, "%")
EXACT_MATCH = Metric("exact match", "exact_match", 1, "%")
BLEU = Metric("BLEU", "bleu", 100, "")


def metric_of(summary: Mapping[str, Any]) -> Metric:
    """Returns the metric of a run; those on images do not store it."""
    metrics = {metric.key: metric for metric in (ACCURACY, EXACT_MATCH, BLEU)}
    return metrics[summary.get("metric", ACCURACY.key)]
