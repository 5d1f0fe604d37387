"""What a run shows in the terminal: a progress bar, and tables at the end."""

import contextlib
import statistics
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from experiments.metrics import Metric, metric_of
from experiments.records import Row
from experiments.reporting import kinds

SOURCE_WIDTH = 300  # characters of it that are shown
Show = Callable[[str, float, float], None]


@contextlib.contextmanager
def progress_bar(
    console: Console, measure: Metric, done: int, total: int
) -> Iterator[Show]:
    """Shows a bar of all rounds of a run while the context lasts.

    Args:
      console: where to.
      measure: what is measured after every round.
      done: rounds done before.
      total: rounds there are to be.

    Yields:
      The function to call after every round: phase, sparsity and metric.
    """
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sparsity {task.fields[sparsity]}"),
        TextColumn(f"{measure.name} {{task.fields[metric]}}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(
            "start", completed=done, total=total, sparsity="-", metric="-"
        )

        def show(phase: str, sparsity: float, metric: float) -> None:
            progress.update(
                task,
                advance=1,
                description=phase,
                sparsity=percent(sparsity),
                metric=measure.text(metric),
            )

        yield show
        # Patience may have ended the pruning early.
        progress.update(task, completed=total)


def percent(share: float) -> str:
    """Returns a fraction as a percentage with two decimals."""
    return f"{100 * share:.2f} %"


def compression(kept: int, size: int) -> str:
    """Returns how many times fewer weights are kept."""
    return f"{size / kept:.1f}x" if kept else "-"


def print_sweep(console: Console, groups: dict[str, list[Row]]) -> None:
    """Prints what a sweep has come to, a row for each setting, over its seeds."""
    columns = ["sparsity", "validation_accuracy"]
    if all("test_accuracy" in run for group in groups.values() for run in group):
        columns.append("test_accuracy")
    table = Table(title="Over the seeds: mean, lowest, highest")
    table.add_column("setting")
    for name in ("seeds", *columns):
        table.add_column(name.replace("_", " "), justify="right")
    for name, group in groups.items():
        table.add_row(
            name,
            str(len(group)),
            *(
                f"{percent(statistics.fmean(values))} "
                f"({percent(min(values))}, {percent(max(values))})"
                for values in ([run[key] for run in group] for key in columns)
            ),
        )
    console.print(table)


def print_summary(console: Console, summary: Row) -> None:
    """Prints what a run has come to: dense against sparse, then part by part."""
    metric = metric_of(summary)
    outcome = Table(
        title=f"{summary['network']} on {summary['dataset']}, "
        f"{summary['regularizer']}, seed {summary['seed']}"
    )
    for name in ("", "dense", "sparse"):
        outcome.add_column(name, justify="right" if name else "left")
    for split in ("test", "validation"):
        outcome.add_row(
            f"{split} {metric.name}",
            *(
                metric.text(summary[f"{prefix}{split}_{metric.key}"])
                for prefix in ("dense_", "")
            ),
        )
    kept, total, layers = (summary[name] for name in ("kept", "total", "layers"))
    outcome.add_row("weights", f"{total:,}", f"{kept:,}")
    outcome.add_row("sparsity", percent(0), percent(summary["sparsity"]))
    outcome.add_row("compression", "1.0x", compression(kept, total))

    parts = (
        [((f"{kind.side} {kind.name}"), *two) for kind, *two in kinds.sizes(layers)]
        if kinds.known(summary)
        else [(path, layer["size"], layer["kept"]) for path, layer in layers.items()]
    )
    table = Table(title="Part by part")
    table.add_column("part")
    for name in ("weights", "kept", "sparsity", "compression"):
        table.add_column(name, justify="right")
    for part, size, kept in parts:
        table.add_row(
            part,
            f"{size:,}",
            f"{kept:,}",
            percent(1 - kept / size),
            compression(kept, size),
        )
    console.print(outcome, table, f"{summary['wall_seconds']:.0f} seconds")
    if "sparsity_by_frequency" in summary:  # which older runs do not have
        shares = ", ".join(percent(x) for x in summary["sparsity_by_frequency"])
        console.print(
            "Sparsity of the embeddings of the most frequent quarter of the tokens, "
            f"and so on to the rarest: {shares}.",
            soft_wrap=True,
        )
    if "texts" in summary:
        print_texts(console, summary["texts"])
        console.print(
            f"Batches had {len(summary['shapes'])} shapes, for each of which gradients "
            f"are compiled. {summary['signature']}".rstrip(),
            soft_wrap=True,
        )
    if "bytes" in summary:  # which older runs do not have
        print_files(console, [summary])
        sizes = summary["bytes"]
        console.print(
            f"As a sparse file the network has {sizes['sparse']:,} bytes: "
            f"{sizes['dense'] / sizes['sparse']:.1f} times smaller than a dense one."
        )
    for text in summary.get("warnings", ()):  # which older runs do not have
        console.print(f"warning: {text}", style="yellow", soft_wrap=True)
    if not summary["sparsity"] and summary.get("prune", "gated") == "gated":
        bound = metric.text(summary["validation_bound"])
        console.print(
            f"No pruned network was measured to have a validation {metric.name} above "
            f"{bound}: of this one nothing is pruned. "
            "What the last round prunes is not measured.",
            soft_wrap=True,
        )


def print_texts(console: Console, texts: list[dict[str, str]]) -> None:
    """Prints texts of the test set, and side by side what both networks made of them.

    Of a long source, such as a dialogue, the end is shown.
    """
    table = Table(title="The first texts of the test set", show_lines=True)
    for name in texts[0]:
        table.add_column(name, overflow="fold")
    for text in texts:
        cells = {**text, "source": end_of(text["source"])}
        table.add_row(*map(escape, cells.values()))
    console.print(table)


def end_of(text: str) -> str:
    """Returns the last words of a text, or all if they are few."""
    if len(text) <= SOURCE_WIDTH:
        return text
    return "... " + text[-SOURCE_WIDTH:].partition(" ")[2]


def print_files(console: Console, summaries: list[Row]) -> None:
    """Prints how large the networks of runs are on disk, dense and sparse."""
    table = Table(title="On disk, in bytes")
    names = ("run", "test", "weights", "dense", "gzipped", "sparse", "smaller")
    for name in names:
        table.add_column(
            name, justify="left" if name == "run" else "right", overflow="fold"
        )
    for run in summaries:
        sizes = run["bytes"]
        table.add_row(
            f"{run['experiment']}-{run['config_id']}-seed{run['seed']}",
            metric_of(run).text(run[f"test_{metric_of(run).key}"]),
            f"{run['kept']:,}",
            *(f"{sizes[kind]:,}" for kind in ("dense", "gzipped", "sparse")),
            f"{sizes['dense'] / sizes['sparse']:.1f}x",
        )
    console.print(table)
