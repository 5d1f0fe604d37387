"""Training on text: an update a call, because batches differ in shape.

Gradients are compiled for each shape, once for all phases of a run; the update that is
made with them once for each phase.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.forms import latest_irrelevance
from experiments.networks.seq2seq import Seq2Seq
from experiments.text.batches import Batch, Batches
from experiments.training.devices import Devices
from experiments.training.loop import Progress, TrainState, relevant_shares

DROPOUT = 2**28  # folded into the seed, which has other uses

Rate = jax.Array | None
Gradients = Callable[[Any, Batch, jax.Array, Rate], tuple[jax.Array, Any]]


def make_gradients(network: Seq2Seq, seed: int, devices: Devices) -> Gradients:
    """Returns the function to loss and gradients.

    It is from params, a batch, its number, and the rate of dropout or None for none.

    Args:
      network: whose loss it is.
      seed: dropout depends on it and on the number of the batch, and nothing else.
      devices: among which every batch is divided.
    """
    key = jax.random.fold_in(jax.random.key(seed), DROPOUT)

    @jax.jit
    def gradients(params, batch, step, rate):
        batch = devices.split(batch)
        dropout = None if rate is None else (rate, jax.random.fold_in(key, step))
        return jax.value_and_grad(network.loss)(params, batch, dropout)

    return gradients


def make_train(
    gradients: Gradients,
    optimizer: optax.GradientTransformationExtraArgs,
    batches: Batches,
    *,
    num_steps: int,
    accumulation: int,
    scale: float,
    dropout: Callable[[optax.OptState], Rate],
) -> Callable[[TrainState], TrainState]:
    """Returns the function that makes `num_steps` updates.

    Args:
      gradients: of the loss of a batch.
      optimizer: what is called for every batch.
      batches: all there are; the state's step says which are next.
      num_steps: updates a call.
      accumulation: batches an update.
      scale: relevance is reported for this scale, and the gradient of one batch, if no
        other form of it is in use.
      dropout: the function from the optimizer's state to the rate of dropout, until the
        next call.
    """

    # The old arrays make room for the new, or all would be there twice.
    @jax.jit(donate_argnums=(1, 2))
    def update(grads, opt_state, params):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    @jax.jit
    def progress(losses, params, opt_state, grads):
        irrelevance = latest_irrelevance(opt_state, grads, scale)
        return Progress(losses.mean(), *relevant_shares(params, irrelevance))

    def train(state: TrainState) -> TrainState:
        first, losses = int(state.step), []
        rate = dropout(state.opt_state)
        # The state that was given is to stay.
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


def accumulated(
    optimizer: optax.GradientTransformationExtraArgs, num_batches: int
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer that makes an update of the mean gradient of some batches.

    Args:
      optimizer: what makes the update. It is told the sizes of that gradient, too, as
        `abs_grads`.
      num_batches: how many; the updates of all but the last of them are zero.
    """

    def update_fn(updates, state, params=None, **extra_args):
        return optimizer.update(
            updates,
            state,
            params,
            abs_grads=jax.tree.map(jnp.abs, updates),
            **extra_args,
        )

    told = optax.GradientTransformationExtraArgs(optimizer.init, update_fn)
    if num_batches == 1:
        return told
    return optax.with_extra_args_support(
        optax.MultiSteps(told, num_batches).gradient_transformation()
    )
