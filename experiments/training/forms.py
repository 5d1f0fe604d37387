"""Forms of relevance other than the paper's, and their controls, for comparisons.

With a_i = |g_i| and w_i a weight, a form is

    m_i = a_i or a_i |w_i|             the measure,
    M_i = m_i or its running mean,
    I_i = exp(-M_i / (scale * unit))   the irrelevance, in [0, 1],

and the pull towards zero is strength * I_i * slope(|w_i|), for the slope of a penalty.
By default, that is l2, as in `sparse_optax.add_relevance_decay`. A control permutes
I at random within each leaf, or takes its mean: the same amount of decay, but no
information on which weights are relevant.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_optax
from experiments.config import Control, Form, Penalty
from experiments.training import Optimizer, penalties

TINY = float(jnp.finfo(jnp.float32).tiny)
PERMUTATIONS = 2**30  # folded into the seed
UNIT_MEMORY = 0.99  # decay of the running mean square
QUANTILE_STEP = 0.1  # largest change of the logarithm of a running quantile


class FormState(NamedTuple):
    decay: sparse_optax.StepsSincePruning
    num_updates: jax.Array  # shape=(), dtype=int32.
    mean: Any  # of the measure, a tree like params, biased.
    unit: Any  # a scalar per leaf: running mean square, or logarithm of a quantile
    irrelevance: Any  # at the last update, a tree like params.


def add_decay_in_form(
    form: Form,
    strength: optax.ScalarOrSchedule,
    scale: float | jax.Array,
    seed: int | jax.Array,
    penalty: Penalty = "l2",
    rate: optax.Schedule | None = None,
) -> Optimizer:
    """Shrinks weights by a penalty as far as they are irrelevant, in the given form.

    `strength` is gamma, or a schedule over updates since the last pruning step, and
    `scale` is in the unit of the form. `update` takes g or |g| as `grad`. Weights that
    are exactly zero count as pruned: units, means and permutations leave them out.
    `rate` is that of `penalties.add_penalty`.
    """

    def init_fn(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return FormState(
            decay=sparse_optax.StepsSincePruning(jnp.zeros([], jnp.int32)),
            num_updates=jnp.zeros([], jnp.int32),
            mean=zeros,
            unit=jax.tree.map(lambda _: jnp.zeros([]), params),
            irrelevance=zeros,
        )

    def update_fn(updates, state, params=None, *, grad=None, **extra_args):
        del extra_args
        num_updates = state.num_updates + 1
        alive = jax.tree.map(lambda w: w != 0, params)
        measured = jax.tree.map(jnp.abs, grad)
        if form.measure == "saliency":
            measured = jax.tree.map(lambda a, w: a * jnp.abs(w), measured, params)
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
                # Avoids division by zero where there was no gradient yet.
                lambda m, d: jnp.exp(-m / jnp.maximum(scale * d, TINY)),
                *(corrected, divisors(form.unit, unit, num_updates)),
            )
        key = jax.random.fold_in(jax.random.key(seed), PERMUTATIONS)
        key = jax.random.fold_in(key, num_updates)
        irrelevance = controlled(form.control, irrelevance, alive, key)

        steps = state.decay.num_steps
        gamma = strength(steps) if callable(strength) else strength
        now = None if rate is None else rate(state.num_updates)
        updates = jax.tree.map(
            lambda u, w, i: penalties.shrink(penalty, u, w, gamma * i, now),
            *(updates, params, irrelevance),
        )
        steps = jnp.asarray(optax.safe_increment(steps))
        decay = sparse_optax.StepsSincePruning(steps)
        state = FormState(decay, num_updates, mean, unit, irrelevance)
        return updates, state

    return Optimizer(init_fn, update_fn)


def mean_squares(unit: str, before: Any, measured: Any, alive: Any) -> Any:
    """Returns the running mean square of the measure, a scalar for each leaf."""
    latest = jax.tree.map(lambda m, a: mean_where(m * m, a), measured, alive)
    if unit == "network":
        counts = jax.tree.map(jnp.sum, alive)
        weighed = optax.tree.sum(jax.tree.map(jnp.multiply, latest, counts))
        total = weighed / jnp.maximum(optax.tree.sum(counts), 1)
        latest = jax.tree.map(lambda _: total, latest)
    return optax.tree.update_moment(latest, before, UNIT_MEMORY, 1)


def divisors(unit: str, squares: Any, num_updates: jax.Array) -> Any:
    """Returns the unit of the scale, a scalar for each leaf."""
    if unit == "absolute":
        return jax.tree.map(jnp.ones_like, squares)
    corrected = optax.tree.bias_correction(squares, UNIT_MEMORY, num_updates)
    return jax.tree.map(jnp.sqrt, corrected)


def controlled(control: Control, irrelevance: Any, alive: Any, key: jax.Array) -> Any:
    """Returns the irrelevance, or what a control replaces it with."""
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
    """Updates estimates of the value that a `share` of the measures of a leaf exceeds.

    Approximates its logarithm stochastically, starting at the root mean square.
    """

    def follow(log_quantile, measured, alive):
        start = 0.5 * jnp.log(mean_where(measured * measured, alive) + TINY)
        log_quantile = jnp.where(num_updates == 1, start, log_quantile)
        above = mean_where(measured > jnp.exp(log_quantile), alive)
        return log_quantile + QUANTILE_STEP * jnp.clip(above / share - 1, -1, 1)

    return jax.tree.map(follow, log_quantiles, measured, alive)


def mean_where(x: jax.Array, alive: jax.Array) -> jax.Array:
    """Returns the mean of x over the remaining weights, or 0 if there are none."""
    return jnp.sum(jnp.where(alive, x, 0)) / jnp.maximum(jnp.sum(alive), 1)


def permute_where(x: jax.Array, alive: jax.Array, key: jax.Array) -> jax.Array:
    """Permutes the values of x at random among the remaining weights.

    Ranks along a fixed shuffle go through a random affine map, r -> a r + b modulo
    their number, with a coprime to it. This is much cheaper than a new shuffle.
    """
    order = np.random.default_rng(0).permutation(x.size)
    back = np.argsort(order)
    shuffled, left = x.ravel()[order], alive.ravel()[order]
    # Takes half the time of a cumsum on CPU.
    rank = jax.lax.associative_scan(jnp.add, left.astype(jnp.int32)) - 1
    number = jnp.maximum(rank[-1] + 1, 1).astype(jnp.uint32)
    place = jnp.where(left, rank, x.size)
    dense = jnp.zeros_like(shuffled).at[place].set(shuffled, mode="drop")
    key_a, key_b = jax.random.split(key)
    # Small enough for the product to fit in uint32; 1 is coprime to everything.
    factors = jax.random.randint(key_a, (64,), 1, max((2**31 - 1) // x.size, 2))
    factors = factors.astype(jnp.uint32).at[-1].set(1)
    factor = factors[jnp.argmax(jnp.gcd(factors, number) == 1)]
    offset = jax.random.randint(key_b, (), 0, number.astype(jnp.int32))
    source = (rank.astype(jnp.uint32) * factor + offset.astype(jnp.uint32)) % number
    return jnp.where(left, dense[source], shuffled)[back].reshape(x.shape)


def latest_irrelevance(opt_state: Any, grads: Any, scale: float | jax.Array) -> Any:
    """Returns I, a tree like params, from the last update of a form in the state.

    Without a form in the state, computes I as in the paper, from `grads` and `scale`.
    """
    found = optax.tree.get(opt_state, "irrelevance")
    return sparse_optax.irrelevance(grads, scale) if found is None else found


def ranking_scores(params: Any, opt_state: Any) -> Any:
    """Returns |w| * (1 - I), with I from the last update of a form."""
    irrelevance = optax.tree.get(opt_state, "irrelevance")
    return jax.tree.map(lambda w, i: jnp.abs(w) * (1 - i), params, irrelevance)
