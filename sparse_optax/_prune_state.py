"""The state of a pruning transformation."""

import dataclasses
import sys
from typing import Any, Literal, NamedTuple

import jax
import optax

from sparse_optax import _leaves, _trees

Distribution = Literal["global", "uniform", "erk"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PruningRules:
    """How a pruning transformation prunes: a static part of its state.

    They are the arguments of the transformation, and compare by value.

    Attributes:
        structure: what is removed as a whole.
        distribution: how an amount is spread over the layers.
        stacked: the axes of stacked layers.
        min_kept: how many units of each layer are kept at the least.
        max_sparsity: the share of each layer that may be removed.
        by_magnitude: whether units are ranked by the criterion `magnitude`.
    """

    structure: "Frozen"
    distribution: Distribution
    stacked: "Frozen"
    min_kept: "Frozen"
    max_sparsity: "Frozen"
    by_magnitude: bool


class Frozen(NamedTuple):
    """A tree of Python values, or a dict in its order: hashable, and equal by value."""

    leaves: tuple[Any, ...]
    structure: Any

    @classmethod
    def of(cls, tree: Any) -> "Frozen":
        if (patterns := _leaves.as_patterns(tree)) is not None:
            return cls(tuple(patterns.values()), tuple(patterns))
        leaves, structure = jax.tree.flatten(_trees.unbox(tree))
        return cls(tuple(map(_number, leaves)), structure)

    @property
    def value(self) -> Any:
        if isinstance(self.structure, tuple):
            return dict(zip(self.structure, self.leaves, strict=True))
        return jax.tree.unflatten(self.structure, self.leaves)


def _number(x: Any) -> Any:
    return x.item() if hasattr(x, "item") else x


class PruneState(NamedTuple):
    """State of pruning transformations, and part of that of `sparse_training`.

    Attributes:
        masks: booleans shaped and sharded like the params, True for the weights that
            are kept; `optax.MaskedNode()` for leaves that are never pruned.
        num_prunes: how many times weights were pruned, the first masks and the mask
            updates of `sparse_training` included.
        revived: of each prunable leaf, in the order of the leaves of `masks`, how many
            weights the last pruning step was given that `masks` call pruned and that
            are not zero; 2^32 - 1 for all numbers above. It is not 0 where something
            after the pruning transformation moves weights that were pruned.
        shortfall: how many units the last pruning step was asked to remove and could
            not, because of `min_kept`, `max_sparsity` or the structure; 2^32 - 1 for
            all numbers above.
        rules: static: equal for equal transformations, and no array.
        num_updates: how many updates were made. Only `prune_to_sparsity` and
            `sparse_training` are driven by them, and count them.
    """

    masks: optax.Params  # bool
    num_prunes: jax.Array  # shape=(), dtype=int32.
    revived: jax.Array  # shape=(L,), dtype=uint32; one element if L is 0.
    shortfall: jax.Array  # shape=(), dtype=uint32.
    rules: PruningRules
    num_updates: jax.Array | None = None  # shape=(), dtype=int32.


def register_with_flax() -> None:
    """Lets `flax.serialization` save states: rules are not saved, and stay as they are.

    It asks for every node that is no tuple, dict or dataclass of its own.
    """
    serialization = sys.modules.get("flax.serialization")
    if serialization is not None:
        serialization.register_serialization_state(
            PruningRules, lambda rules: {}, lambda rules, state: rules, override=True
        )
