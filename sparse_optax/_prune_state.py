"""The state of a pruning transformation."""

import dataclasses
import sys
from typing import Literal, NamedTuple

import jax
import optax

from sparse_optax._structures import Structure

Distribution = Literal["global", "uniform", "erk"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PruningRules:
    """How a pruning transformation prunes: a static part of its state.

    Attributes:
        structure: what is removed as a whole.
        distribution: how an amount is spread over the layers.
        most_removed: how many units of each layer may be removed.
        by_magnitude: whether units are ranked by the criterion `magnitude`.
    """

    structure: Structure
    distribution: Distribution
    most_removed: tuple[int, ...]
    by_magnitude: bool


class PruneState(NamedTuple):
    """State of `prune_by`, of `prune_to_sparsity`, and inside `sparse_training`.

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
