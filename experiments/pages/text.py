"""The page on text, and the tables of the study on text."""

from collections.abc import Iterable

from experiments.comparing.statistics import interval
from experiments.metrics import ACCURACY, BLEU, EXACT_MATCH, metric_of
from experiments.networks import kinds
from experiments.pages import tables
from experiments.pages.tables import made, markdown, regularizer, runs_table, spread
from experiments.records import Row, by_config

TUNED_ON = 0  # the seed on which the study on text was tuned


def text() -> dict[str, str]:
    runs = [
        run
        for run in tables.stored_runs()
        if metric_of(run) != ACCURACY and not is_control(run)
    ]
    return {
        "bleu": runs_table(run for run in runs if metric_of(run) == BLEU),
        "exact": runs_table(run for run in runs if metric_of(run) == EXACT_MATCH),
        "kinds": kinds_table(runs),
        "made": made(runs),
    }


def is_control(run: Row) -> bool:
    reduced = run.get("num_train") is not None
    return run["dataset"] == "multi30k" and reduced and run["prune"] == "gradual"


def kinds_table(runs: Iterable[Row]) -> str:
    """Returns a table of the sparsity of each kind of layer, for seed 0."""
    return markdown(
        {
            "data set": tables.data_set(run),
            "network": tables.network(run),
            "strength": tables.strength(run),
            "pruning": tables.pruning(run),
            "sparsity, %: all": f"{100 * run['sparsity']:.1f}",
        }
        | {
            f"{kind.side} {kind.name}": f"{100 * (1 - kept / total):.1f}"
            for kind, total, kept in kinds.sizes(run["layers"])
        }
        for run in runs
        if run["seed"] == 0 and run["regularizer"] == "relevance"
    )


def controls() -> dict[str, str]:
    runs = [run for run in tables.stored_runs() if is_control(run)]
    compared = by_config(run for run in runs if run["seed"] != TUNED_ON)
    tuned = by_config(run for run in runs if run["seed"] == TUNED_ON)
    none = next(group for group in compared if group[0]["regularizer"] == "none")
    sparing = next(
        group for group in compared if regularizer(group[0]) == "relevance, unit leaf"
    )

    def sparsities(group: list[Row]) -> Row:
        found = {
            "attention": [sparsity(run, "attention") for run in group],
            "embedding": [sparsity(run, "embedding") for run in group],
            "frequent tokens": [run["sparsity_by_frequency"][0] for run in group],
            "rare tokens": [run["sparsity_by_frequency"][-1] for run in group],
        }
        return {
            f"{name}: sparsity, %": spread((100 * x for x in values), ".1f")
            for name, values in found.items()
        }

    return {
        "text_compared": markdown(
            {
                "regularizer": regularizer(group[0]),
                "strength": tables.strength(group[0]),
                "seeds": str(len(group)),
                "dense BLEU": spread(run["dense_test_bleu"] for run in group),
                "BLEU": spread(run["test_bleu"] for run in group),
                "better than none by": better_by(group, none),
                "sparing is better by": better_by(sparing, group),
            }
            | sparsities(group)
            for group in compared
        ),
        "text_tuned": markdown(
            {
                "tuned": regularizer(group[0]),
                "strength": tables.strength(group[0]),
                "validation BLEU": spread(run["validation_bleu"] for run in group),
            }
            for group in tuned
        ),
    }


def better_by(runs: list[Row], others: list[Row]) -> str:
    """Returns the difference in BLEU of pairs of runs, with a 95 % interval.

    Pairs have the same seed and dense network, and keep as many weights.
    """
    names = "seed", "dense_test_bleu", "total", "kept"
    one, other = (
        {tuple(run[name] for name in names): run["test_bleu"] for run in rows}
        for rows in (runs, others)
    )
    pairs = one.keys() & other.keys()
    if runs is others or len(pairs) < 2:
        return ""
    mean, half = interval([one[pair] - other[pair] for pair in pairs])
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def sparsity(run: Row, name: str) -> float:
    """Returns that of all layers of a kind, on both sides of the network."""
    sizes = [size for kind, *size in kinds.sizes(run["layers"]) if kind.name == name]
    total, kept = map(sum, zip(*sizes, strict=True))
    return 1 - kept / total
