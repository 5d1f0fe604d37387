"""The optimizer of each phase of a run."""

import optax

import sparse_optax
from experiments.config import Config
from experiments.regularizers import make_regularizer


def dense_optimizer(
    config: Config, num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Returns plain Adam, its learning rate falling to zero over `num_steps`."""
    return optax.adam(
        optax.cosine_decay_schedule(config.dense_learning_rate, num_steps)
    )


def pruning_optimizer(
    config: Config, num_steps: int, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    """Returns the chain of the method, for `num_steps` at the most."""
    learning_rate = optax.constant_schedule(config.learning_rate)
    if config.schedule == "cosine":
        learning_rate = optax.cosine_decay_schedule(config.learning_rate, num_steps)
    decay_steps = round(config.strength_decay_epochs * steps_per_epoch)
    regularizer = make_regularizer(config, config.strength, decay_steps)
    return method(config, regularizer, learning_rate)


def finetuning_optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    """Returns the same chain without a penalty, which can go on from its state."""
    regularizer = make_regularizer(config, 0.0, 0)
    learning_rate = optax.constant_schedule(config.finetune_learning_rate)
    return method(config, regularizer, learning_rate)


def method(
    config: Config,
    regularizer: optax.GradientTransformationExtraArgs,
    learning_rate: optax.Schedule,
) -> optax.GradientTransformationExtraArgs:
    """Returns penalty, optimizer and prune in the order that the method needs."""
    links = [
        regularizer,
        optax.scale_by_adam() if config.optimizer == "adam" else optax.trace(0.9),
    ]
    if config.decoupled:
        links.reverse()
    return optax.chain(
        *links,
        optax.scale_by_learning_rate(learning_rate),
        sparse_optax.prune_by_magnitude(config.fraction, scope=config.scope),
    )
