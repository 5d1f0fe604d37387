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
from sparse_optax._structures import Structure

_ANEW = "Begin with tx.init(params), and set_masks(state, masks) keeps the masks."


class Prunable(NamedTuple):
    """The arguments that say what is pruned, and how far at the most."""

    mask: Mask | None
    structure: StructureArgument
    distribution: Distribution
    stacked: Mapping[str, int] | None
    min_kept: Caps | None
    max_sparsity: Caps | None
    by_magnitude: bool

    def check_arguments(self) -> None:
        """Raises unless these can be right for some params."""
        _leaves.check_mask(self.mask)
        _layers.check_structure(self.structure, self.stacked)
        _amounts.check_distribution(self.distribution)
        _caps.check_caps(self.min_kept, self.max_sparsity)

    def init(self, params: optax.Params) -> PruneState:
        """The state before any pruning step: all kept where weights may be pruned."""
        register_with_flax()
        masks = params
        if jax.tree.leaves(params):
            masks = jax.tree.map(
                lambda s, p: jnp.ones_like(p, dtype=bool) if s else optax.MaskedNode(),
                _leaves.select_leaves(self.mask, params),
                params,
            )
        resolve(self.rules, masks)  # errors belong here, not in the first step
        num_leaves = max(len(jax.tree.leaves(masks)), 1)  # Orbax saves no empty array
        return PruneState(
            masks,
            num_prunes=jnp.zeros([], jnp.int32),
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
        """The state, or an error if it is that of other params or arguments."""
        _arguments.check_params(params)
        _arguments.check_state(state, PruneState)
        _fit.check_masks_fit(state.masks, params, "params")
        if counts_updates != (state.num_updates is not None):
            kinds = "prune_by", "prune_to_sparsity or sparse_training"
            raise ValueError(
                f"state is that of {kinds[not counts_updates]}, and this is "
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
                "the rules of a transformation are part of its state, and that has "
                f"another {' and '.join(differ)} than this transformation. {_ANEW}"
            )
        return state

    def _check_mask(self, state: PruneState, params: optax.Params) -> None:
        try:
            selected = _leaves.select_leaves(self.mask, params)
        except jax.errors.ConcretizationTypeError:
            return  # a function that looks at the values of weights, as init may

        def check(path, mask, flag):
            if _trees.is_masked(mask) == flag:
                raise ValueError(
                    "mask selects other leaves than those with masks in the state; "
                    f"they differ first at {_trees.leaf_name(path)}. {_ANEW}"
                )

        masks, selected = _trees.unbox(state.masks), _trees.unbox(selected)
        jax.tree_util.tree_map_with_path(
            check, masks, selected, is_leaf=_trees.is_masked
        )


class Resolved(NamedTuple):
    """What rules are for some masks.

    Attributes:
        structure: with the names of the leaves.
        most_removed: how many units of each layer may be removed.
    """

    structure: Structure
    most_removed: np.ndarray


def resolve(rules: PruningRules, masks: optax.Params) -> Resolved:
    """The rules for these masks.

    Raises:
        ValueError: if they do not fit.
    """
    masks, shapes = _trees.unbox(masks), shapes_of(masks)
    structure = _layers.resolve(
        rules.structure.value, rules.stacked.value, masks, shapes
    )
    if rules.distribution == "erk" and not isinstance(structure, _layers.ByLeaf):
        raise ValueError("distribution='erk' is for structures of one leaf.")
    sizes = sizes_of(structure, shapes)
    most = _caps.most_removed(
        rules.min_kept.value, rules.max_sparsity.value, masks, sizes
    )
    return Resolved(
        structure, np.array([n for x in most.values() for n in x], np.int64)
    )


def prunable_leaves(masks: optax.Params, tree: Any) -> dict[str, Any]:
    """The leaves of a tree that have masks, by name."""
    found = {}

    def add(path, mask, leaf):
        if not _trees.is_masked(mask):
            found[_trees.leaf_name(path)] = leaf

    masks, tree = _trees.unbox(masks), _trees.unbox(tree)
    jax.tree_util.tree_map_with_path(add, masks, tree, is_leaf=_trees.is_masked)
    return found


def with_leaves(masks: optax.Params, leaves: Mapping[str, jax.Array]) -> optax.Params:
    """The masks with these arrays, by name, in place of their leaves."""
    ordered = [leaves[name] for name in prunable_leaves(masks, masks)]
    return jax.tree.unflatten(jax.tree.structure(masks), ordered)


def shapes_of(masks: optax.Params) -> dict[str, tuple[int, ...]]:
    """The shapes of the prunable leaves, by name."""
    return {name: np.shape(x) for name, x in prunable_leaves(masks, masks).items()}


def sizes_of(
    structure: Structure, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """How many units the layers of each array of units have, by name."""
    scores = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    masks = {n: jax.ShapeDtypeStruct(s, jnp.bool_) for n, s in shapes.items()}
    names: list[str] = []

    def kept(scores, masks):
        units = structure.to_units(scores, masks)
        names.extend(units)  # in their own order, and not in that of a tree
        return [unit.kept for unit in units.values()]

    sizes = [x.size for x in jax.eval_shape(kept, scores, masks)]
    num_layers = structure.num_layers(shapes)
    return {
        name: np.full(num_layers[name] or 1, size // (num_layers[name] or 1), np.int64)
        for name, size in zip(names, sizes, strict=True)
    }
