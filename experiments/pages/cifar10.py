"""The ways to prune one dense ResNet-20 on CIFAR-10, side by side."""

from collections.abc import Iterable

from experiments.metrics import ACCURACY
from experiments.pages.tables import markdown
from experiments.records import Row

SPARSITIES = (0.8, 0.9, 0.95)
WAYS = {  # a regularizer, how it prunes, and up to which sparsities
    "relevance": ("relevance", "gated", SPARSITIES),
    "l2": ("l2", "gated", SPARSITIES),
    "l1": ("l1", "gated", SPARSITIES),
    "l2, gradual": ("l2", "gradual", SPARSITIES),
    "l2, RigL": ("l2", "rigl", (0.9,)),
}
NEAR = 0.01  # RigL keeps a few more weights, because it does not prune norms


def ways_table(runs: Iterable[Row]) -> str:
    """Returns a table of test errors, and how far they are above the dense network's.

    It says "not run" where a planned run is missing.
    """
    runs = [
        run
        for run in runs
        if run["network"] == "resnet20" and run["structure"] == "unstructured"
    ]
    rows = []
    for name, (regularizer, prune, planned) in WAYS.items():
        found = [
            run
            for run in runs
            if run["regularizer"] == regularizer and run["prune"] == prune
        ]
        errors = {f"error at {100 * x:g} %": error(found, x) for x in planned}
        rows.append({"regularizer": name, **errors})
    return markdown(rows)


def error(runs: Iterable[Row], sparsity: float) -> str:
    near = [run for run in runs if abs(run["sparsity"] - sparsity) < NEAR]
    if not near:
        return "not run"
    dense, sparse = (
        100 - ACCURACY.hundredths(near[-1][f"{prefix}test_accuracy"])
        for prefix in ("dense_", "")
    )
    return f"{sparse:.2f} % ({sparse - dense:+.2f})"
