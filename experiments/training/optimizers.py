"""The optimizer of each phase of a run."""

from typing import Any

import jax.numpy as jnp
import optax

import sparse_optax
from experiments.config import Config
from experiments.training import Optimizer
from experiments.training.regularizers import make_regularizer

RAMP = 0.75  # of the updates, in which gradual pruning reaches its target


def dense_optimizer(config: Config, num_steps: int) -> Optimizer:
    rate, warmup = config.dense_learning_rate, config.warmup_steps
    schedule = learning_rate(rate, "cosine", num_steps)
    if warmup:
        schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, num_steps)
    return optax.chain(
        optax.add_decayed_weights(2 * config.dense_strength),
        preconditioner(config, config.dense_optimizer),
        optax.scale_by_learning_rate(schedule),
    )


def pruning_optimizer(
    config: Config, num_steps: int, steps_per_epoch: int
) -> Optimizer:
    decay_steps = round(config.strength_decay_epochs * steps_per_epoch)
    regularizer = make_regularizer(config, config.strength, decay_steps)
    rate = learning_rate(config.learning_rate, config.schedule, num_steps)
    return method(config, regularizer, rate, num_steps)


def finetuning_optimizer(
    config: Config, num_steps: int, num_pruning_steps: int
) -> Optimizer:
    """Returns the same chain with a strength of zero, which resumes from its state.

    Its learning rate counts from the start of fine-tuning: see `restart_schedule`.
    """
    schedule = config.finetune_schedule
    rate = learning_rate(config.finetune_learning_rate, schedule, num_steps)
    return method(config, make_regularizer(config, 0.0, 0), rate, num_pruning_steps)


def preconditioner(config: Config, name: str) -> Optimizer:
    """Returns Adam or momentum, without a learning rate."""
    adam = optax.scale_by_adam(config.b1, config.b2)
    return optax.with_extra_args_support(adam if name == "adam" else optax.trace(0.9))


def learning_rate(value: float, schedule: str, num_steps: int) -> optax.Schedule:
    if schedule == "cosine":
        return optax.cosine_decay_schedule(value, max(num_steps, 1))
    return optax.constant_schedule(value)


def method(
    config: Config, regularizer: Optimizer, rate: optax.Schedule, num_pruning_steps: int
) -> Optimizer:
    """Returns the chain of a method, its parts in the order that it needs."""
    optimizer = preconditioner(config, config.optimizer)
    scale = optax.scale_by_learning_rate(rate)
    chain = regularizer, optimizer, scale
    if config.decoupled:
        chain = optimizer, regularizer, scale
    if config.regularizer == "lobster":
        chain = optimizer, scale, regularizer
    return optax.chain(*chain, pruning(config, num_pruning_steps))


def pruning(config: Config, num_steps: int) -> Optimizer:
    """Returns the pruning transformation, which prunes by itself only if gradual.

    Gradual pruning has a step at the end of every round, and ranks weights over the
    whole network; the paper brings each layer to the sparsity.

    Source: Zhu and Gupta, `To prune, or not to prune: exploring the efficacy of pruning
    for model compression <https://arxiv.org/abs/1710.01878>`_, 2017, equation 1.
    """
    if config.prune != "gradual":
        return sparse_optax.prune_by_magnitude(
            config.fraction, scope=config.scope, mask=None
        )
    cubic = optax.polynomial_schedule(
        0.0, config.target_sparsity, power=3, transition_steps=round(RAMP * num_steps)
    )
    return sparse_optax.prune_to_sparsity(
        cubic, every=config.interval, scope=config.scope, mask=None
    )


def restart_schedule(opt_state: Any) -> Any:
    """Returns the state with the count of the learning rate schedule at zero."""
    name = optax.ScaleByScheduleState.__name__
    return optax.tree.set(
        opt_state,
        lambda path, _: getattr(path[-1], "tuple_name", None) == name,
        count=jnp.zeros([], jnp.int32),
    )
