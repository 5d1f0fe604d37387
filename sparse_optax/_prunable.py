"""Which leaves a pruning transformation prunes, and by which rules."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_optax import _amounts, _arguments, _caps, _fit, _layers, _leaves, _trees
from sparse_optax._caps import Caps
from sparse_optax._layers import StructureArgument
from sparse_optax._leaves import Mask
from sparse_optax._prune_state import (
    Distribution,
    Frozen,
    PruneState,
    PruningRules,
    register_with_flax,
)
from sparse_optax._structures import Shape, Structure

_ANEW = "Create a new one by tx.init(params); set_masks(state, masks) keeps the masks."


class Prunable(NamedTuple):
    """The arguments that say what is pruned, and how much at most."""

    mask: Mask | None
    structure: StructureArgument
    distribution: Distribution
    stacked: Mapping[str, int] | None
    min_kept: Caps | None
    max_sparsity: Caps | None
    by_magnitude: bool

    def check_arguments(self) -> None:
        """Raises if these cannot be valid for any params."""
        _leaves.check_mask(self.mask)
        _layers.check_structure(self.structure, self.stacked)
        _amounts.check_distribution(self.distribution)
        _caps.check_caps(self.min_kept, self.max_sparsity)

    def init(self, params: optax.Params) -> PruneState:
        """The state before any pruning step: all prunable weights are kept."""
        register_with_flax()
        masks = params
        if jax.tree.leaves(params):
            masks = jax.tree.map(
                lambda s, p: jnp.ones_like(p, dtype=bool) if s else optax.MaskedNode(),
                _leaves.select_leaves(self.mask, params),
                params,
            )
        check_names_differ(masks)
        resolve(self.rules, masks)  # errors belong here, not in the first step
        num_leaves = max(len(jax.tree.leaves(masks)), 1)  # Orbax saves no empty array
        return PruneState(
            masks,
            num_pruning_steps=jnp.zeros([], jnp.int32),
            revived=jnp.zeros([num_leaves], jnp.uint32),
            shortfall=jnp.zeros([], jnp.uint32),
            rules=self.rules,
        )

    @property
    def rules(self) -> PruningRules:
        """The arguments, for the state."""
        structure, stacked, fewest, sparsest = map(
            Frozen.of, (self.structure, self.stacked, self.min_kept, self.max_sparsity)
        )
        return PruningRules(
            structure, self.distribution, stacked, fewest, sparsest, self.by_magnitude
        )

    def check(self, state: Any, params: Any, *, counts_updates: bool) -> PruneState:
        """The state; raises if it belongs to other params or other arguments."""
        _arguments.check_params(params)
        _arguments.check_state(state, PruneState)
        _fit.check_masks_fit(state.masks, params, "params")
        if counts_updates != (state.num_updates is not None):
            kinds = "prune_by", "prune_to_sparsity or sparse_training"
            raise ValueError(
                f"state belongs to {kinds[not counts_updates]}, not to "
                f"{kinds[counts_updates]}. {_ANEW}"
            )
        self._check_mask(state, params)
        if self.rules != state.rules:
            differ = [
                name
                for name, mine in vars(self.rules).items()
                if mine != getattr(state.rules, name)
            ]
            raise ValueError(
                f"state was created with a different {' and '.join(differ)} than this "
                f"transformation has. {_ANEW}"
            )
        return state

    def _check_mask(self, state: PruneState, params: optax.Params) -> None:
        try:
            selected = _leaves.select_leaves(self.mask, params)
        except jax.errors.ConcretizationTypeError:
            return  # a function that reads the values of weights, which init allows

        def check(path, mask, flag):
            if _trees.is_masked(mask) == flag:
                raise ValueError(
                    "mask does not select the leaves that have masks in the state; "
                    f"they differ first at {_trees.leaf_name(path)}. {_ANEW}"
                )

        masks, selected = _trees.unbox(state.masks), _trees.unbox(selected)
        jax.tree_util.tree_map_with_path(
            check, masks, selected, is_leaf=_trees.is_masked
        )


class Resolved(NamedTuple):
    """The rules, applied to the leaves that have masks.

    Attributes:
        structure: the structure, with the names of the leaves.
        num_layers: for each array of units, in order, how many layers are stacked along
            its first axis; 0 if it is a single layer.
        sizes: how many units each layer has.
        max_removed: how many units of each layer may be removed.
        round_to: each layer keeps a multiple of this many units.
        shapes: the shape of each layer; None if units span several leaves.
        named: a tree with the names that patterns match: names of leaves, or of units
            if units span several leaves.
    """

    structure: Structure
    num_layers: dict[str, int]
    sizes: np.ndarray
    max_removed: np.ndarray
    round_to: int
    shapes: list[Shape] | None
    named: Any


def resolve(rules: PruningRules, masks: optax.Params) -> Resolved:
    """The rules for these masks.

    Raises:
        ValueError: if they do not fit.
    """
    masks = _trees.unbox(masks)
    leaves = prunable_leaves(masks, masks)
    shapes = {name: np.shape(x) for name, x in leaves.items()}
    structure = _layers.resolve(
        rules.structure.value, rules.stacked.value, masks, shapes
    )
    units = _count_units(structure, shapes)
    found = structure.num_layers(shapes)
    num_layers = {name: found[name] for name in units}
    sizes = {
        name: np.full(n or 1, units[name] // (n or 1), np.int64)
        for name, n in num_layers.items()
    }
    named, layer_shapes = masks, None
    if isinstance(structure, _layers.ByLeaf):
        of_leaf = structure.layer_shapes(shapes)
        layer_shapes = [of_leaf[name] for name in units for _ in sizes[name]]
    else:
        named = units
        if rules.distribution == "erk":
            raise ValueError(
                "distribution='erk' does not work with groups of units: use 'uniform'."
            )
    most = _caps.max_removed(
        rules.min_kept.value, rules.max_sparsity.value, named, sizes
    )
    for name, leaf_structure in getattr(structure, "structures", ()):
        allowed = int(leaf_structure.max_sparsity * int(sizes[name][0]))
        most[name] = np.minimum(most[name], allowed)
    return Resolved(
        structure,
        num_layers,
        _join(sizes),
        _join(most),
        getattr(structure, "round_to", 1),
        layer_shapes,
        named,
    )


def _join(numbers: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *numbers.values()])


def _count_units(structure: Structure, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """How many units each array of units has, by name, in their order."""
    scores = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    masks = {n: jax.ShapeDtypeStruct(s, jnp.bool_) for n, s in shapes.items()}
    names: list[str] = []

    def kept(scores, masks):
        units = structure.to_units(scores, masks)
        names.extend(units)  # in their own order, not sorted as in a tree
        return [unit.kept for unit in units.values()]

    found = jax.eval_shape(kept, scores, masks)
    return {name: x.size for name, x in zip(names, found, strict=True)}


def prunable_leaves(masks: optax.Params, tree: Any) -> dict[str, Any]:
    """The leaves of a tree that have masks, by name."""
    found = {}

    def add(path, mask, leaf):
        if not _trees.is_masked(mask):
            found[_trees.leaf_name(path)] = leaf

    masks, tree = _trees.unbox(masks), _trees.unbox(tree)
    jax.tree_util.tree_map_with_path(add, masks, tree, is_leaf=_trees.is_masked)
    return found


def check_names_differ(masks: optax.Params) -> None:
    """Raises if two leaves with masks have the same name."""
    names = [name for name, _ in _trees.named_leaves(_trees.unbox(masks))]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"params has two leaves of the same name: {sorted(twice)}.")


def with_leaves(masks: optax.Params, leaves: Mapping[str, jax.Array]) -> optax.Params:
    """The masks, with these arrays in place of their leaves, by name."""
    names = list(prunable_leaves(masks, masks))
    if missing := [name for name in names if name not in leaves]:
        raise ValueError(f"structure.to_masks returned no masks for {missing}.")
    ordered = [leaves[name] for name in names]
    return jax.tree.unflatten(jax.tree.structure(masks), ordered)
