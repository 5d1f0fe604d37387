"""Forms of relevance beyond the paper's, and their controls: what the study compares.

With a_i the size of a weight's gradient and w_i the weight, a form is

    m_i = a_i or a_i |w_i|             what is measured,
    M_i = its running mean             over the latest updates, or m_i itself,
    I_i = exp(-M_i / (scale * unit))   irrelevance, in [0, 1],

and the penalty is 2 * strength * I_i * w_i, as in `sparse_optax.add_relevance_decay`,
whose form is the default here. A control has the same values of I in each tensor, dealt
out to weights at random, or their mean: as much irrelevance, but none of the knowledge
of which weights are relevant.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_optax

Control = Literal["none", "permuted", "mean"]

TINY = float(jnp.finfo(jnp.float32).tiny)
PERMUTATIONS = 2**30  # folded into a seed that has other uses
UNIT_MEMORY = 0.99  # of the running mean square
QUANTILE_STEP = 0.1  # at the most, of the logarithm of a running quantile


@dataclasses.dataclass(frozen=True)
class Form:
    """How the irrelevance I of a weight is computed, and what it is used for."""

    measure: Literal["gradient", "saliency", "per-example"] = "gradient"
    """The gradient's size |g|; |g * w|; or the mean of |g| of the single examples."""
    memory: float = 0.0
    """How much of its running mean the measure keeps at an update; 0: none."""
    unit: Literal["absolute", "leaf", "network", "quantile"] = "absolute"
    """What --scale is relative to: nothing; the measure's running root mean square,
    over the tensor or the network. With quantile, --scale is the share of each tensor
    that is spared altogether, and the rest decays in full."""
    acts_on: Literal["decay", "ranking", "both"] = "decay"
    """Whether I weighs the decay, or the ranking of a prune, |w| * (1 - I)."""
    control: Control = "none"
    """Instead of I: the same permuted at random in its tensor, anew at each update; or
    the mean of I over the tensor."""


class FormState(NamedTuple):
    """State of `add_decay_in_form`."""

    decay: sparse_optax.RelevanceDecayState  # which a prune restarts
    num_updates: jax.Array  # shape=(), dtype=int32.
    mean: Any  # the measure's, a tree like params, before correction of its bias.
    # A scalar per leaf: running mean of the squared measure, or logarithm of a quantile
    unit: Any
    irrelevance: Any  # at the last update, for the ranking; a tree like params.


