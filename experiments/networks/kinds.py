"""The weights of an encoder-decoder by what they are for: kinds of layers, by side."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

SIDES = "both", "encoder", "decoder"
NAMES = "embedding", "position", "attention", "feed-forward", "norm", "bias"


class Kind(NamedTuple):
    side: str
    name: str


def kind_of(path: str) -> Kind:
    """Returns the kind of a leaf by its name, such as encoder/layers/0/.../kernel.

    Biases of norms count as norms, all other biases as a kind of their own.
    """
    first, *parts = path.split("/")
    side = {"source_embedding": "encoder", "embedding": "both"}.get(first, first)
    if "norm" in parts:
        return Kind(side, "norm")
    if parts[-1] == "bias":
        return Kind(side, "bias")
    for part, name in (
        ("feed_forward", "feed-forward"),
        ("positions", "position"),
        ("embedding", "embedding"),
    ):
        if part in parts:
            return Kind(side, name)
    return Kind(side, "attention")


def by_kind(numbers: Mapping[str, int]) -> dict[Kind, int]:
    """Returns sums of numbers over the leaves of each kind, in a fixed order."""
    has_two = "source_embedding/embedding" in numbers
    sums: dict[Kind, int] = {}
    for path, number in numbers.items():
        kind = kind_of(path)
        if has_two and kind.side == "both":
            kind = Kind("decoder", kind.name)
        sums[kind] = sums.get(kind, 0) + number
    kinds = (Kind(side, name) for side in SIDES for name in NAMES)
    return {kind: sums[kind] for kind in kinds if kind in sums}


def sizes(layers: Mapping[str, Any]) -> Iterable[tuple[Kind, int, int]]:
    """Yields each kind with its number of weights, and of weights kept."""
    totals, kept = (
        by_kind({path: layer[name] for path, layer in layers.items()})
        for name in ("size", "kept")
    )
    for kind, total in totals.items():
        yield kind, total, kept[kind]
