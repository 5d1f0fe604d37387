"""The training loop on text: one update per call, because batches differ in shape.

Gradients are compiled once for each shape, updates once for each phase.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.config import TextConfig
from experiments.data.batches import Batch, Batches
from experiments.networks.seq2seq import Seq2Seq
from experiments.training import Optimizer
from experiments.training.devices import Devices
from experiments.training.forms import latest_irrelevance
from experiments.training.loop import Progress, TrainState, relevant_shares

DROPOUT = 2**28  # folded into the seed

Rate = jax.Array | None
Gradients = Callable[[Any, Batch, jax.Array, Rate], tuple[jax.Array, Any]]


def make_gradients(network: Seq2Seq, seed: int, devices: Devices) -> Gradients:
    """Returns a function of params, a batch, its number and the dropout rate.

    It returns the loss and gradients. Dropout depends only on the seed and that number;
    a rate of None means no dropout. Every batch is divided among the devices.
    """
    key = jax.random.fold_in(jax.random.key(seed), DROPOUT)

    @jax.jit
    def gradients(params, batch, step, rate):
        batch = devices.split(batch)
        dropout = None if rate is None else (rate, jax.random.fold_in(key, step))
        return jax.value_and_grad(network.loss)(params, batch, dropout)

    return gradients


def make_train(
    config: TextConfig,
    gradients: Gradients,
    optimizer: Optimizer,
    batches: Batches,
    dropout: Callable[[optax.OptState], Rate],
) -> Callable[[TrainState], TrainState]:
    """Returns the function that makes the updates of a round.

    The optimizer is called for every batch; its state determines the dropout rate.
    """
    num_steps, accumulation = config.interval, config.accumulation

    # Donated: otherwise all arrays would be in memory twice.
    @jax.jit(donate_argnums=(1, 2))
    def update(grads, opt_state, params):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    @jax.jit
    def progress(losses, params, opt_state, grads):
        irrelevance = latest_irrelevance(opt_state, grads, config.scale)
        return Progress(losses.mean(), *relevant_shares(params, irrelevance))

    def train(state: TrainState) -> TrainState:
        first, losses = int(state.step), []
        rate = dropout(state.opt_state)
        # Copied, because they are donated.
        params, opt_state = jax.tree.map(jnp.copy, (state.params, state.opt_state))
        following = (first + num_steps) * accumulation
        for number in range(first * accumulation, following):
            loss, grads = gradients(params, batches.at(number), jnp.int32(number), rate)
            params, opt_state = update(grads, opt_state, params)
            losses.append(loss)
        _, grads = gradients(params, batches.at(following), jnp.int32(following), rate)
        return state._replace(
            params=params,
            opt_state=opt_state,
            step=state.step + num_steps,
            progress=progress(jnp.stack(losses), params, opt_state, grads),
        )

    return train


def accumulated(optimizer: Optimizer, num_batches: int) -> Optimizer:
    """Returns an optimizer that updates with the mean gradient of several batches.

    It also receives that mean as `grad`. The updates of all batches except the last
    are zero.
    """

    def update_fn(updates, state, params=None, **extra_args):
        return optimizer.update(updates, state, params, grad=updates, **extra_args)

    inner = Optimizer(optimizer.init, update_fn)
    if num_batches == 1:
        return inner
    return optax.with_extra_args_support(
        optax.MultiSteps(inner, num_batches).gradient_transformation()
    )
