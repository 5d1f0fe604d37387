"""The weights of an encoder-decoder by what they are for: a few kinds, on two sides."""

from collections.abc import Iterable
from typing import NamedTuple

from experiments.records import Row

SHARED = "both"  # what encoder and decoder have in common


class Kind(NamedTuple):
    """A side of the network, and a kind of layer in it."""

    side: str
    name: str


def kind_of(path: str) -> Kind:
    """Returns the kind of a tensor by its name, such as encoder/layers/0/.../kernel.

    Biases of norms count as norms, and other biases apart from the layers they are in.
    """
    first, *parts = path.split("/")
    side = {"source_embedding": "encoder", "embedding": SHARED}.get(first, first)
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


def by_kind(numbers: dict[str, int]) -> dict[Kind, int]:
    """Returns sums over the tensors of each kind, of which there are numbers by name.

    What both sides share comes first, then the encoder, then the decoder.
    """
    has_two = "source_embedding/embedding" in numbers
    sums: dict[Kind, int] = {}
    for path, number in numbers.items():
        kind = kind_of(path)
        if has_two and kind.side == SHARED:
            kind = Kind("decoder", kind.name)
        sums[kind] = sums.get(kind, 0) + number
    return dict(sorted(sums.items(), key=lambda item: place(item[0])))


def place(kind: Kind) -> tuple[int, int]:
    """Returns what kinds are sorted by."""
    names = "embedding", "position", "attention", "feed-forward", "norm", "bias"
    return (SHARED, "encoder", "decoder").index(kind.side), names.index(kind.name)


def sizes(layers: Row) -> Iterable[tuple[Kind, int, int]]:
    """Yields each kind, how many weights it has, and how many of them are kept."""
    totals, kept = (
        by_kind({path: layer[name] for path, layer in layers.items()})
        for name in ("size", "kept")
    )
    for kind, total in totals.items():
        yield kind, total, kept[kind]


def known(summary: Row) -> bool:
    """Whether a run is of a network whose tensors have kinds."""
    return summary["network"] == "transformer"
