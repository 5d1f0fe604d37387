"""What is measured of networks, and how it is written."""

from typing import Any, NamedTuple


class Metric(NamedTuple):
    """A figure of merit, the larger the better.

    Attributes:
      name: what it is called.
      key: the end of its names in a summary.
      largest: the most that it can be.
      unit: what a hundredth of that is called, "" if nothing.
    """

    name: str
    key: str
    largest: int
    unit: str

    def hundredths(self, value: float) -> float:
        """Returns how many hundredths of the most a value is."""
        return 100 * value / self.largest

    def text(self, value: float) -> str:
        """Returns a value as it is shown, with two decimals."""
        return f"{self.hundredths(value):.2f} {self.unit}".rstrip()

    @property
    def axis(self) -> str:
        """Its name on the axis of a figure."""
        return self.name + (f" ({self.unit})" if self.unit else "")


ACCURACY = Metric("accuracy", "accuracy", 1, "%")
EXACT_MATCH = Metric("exact match", "exact_match", 1, "%")
BLEU = Metric("BLEU", "bleu", 100, "")


def metric_of(summary: dict[str, Any]) -> Metric:
    """Returns what was measured in a run; older ones, which do not say, were of images.

    Raises:
      KeyError: it is none of those above.
    """
    metrics = {metric.key: metric for metric in (ACCURACY, EXACT_MATCH, BLEU)}
    return metrics[summary.get("metric", ACCURACY.key)]
