"""Finding layers that no signal passes any more, because too many weights are gone.

All weights of a layer may be gone; or some of each layer are left, and yet there is no
path along them from any input to any output. The second can be told of networks that
are plain chains of layers, which is guessed from the shapes.
"""

import re

import numpy as np

# Vectors without which a layer does what it did.
_ADDED = ("b", "bias", "offset", "beta")

Layers = dict[str, np.ndarray]  # the masks of leaves, by their names


def dead_layers(masks: Layers, matrices: set[str]) -> tuple[str, ...]:
    """What there is to warn of, in words.

    Args:
        masks: of all leaves.
        matrices: the names of those that are matrices or kernels, `[..., in, out]`.
    """

    def matters(name: str) -> bool:
        return name in matrices or name.rpartition("/")[2] not in _ADDED

    found = [
        f"{name} has no weight left"
        for name, mask in masks.items()
        if mask.size and not mask.any() and matters(name)
    ]
    names = _chain({name: masks[name] for name in sorted(matrices, key=_natural)})
    if not found and names and (end := _where_paths_end(masks, names)):
        found.append(
            f"no path leads from the input to the output, and none beyond {end}, if "
            f"the network is the chain of {', '.join(names)}"
        )
    return tuple(found)


def _natural(name: str) -> list[tuple[str, int]]:
    """What names are sorted by: `layer10` comes after `layer2`."""
    return [(text, int(n or 0)) for text, n in re.findall(r"(\D*)(\d*)", name)]


def _chain(matrices: Layers) -> list[str]:
    """The names in the order in which layers feed one another; [] if they do not."""
    rest = list(matrices)

    def feeds(a: str, b: str) -> bool:
        channels, inputs = matrices[a].shape[-1], matrices[b].shape[-2]
        # What comes out of a convolution is flattened, channels last.
        flattened = matrices[a].ndim > 2 and matrices[b].ndim == 2
        return channels == inputs or (
            flattened and channels > 0 and inputs % channels == 0
        )

    def follows_nothing(b: str) -> bool:
        return not any(feeds(a, b) for a in rest if a != b)

    first = next(filter(follows_nothing, rest), rest[0] if rest else None)
    names = []
    while first is not None:
        names.append(first)
        rest.remove(first)
        first = next((b for b in rest if feeds(names[-1], b)), None)
    return [] if rest or not all(matrices[name].size for name in names) else names


def _where_paths_end(masks: Layers, names: list[str]) -> str | None:
    """The layer that no path gets past, or None if one reaches the output."""
    reached = np.ones(masks[names[0]].shape[-2], bool)
    for name in names:
        mask = masks[name]
        connected = mask.reshape(-1, *mask.shape[-2:]).any(axis=0)
        reached = np.tile(reached, mask.shape[-2] // reached.size)
        reached = (connected & reached[:, None]).any(axis=0)
        if not reached.any():
            return name
    return None
