"""The tables of the README about runs on text, from their stored summaries."""

from collections.abc import Iterable

from experiments.metrics import ACCURACY, BLEU, EXACT_MATCH, metric_of
from experiments.records import Row
from experiments.reporting import kinds, results

NOT_RUN = "taskmaster tm1", "wmt14"  # until they are

# BLEU of the base transformer on WMT14 English-German, newstest2014.
PUBLISHED_METHODS = (
    "this method, by its authors",
    "L0",
    "variational dropout",
    "magnitude",
)
PUBLISHED = {
    0.487: (27.15, 26.79, 26.57, 26.33),
    0.578: (26.53, 26.51, 26.52, 25.94),
    0.653: (26.60, 26.17, 25.95, 25.21),
    0.738: (26.56, 25.30, 25.40, 24.65),
    0.799: (25.56, 24.52, 24.33, 24.65),
}


def compares_controls(run: Row) -> bool:
    """Whether a run belongs to the control study, which shows it."""
    reduced = run.get("num_train") is not None
    return run["dataset"] == "multi30k" and reduced and run["prune"] == "gradual"


def tables(runs: list[Row]) -> str:
    """Returns Markdown tables of runs on text: what they came to, and where."""
    exact, bleu = (
        [run for run in runs if metric_of(run) == metric]
        for metric in (EXACT_MATCH, BLEU)
    )
    there = {results.data_set(run) for run in runs}
    not_run = "".join(
        f"| {name} | not run {'| ' * 9}|\n" for name in NOT_RUN if name not in there
    )
    parts = [results.table(bleu, BLEU) + not_run]
    if exact:
        parts.append(results.table(exact, EXACT_MATCH))
    return "\n".join([*parts, kinds_table(runs)])


def kinds_table(runs: Iterable[Row]) -> str:
    """Returns a table of the sparsity of all tensors, and of those of each kind.

    Of the method's runs with seed 0, each a row.
    """
    shown = [
        run
        for run in sorted(runs, key=results.place)
        if run["seed"] == 0 and run["regularizer"] == "relevance"
    ]
    found = [
        {
            kind: f"{100 * (1 - kept / total):.1f}"
            for kind, total, kept in kinds.sizes(run["layers"])
        }
        for run in shown
    ]
    order = sorted({kind for row in found for kind in row}, key=kinds.place)
    heads = ["data set", "network", "strength", "prunes", "sparsity, %: all"]
    heads += [f"{kind.side} {kind.name}" for kind in order]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for run, row in zip(shown, found, strict=True):
        cells = (
            results.data_set(run),
            results.network(run),
            results.strength(run),
            results.prunes(run),
            f"{100 * run['sparsity']:.1f}",
            *(row.get(kind, "") for kind in order),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def wmt14_table(runs: Iterable[Row]) -> str:
    """Returns a table of what is published about WMT14, and of our runs."""
    ours = [run for run in runs if results.data_set(run) == "wmt14"]
    lines = [
        f"| sparsity, % | {' | '.join(PUBLISHED_METHODS)} |",
        "| --- " * 5 + "|",
        *(
            f"| {100 * sparsity:.1f} | {' | '.join(f'{x:.2f}' for x in scores)} |"
            for sparsity, scores in PUBLISHED.items()
        ),
    ]
    text = "\n".join(lines) + "\n\nThis library: "
    if not ours:
        return text + "not run.\n"
    return text + "\n\n" + results.table(ours, BLEU)


def write() -> None:
    """Writes the tables of all stored runs into the README."""
    runs = [
        run
        for run in results.stored()
        if metric_of(run) != ACCURACY and not compares_controls(run)
    ]
    text = results.README.read_text()
    text = results.insert(text, "transformers", tables(runs))
    results.README.write_text(results.insert(text, "wmt14", wmt14_table(runs)))
