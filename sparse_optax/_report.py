"""A table of how much of each leaf is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_optax import _fit, _layers, _leaves, _trees
from sparse_optax._layers import StructureArgument
from sparse_optax._masks import nonzero
from sparse_optax._structures import Unstructured

_MANY = 40  # leaves; a longer table shows blocks of them
_EXTREMES = 10  # how many of the most and least sparse leaves such a table shows
_FACTORS = ("scale", "gamma")  # vectors that block a layer if they are zero

Row = tuple[str, "LeafSparsity"]


class LeafSparsity(NamedTuple):
    """How many weights of a leaf, or of a group of leaves, are kept.

    Attributes:
        kept: how many weights are kept.
        size: how many weights there are.
    """

    kept: int
    size: int

    @property
    def sparsity(self) -> float:
        """The fraction that is not kept, in [0, 1]; 0 if there are no weights."""
        return (self.size - self.kept) / self.size if self.size else 0.0

    @property
    def compression(self) -> float:
        """The compression factor, size / kept; infinite if no weight is kept."""
        return self.size / self.kept if self.kept else float("inf")


class SparsityReport(NamedTuple):
    """How much of each leaf and in total is kept; `str` formats it as a table.

    Attributes:
        leaves: exact counts, by the name of each leaf, or of each of its layers.
        units: the same for the units of the structure, if one was given.
        prunable: over leaves that have masks, or all leaves if no masks were given.
        total: over all weights, prunable or not.
        not_counted: descriptions of the leaves that are not weights, by name.
        warnings: one sentence for each layer that has no weight left.
    """

    leaves: dict[str, LeafSparsity]
    units: dict[str, LeafSparsity]
    prunable: LeafSparsity
    total: LeafSparsity
    not_counted: dict[str, str]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        end = [("total", self.total)]
        if self.prunable != self.total:
            end = [("prunable", self.prunable), *end]
        rows = list(self.leaves.items())
        sections = [("", rows)]
        if len(rows) > _MANY:
            by_sparsity = sorted(rows, key=lambda row: -row[1].sparsity)
            sections = [("blocks", _blocks(self.leaves))]
            if by_sparsity[0][1].sparsity > by_sparsity[-1][1].sparsity:
                sections += [
                    ("most sparse", by_sparsity[:_EXTREMES]),
                    ("least sparse", by_sparsity[: -_EXTREMES - 1 : -1]),
                ]
        sections.append(("", end))
        if self.units:
            sections.append(("units", list(self.units.items())))
        return "\n".join(
            [
                *_table(sections),
                *(f"not counted: {n}, {kind}" for n, kind in self.not_counted.items()),
                *(f"warning: {text}" for text in self.warnings),
            ]
        )


def sparsity_report(
    params: optax.Params,
    masks: optax.Params | None = None,
    *,
    structure: StructureArgument | None = None,
    stacked: Mapping[str, int] | None = None,
) -> SparsityReport:
    """Reports how much of each leaf and in total is kept, and which layers are dead.

    With masks, a weight is kept if its mask is True or if it has no mask. Without
    masks, a weight is kept if it is not zero. Beyond 40 leaves, the table shows blocks
    of leaves, and the ten most and the ten least sparse leaves.

    A warning names each matrix, and each vector named `scale` or `gamma`, that has no
    weight left. `compact` finds unused units.

    Args:
        params: the weights.
        masks: as returned by `get_masks`, concrete (not inside `jit`); or None.
        structure: as in `prune_by`, to count units too: a unit is kept if any of its
            weights is.
        stacked: as in `prune_by`, to show each layer of a leaf: `layers/kernel[0]`.

    Returns:
        A `SparsityReport` of exact counts and warnings.

    Raises:
        TypeError: if masks are not boolean, or if an array is traced.
        ValueError: if masks, `structure` or `stacked` do not fit params.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
        >>> tx = sparse_optax.prune_by_magnitude(0.75)
        >>> params, state = sparse_optax.prune(params, tx.init(params), 0.75)
        >>> report = sparse_optax.sparsity_report(params, sparse_optax.get_masks(state))
        >>> report.leaves["w"].kept
        1
        >>> print(report)
                  kept  size  sparsity  compression
        b            2     2     0.00%         1.0x
        w            1     4    75.00%         4.0x
        prunable     1     4    75.00%         4.0x
        total        3     6    50.00%         2.0x
    """
    _fit.check_tree(params, "params")
    _fit.check_concrete(
        (params, masks), "sparsity_report", "Inside, sparse_optax.sparsity counts."
    )
    params = _trees.unbox(params)
    if masks is None:
        masks, is_given = jax.tree.map(lambda _: optax.MaskedNode(), params), False
    else:
        masks, is_given = _trees.unbox(masks), True
        _fit.check_masks_fit(masks, params, "params")
    by_name = dict(_trees.named_leaves(params))
    kept: dict[str, np.ndarray] = {}
    prunable: set[str] = set()
    matrices: set[str] = set()
    not_counted: dict[str, str] = {}

    def add(path, mask, below):
        for name, leaf in _trees.named_leaves(below, path):
            if _trees.is_masked(leaf):
                continue
            if name in kept:  # {"a/b": x, "a": {"b": y}}
                name = jax.tree_util.keystr(path)
            if not _trees.is_weight(leaf):
                not_counted[name] = _trees.describe(leaf)
                continue
            if _leaves.is_matrix(name, leaf, by_name):
                matrices.add(name)
            if not _trees.is_masked(mask):
                kept[name] = np.asarray(mask)
                prunable.add(name)
            elif is_given:  # never pruned: a view without memory of its own
                kept[name] = np.broadcast_to(True, np.shape(leaf))
            else:
                kept[name] = nonzero(np.asarray(leaf))
                prunable.add(name)

    jax.tree_util.tree_map_with_path(add, masks, params, is_leaf=_trees.is_leaf)
    structures = _layers.resolve(
        structure or Unstructured(),
        stacked,
        params,
        {name: mask.shape for name, mask in kept.items() if name in prunable},
    )
    axes = dict(structures.axes) if isinstance(structures, _layers.ByLeaf) else {}
    leaves, of_prunable, layers = {}, [], {}
    for name, mask in kept.items():
        # Without masks, vectors that are zero, such as biases and scales, are not dead.
        if name in matrices or is_given:
            layers |= _split(name, mask, axes.get(name))
        counts = _count(name, mask, axes.get(name))
        leaves |= counts
        of_prunable += counts.values() if name in prunable else []
        if name in matrices:
            matrices |= counts.keys()
    units = {}
    if structure is not None:
        masks = {name: jnp.asarray(kept[name]) for name in kept if name in prunable}
        scores = {name: jnp.zeros(mask.shape) for name, mask in masks.items()}
        for name, unit in structures.to_units(scores, masks).items():
            units |= _count(name, np.asarray(unit.kept), 0 if name in axes else None)
    return SparsityReport(
        leaves,
        units,
        prunable=_sum(of_prunable),
        total=_sum(list(leaves.values())),
        not_counted=not_counted,
        warnings=tuple(
            f"{name} has no weight left"
            for name, layer in layers.items()
            if name in matrices or name.rpartition("/")[2] in _FACTORS
            if layer.size and not layer.any()
        ),
    )


def _natural(name: str) -> list[tuple[str, int]]:
    """A key to sort names by: `layer10` comes after `layer2`."""
    return [(text, int(n or 0)) for text, n in re.findall(r"(\D*)(\d*)", name)]


def _split(name: str, array: np.ndarray, axis: int | None) -> dict[str, np.ndarray]:
    """An array, or each of the layers that it has along an axis."""
    if axis is None:
        return {name: array}
    return {f"{name}[{i}]": x for i, x in enumerate(np.moveaxis(array, axis, 0))}


def _count(name: str, kept: np.ndarray, axis: int | None) -> dict[str, LeafSparsity]:
    """What is kept of an array, or of each of its layers along an axis."""
    return {
        layer: LeafSparsity(int(np.count_nonzero(x)), x.size)
        for layer, x in _split(name, kept, axis).items()
    }


def _sum(leaves: list[LeafSparsity]) -> LeafSparsity:
    return LeafSparsity(sum(x.kept for x in leaves), sum(x.size for x in leaves))


def _blocks(leaves: dict[str, LeafSparsity]) -> list[Row]:
    """Sums over leaves with a common name prefix: as many blocks as fit a table."""

    def at_depth(depth: int) -> dict[str, list[LeafSparsity]]:
        blocks: dict[str, list[LeafSparsity]] = {}
        for name, leaf in leaves.items():
            blocks.setdefault("/".join(name.split("/")[:depth]), []).append(leaf)
        return blocks

    chosen = {"(all)": list(leaves.values())}
    for depth in range(1, 1 + max(name.count("/") for name in leaves)):
        if len(at_depth(depth)) > _MANY:
            break
        chosen = at_depth(depth)
    return [(name, _sum(chosen[name])) for name in sorted(chosen, key=_natural)]


def _table(sections: list[tuple[str, list[Row]]]) -> list[str]:
    """Lines of aligned columns, under the title of each section."""
    cells = [("", "kept", "size", "sparsity", "compression")]
    for title, rows in sections:
        if title:
            cells.append((f"[{title}]", "", "", "", ""))
        for name, leaf in rows:
            compression = f"{leaf.compression:.1f}x" if leaf.kept else "-"
            counts = f"{leaf.kept:,}", f"{leaf.size:,}", f"{leaf.sparsity:.2%}"
            cells.append((name, *counts, compression))
    first, *others = (max(map(len, column)) for column in zip(*cells, strict=True))
    return [
        (
            name.ljust(first)
            + "".join(f"  {x:>{w}}" for x, w in zip(row, others, strict=True))
        ).rstrip()
        for name, *row in cells
    ]
