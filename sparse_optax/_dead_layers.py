"""Finding layers that no signal passes any more, because too many weights are gone.

All weights of a layer may be gone; or some of each layer are left, and yet there is no
path along them from any input to any output. The second can be told of plain chains of
layers, whose order is guessed from shapes and names: in case of doubt nothing is said.
"""

import re

import numpy as np

_FACTORS = ("scale", "gamma")  # vectors without which nothing passes

Layers = dict[str, np.ndarray]  # the masks of leaves, by their names


def dead_layers(masks: Layers, matrices: set[str]) -> tuple[str, ...]:
    """What there is to warn of, in words.

    Args:
        masks: of all leaves.
        matrices: the names of those that are matrices or kernels, `[..., in, out]`.
    """

    def is_empty(name: str) -> bool:
        return masks[name].size > 0 and not masks[name].any()

    found = [
        f"{name} has no weight left"
        for name in masks
        if name in matrices or name.rpartition("/")[2] in _FACTORS
        if is_empty(name)
    ]
    names = _chain({name: masks[name] for name in sorted(matrices, key=natural)})
    has_empty = any(map(is_empty, names))
    if names and not has_empty and (end := _where_paths_end(masks, names)):
        found.append(
            f"no path leads from the input to the output, and none beyond {end}, if "
            "there are no connections but those of the chain " + ", ".join(names)
        )
    return tuple(found)


def natural(name: str) -> list[tuple[str, int]]:
    """A key to sort names by: `layer10` comes after `layer2`."""
    return [(text, int(n or 0)) for text, n in re.findall(r"(\D*)(\d*)", name)]


def _chain(matrices: Layers) -> list[str]:
    """The names in the order in which layers feed one another; [] if that is unknown.

    It begins with the only layer that none feeds. Where all are fed, as in autoencoders
    and language models, any of them might be the first, unless all names are the same
    but for their numbers.
    """
    rest = list(matrices)

    def feeds(a: str, b: str) -> bool:
        channels, inputs = matrices[a].shape[-1], matrices[b].shape[-2]
        # What comes out of a convolution is flattened, channels last.
        flattened = matrices[a].ndim > 2 and matrices[b].ndim == 2
        return channels == inputs or (flattened and inputs % channels == 0)

    if not rest or not all(mask.size for mask in matrices.values()):
        return []
    first = [b for b in rest if not any(feeds(a, b) for a in rest if a != b)]
    if not first and len({re.sub(r"\d+", "", name) for name in rest}) == 1:
        first = rest[:1]
    if len(first) != 1:
        return []

    def may_follow(b: str) -> bool:
        # The last one is not taken before others, whatever its name.
        others = [c for c in rest if c != b]
        return feeds(names[-1], b) and (not others or any(feeds(b, c) for c in others))

    names = first
    rest.remove(names[-1])
    while (following := next(filter(may_follow, rest), None)) is not None:
        names.append(following)
        rest.remove(following)
    return [] if rest else names


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
