"""The training loop on images: all updates of a round in one compiled call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_optax
from experiments.config import ImageConfig
from experiments.data.images import Split
from experiments.networks.functional import Network, Variables
from experiments.training import Optimizer
from experiments.training.augmentation import augment
from experiments.training.devices import ONE, Devices
from experiments.training.forms import latest_irrelevance

AUGMENTATION = 2**28  # folded into the seed, beyond the number of any epoch


class Progress(NamedTuple):
    """What training reports about its last round."""

    loss: jax.Array  # shape=(), dtype=float32; mean, without the regularizer.
    relevant: jax.Array  # shape=(), dtype=float32; share of the remaining weights.
    relevant_by_leaf: Any  # The same for each leaf, a tree like params.


class TrainState(NamedTuple):
    """Everything that is needed to resume training."""

    params: Any
    opt_state: Any
    step: jax.Array  # shape=(), dtype=int32; updates so far, the place in the data.
    progress: Progress
    statistics: Any  # running statistics of batch norms, which are never pruned.

    @property
    def variables(self) -> Variables:
        """The network without the state of its optimizer."""
        return Variables(self.params, self.statistics)


def init_state(variables: Variables, optimizer: Optimizer) -> TrainState:
    zero = jnp.zeros([], jnp.float32)
    params, statistics = variables
    progress = Progress(zero, zero, jax.tree.map(lambda _: zero, params))
    step = jnp.zeros([], jnp.int32)
    return TrainState(params, optimizer.init(params), step, progress, statistics)


def make_train(
    config: ImageConfig,
    network: Network,
    optimizer: Optimizer,
    data: Split,
    *,
    per_example: bool = False,
    devices: Devices = ONE,
) -> Callable[[TrainState], TrainState]:
    """Returns the function that makes the updates of a round in one compiled call.

    Every epoch visits each example once, in an order that depends only on the seed and
    the epoch, so the step of a state is enough to resume.

    The optimizer receives g as `grad` or, with `per_example`, the mean of |g| over
    single examples.
    """
    batch_size, num_steps = config.batch_size, config.interval
    optimizer = optax.with_extra_args_support(optimizer)
    everything = devices.replicate((jnp.asarray(data.images), jnp.asarray(data.labels)))
    steps_per_epoch = len(data.labels) // batch_size
    # A call may begin and end in the middle of an epoch.
    num_epochs = -(-num_steps // steps_per_epoch) + 1
    key = jax.random.key(config.seed)
    augment_key = jax.random.fold_in(key, AUGMENTATION)

    def shuffle(epoch: jax.Array) -> jax.Array:
        epoch_key = jax.random.fold_in(key, epoch)
        return jax.random.permutation(epoch_key, len(data.labels))

    # The data are arguments: constants would be copied into the program.
    @jax.jit
    def train(state, everything):
        first = state.step // steps_per_epoch
        orders = jax.vmap(shuffle)(first + jnp.arange(num_epochs))

        def gradients(params, statistics, step):
            epoch, index = step // steps_per_epoch, step % steps_per_epoch
            start = (epoch - first, index * batch_size)
            batch = jax.lax.dynamic_slice(orders, start, (1, batch_size))[0]
            images, labels = devices.split(tuple(x[batch] for x in everything))
            images_key = jax.random.fold_in(augment_key, step)
            images = augment(
                images, images_key, shift=config.shift, mirror=config.mirror
            )
            value_and_grad = jax.value_and_grad(network.loss, has_aux=True)
            if not per_example:
                loss, grads = value_and_grad(params, statistics, images, labels)
                return loss, grads, grads
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
            (loss, statistics), grads, sizes = gradients(params, statistics, step)
            updates, opt_state = optimizer.update(grads, opt_state, params, grad=sizes)
            params = optax.apply_updates(params, updates)
            return (params, statistics, opt_state, step + 1), loss

        carry = (*state.variables, state.opt_state, state.step)
        carry, losses = jax.lax.scan(update, carry, length=num_steps)
        params, statistics, opt_state, step = carry
        _, grads, _ = gradients(params, statistics, step)
        irrelevance = latest_irrelevance(opt_state, grads, config.scale)
        progress = Progress(losses.mean(), *relevant_shares(params, irrelevance))
        return TrainState(params, opt_state, step, progress, statistics)

    return lambda state: train(state, everything)


def sizes(state: TrainState) -> dict[str, Any]:
    """Returns the sparsity of a network and its layers, as JSON data."""
    sparse_optax.check_sparsity(state.params, state.opt_state)
    masks = sparse_optax.get_masks(state.opt_state)
    report = sparse_optax.sparsity_report(state.params, masks)
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
    """Returns histograms of the magnitudes of both networks, without zeros, as JSON.

    There are five bins per decade; the first and last also count what lies beyond them.
    """
    edges = np.logspace(-7, 1, 41)

    def counts(params: Any) -> list[float]:
        sizes = np.concatenate([np.abs(np.ravel(w)) for w in jax.tree.leaves(params)])
        sizes = np.clip(sizes[sizes > 0], edges[0], edges[-1])
        return np.histogram(sizes, edges)[0].tolist()

    return {"edges": edges.tolist(), "dense": counts(dense), "sparse": counts(sparse)}


@jax.jit
def num_kept(params: Any) -> Any:
    return jax.tree.map(jnp.count_nonzero, params)


def sparsity(params: Any) -> float:
    """Returns the share of weights that are zero."""
    kept = jax.device_get(jax.tree.leaves(num_kept(params)))
    return 1 - sum(map(int, kept)) / optax.tree.size(params)


def relevant_shares(params: Any, irrelevance: Any) -> tuple[jax.Array, Any]:
    """Returns the share of nonzero weights with an irrelevance below 1/2.

    Both in total and for each leaf; NaN where no weight is left.
    """
    is_relevant = jax.tree.map(lambda i, w: (i < 0.5) & (w != 0), irrelevance, params)
    relevant, remaining = num_kept(is_relevant), num_kept(params)
    total = jnp.divide(optax.tree.sum(relevant), optax.tree.sum(remaining))
    return total, jax.tree.map(jnp.divide, relevant, remaining)


def make_count_correct(
    network: Network, data: Split, devices: Devices = ONE
) -> Callable[[Any], jax.Array]:
    # In pieces: the activations of all images at once may not fit in memory.
    size = min(500, len(data.labels))
    size += -size % devices.number
    missing = -len(data.labels) % size

    def pieces(x, fill):
        padding = [(0, missing), *[(0, 0)] * (x.ndim - 1)]
        x = jnp.pad(x, padding, constant_values=fill)
        return x.reshape(-1, size, *x.shape[1:])

    # No class is -1, so the padding is never correct.
    filled = devices.replicate((pieces(data.images, 0), pieces(data.labels, -1)))

    @jax.jit
    def count_correct(variables, filled):
        def count(piece):
            images, labels = devices.split(piece)
            return jnp.sum(network.logits(variables, images).argmax(-1) == labels)

        return jax.lax.map(count, filled).sum()

    return lambda variables: count_correct(variables, filled)
