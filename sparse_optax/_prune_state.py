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

    These are the arguments of the transformation. They compare by value.

    Attributes:
        structure: which weights are removed together.
        distribution: how an amount is spread over the layers.
        stacked: the axes of stacked layers.
        min_kept: the least number of units to keep in each layer.
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
    """A tree of Python values, or an ordered dict: hashable, and compared by value."""

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
    """State of pruning transformations, and part of the state of `sparse_training`.

    Attributes:
        masks: booleans shaped and sharded like the params, True for kept weights;
            `optax.MaskedNode()` for leaves that are never pruned.
        num_pruning_steps: the number of pruning steps, including the first masks and
            the mask updates of `sparse_training`.
        revived: for each prunable leaf, in the order of the leaves of `masks`, how many
            pruned weights the last pruning step found not to be zero, up to 2^32 - 1.
            It is not 0 if something after the pruning transformation changes pruned
            weights.
        shortfall: how many units the last pruning step was asked to remove but could
            not, due to `min_kept`, `max_sparsity` or the structure, up to 2^32 - 1.
        rules: static, not an array: equal for equal transformations.
        num_updates: the number of updates so far. Only `prune_to_sparsity` and
            `sparse_training` depend on it and count it.
    """

    masks: optax.Params  # bool
    num_pruning_steps: jax.Array  # shape=(), dtype=int32.
    revived: jax.Array  # shape=(L,), dtype=uint32; one element if L is 0.
    shortfall: jax.Array  # shape=(), dtype=uint32.
    rules: PruningRules
    num_updates: jax.Array | None = None  # shape=(), dtype=int32.


def register_with_flax() -> None:
    """Lets `flax.serialization` save states; rules are not saved, and stay unchanged.

    It needs this for every node that is not a tuple, dict or flax dataclass.
    """
    serialization = sys.modules.get("flax.serialization")
    if serialization is not None:
        serialization.register_serialization_state(
            PruningRules, lambda rules: {}, lambda rules, state: rules, override=True
        )
