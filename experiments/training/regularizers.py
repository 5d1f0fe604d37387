"""The penalties of the comparisons, weighed by irrelevance or not.

All share one schedule of the strength, counted in updates since the last pruning step.
"""

import jax
import jax.numpy as jnp
import optax

import sparse_optax
from experiments.config import PENALTIES, Config, Form
from experiments.training import Optimizer
from experiments.training.forms import add_decay_in_form
from experiments.training.penalties import add_penalty

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
    `grad`. With units, relevance and l1 apply to whole units. With a learning rate, it
    is the last transformation of a chain: see `penalties.shrink`.
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
    if config.regularizer == "lobster":
        return sparse_optax.add_lobster_decay(gamma, mask=None)
    # The library's own, wherever it has the form.
    own = not config.proximal
    if own and config.regularizer == "l1":
        return sparse_optax.add_l1_decay(gamma, structure=units, mask=None)
    if own and config.regularizer == "l2":
        return sparse_optax.add_relevance_decay(
            gamma, irrelevance_fn=lambda abs_grad, _: jnp.ones_like(abs_grad), mask=None
        )
    if config.regularizer in PENALTIES:
        return add_penalty(config.regularizer, gamma, rate)
    default = config.form == Form() and config.penalty == "l2"
    if own and default and not config.decoupled:
        return sparse_optax.add_relevance_decay(
            gamma, config.scale, structure=units, mask=None
        )
    form = config.form, gamma, config.scale, config.seed
    return add_decay_in_form(*form, config.penalty, rate)
