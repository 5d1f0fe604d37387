"""Irrelevance, the penalty made of it, and the decay that is its gradient."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import random_tree

import sparse_optax

FLOATS = [jnp.float32, jnp.bfloat16, jnp.float16]
SHAPES = {"bias": (3,), "kernel": (4, 3), "scalar": ()}
every_dtype = pytest.mark.parametrize("dtype", FLOATS)


def tree(seed, dtype=jnp.float32):
    return random_tree(seed, dtype, shapes=SHAPES)


def exact(g, scale):
    return np.exp(-np.abs(np.asarray(g, np.float64)) / np.float64(np.float32(scale)))


def added(tx, grads, params):
    """What one update adds to the gradients, in float64."""
    updates, _ = tx.update(grads, tx.init(params), params)
    subtract = lambda u, g: np.float64(u) - np.float64(g)  # noqa: E731
    return jax.tree.map(subtract, updates, grads)


# Subnormal numbers, XLA may take for zeros; beside scales as small they matter.
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e-3, 1.0, 7.0, 1e4, 1e30, np.inf])
@every_dtype
def test_irrelevance_is_the_exponential(dtype, scale):
    powers = np.logspace(-40, 4.5, 2000)
    near = np.linspace(0, 40, 4001) * (scale if np.isfinite(scale) else 1)
    g = np.concatenate([powers, -powers, near, [0.0, -0.0, 1e-45]])
    g = jnp.asarray(np.clip(g, -6e4, 6e4), dtype)
    for function in (sparse_optax.irrelevance, jax.jit(sparse_optax.irrelevance)):
        result = function(g, scale)
        assert result.dtype == jnp.float32
        assert result.min() >= 0 and result.max() <= 1
        assert result[-3] == result[-2] == 1
        np.testing.assert_allclose(result, exact(g, scale), rtol=0, atol=2e-7)


@every_dtype
def test_relevant_is_what_is_below_the_threshold(dtype):
    grads = tree(0, dtype)
    for threshold in (0.0, 0.1, 0.5, 1.0):
        masks = sparse_optax.is_relevant(grads, 0.7, threshold)
        for name, g in grads.items():
            np.testing.assert_array_equal(masks[name], exact(g, 0.7) < threshold)
    bound = np.log(2)  # the threshold is 0.5 and the scale 1 by default
    g = np.float32([0, 0.99 * bound, 1.01 * bound, -1.01 * bound, np.nan, np.inf])
    expected = [False, False, True, True, False, True]
    np.testing.assert_array_equal(sparse_optax.is_relevant(g), expected)


@pytest.mark.parametrize("scale", [0.05, 1.0, np.inf])
@pytest.mark.parametrize("mask", [None, "matrices", {"bias": True}], ids=str)
def test_the_penalty_is_what_it_says(mask, scale):
    params, grads, strength = tree(1), tree(2), 0.3
    names = (
        list(SHAPES) if mask is None else ["kernel" if mask == "matrices" else "bias"]
    )
    penalty = lambda p, g: sparse_optax.relevance_penalty(p, g, strength, scale, mask)  # noqa: E731
    expected = strength * sum(
        np.sum(exact(grads[n], scale) * np.asarray(params[n], np.float64) ** 2)
        for n in names
    )
    for function in (penalty, jax.jit(penalty)):
        result = function(params, grads)
        assert (result.shape, result.dtype) == ((), jnp.float32)
        np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("mask", [None, "matrices"])
@pytest.mark.parametrize("scale", [1e-3, 0.5, np.inf])
@every_dtype
def test_the_gradient_of_the_penalty_is_what_the_decay_adds(dtype, scale, mask):
    params, grads, strength = tree(3, dtype), tree(4, dtype), 0.2
    gradient = jax.grad(sparse_optax.relevance_penalty)(
        params, grads, strength, scale, mask
    )
    tx = sparse_optax.add_relevance_decay(strength, scale, mask=mask)
    # Both are rounded to the dtype of the weights, one of them beside the gradient.
    eps = float(jnp.finfo(dtype).eps)
    decay = jax.tree.map(np.float64, gradient)
    chex.assert_trees_all_close(
        added(tx, grads, params), decay, rtol=2 * eps, atol=4 * eps
    )
    assert np.any(decay["kernel"]) and (mask is None or not np.any(decay["bias"]))


def test_relevance_is_held_constant():
    params = tree(5)
    into_grads = jax.grad(sparse_optax.relevance_penalty, 1)(params, tree(6), 1.0)
    assert not any(np.any(g) for g in jax.tree.leaves(into_grads))


@pytest.mark.parametrize("flag", [bool, np.bool_, jnp.array])
def test_schedules_see_zero_after_init_and_in_a_pruning_step(flag):
    # Gradients of zero and weights of one show the schedule itself.
    tx = sparse_optax.add_relevance_decay(
        lambda t: 0.5 * (t + 1.0), lambda t: 1.0 + t, mask=None
    )
    params, grads = jnp.ones(2), jnp.float32([0.0, 1.0])
    state, seen = tx.init(params), []
    assert state.num_steps == 0
    update = jax.jit(tx.update) if flag is jnp.array else tx.update
    for prune in [False, False, True, False, True, True, False, False]:
        updates, state = update(grads, state, params, prune=flag(prune))
        step = float(updates[0]) - 1
        seen.append(step)
        # The scale follows the same count.
        irrelevance = np.exp(-1 / (1 + step))
        np.testing.assert_allclose(updates[1], 1 + (step + 1) * irrelevance, rtol=1e-6)
    assert seen == [0, 1, 0, 1, 0, 0, 1, 2]
    for extra in ({}, {"prune": None}):
        _, state = tx.update(grads, state, params, **extra)
    assert state.num_steps == 5


def test_another_irrelevance():
    calls = []

    def hyperbola(abs_grad, scale):
        calls.append((abs_grad.dtype, abs_grad.shape, jnp.shape(scale)))
        return 1 / (1 + abs_grad / scale)

    params, grads = jnp.bfloat16([[1.0, 2.0]]), jnp.bfloat16([[-2.0, 6.0]])
    for function, expected in (
        (hyperbola, [[0.5, 0.5]]),
        (lambda g, s: 0.25, [[0.25, 0.5]]),  # one number is as good
    ):
        tx = sparse_optax.add_relevance_decay(
            0.5, 2.0, irrelevance_fn=function, mask=None
        )
        np.testing.assert_allclose(added(tx, grads, params), expected)
    assert calls == [(jnp.float32, (1, 2), ())]
    for wrong in (lambda g, s: jnp.ones(7), lambda g, s: g[None]):
        tx = sparse_optax.add_relevance_decay(0.5, irrelevance_fn=wrong, mask=None)
        with pytest.raises(ValueError, match=r"irrelevance_fn .*\(1, 2\)"):
            tx.update(grads, tx.init(params), params)


@pytest.mark.parametrize("grad_dtype", FLOATS)
@every_dtype
def test_dtypes_are_those_of_weight_decay_and_relevance_is_float32(dtype, grad_dtype):
    # The strength would be 0 in float16, and 300^2 infinite.
    params, grads = jnp.asarray([2.0**14], dtype), jnp.asarray([0.0], grad_dtype)
    tx, plain = (
        sparse_optax.add_relevance_decay(2.0**-28, mask=None),
        optax.add_decayed_weights(1.0),
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates, [2.0**-13])
    assert updates.dtype == plain.update(grads, plain.init(params), params)[0].dtype
    stored = jnp.asarray([300.0], dtype)
    penalty = sparse_optax.relevance_penalty(stored, grads, 1.0, mask=None)
    np.testing.assert_allclose(penalty, float(stored[0]) ** 2)


def test_float64_weights_decay_in_float64():
    with jax.enable_x64(True):
        params = jnp.array([1 + 1e-12])
        tx = sparse_optax.add_relevance_decay(0.25, mask=None)
        updates, _ = tx.update(jnp.zeros(1), tx.init(params), params)
        assert updates.dtype == jnp.float64
        np.testing.assert_allclose(updates, (1 + 1e-12) / 2, rtol=1e-15)
