"""The penalties of the comparisons, weighed by irrelevance or not.

All share one schedule of the strength, counted in updates since the last pruning step.
"""

import math

import jax
import jax.numpy as jnp
import optax

import sparse_optax
from experiments.config import PENALTIES, Config, Form
from experiments.training import Optimizer
from experiments.training.forms import add_decay_in_form

Units = sparse_optax.ChannelGroups | None


def make_regularizer(
    config: Config,
    strength: float | jax.Array,
    decay_steps: int,
    units: Units = None,
    rate: optax.Schedule | None = None,
) -> Optimizer:
    """Returns the transformation that adds the gradient of the penalty of a run.

    Its coefficient gamma is `strength` right after a pruning step, and decays to zero
    in `decay_steps` updates, or stays constant if that is 0. `update` needs g as
    `grad`. With units, relevance and l1 apply to whole units. A proximal step needs the
    learning rate.
    """
    decay = make_decay(config, strength, decay_steps, units, rate)
    ranks = config.criterion == "relevance" and config.form != Form()
    if ranks and config.regularizer != "relevance":  # its state has the irrelevance
        form = add_decay_in_form(config.form, 0.0, config.scale, config.seed)
        return optax.chain(form, decay)
    return decay


def make_decay(
    config: Config,
    strength: float | jax.Array,
    decay_steps: int,
    units: Units,
    rate: optax.Schedule | None,
) -> Optimizer:
    gamma = 0.0 if config.regularizer == "none" else strength
    if decay_steps:
        gamma = optax.linear_schedule(gamma, 0.0, decay_steps)
    # The library's own, wherever it has the form.
    if config.regularizer == "l1" and not config.proximal:
        return sparse_optax.add_l1_decay(gamma, structure=units, mask=None)
    if config.regularizer == "lobster":
        return sparse_optax.add_lobster_decay(gamma, mask=None)
    if config.regularizer == "l2" and not config.proximal:
        return sparse_optax.add_relevance_decay(
            gamma, irrelevance_fn=lambda abs_grad, _: jnp.ones_like(abs_grad), mask=None
        )
    form, scale = config.form, config.scale
    if config.regularizer in PENALTIES:  # of an infinite scale all are irrelevant
        form, scale = Form(penalty=config.regularizer), math.inf
    elif form == Form() and not (config.decoupled or config.proximal):
        return sparse_optax.add_relevance_decay(
            gamma, scale, structure=units, mask=None
        )
    proximal_rate = rate if config.proximal else None
    return add_decay_in_form(form, gamma, scale, config.seed, proximal_rate)
