"""The optimizer of each phase of a run."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sparse_optax
from experiments.config import AT_INIT, SPARSE, Config
from experiments.training import Optimizer
from experiments.training.regularizers import Units, make_regularizer

RANDOM = 2**29 - 1  # folded into the seed
RAMP = 0.75  # fraction of the updates after which gradual pruning ends


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
    config: Config,
    num_steps: int,
    steps_per_epoch: int,
    units: Units = None,
    start: float = 0.0,
) -> Optimizer:
    """Returns the optimizer of pruning, from a network of sparsity `start`."""
    decay_steps = round(config.strength_decay_epochs * steps_per_epoch)
    rate = learning_rate(config.learning_rate, config.schedule, num_steps)
    proximal = rate if config.proximal else None
    strength = config.strength
    regularizer = make_regularizer(config, strength, decay_steps, units, proximal)
    return method(config, regularizer, rate, num_steps, units, start)


def finetuning_optimizer(
    config: Config,
    num_steps: int,
    num_pruning_steps: int,
    units: Units = None,
    start: float = 0.0,
) -> Optimizer:
    """Returns the pruning optimizer with a strength of zero, for the same state.

    Its learning rate schedule starts with fine-tuning: see `restart_schedule`.
    """
    if config.prune in SPARSE:  # masks stay as they are
        config = dataclasses.replace(config, prune="static")
    schedule = config.finetune_schedule
    rate = learning_rate(config.finetune_learning_rate, schedule, num_steps)
    regularizer = make_regularizer(config, 0.0, 0, units)
    return method(config, regularizer, rate, num_pruning_steps, units, start)


def preconditioner(config: Config, name: str) -> Optimizer:
    """Returns Adam or momentum, without a learning rate."""
    adam = optax.scale_by_adam(config.b1, config.b2)
    return optax.with_extra_args_support(adam if name == "adam" else optax.trace(0.9))


def learning_rate(value: float, schedule: str, num_steps: int) -> optax.Schedule:
    if schedule == "cosine":
        return optax.cosine_decay_schedule(value, max(num_steps, 1))
    return optax.constant_schedule(value)


def method(
    config: Config,
    regularizer: Optimizer,
    rate: optax.Schedule,
    num_pruning_steps: int,
    units: Units,
    start: float,
) -> Optimizer:
    """Returns the optimizer of a method, with its parts in the right order."""
    optimizer = preconditioner(config, config.optimizer)
    scale = optax.scale_by_learning_rate(rate)
    chain = regularizer, optimizer, scale
    if config.decoupled:
        chain = optimizer, regularizer, scale
    if config.proximal or config.regularizer == "lobster":
        chain = optimizer, scale, regularizer
    chain = optax.chain(*chain)
    if config.prune in SPARSE:
        return sparse_training(config, chain, num_pruning_steps)
    prune = pruning(config, num_pruning_steps, units, start)
    return sparse_optax.hide_pruned(chain, prune)


def pruning(config: Config, num_steps: int, units: Units, start: float) -> Optimizer:
    """Returns the pruning transformation, which prunes by itself only if gradual.

    Gradual pruning makes a pruning step at the end of every round.
    """
    settings: dict[str, Any] = dict(
        structure=units or structure(config.structure),
        distribution=config.distribution,
        mask=prunable(config),
    )
    if config.prune != "gradual":  # `Phases` gives the amount
        return sparse_optax.prune_by(criterion(config), **settings)
    end = max(round(RAMP * num_steps), 1)
    cubic = sparse_optax.cubic_sparsity(start, config.target_sparsity, 0, end)
    return sparse_optax.prune_to_sparsity(
        cubic, every=config.interval, criterion=criterion(config), **settings
    )


def sparse_training(config: Config, chain: Optimizer, num_steps: int) -> Optimizer:
    """Returns the optimizer that trains with random masks, fixed or updated."""
    settings: dict[str, Any] = {"regrow": None}
    if config.prune != "static":
        regrow = "gradient" if config.prune == "rigl" else "random"
        until = max(round(RAMP * num_steps), config.interval)
        settings = {"regrow": regrow, "every": config.interval, "until": until}
    return sparse_optax.sparse_training(
        chain,
        config.target_sparsity,
        key=random_key(config),
        distribution=config.distribution,
        mask=prunable(config),
        **settings,
    )


def random_key(config: Config) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), RANDOM)


def criterion(config: Config) -> Any:
    """Returns the function of params and gradients that ranks the weights."""
    name = "saliency" if config.prune == "snip" else config.criterion
    if name == "random":
        return sparse_optax.random(random_key(config))
    if name == "relevance":
        return sparse_optax.relevance(config.scale)
    return sparse_optax.saliency if name == "saliency" else sparse_optax.magnitude


def structure(text: str) -> Any:
    """Returns the structure that a setting names."""
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    if text == "unstructured":
        return sparse_optax.Unstructured()
    if text == "channel":
        return sparse_optax.Channel()
    if text.startswith("block"):
        return sparse_optax.Block(tuple(numbers))
    return sparse_optax.NM(*numbers)


def prunable(config: Config) -> Any:
    """Returns which leaves may be pruned: all, or only kernels if there is a structure.

    With units, all hidden ones. Pruning before training leaves out norms, as the SNIP
    authors' code does: a scale of zero removes a whole channel.
    """
    if config.structure == "units":
        return None
    if config.structure != "unstructured":
        return {".*/kernel": True}
    if config.prune not in AT_INIT:
        return None
    return functools.partial(
        jax.tree.map_with_path, lambda path, _: "norm" not in jax.tree_util.keystr(path)
    )


def restart_schedule(opt_state: Any) -> Any:
    """Returns the state with the count of the learning rate schedule reset to zero."""
    name = optax.ScaleByScheduleState.__name__
    return optax.tree.set(
        opt_state,
        lambda path, _: getattr(path[-1], "tuple_name", None) == name,
        count=jnp.zeros([], jnp.int32),
    )
