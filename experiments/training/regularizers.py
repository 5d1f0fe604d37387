"""The penalties that can drive the pruning: relevance, and what it is compared with.

All of them share one schedule, counted in updates since the last prune, so that a
comparison changes the penalty and nothing else.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import sparse_optax
from experiments.config import Config
from experiments.forms import Form, add_decay_in_form


def decayed(strength: float | jax.Array, num_steps: int) -> optax.ScalarOrSchedule:
    """Returns strength * max(0, 1 - t / num_steps), or a constant without steps."""
    if num_steps == 0:
        return strength
    return optax.linear_schedule(strength, 0.0, num_steps)


def add_sign_decay(
    strength: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """Adds strength * sign(w): the gradient of the penalty strength * sum |w|."""
    return scheduled(strength, lambda gamma, g, w, _: g + gamma * jnp.sign(w))


def add_lobster(
    strength: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """Takes strength * max(0, 1 - |g|) * w from a finished update.

    LOBSTER: what shrinks a weight is how insensitive the loss is to it, beside the
    optimizer and its learning rate. Of the paper this is the regularizer; its
    threshold, found by bisection where the validation loss no longer falls, is not.

    Source: Tartaglione, Bragagnolo, Fiandrotti and Grangetto, `LOSS-Based SensiTivity
    rEgulaRization <https://arxiv.org/abs/2011.09905>`_, 2020; `strength` is lambda.
    """
    return scheduled(
        strength, lambda gamma, u, w, abs_g: u - gamma * jnp.maximum(0, 1 - abs_g) * w
    )


def scheduled(
    strength: optax.ScalarOrSchedule, update: Callable[..., jax.Array]
) -> optax.GradientTransformationExtraArgs:
    """Returns the link that makes `update(gamma, u, w, |g|)` of every leaf u.

    Its state is that of `sparse_optax.add_relevance_decay`, so that a prune restarts a
    schedule of the strength gamma here as it does there.
    """

    def init_fn(params):
        del params
        return sparse_optax.RelevanceDecayState(
            steps_since_prune=jnp.zeros([], jnp.int32)
        )

    def update_fn(updates, state, params=None, *, abs_grads=None, **extra_args):
        del extra_args
        if params is None or abs_grads is None:
            raise ValueError("a regularizer needs params and abs_grads in update.")
        steps = state.steps_since_prune
        gamma = strength(steps) if callable(strength) else strength
        updates = jax.tree.map(
            lambda *leaves: update(gamma, *leaves), updates, params, abs_grads
        )
        return updates, sparse_optax.RelevanceDecayState(
            steps_since_prune=jnp.asarray(optax.safe_increment(steps))
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def make_regularizer(
    config: Config, strength: float | jax.Array, decay_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Returns the link that adds the gradient of the penalty that a run is made with.

    Args:
      config: says which penalty.
      strength: gamma, the penalty's coefficient right after a prune.
      decay_steps: updates after a prune in which the strength falls to zero; 0 keeps
        it constant.

    Returns:
      A link to put before the optimizer, or before its learning rate; or behind both,
      if it is that of LOBSTER. Its `update` wants the sizes of the gradients as
      `abs_grads`.
    """
    gamma = decayed(0.0 if config.regularizer == "none" else strength, decay_steps)
    if config.regularizer == "l1":
        return add_sign_decay(gamma)
    if config.regularizer == "lobster":
        return add_lobster(gamma)
    if config.regularizer == "l2":
        return sparse_optax.add_relevance_decay(
            gamma, irrelevance_fn=lambda abs_grad, _: jnp.ones_like(abs_grad), mask=None
        )
    # The library's own link, wherever it can do it.
    if config.form == Form() and not config.decoupled:
        return sparse_optax.add_relevance_decay(gamma, config.scale, mask=None)
    return add_decay_in_form(config.form, gamma, config.scale, config.seed)
