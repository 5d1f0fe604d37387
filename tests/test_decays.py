"""The decays of l1 and LOBSTER against NumPy, and their schedules at pruning steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import find_states, random_tree

import sparse_optax
from sparse_optax import StepsSincePruning, add_l1_decay, add_lobster_decay

DECAYS = {"l1": add_l1_decay, "lobster": add_lobster_decay}
every_decay = pytest.mark.parametrize("name", DECAYS)


def expected(name, strength, u, w, g):
    """One leaf, in the `float32` arithmetic of NumPy."""
    strength, u, w, g = (np.asarray(x, np.float32) for x in (strength, u, w, g))
    if name == "l1":
        return u + strength * np.sign(w)
    return u - strength * np.maximum(np.float32(0), 1 - np.abs(g)) * w


def trees():
    params, grads = (random_tree(seed) for seed in range(2))
    params["dense"]["kernel"] = params["dense"]["kernel"].at[0].set(0.0)
    return params, grads, random_tree(2)


@every_decay
@pytest.mark.parametrize("compiled", [False, True])
def test_equals_numpy(name, compiled):
    params, grads, updates = trees()
    tx = DECAYS[name](0.3, mask=None)
    update = jax.jit(tx.update) if compiled else tx.update
    new, _ = update(updates, tx.init(params), params, grad=grads)
    jax.tree.map(
        lambda new, *leaves: np.testing.assert_allclose(
            new, expected(name, 0.3, *leaves), rtol=1e-6, atol=1e-7
        ),
        *(new, updates, params, grads),
    )


@every_decay
def test_decays_matrices_by_default(name):
    params, grads, updates = trees()
    tx = DECAYS[name](0.3)
    new, _ = tx.update(updates, tx.init(params), params, grad=grads)
    np.testing.assert_array_equal(new["dense"]["bias"], updates["dense"]["bias"])
    assert np.any(new["dense"]["kernel"] != updates["dense"]["kernel"])


@every_decay
def test_dtypes_are_those_of_weight_decay(name):
    params, grads, updates = trees()
    updates = optax.tree.cast(updates, jnp.bfloat16)
    tx, weight_decay = DECAYS[name](0.3), optax.add_decayed_weights(0.3)
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        weights = optax.tree.cast(params, dtype)
        new, _ = tx.update(updates, tx.init(weights), weights, grad=grads)
        wanted, _ = weight_decay.update(updates, weight_decay.init(weights), weights)
        assert new["dense"]["kernel"].dtype == wanted["dense"]["kernel"].dtype


def test_lobster_leaves_a_weight_alone_where_the_gradient_is_nan():
    params = jnp.ones((1, 3))
    tx = add_lobster_decay(0.5)
    grad = jnp.array([[jnp.nan, jnp.inf, 0.5]])
    updates, _ = tx.update(jnp.zeros((1, 3)), tx.init(params), params, grad=grad)
    np.testing.assert_array_equal(updates, [[0, 0, -0.25]])


@every_decay
@pytest.mark.parametrize("how", ["flag", "traced", "function", "wrapper"])
def test_schedules_restart_at_a_pruning_step(name, how):
    seen = []
    decay = DECAYS[name](lambda t: seen.append(t) or 0.1 + 0.0 * t)
    pruning = sparse_optax.prune_by_magnitude(0.5)
    params, grads, _ = trees()
    if how == "wrapper":
        tx = sparse_optax.hide_pruned(decay, pruning)
    else:
        tx = optax.chain(decay, pruning)
    state = tx.init(params)
    for flag in (False, False, True, False):
        if how == "function":
            if flag:
                params, state = sparse_optax.prune(params, state, 0.5)
            flag = None
        elif how == "traced":
            flag = jnp.array(flag)
        _, state = tx.update(grads, state, params, prune=flag, grad=grads)
    assert [int(t) for t in seen] == [0, 1, 0, 1]
    (counter,) = find_states(state, StepsSincePruning)
    assert counter.num_steps == 2


@every_decay
def test_bad_arguments_are_named(name):
    add = DECAYS[name]
    with pytest.raises(ValueError, match=r"strength must be .*-1"):
        add(-1.0)
    with pytest.raises(TypeError, match=r"strength must be .*'much'"):
        add("much")
    params, grads, updates = trees()
    with pytest.raises(ValueError, match="mask"):
        add(0.1, mask={"no such leaf": True}).init(params)
    tx = add(0.1)
    with pytest.raises(ValueError, match="params"):
        tx.update(updates, tx.init(params), grad=grads)


def test_lobster_needs_gradients_of_the_shapes_of_weights():
    params, _, updates = trees()
    tx = add_lobster_decay(0.1)
    with pytest.raises(ValueError, match="grad=grads"):
        tx.update(updates, tx.init(params), params)
    with pytest.raises(ValueError, match="grad has shape"):
        bad = jax.tree.map(lambda w: w[:1], params)
        tx.update(updates, tx.init(params), params, grad=bad)
