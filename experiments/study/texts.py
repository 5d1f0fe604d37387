"""The study's controls on text: what a translation loses at the same sparsity.

Of the stored runs those on part of Multi30k that prune gradually, to a given sparsity
at whatever cost: a seed on which settings were tried, by the validation BLEU, and
others on which those chosen are compared, by the test BLEU.
"""

import statistics
from collections.abc import Iterable

from experiments.metrics import BLEU, metric_of
from experiments.records import Row
from experiments.reporting import kinds, results
from experiments.reporting.text_results import compares_controls
from experiments.study.comparison import interval

TRIED_ON = 0  # the seed of the tuning
KINDS = "attention", "embedding"  # where sparing is said to matter
QUARTERS = {"frequent": 0, "rare": -1}  # of the tokens, by how frequent they are


def write() -> None:
    """Writes the tables of all stored runs into the README."""
    runs = [
        run
        for run in results.stored()
        if metric_of(run) == BLEU and compares_controls(run)
    ]
    text = results.README.read_text()
    results.README.write_text(results.insert(text, "study-texts", tables(runs)))


def tables(runs: Iterable[Row]) -> str:
    """Returns Markdown tables of the settings compared, and of those tried."""
    groups: dict[tuple[bool, str], list[Row]] = {}
    for run in sorted(runs, key=results.place):
        key = run["seed"] == TRIED_ON, run["config_id"]
        groups.setdefault(key, []).append(run)
    compared, tried = (
        [rows for (was_tried, _), rows in groups.items() if was_tried == wanted]
        for wanted in (False, True)
    )
    parts = (comparison, compared), (tuning, tried)
    return "\n".join(part(groups) for part, groups in parts if groups)


def comparison(groups: list[list[Row]]) -> str:
    """Returns the table of the settings compared, each a row, over its seeds."""
    spares = next((rows for rows in groups if spares_relevant(rows[0])), [])
    bare = next((rows for rows in groups if rows[0]["regularizer"] == "none"), [])
    names = [*KINDS, *(f"embedding of {name} tokens" for name in QUARTERS)]
    lines = [
        "| regularizer | strength | seeds | dense BLEU | BLEU | better than none by "
        "| sparing is better by | "
        + " | ".join(f"{name}: sparsity, %" for name in names)
        + " |",
        "| --- " * (7 + len(names)) + "|",
    ]
    for rows in groups:
        cells = (
            results.regularizer(rows[0]),
            results.strength(rows[0]),
            str(len(rows)),
            results.column((run["dense_test_bleu"] for run in rows), ".2f"),
            results.column((run["test_bleu"] for run in rows), ".2f"),
            "" if rows is bare else better_by(rows, bare),
            "" if rows is spares else better_by(spares, rows),
            *(
                results.column((100 * sparsity(run, name) for run in rows), ".1f")
                for name in KINDS
            ),
            *(
                results.column(
                    (100 * run["sparsity_by_frequency"][quarter] for run in rows), ".1f"
                )
                for quarter in QUARTERS.values()
            ),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spares_relevant(run: Row) -> bool:
    """Whether a run spares the weights that are relevant, and no others."""
    return run["regularizer"] == "relevance" and run["form"]["control"] == "none"


def better_by(runs: list[Row], others: list[Row]) -> str:
    """Returns how much more BLEU runs have than others, with a 95 % interval.

    Two make a pair if they have the same seed and dense network, and keep as many
    weights.
    """
    names = "seed", "dense_test_bleu", "total", "kept"
    one, other = (
        {tuple(run[name] for name in names): run["test_bleu"] for run in rows}
        for rows in (runs, others)
    )
    differences = [one[pair] - other[pair] for pair in one.keys() & other.keys()]
    if len(differences) < 2:
        return ""
    mean, half = interval(differences)
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def sparsity(run: Row, name: str) -> float:
    """Returns that of all tensors of a kind, on either side of the network."""
    sizes = [
        (total, kept)
        for kind, total, kept in kinds.sizes(run["layers"])
        if kind.name == name
    ]
    total, kept = (sum(numbers) for numbers in zip(*sizes, strict=True))
    return 1 - kept / total


def tuning(groups: list[list[Row]]) -> str:
    """Returns the table of the settings tried, each a row."""
    lines = ["| tried | strength | validation BLEU |", "| --- " * 3 + "|"]
    for rows in groups:
        cells = (
            results.regularizer(rows[0]),
            results.strength(rows[0]),
            f"{statistics.fmean(run['validation_bleu'] for run in rows):.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
