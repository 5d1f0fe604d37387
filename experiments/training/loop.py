"""Compiled training and evaluation: many updates a call, and none of them in Python."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_optax
from experiments.data import Split
from experiments.forms import latest_irrelevance
from experiments.networks.functional import Network, Variables
from experiments.training.augmentation import augment
from experiments.training.devices import ONE, Devices

AUGMENTATION = 2**28  # folded into the seed, beyond the number of any epoch


class Progress(NamedTuple):
    """What training reports about its latest stretch of updates."""

    loss: jax.Array  # shape=(), dtype=float32; mean loss without the regularizer.
    relevant: jax.Array  # shape=(), dtype=float32; share of the remaining weights.
    relevant_by_leaf: Any  # The same for each leaf; a tree like params.


class TrainState(NamedTuple):
    """Everything that training goes on from."""

    params: Any
    opt_state: Any
    step: jax.Array  # shape=(), dtype=int32; updates so far, and so place in the data.
    progress: Progress
    statistics: Any  # running ones of norms: no params, never pruned nor counted.

    @property
    def variables(self) -> Variables:
        """The network without what trains it."""
        return Variables(self.params, self.statistics)


def init_state(
    variables: Variables,
    optimizer: optax.GradientTransformationExtraArgs,
    step: jax.Array,
) -> TrainState:
    """Returns the state to start training a network from."""
    zero = jnp.zeros([], jnp.float32)
    params, statistics = variables
    progress = Progress(zero, zero, jax.tree.map(lambda _: zero, params))
    return TrainState(params, optimizer.init(params), step, progress, statistics)


def make_train(
    network: Network,
    optimizer: optax.GradientTransformationExtraArgs,
    data: Split,
    *,
    batch_size: int,
    num_steps: int,
    seed: int | jax.Array,
    scale: float | jax.Array,
    per_example: bool = False,
    shift: int = 0,
    mirror: bool = False,
    devices: Devices = ONE,
) -> Callable[[TrainState], TrainState]:
    """Returns the function that makes `num_steps` updates in one compiled call.

    Every epoch goes once through the examples in an order that depends on the seed and
    the epoch alone, so that the step count says where in the data a state stands.

    Args:
      network: what is trained.
      optimizer: what trains it.
      data: the training set.
      batch_size: examples an update.
      num_steps: updates a call.
      seed: that of the order of the examples.
      scale: relevance is reported for this scale, if no other form of it is in use.
      per_example: whether the sizes of the gradients, which the chain is told as
        `abs_grads`, are means of those of the single examples' gradients.
      shift: by how many pixels images are moved at random, at the most.
      mirror: whether images are mirrored at random.
      devices: what trains; the state that the function is given has to lie there.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    everything = devices.replicate((jnp.asarray(data.images), jnp.asarray(data.labels)))
    steps_per_epoch = len(data.labels) // batch_size
    # A call may begin and end in the middle of an epoch.
    num_epochs = -(-num_steps // steps_per_epoch) + 1
    key = jax.random.key(seed)
    augment_key = jax.random.fold_in(key, AUGMENTATION)

    def shuffle(epoch: jax.Array) -> jax.Array:
        epoch_key = jax.random.fold_in(key, epoch)
        return jax.random.permutation(epoch_key, len(data.labels))

    # The data are arguments, because constants would be copied into the program.
    @jax.jit
    def train(state, everything):
        first = state.step // steps_per_epoch
        orders = jax.vmap(shuffle)(first + jnp.arange(num_epochs))

        def gradients(params, statistics, step):
            epoch, index = step // steps_per_epoch, step % steps_per_epoch
            start = (epoch - first, index * batch_size)
            batch = jax.lax.dynamic_slice(orders, start, (1, batch_size))[0]
            images, labels = devices.split(tuple(x[batch] for x in everything))
            images = augment(
                images,
                jax.random.fold_in(augment_key, step),
                shift=shift,
                mirror=mirror,
            )
            value_and_grad = jax.value_and_grad(network.loss, has_aux=True)
            if not per_example:
                loss, grads = value_and_grad(params, statistics, images, labels)
                return loss, grads, jax.tree.map(jnp.abs, grads)
            losses, examples = jax.vmap(value_and_grad, in_axes=(None, None, 0, 0))(
                params, statistics, images[:, None], labels[:, None]
            )
            return (
                jax.tree.map(lambda x: x.mean(0), losses),
                jax.tree.map(lambda g: g.mean(0), examples),
                jax.tree.map(lambda g: jnp.abs(g).mean(0), examples),
            )

        def update(carry, _):
            params, statistics, opt_state, step = carry
            (loss, statistics), grads, abs_grads = gradients(params, statistics, step)
            updates, opt_state = optimizer.update(
                grads, opt_state, params, abs_grads=abs_grads
            )
            params = optax.apply_updates(params, updates)
            return (params, statistics, opt_state, step + 1), loss

        carry = (*state.variables, state.opt_state, state.step)
        carry, losses = jax.lax.scan(update, carry, length=num_steps)
        params, statistics, opt_state, step = carry
        _, grads, _ = gradients(params, statistics, step)
        irrelevance = latest_irrelevance(opt_state, grads, scale)
        progress = Progress(losses.mean(), *relevant_shares(params, irrelevance))
        return TrainState(params, opt_state, step, progress, statistics)

    return lambda state: train(state, everything)


def sizes(state: TrainState) -> dict[str, Any]:
    """Returns how much of a pruned network is left, as JSON data.

    Raises:
      ValueError: its params are not zero where its masks say so.
    """
    sparse_optax.check_sparsity(state.params, state.opt_state)
    report = sparse_optax.sparsity_report(
        state.params, sparse_optax.get_masks(state.opt_state)
    )
    return {
        "sparsity": report.total.sparsity,
        "kept": report.total.kept,
        "total": report.total.size,
        "compression": report.total.compression if report.total.kept else None,
        "layers": {
            path: {"kept": leaf.kept, "size": leaf.size}
            for path, leaf in report.leaves.items()
        },
        "warnings": list(report.warnings),
    }


def magnitudes(dense: Any, sparse: Any) -> dict[str, list[float]]:
    """Returns how many weights there are of each magnitude, zeros left out, as JSON.

    Between edges a fifth of a decade apart; what lies beyond the ends is counted there.
    """
    edges = np.logspace(-7, 1, 41)

    def counts(params: Any) -> list[float]:
        sizes = [np.abs(np.ravel(w)) for w in jax.tree.leaves(params)]
        sizes = np.concatenate(sizes)
        sizes = np.clip(sizes[sizes > 0], edges[0], edges[-1])
        return np.histogram(sizes, edges)[0].tolist()

    return {"edges": edges.tolist(), "dense": counts(dense), "sparse": counts(sparse)}


@jax.jit
def num_kept(params: Any) -> Any:
    """Returns how many weights of each leaf are not zero."""
    return jax.tree.map(jnp.count_nonzero, params)


def relevant_shares(params: Any, irrelevance: Any) -> tuple[jax.Array, Any]:
    """Returns the share of relevant ones among the weights that are not zero.

    Relevant are those of an irrelevance below 1/2. Weights that were pruned are left
    out: their gradient is not zero, but they are no longer there to be relevant. In
    total, and leaf by leaf; NaN where none is left.
    """
    relevant = jax.tree.map(
        lambda i, w: jnp.sum((i < 0.5) & (w != 0)), irrelevance, params
    )
    remaining = num_kept(params)
    total = jnp.divide(optax.tree.sum(relevant), optax.tree.sum(remaining))
    return total, jax.tree.map(jnp.divide, relevant, remaining)


def make_count_correct(
    network: Network, data: Split, devices: Devices = ONE
) -> Callable[[Any], jax.Array]:
    """Returns the function from variables to how many of `data` they get right."""
    # Piecewise, because the patches of a convolution are many times its images.
    size = min(500, len(data.labels))
    size += -size % devices.number
    missing = -len(data.labels) % size

    def pieces(x, fill):
        padding = [(0, missing), *[(0, 0)] * (x.ndim - 1)]
        x = jnp.pad(x, padding, constant_values=fill)
        return x.reshape(-1, size, *x.shape[1:])

    # No logit has the label -1, so what is filled up is never right.
    filled = devices.replicate((pieces(data.images, 0), pieces(data.labels, -1)))

    @jax.jit
    def count_correct(variables, filled):
        def count(piece):
            images, labels = devices.split(piece)
            return jnp.sum(network.logits(variables, images).argmax(-1) == labels)

        return jax.lax.map(count, filled).sum()

    return lambda variables: count_correct(variables, filled)