def add_decay_in_form(
    form: Form,
    strength: optax.ScalarOrSchedule,
    scale: float | jax.Array,
    seed: int | jax.Array,
) -> optax.GradientTransformationExtraArgs:
    """Adds 2 * strength * I * w to the updates, with I in the given form.

    Unlike the library's link it need not be the first of a chain: `update` takes the
    sizes of the gradients as an extra argument. Weights that are exactly zero count as
    pruned: they have no part in units, means and permutations.

    Args:
      form: how I is computed.
      strength: gamma, or a schedule of the updates since the last prune.
      scale: in the unit of the form.
      seed: that of the permutations.
    """

    def init_fn(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return FormState(
            decay=sparse_optax.RelevanceDecayState(jnp.zeros([], jnp.int32)),
            num_updates=jnp.zeros([], jnp.int32),
            mean=zeros,
            unit=jax.tree.map(lambda _: jnp.zeros([]), params),
            irrelevance=zeros,
        )

    def update_fn(updates, state, params=None, *, abs_grads=None, **extra_args):
        del extra_args
        if params is None or abs_grads is None:
            raise ValueError("add_decay_in_form needs params and abs_grads in update.")
        num_updates = state.num_updates + 1
        alive = jax.tree.map(lambda w: w != 0, params)
        measured = abs_grads
        if form.measure == "saliency":
            measured = jax.tree.map(lambda a, w: a * jnp.abs(w), abs_grads, params)
        mean = optax.tree.update_moment(measured, state.mean, form.memory, 1)
        corrected = optax.tree.bias_correction(mean, form.memory, num_updates)

        if form.unit == "quantile":
            unit = follow_quantiles(state.unit, corrected, alive, scale, num_updates)
            irrelevance = jax.tree.map(
                lambda m, q: (m < jnp.exp(q)).astype(m.dtype), corrected, unit
            )
        else:
            unit = mean_squares(form.unit, state.unit, measured, alive)
            irrelevance = jax.tree.map(
                # Not by zero, where no gradient was seen as yet.
                lambda m, d: jnp.exp(-m / jnp.maximum(scale * d, TINY)),
                *(corrected, divisors(form.unit, unit, num_updates)),
            )
        key = jax.random.fold_in(jax.random.key(seed), PERMUTATIONS)
        key = jax.random.fold_in(key, num_updates)
        irrelevance = controlled(form.control, irrelevance, alive, key)

        steps = state.decay.steps_since_prune
        gamma = strength(steps) if callable(strength) else strength
        if form.acts_on == "ranking":
            penalty = jax.tree.map(lambda w: 2 * gamma * w, params)
        else:
            penalty = jax.tree.map(lambda i, w: 2 * gamma * i * w, irrelevance, params)
        decay = sparse_optax.RelevanceDecayState(
            jnp.asarray(optax.safe_increment(steps))
        )
        state = FormState(decay, num_updates, mean, unit, irrelevance)
        return optax.tree.add(updates, penalty), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def mean_squares(unit: str, before: Any, measured: Any, alive: Any) -> Any:
    """Returns the running mean of the squared measure, a scalar for each leaf."""
    latest = jax.tree.map(lambda m, a: mean_where(m * m, a), measured, alive)
    if unit == "network":
        counts = jax.tree.map(jnp.sum, alive)
        # Leaves in which nothing is left weigh nothing.
        weighed = optax.tree.sum(jax.tree.map(jnp.multiply, latest, counts))
        total = weighed / jnp.maximum(optax.tree.sum(counts), 1)
        latest = jax.tree.map(lambda _: total, latest)
    return optax.tree.update_moment(latest, before, UNIT_MEMORY, 1)


def divisors(unit: str, squares: Any, num_updates: jax.Array) -> Any:
    """Returns what the measure is relative to, a scalar for each leaf."""
    if unit == "absolute":
        return jax.tree.map(jnp.ones_like, squares)
    corrected = optax.tree.bias_correction(squares, UNIT_MEMORY, num_updates)
    return jax.tree.map(jnp.sqrt, corrected)


def controlled(control: Control, irrelevance: Any, alive: Any, key: jax.Array) -> Any:
    """Returns the irrelevance, or what a control has in its place."""
    if control == "mean":
        return jax.tree.map(
            lambda i, a: jnp.full_like(i, mean_where(i, a)), irrelevance, alive
        )
    if control == "permuted":
        keys = optax.tree.split_key_like(key, irrelevance)
        return jax.tree.map(permute_where, irrelevance, alive, keys)
    return irrelevance


def follow_quantiles(
    log_quantiles: Any,
    measured: Any,
    alive: Any,
    share: float | jax.Array,
    num_updates: jax.Array,
) -> Any:
    """Moves estimates towards the value that a `share` of each leaf's measures exceeds.

    Stochastic approximation on a logarithmic scale, from the root mean square on: no
    sorting, and one scalar to keep for each leaf.
    """

    def follow(log_quantile, measured, alive):
        start = 0.5 * jnp.log(mean_where(measured * measured, alive) + TINY)
        log_quantile = jnp.where(num_updates == 1, start, log_quantile)
        above = mean_where(measured > jnp.exp(log_quantile), alive)
        return log_quantile + QUANTILE_STEP * jnp.clip(above / share - 1, -1, 1)

    return jax.tree.map(follow, log_quantiles, measured, alive)


def mean_where(x: jax.Array, alive: jax.Array) -> jax.Array:
    """Returns the mean of x over the weights that are left, 0 where none is."""
    return jnp.sum(jnp.where(alive, x, 0)) / jnp.maximum(jnp.sum(alive), 1)


def permute_where(x: jax.Array, alive: jax.Array, key: jax.Array) -> jax.Array:
    """Deals the values of x out anew, at random, among the weights that are left.

    Ranks along a fixed shuffle, which has nothing of the order of rows and columns, are
    sent through a random affine map: r -> a r + b modulo their number, to which a is
    coprime. It is a permutation at a small part of the cost of shuffling each time.
    """
    order = np.random.default_rng(0).permutation(x.size)
    back = np.argsort(order)
    shuffled, left = x.ravel()[order], alive.ravel()[order]
    # Half the time of a cumsum, on a CPU.
    rank = jax.lax.associative_scan(jnp.add, left.astype(jnp.int32)) - 1
    number = jnp.maximum(rank[-1] + 1, 1).astype(jnp.uint32)
    place = jnp.where(left, rank, x.size)
    dense = jnp.zeros_like(shuffled).at[place].set(shuffled, mode="drop")
    key_a, key_b = jax.random.split(key)
    # Small enough for the product not to leave uint32; 1 is coprime to everything.
    factors = jax.random.randint(key_a, (64,), 1, max((2**31 - 1) // x.size, 2))
    factors = factors.astype(jnp.uint32).at[-1].set(1)
    factor = factors[jnp.argmax(jnp.gcd(factors, number) == 1)]
    offset = jax.random.randint(key_b, (), 0, number.astype(jnp.int32))
    source = (rank.astype(jnp.uint32) * factor + offset.astype(jnp.uint32)) % number
    return jnp.where(left, dense[source], shuffled)[back].reshape(x.shape)


def form_states(opt_state: Any) -> list[FormState]:
    """Returns the states of `add_decay_in_form` in an optimizer's state."""
    found = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, FormState))
    return [state for state in found if isinstance(state, FormState)]


def latest_irrelevance(opt_state: Any, grads: Any, scale: float | jax.Array) -> Any:
    """Returns I, a tree like params: a form's at its last update, else the paper's.

    Args:
      opt_state: where a form keeps it.
      grads: what the paper's is of.
      scale: of that one.
    """
    states = form_states(opt_state)
    return states[0].irrelevance if states else sparse_optax.irrelevance(grads, scale)


def ranking_scores(params: Any, opt_state: Any) -> Any:
    """Returns what a prune ranks in place of the weights: |w| * (1 - I)."""
    (state,) = form_states(opt_state)
    return jax.tree.map(lambda w, i: jnp.abs(w) * (1 - i), params, state.irrelevance)
