"""What a run shows in the terminal: a progress bar, and tables at the end."""

import contextlib
from collections.abc import Callable, Iterator
from statistics import fmean

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

from experiments.metrics import Metric, metric_of
from experiments.networks import kinds
from experiments.records import Row, run_id

Show = Callable[[str, float, float], None]


@contextlib.contextmanager
def progress_bar(
    console: Console, measure: Metric, done: int, total: int
) -> Iterator[Show]:
    """Shows a progress bar over all rounds of a run within the context.

    Yields:
      The function to call after every round: phase, sparsity and metric.
    """
    columns = Progress.get_default_columns()
    with Progress(*columns, MofNCompleteColumn(), console=console) as progress:
        task = progress.add_task("start", completed=done, total=total)

        def show(phase: str, sparsity: float, metric: float) -> None:
            now = f"sparsity {percent(sparsity)}, {measure.name} {measure.text(metric)}"
            progress.update(task, advance=1, description=f"{phase:>8}: {now}")

        yield show
        # Patience may have ended the pruning early.
        progress.update(task, completed=total)


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def table_of(title: str, rows: list[dict[str, str]]) -> Table:
    """Returns a table with all columns except the first right-aligned."""
    table = Table(title=title)
    for index, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    return table


def print_sweep(console: Console, groups: dict[str, list[Row]]) -> None:
    measured = ["sparsity", "validation_accuracy"]
    if all("test_accuracy" in run for group in groups.values() for run in group):
        measured.append("test_accuracy")
    rows = []
    for name, group in groups.items():
        row = {"setting": name, "seeds": str(len(group))}
        for key in measured:
            values = [run[key] for run in group]
            mean, *ends = map(percent, (fmean(values), min(values), max(values)))
            row[key.replace("_", " ")] = f"{mean} ({', '.join(ends)})"
        rows.append(row)
    console.print(table_of("Mean (lowest, highest) of seeds", rows))


def print_summary(console: Console, summary: Row) -> None:
    """Prints the results of a run: dense and sparse, then part by part."""
    metric, layers = metric_of(summary), summary["layers"]
    outcome = [
        {
            "": f"{split} {metric.name}",
            "dense": metric.text(summary[f"dense_{split}_{metric.key}"]),
            "sparse": metric.text(summary[f"{split}_{metric.key}"]),
        }
        for split in ("test", "validation")
    ]
    parts = [(path, layer["size"], layer["kept"]) for path, layer in layers.items()]
    if summary["network"] == "transformer":
        parts = [(f"{k.side} {k.name}", *sizes) for k, *sizes in kinds.sizes(layers)]
    sizes = [
        {
            "part": part,
            "weights": f"{size:,}",
            "kept": f"{kept:,}",
            "sparsity": percent(1 - kept / size),
            "compression": f"{size / kept:.1f}x" if kept else "-",
        }
        for part, size, kept in (*parts, ("all", summary["total"], summary["kept"]))
    ]
    title = "{network} on {dataset}, {regularizer}, seed {seed}".format_map(summary)
    console.print(table_of(title, outcome), table_of("By part", sizes))
    if "compacted" in summary:  # older runs have neither this nor files
        print_compacted(console, summary["compacted"], summary.get("compacted_time"))
        console.print("`python -m experiments export --compact RUN` writes it.")
    console.print(f"{summary['wall_seconds']:.0f} seconds")
    if "bytes" in summary:
        print_files(console, [summary])
    for text in summary.get("warnings", ()):
        console.print(f"warning: {text}", style="yellow", soft_wrap=True)
    if not summary["sparsity"] and summary.get("prune", "gated") == "gated":
        bound = metric.text(summary["validation_bound"])
        console.print(
            "Nothing is pruned: no pruned network had a validation "
            f"{metric.name} above {bound}. The last pruning step is not evaluated.",
            soft_wrap=True,
        )


def print_compacted(console: Console, sizes: Row, time: float | None = None) -> None:
    """Prints how small and how fast a compacted network is."""
    before, after = sizes["before"], sizes["after"]
    name = "multiplications"
    console.print(
        f"As a smaller dense network: {after[name]:,} of {before[name]:,} {name} "
        f"({before[name] / after[name]:.1f}x fewer), {after['weights']:,} of "
        f"{before['weights']:,} weights, zeros included.",
        soft_wrap=True,
    )
    if time is not None:
        console.print(f"A batch takes {time:.2f} of the time of the dense network.")


def print_files(console: Console, summaries: list[Row]) -> None:
    rows = []
    for run in summaries:
        sizes, metric = run["bytes"], metric_of(run)
        rows.append(
            {
                "run": f"{run['experiment']}-{run_id(run)}",
                "test": metric.text(run[f"test_{metric.key}"]),
                "weights": f"{run['kept']:,}",
                **{name: f"{sizes[name]:,}" for name in ("dense", "gzipped", "sparse")},
                "smaller": f"{sizes['dense'] / sizes['sparse']:.1f}x",
            }
        )
    console.print(table_of("Files, in bytes", rows))
