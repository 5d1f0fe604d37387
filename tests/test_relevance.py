"""Irrelevance, the penalty made of it, and the decay that is its gradient."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, strategies as st

import sparse_optax

FLOATS = [jnp.float32, jnp.bfloat16, jnp.float16]


def tree(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.normal(size=(4, 3)), dtype),
        "bias": jnp.asarray(rng.normal(size=3), dtype),
        "scalar": jnp.asarray(rng.normal(), dtype),
    }


def exact(g, scale):
    return np.exp(-np.abs(np.asarray(g, np.float64)) / np.float64(np.float32(scale)))


def count_of(state):
    assert state.steps_since_prune.dtype == jnp.int32
    return int(state.steps_since_prune)


SCALES = [1e-30, 1e-6, 1e-3, 0.1, 1.0, 7.0, 1e4, 1e30, np.inf]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_irrelevance_is_the_exponential(dtype, scale):
    powers = np.logspace(-40, 4.5, 2000)
    near = np.linspace(0, 40, 4001) * (scale if np.isfinite(scale) else 1)
    g = np.concatenate([powers, -powers, near, [0.0, -0.0, 1e-45]])
    g = jnp.asarray(np.clip(g, -6e4, 6e4), dtype)
    for function in (sparse_optax.irrelevance, jax.jit(sparse_optax.irrelevance)):
        result = function(g, scale)
        assert result.dtype == jnp.float32
        assert result.min() >= 0
        assert result.max() <= 1
        assert result[-3] == result[-2] == 1
        np.testing.assert_allclose(result, exact(g, scale), rtol=0, atol=1e-6)


@given(st.floats(width=32), st.floats(2.0**-120, 2.0**120, width=32))
@example(g=8.135378364484158e-41, scale=7.52316384526264e-37)
def test_irrelevance_of_any_gradient(g, scale):
    result = np.asarray(sparse_optax.irrelevance(np.float32(g), scale))
    if np.isnan(g):
        assert np.isnan(result)
    else:
        if abs(g) < jnp.finfo(jnp.float32).tiny and result == 1:
            g = 0.0  # for which XLA may take what is too small to be normal
        np.testing.assert_allclose(result, exact(g, scale), rtol=0, atol=1e-6)


def test_irrelevance_keeps_the_tree_and_names_no_integers():
    grads = {"a": [jnp.ones(2), jnp.zeros(())], "n": jnp.arange(3), "none": None}
    result = sparse_optax.irrelevance(grads)
    assert result["n"] == optax.MaskedNode()
    assert result["none"] is None
    chex.assert_trees_all_close(result["a"], [np.exp([-1.0, -1.0]), 1.0], rtol=1e-6)
    mask = sparse_optax.is_relevant(grads)
    chex.assert_trees_all_equal(mask["a"], [np.array([True, True]), np.False_])
    assert mask["n"] == optax.MaskedNode()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 1.0])
def test_relevant_is_what_is_below_the_threshold(dtype, threshold):
    grads, scale = tree(0, dtype), 0.7
    masks = sparse_optax.is_relevant(grads, scale, threshold)
    for name, g in grads.items():
        assert masks[name].dtype == bool
        np.testing.assert_array_equal(masks[name], exact(g, scale) < threshold)


def test_half_is_the_threshold_and_one_the_scale_by_default():
    bound = np.log(2)
    g = np.float32([0, 0.99 * bound, 1.01 * bound, -1.01 * bound, np.nan, np.inf])
    expected = [False, False, True, True, False, True]
    np.testing.assert_array_equal(sparse_optax.is_relevant(g), expected)


@pytest.mark.parametrize("mask", [None, sparse_optax.matrices_only, {"bias": True}])
@pytest.mark.parametrize("scale", [0.05, 1.0, np.inf])
def test_the_penalty_is_what_it_says(mask, scale):
    params, grads, strength = tree(1), tree(2), 0.3
    if isinstance(mask, dict):
        mask = {"bias": True, "kernel": False, "scalar": False}
    selected = {
        None: ["bias", "kernel", "scalar"],
        sparse_optax.matrices_only: ["kernel"],
    }.get(mask if callable(mask) or mask is None else "", ["bias"])
    expected = strength * sum(
        np.sum(exact(grads[n], scale) * np.asarray(params[n], np.float64) ** 2)
        for n in selected
    )
    for function in (
        sparse_optax.relevance_penalty,
        jax.jit(sparse_optax.relevance_penalty, static_argnames="mask"),
    ):
        if isinstance(mask, dict) and function is not sparse_optax.relevance_penalty:
            continue  # no static argument of jit
        result = function(params, grads, strength, scale, mask=mask)
        assert result.shape == ()
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("mask", [None, sparse_optax.matrices_only])
@pytest.mark.parametrize("scale", [1e-3, 0.5, np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_gradient_of_the_penalty_is_what_the_decay_adds(dtype, scale, mask):
    params, grads, strength = tree(3, dtype), tree(4, dtype), 0.2
    gradient = jax.grad(sparse_optax.relevance_penalty)(
        params, grads, strength, scale, mask
    )
    tx = sparse_optax.add_relevance_decay(strength, scale, mask=mask)
    updates, _ = tx.update(grads, tx.init(params), params)
    added = jax.tree.map(
        lambda u, g: np.asarray(u, np.float64) - np.asarray(g, np.float64),
        *(updates, grads),
    )
    # Both are rounded to the dtype of the weights, one of them beside the gradient.
    tolerance = 2 * float(jnp.finfo(dtype).eps)
    jax.tree.map(
        lambda a, g: np.testing.assert_allclose(
            a, np.asarray(g, np.float64), rtol=tolerance, atol=2 * tolerance
        ),
        *(added, gradient),
    )
    if mask is not None:
        assert not np.any(gradient["bias"])
        np.testing.assert_array_equal(updates["bias"], grads["bias"])


def test_relevance_is_held_constant():
    params, grads = tree(5), tree(6)
    into_grads = jax.grad(sparse_optax.relevance_penalty, argnums=1)(params, grads, 1.0)
    assert not any(np.any(g) for g in jax.tree.leaves(into_grads))

    def loss(params):
        return sum(jnp.sum(p**3) for p in jax.tree.leaves(params))

    def regularised(params):
        grads = jax.grad(loss)(params)
        return loss(params) + sparse_optax.relevance_penalty(
            params, grads, 0.1, 0.5, mask=None
        )

    tx = sparse_optax.add_relevance_decay(0.1, 0.5, mask=None)
    updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
    chex.assert_trees_all_close(jax.grad(regularised)(params), updates, rtol=1e-5)


def test_only_weights_without_gradient_decay_as_the_scale_vanishes():
    params = jnp.float32([1.0, 2.0, 3.0, -4.0])
    grads = jnp.float32([0.0, 1e-20, 5.0, -0.0])
    for scale in (1e-30, lambda _: 0.0, lambda _: jnp.float32(1e-45)):
        tx = sparse_optax.add_relevance_decay(0.25, scale, mask=None)
        for update in (tx.update, jax.jit(tx.update)):
            updates, _ = update(grads, tx.init(params), params)
            expected = np.float32([0.5, 1e-20, 5.0, -2.0])
            np.testing.assert_array_equal(updates, expected)


@pytest.mark.parametrize("flag", ["static", "traced", "numpy"])
def test_schedules_see_zero_after_init_and_after_a_prune(flag):
    # Gradients of zero and weights of one show the schedule itself.
    tx = sparse_optax.add_relevance_decay(
        lambda t: 0.5 * (t + 1.0), lambda t: 1.0 + t, mask=None
    )
    params, grads = jnp.ones(2), jnp.float32([0.0, 1.0])
    state, seen = tx.init(params), []
    assert count_of(state) == 0
    traced = jax.jit(lambda g, s, p, prune: tx.update(g, s, p, prune=prune))
    for prune in [False, False, True, False, True, True, False, False]:
        if flag == "traced":
            updates, state = traced(grads, state, params, prune)
        else:
            value = np.bool_(prune) if flag == "numpy" else prune
            updates, state = tx.update(grads, state, params, prune=value)
        step = float(updates[0]) - 1
        seen.append(step)
        # The scale follows the same count.
        irrelevance = np.exp(-1 / (1 + step))
        np.testing.assert_allclose(updates[1], 1 + (step + 1) * irrelevance, rtol=1e-6)
    assert seen == [0, 1, 2, 0, 1, 0, 0, 1]
    assert count_of(state) == 2


def test_without_the_signal_the_count_goes_on():
    tx = sparse_optax.add_relevance_decay(1.0, mask=None)
    params = jnp.ones(2)
    state = tx.init(params)
    for i in range(3):
        _, state = tx.update(params, state, params)
        assert count_of(state) == i + 1
    _, state = tx.update(params, state, params, prune=None)
    assert count_of(state) == 4


def test_the_count_saturates():
    tx = sparse_optax.add_relevance_decay(1.0, mask=None)
    largest = jnp.int32(np.iinfo(np.int32).max)
    _, state = tx.update(
        jnp.ones(2), sparse_optax.RelevanceDecayState(largest), jnp.ones(2)
    )
    assert count_of(state) == largest


def test_the_linear_decay_of_the_paper():
    tx = sparse_optax.add_relevance_decay(optax.linear_schedule(0.5, 0.0, 4), mask=None)
    params, state, added = jnp.ones(()), None, []
    state = tx.init(params)
    for i in range(9):
        updates, state = tx.update(jnp.zeros(()), state, params, prune=i == 5)
        added.append(float(updates))
    np.testing.assert_allclose(added, [1, 0.75, 0.5, 0.25, 0, 0, 1, 0.75, 0.5])


def test_another_irrelevance():
    calls = []

    def hyperbola(abs_grad, scale):
        calls.append((abs_grad.dtype, abs_grad.shape, jnp.shape(scale)))
        return 1 / (1 + abs_grad / scale)

    tx = sparse_optax.add_relevance_decay(0.5, 2.0, irrelevance_fn=hyperbola, mask=None)
    params, grads = jnp.bfloat16([[1.0, 2.0]]), jnp.bfloat16([[-2.0, 6.0]])
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates, [[-1.5, 6.5]])
    assert calls == [(jnp.float32, (1, 2), ())]


def test_an_irrelevance_may_be_one_number():
    tx = sparse_optax.add_relevance_decay(
        0.5, irrelevance_fn=lambda g, s: 0.25, mask=None
    )
    params = {"w": jnp.ones((2, 3))}
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], np.full((2, 3), 1.25))


@pytest.mark.parametrize("bad", [lambda g, s: jnp.ones(7), lambda g, s: g[None]])
def test_an_irrelevance_of_another_shape_is_an_error(bad):
    tx = sparse_optax.add_relevance_decay(0.5, irrelevance_fn=bad, mask=None)
    params = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="irrelevance_fn"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    "mask",
    [
        {"kernel": True, "bias": False, "scalar": False},
        sparse_optax.matrices_only,
        lambda p: jax.tree.map(lambda x: x.ndim == 2, p),
    ],
)
def test_only_the_leaves_of_the_mask_decay(mask):
    params, grads = tree(7), tree(8)
    tx = sparse_optax.add_relevance_decay(0.1, mask=mask)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates["bias"], grads["bias"])
    np.testing.assert_array_equal(updates["scalar"], grads["scalar"])
    expected = grads["kernel"] + 0.2 * exact(grads["kernel"], 1) * params["kernel"]
    np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-6)
    assert not np.allclose(updates["kernel"], grads["kernel"])


def test_leaves_that_are_not_floating_pass_through():
    params = {"w": jnp.ones(2), "n": jnp.arange(3), "key": None}
    grads = {"w": jnp.zeros(2), "n": jnp.arange(3) + 5, "key": None}
    tx = sparse_optax.add_relevance_decay(0.5, mask=None)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates["n"], grads["n"])
    assert updates["n"].dtype == grads["n"].dtype
    np.testing.assert_array_equal(updates["w"], [1.0, 1.0])


@pytest.mark.parametrize("grad_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_relevance_is_computed_in_float32(dtype, grad_dtype):
    # The strength would be 0 in float16, and 300^2 infinite.
    params, grads = jnp.asarray([2.0**14], dtype), jnp.asarray([0.0], grad_dtype)
    tx = sparse_optax.add_relevance_decay(2.0**-28, mask=None)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates, [2.0**-13])
    penalty = sparse_optax.relevance_penalty(
        jnp.asarray([300.0], dtype), jnp.zeros(1, grad_dtype), 1.0, mask=None
    )
    stored = float(jnp.asarray(300.0, dtype))
    np.testing.assert_allclose(penalty, stored**2)


@pytest.mark.parametrize("grad_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_updates_have_the_dtype_that_weight_decay_gives_them(dtype, grad_dtype):
    params, grads = tree(9, dtype), tree(10, grad_dtype)
    tx = sparse_optax.add_relevance_decay(0.5, mask=None)
    decay = optax.add_decayed_weights(1.0)
    updates, _ = tx.update(grads, tx.init(params), params)
    expected, _ = decay.update(grads, decay.init(params), params)
    chex.assert_trees_all_equal_dtypes(updates, expected)


def test_float64_weights_decay_in_float64():
    with jax.enable_x64(True):
        params = jnp.array([1 + 1e-12])
        tx = sparse_optax.add_relevance_decay(0.25, mask=None)
        updates, _ = tx.update(jnp.zeros(1), tx.init(params), params)
        assert updates.dtype == jnp.float64
        np.testing.assert_allclose(updates, (1 + 1e-12) / 2, rtol=1e-15)


def test_a_negative_strength_of_a_schedule_is_none():
    tx = sparse_optax.add_relevance_decay(
        optax.linear_schedule(1.0, -1.0, 2), mask=None
    )
    params = jnp.ones(2)
    state = tx.init(params)
    for expected in (3.0, 1.0, 1.0):
        updates, state = tx.update(params, state, params, prune=False)
        if expected == 3.0:
            expected = 1 + 2 * np.exp(-1)
        np.testing.assert_allclose(updates, [expected] * 2, rtol=1e-6)


def test_gradients_of_other_shapes_are_not_broadcast():
    params, grads = {"w": jnp.ones((4, 4))}, {"w": jnp.ones((1, 4))}
    tx = sparse_optax.add_relevance_decay(0.5, mask=None)
    with pytest.raises(ValueError, match=r"\(1, 4\).*\(4, 4\)"):
        tx.update(grads, tx.init(params), params)
    with pytest.raises(ValueError, match=r"\(1, 4\).*\(4, 4\)"):
        sparse_optax.relevance_penalty(params, grads, 0.5, mask=None)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "name"),
    [
        (sparse_optax.irrelevance, {"scale": 0.0}, ValueError, "scale"),
        (sparse_optax.irrelevance, {"scale": "1"}, TypeError, "scale"),
        (sparse_optax.irrelevance, {"scale": np.nan}, ValueError, "scale"),
        (sparse_optax.is_relevant, {"threshold": 1.5}, ValueError, "threshold"),
        (sparse_optax.is_relevant, {"scale": -1}, ValueError, "scale"),
    ],
)
def test_arguments_out_of_range_are_named(function, arguments, error, name):
    with pytest.raises(error, match=name):
        function(jnp.ones(2), **arguments)
