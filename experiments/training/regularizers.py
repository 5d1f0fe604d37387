"""The penalties of the comparison: relevance, l2, l1 and LOBSTER.

All share one schedule of the strength, counted in updates since the last pruning step.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import sparse_optax
from experiments.config import Config, Form
from experiments.training import Optimizer
from experiments.training.forms import add_decay_in_form


def make_regularizer(
    config: Config, strength: float | jax.Array, decay_steps: int
) -> Optimizer:
    """Returns the transformation that adds the gradient of the penalty of a run.

    Its coefficient gamma is `strength` right after a pruning step, and decays to zero
    in `decay_steps` updates, unless they are 0. `update` needs |g| as `abs_grads`. The
    form of relevance by which weights are ranked is in its state.
    """
    decay = make_decay(config, strength, decay_steps)
    if config.regularizer == "relevance" or config.criterion != "relevance":
        return decay
    if config.form == Form():  # the criterion of the library
        return decay
    tracked = add_decay_in_form(config.form, 0.0, config.scale, config.seed)
    return optax.chain(tracked, decay)


def make_decay(
    config: Config, strength: float | jax.Array, decay_steps: int
) -> Optimizer:
    gamma = 0.0 if config.regularizer == "none" else strength
    if decay_steps:
        gamma = optax.linear_schedule(gamma, 0.0, decay_steps)
    if config.regularizer == "l1":
        return scheduled(gamma, lambda gamma, g, w, _: g + gamma * jnp.sign(w))
    if config.regularizer == "lobster":
        return add_lobster(gamma)
    if config.regularizer == "l2":
        return sparse_optax.add_relevance_decay(
            gamma, irrelevance_fn=lambda abs_grad, _: jnp.ones_like(abs_grad), mask=None
        )
    # That of the library, wherever it has the form.
    if config.form == Form() and not config.decoupled:
        return sparse_optax.add_relevance_decay(gamma, config.scale, mask=None)
    return add_decay_in_form(config.form, gamma, config.scale, config.seed)


def add_lobster(strength: optax.ScalarOrSchedule) -> Optimizer:
    """Subtracts strength * max(0, 1 - |g|) * w from a finished update.

    The regularizer of LOBSTER, without its threshold, which the paper finds by
    bisection where the validation loss no longer falls.

    Source: Tartaglione, Bragagnolo, Fiandrotti and Grangetto, `LOSS-Based SensiTivity
    rEgulaRization <https://arxiv.org/abs/2011.09905>`_, 2020; `strength` is lambda.
    """
    return scheduled(
        strength, lambda gamma, u, w, abs_g: u - gamma * jnp.maximum(0, 1 - abs_g) * w
    )


def scheduled(
    strength: optax.ScalarOrSchedule, update: Callable[..., jax.Array]
) -> Optimizer:
    """Returns the transformation of every leaf u to `update(gamma, u, w, |g|)`."""

    def init_fn(params):
        del params
        return sparse_optax.StepsSincePruning(jnp.zeros([], jnp.int32))

    def update_fn(updates, state, params=None, *, abs_grads=None, **extra_args):
        del extra_args
        steps = state.num_steps
        gamma = strength(steps) if callable(strength) else strength
        updates = jax.tree.map(
            lambda *leaves: update(gamma, *leaves), updates, params, abs_grads
        )
        steps = jnp.asarray(optax.safe_increment(steps))
        return updates, sparse_optax.StepsSincePruning(steps)

    return Optimizer(init_fn, update_fn)
