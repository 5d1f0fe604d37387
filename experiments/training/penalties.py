"""Penalties on the sizes of weights, by their slopes, and two ways to follow them.

A slope is the derivative of a penalty by |w|:

    l2    w^2                     2 |w|
    l1    |w|                     1
    root  sqrt(|w| + SMOOTH)      1 / (2 sqrt(|w| + SMOOTH))
    log   log(1 + |w| / SMOOTH)   1 / (|w| + SMOOTH)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import sparse_optax
from experiments.config import Penalty
from experiments.training import Optimizer

SMOOTH = 0.01  # for penalties whose slope would be infinite at zero

SLOPES: dict[Penalty, Callable[[jax.Array], jax.Array]] = {
    "l2": lambda size: 2 * size,
    "l1": jnp.ones_like,
    "root": lambda size: 0.5 / jnp.sqrt(size + SMOOTH),
    "log": lambda size: 1 / (size + SMOOTH),
}


def shrink(
    penalty: Penalty,
    update: jax.Array,
    w: jax.Array,
    strength: jax.typing.ArrayLike,
    rate: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Returns the update of weights w with strength * slope(|w|) * sign(w) added.

    With a learning rate, the update is the last one of a chain. It then leads from w to
    sign(v) * max(0, |v| - rate * strength * slope(|v|)) with v = w + update. For l1,
    this is the proximal step; for root and log, that of a reweighted l1.
    """
    slope = SLOPES[penalty]
    if rate is None:
        return update + strength * slope(jnp.abs(w)) * jnp.sign(w)
    v = w + update
    size = jnp.abs(v)
    return jnp.sign(v) * jnp.maximum(size - rate * strength * slope(size), 0) - w


class PenaltyState(NamedTuple):
    decay: sparse_optax.StepsSincePruning
    num_updates: jax.Array  # shape=(), dtype=int32.


def add_penalty(
    penalty: Penalty,
    strength: optax.ScalarOrSchedule,
    rate: optax.Schedule | None = None,
) -> Optimizer:
    """Shrinks all weights alike.

    `strength` may be a schedule over updates since the last pruning step, and `rate` is
    the learning rate over all updates, for the last transformation of a chain.
    """

    def init_fn(params):
        del params
        zero = jnp.zeros([], jnp.int32)
        return PenaltyState(sparse_optax.StepsSincePruning(zero), zero)

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        steps, number = state.decay.num_steps, state.num_updates
        gamma = strength(steps) if callable(strength) else strength
        now = None if rate is None else rate(number)
        updates = jax.tree.map(
            lambda u, w: shrink(penalty, u, w, gamma, now), updates, params
        )
        steps = sparse_optax.StepsSincePruning(jnp.asarray(optax.safe_increment(steps)))
        return updates, PenaltyState(steps, jnp.asarray(optax.safe_increment(number)))

    return Optimizer(init_fn, update_fn)
