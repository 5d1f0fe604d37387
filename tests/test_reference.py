"""The whole method written again in NumPy float64, and followed step by step."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    exact_share,
    first_unmarked,
    make_chain,
    make_step,
    make_whole,
    num_kept,
    numpy_drop,
)

import sparse_optax

LEARNING_RATE, B1, B2, EPS = 0.02, 0.9, 0.999, 1e-8
STRENGTH, SCALE, DECAY_STEPS = 0.05, 0.3, 6
NUM_STEPS = 24
SHAPES = {"bias": (7,), "conv": (2, 3, 4), "kernel": (6, 7)}


def drop(weights, masks, amount, distribution):
    """Masks without `amount(remaining, total)` of the smallest, by a stable sort."""
    groups = [list(masks)] if distribution == "global" else [[name] for name in masks]
    result = {}
    for names in groups:
        of_group = {name: masks[name] for name in names}
        k = amount(num_kept(of_group), sum(mask.size for mask in of_group.values()))
        result |= numpy_drop({name: weights[name] for name in names}, of_group, k)
    return result


def to_sparsity(sparsity):
    return lambda kept, n: max(exact_share(sparsity, n) - (n - kept), 0)


class Reference:
    """Relevance decay, Adam and pruning; `whole` as `relevance_pruning` does it."""

    def __init__(self, params, distribution, whole=False, decoupled=False):
        self.params = {name: np.array(p, np.float64) for name, p in params.items()}
        self.masks = {name: np.ones(p.shape, bool) for name, p in params.items()}
        self.mu = {name: np.zeros(p.shape) for name, p in params.items()}
        self.nu = {name: np.zeros(p.shape) for name, p in params.items()}
        self.distribution, self.whole = distribution, whole
        self.decoupled = decoupled
        self.count = self.num_steps = self.num_pruning_steps = 0

    def step(self, grads, amount=None):
        """One step, that drops `amount` of weights where it is given."""
        self.count += 1
        if amount is not None:
            self.masks = drop(self.params, self.masks, amount, self.distribution)
            self.num_steps = 0
            self.num_pruning_steps += 1
        strength = STRENGTH * max(0.0, 1 - self.num_steps / DECAY_STEPS)
        stored = {}
        for name, w in self.params.items():
            g = np.asarray(grads[name], np.float64)
            if self.whole:  # nothing of a pruned weight is left, from this step on
                mask = self.masks[name]
                w, g = np.where(mask, w, 0), np.where(mask, g, 0)
                self.mu[name] = np.where(mask, self.mu[name], 0)
                self.nu[name] = np.where(mask, self.nu[name], 0)
            shrink = 2 * strength * np.exp(-np.abs(g) / SCALE) * w
            if not self.decoupled:
                g = g + shrink
            self.mu[name] = B1 * self.mu[name] + (1 - B1) * g
            self.nu[name] = B2 * self.nu[name] + (1 - B2) * g**2
            mu = self.mu[name] / (1 - B1**self.count)
            nu = self.nu[name] / (1 - B2**self.count)
            update = -LEARNING_RATE * mu / (np.sqrt(nu) + EPS)
            if self.decoupled:
                update = update - shrink
            stored[name] = np.where(self.masks[name], w + update, 0)
        self.num_steps += 1
        self.params = stored


class Form(NamedTuple):
    """One of the ways to write the method, and where its parts are in the state."""

    make: object
    whole: bool
    decoupled: bool

    def parts(self, state):
        if self.whole:
            decay, adam = state.optimizer
            return decay, adam[0], state.pruning
        return state[0], state[1][0], state[2]


def hidden(optimizer, strength, scale, fraction, distribution):
    """What `relevance_pruning` is made of."""
    return sparse_optax.hide_pruned(
        optax.chain(
            sparse_optax.add_relevance_decay(strength, scale, mask=None), optimizer
        ),
        sparse_optax.prune_by_magnitude(fraction, distribution=distribution, mask=None),
    )


ADAM = optax.adam(LEARNING_RATE, B1, B2, EPS)
FORMS = {
    "chain": Form(make_chain, whole=False, decoupled=False),
    "coupled": Form(hidden, whole=True, decoupled=False),
    "decoupled": Form(
        functools.partial(make_whole, decoupled=True), whole=True, decoupled=True
    ),
}
PRUNES = {5: 0, 6: 1, 13: 2, 20: 3}  # at which step which pruning step is made
FADING = optax.linear_schedule(STRENGTH, 0.0, DECAY_STEPS)


def problem(dtype):
    """Weights, and the gradients of a quadratic with noise as a function of them."""
    rng = np.random.default_rng(7)
    params = {name: rng.normal(size=s).astype(dtype) for name, s in SHAPES.items()}
    target = {name: rng.normal(size=s) for name, s in SHAPES.items()}
    noise = [
        {name: 0.3 * rng.normal(size=s) for name, s in SHAPES.items()}
        for _ in range(NUM_STEPS)
    ]

    def gradient(params, step):
        return {
            n: np.asarray(p - target[n] + noise[step][n], dtype)
            for n, p in jax.tree.map(np.float64, params).items()
        }

    return params, gradient


def assert_close(actual, desired, **tolerance):
    for name in SHAPES:
        np.testing.assert_allclose(actual[name], desired[name], **tolerance)


def assert_same_masks(masks, expected):
    jax.tree.map(np.testing.assert_array_equal, masks, expected)


@pytest.mark.parametrize(
    ("form", "distribution"),
    [("chain", "uniform"), ("coupled", "uniform"), ("decoupled", "global")],
)
def test_the_method_through_adam_in_float64(form, distribution):
    form = FORMS[form]
    shares = [0.5, 0.1, 0.25, 0.37]
    with jax.enable_x64(True):
        shares_now = lambda n: jnp.array(shares)[n]  # noqa: E731
        options = {} if form.decoupled else {"distribution": distribution}
        tx = form.make(ADAM, FADING, SCALE, shares_now, **options)
        params, gradient = problem(np.float64)
        reference = Reference(params, distribution, form.whole, form.decoupled)
        state, step = tx.init(params), jax.jit(make_step(tx))
        for i in range(NUM_STEPS):
            amount = None
            if i in PRUNES:
                amount = lambda n, _, f=shares[PRUNES[i]]: exact_share(f, n)  # noqa: E731
            reference.step(gradient(reference.params, i), amount)
            params, state = step(params, state, gradient(params, i), prune=i in PRUNES)
            decay, adam, pruning = form.parts(state)
            assert_same_masks(pruning.masks, reference.masks)
            # Relevance and strength are float32 by design; all else is float64.
            assert_close(params, reference.params, rtol=1e-6, atol=1e-8)
            assert_close(adam.mu, reference.mu, rtol=1e-6, atol=1e-8)
            assert_close(adam.nu, reference.nu, rtol=1e-6, atol=1e-8)
            assert decay.num_steps == reference.num_steps
            assert pruning.num_pruning_steps == reference.num_pruning_steps
            for name, mask in reference.masks.items():
                assert params[name].dtype == np.float64
                assert not np.any(np.asarray(params[name])[~mask])
        assert reference.num_pruning_steps == 4


def falling(step):
    """A sparsity that rises, falls and rises again."""
    return jnp.array([0.0, 0.3, 0.1, 0.6, 0.5, 0.4, 0.9, 0.2])[step % 8]


@pytest.mark.parametrize(
    ("schedule", "every", "distribution"),
    first_unmarked(
        # It ends between two pruning steps, of which the second reaches 90 %.
        (optax.linear_schedule(0.1, 0.9, NUM_STEPS - 5), 7, "global"),
        (falling, 1, "uniform"),
        (falling, 3, "global"),
        (0.0, 3, "global"),
        (1.0, 3, "uniform"),
        (0.5, 1, "global"),  # of an odd number
        quick=2,
    ),
)
def test_pruning_to_a_sparsity_step_by_step(schedule, distribution, every):
    tx = optax.chain(
        optax.sgd(0.125),  # exact, however it is compiled
        sparse_optax.prune_to_sparsity(
            schedule, every=every, distribution=distribution, mask=None
        ),
    )
    params, gradient = problem(np.float32)
    state, step = tx.init(params), jax.jit(make_step(tx))
    masks = {name: np.ones(p.shape, bool) for name, p in params.items()}
    num_pruning_steps = 0
    for i in range(NUM_STEPS):
        grads = gradient(params, i)
        given = jax.tree.map(np.asarray, params)
        params, state = step(params, state, grads)
        target = float(schedule(i + 1) if callable(schedule) else schedule)
        if (i + 1) % every == 0:
            following = drop(given, masks, to_sparsity(target), distribution)
            num_pruning_steps += any(np.any(following[n] != masks[n]) for n in SHAPES)
            masks = following
        pruning = state[-1]
        assert_same_masks(pruning.masks, masks)
        assert pruning.num_pruning_steps == num_pruning_steps
        assert pruning.num_updates == i + 1
        for name, mask in masks.items():
            assert not np.any(np.asarray(params[name])[~mask])
            assert np.all(np.asarray(params[name])[mask])
    if not callable(schedule):
        assert num_pruning_steps == (schedule > 0)
    elif every == 7:
        assert sparse_optax.sparsity(masks) == np.float32(exact_share(0.9, 73) / 73)


@pytest.mark.parametrize("distribution", first_unmarked("uniform", "global"))
def test_pruning_to_a_sparsity_outside_of_a_step(distribution):
    params, _ = problem(np.float32)
    tx = make_chain(ADAM, distribution=distribution)
    start, start_state = sparse_optax.prune(params, tx.init(params), 0.3)
    masks = jax.tree.map(np.asarray, sparse_optax.get_masks(start_state))
    for sparsity in (0.0, 0.2, 0.5, 0.9, 1.0):
        result, state = sparse_optax.prune(start, start_state, sparsity=sparsity)
        expected = drop(params, masks, to_sparsity(sparsity), distribution)
        assert_same_masks(sparse_optax.get_masks(state), expected)
        assert_close(result, {n: np.where(expected[n], params[n], 0) for n in SHAPES})
        assert state[-1].num_pruning_steps == 2
