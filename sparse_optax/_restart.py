"""Counters of updates that restart at a pruning step.

Many methods have schedules of the number of updates since the last pruning step. Their
transformations keep this number in a `StepsSincePruning`, anywhere in their state, and
a pruning step sets it to 0, in any transformation.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class StepsSincePruning(NamedTuple):
    """A counter in the state of any transformation that restarts at a pruning step.

    `sparse_optax.prune` and `hide_pruned` set it to 0. In a plain chain, the
    transformation does so itself, in an update with `prune=True`.

    Attributes:
        num_steps: updates since the last pruning step.
    """

    num_steps: jax.Array  # shape=(), dtype=int32.


def restart(opt_state: Any, when: bool | jax.Array = True) -> Any:
    """The state with each `StepsSincePruning` in it set to 0, if `when` is true."""

    def is_counter(node):
        return isinstance(node, StepsSincePruning)

    def begin(node):
        if not is_counter(node):
            return node
        return jax.tree.map(lambda n: jnp.where(when, jnp.zeros_like(n), n), node)

    return jax.tree.map(begin, opt_state, is_leaf=is_counter)
