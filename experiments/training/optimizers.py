"""The optimizer of each phase of a run."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import sparse_optax
from experiments.config import Config
from experiments.training.regularizers import make_regularizer

RAMP = 0.75


def dense_optimizer(
    config: Config, num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Returns a plain optimizer, its learning rate falling to zero over `num_steps`."""
    return optax.chain(
        optax.add_decayed_weights(2 * config.dense_strength),
        preconditioner(config, config.dense_optimizer),
        optax.scale_by_learning_rate(
            course(config.dense_learning_rate, "cosine", num_steps, config.warmup_steps)
        ),
    )


def pruning_optimizer(
    config: Config, num_steps: int, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    """Returns the chain of the method, for `num_steps` at the most."""
    decay_steps = round(config.strength_decay_epochs * steps_per_epoch)
    return method(
        config,
        make_regularizer(config, config.strength, decay_steps),
        course(config.learning_rate, config.schedule, num_steps),
        num_steps,
    )


def finetuning_optimizer(
    config: Config, num_steps: int, num_pruning_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Returns the same chain without a penalty, which can go on from its state.

    That of the learning rate counts its own `num_steps`.
    """
    return method(
        config,
        make_regularizer(config, 0.0, 0),
        course(config.finetune_learning_rate, config.finetune_schedule, num_steps),
        num_pruning_steps,
    )


def preconditioner(config: Config, name: str) -> optax.GradientTransformationExtraArgs:
    """Returns Adam or momentum, without a learning rate."""
    adam = optax.scale_by_adam(config.b1, config.b2)
    link = adam if name == "adam" else optax.trace(0.9)
    return optax.with_extra_args_support(link)


def course(
    learning_rate: float, schedule: str, num_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """Returns a learning rate that is constant, or falls to zero along a cosine.

    Before it falls, it may rise from zero along a line.
    """
    if warmup_steps:
        return optax.warmup_cosine_decay_schedule(
            0.0, learning_rate, warmup_steps, num_steps
        )
    if schedule == "cosine":
        return optax.cosine_decay_schedule(learning_rate, max(num_steps, 1))
    return optax.constant_schedule(learning_rate)


def method(
    config: Config,
    regularizer: optax.GradientTransformationExtraArgs,
    learning_rate: optax.Schedule,
    num_pruning_steps: int,
) -> optax.GradientTransformationExtraArgs:
    """Returns penalty, optimizer and prune in the order that the method needs."""
    optimizer = preconditioner(config, config.optimizer)
    links = [regularizer, optimizer, optax.scale_by_learning_rate(learning_rate)]
    if config.decoupled:
        links = [optimizer, regularizer, links[2]]
    if config.regularizer == "lobster":
        links = [optimizer, links[2], regularizer]
    return optax.chain(*links, pruning_link(config, num_pruning_steps))


def pruning_link(
    config: Config, num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Returns the last link, which prunes by itself only where that is gradual.

    Then it does so at the end of every round, and is done before the training is, after
    `RAMP` of its updates: what goes last has to be recovered from, too. Weights are
    ranked over the whole network, as by all that is compared here; the paper brings
    each layer to the sparsity.

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
    """Returns a state from which the course of the learning rate begins anew."""

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda node: (
            node._replace(count=jnp.zeros_like(node.count))
            if is_schedule(node)
            else node
        ),
        opt_state,
        is_leaf=is_schedule,
    )
