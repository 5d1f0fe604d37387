"""The table of the README that tells how large the networks of runs are on disk."""

from experiments.metrics import ACCURACY, metric_of
from experiments.records import Row
from experiments.reporting import results


def table(summaries: list[Row]) -> str:
    """Returns a Markdown table of the runs on images whose files were made."""
    lines = [
        "| data set | network | seed | dense error, % | error, % | weights kept "
        "| dense | dense, gzipped | sparse file | times smaller |",
        "| --- " * 10 + "|",
    ]
    for run in sorted(summaries, key=results.place):
        if metric_of(run) == ACCURACY and (sizes := run.get("bytes")):
            lines.append(
                f"| {results.data_set(run)} | {run['network']} | {run['seed']} "
                f"| {100 * (1 - run['dense_test_accuracy']):.2f} "
                f"| {100 * (1 - run['test_accuracy']):.2f} "
                f"| {run['kept']:,} of {run['total']:,} "
                f"| {sizes['dense']:,} | {sizes['gzipped']:,} | {sizes['sparse']:,} "
                f"| {sizes['dense'] / sizes['sparse']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def show() -> None:
    """Writes the table of all stored runs into the README."""
    shown = results.insert(
        results.README.read_text(), "export", table(results.stored())
    )
    results.README.write_text(shown)
