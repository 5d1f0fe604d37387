"""The state of a pruning transformation."""

from typing import NamedTuple

import jax
import optax


class PruneState(NamedTuple):
    """State of `prune_by_magnitude` and of `prune_to_sparsity`.

    Attributes:
        masks: booleans shaped and sharded like the params, True for the weights that
            are kept; `optax.MaskedNode()` for leaves that are never pruned.
        num_prunes: how many times weights were pruned.
        revived: of each prunable leaf, in the order of the leaves of `masks`, how many
            weights the last pruning step was given that `masks` call pruned and that
            are not zero; 2^32 - 1 for all numbers above. It is not 0 where something
            after the pruning transformation moves weights that were pruned.
        num_updates: how many updates were made. Only `prune_to_sparsity` is driven by
            them, and counts them.
        min_kept: how many weights of each prunable leaf are kept at the least, in the
            order of the leaves of `masks`; None if there are no floors.
        shortfall: pruning budget that the last due pruning step left unused because of
            `min_kept` or `max_sparsity`; 2^32 - 1 for all numbers above.
    """

    masks: optax.Params  # bool
    num_prunes: jax.Array  # shape=(), dtype=int32.
    revived: jax.Array  # shape=(L,), dtype=uint32; one element if L is 0.
    num_updates: jax.Array | None = None  # shape=(), dtype=int32.
    min_kept: jax.Array | None = None  # shape=(L,), dtype=uint32; as `revived`.
    shortfall: jax.Array | None = None  # shape=(), dtype=uint32.
