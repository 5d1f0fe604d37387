"""Weights and gradients that are not finite or tiny; traced numbers out of range."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import TRANSFORMATIONS, make_step, num_kept, num_nonzero, random_tree

import sparse_optax

PARAMS = random_tree(0)
ZEROS = optax.tree.zeros_like(PARAMS)
TX = sparse_optax.prune_by_magnitude(0.5, mask=None)
WHOLE = TRANSFORMATIONS["relevance_pruning"](mask=None)


@pytest.mark.parametrize("everywhere", [False, True], ids=["one", "all"])
def test_nan_gradients_revive_nothing_in_a_pruning_step(everywhere):
    params, state = sparse_optax.prune(PARAMS, WHOLE.init(PARAMS), 0.5)
    grads = jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), PARAMS)
    if not everywhere:
        grads = ZEROS | {"dense": ZEROS["dense"] | {"bias": grads["dense"]["bias"]}}
    after, after_state = jax.jit(make_step(WHOLE))(
        params, state, grads, prune=jnp.array(True)
    )
    masks, after_masks = state.pruning.masks, after_state.pruning.masks
    assert num_kept(after_masks) == num_nonzero(after) == 10  # NaNs included
    assert num_kept(jax.tree.map(lambda a, b: a & ~b, after_masks, masks)) == 0
    sparse_optax.check_sparsity(after, after_state)


@pytest.mark.parametrize("decoupled", [False, True])
def test_nan_gradients_do_not_pass_an_optimizer_that_rejects_them(decoupled):
    inner = optax.apply_if_finite(optax.adam(0.1), 3)
    tx = sparse_optax.relevance_pruning(inner, 0.1, decoupled=decoupled, mask=None)
    grads = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), PARAMS)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    chex.assert_tree_all_finite(updates)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf], ids=str)
def test_weights_that_are_not_finite_are_removed_last(value):
    params, zeros = jnp.array([value, 3.0, 1.0, 2.0]), jnp.zeros(4)
    step = jax.jit(
        lambda params, state, fraction: make_step(
            sparse_optax.prune_by_magnitude(fraction, mask=None)
        )(params, state, zeros, prune=True)
    )
    after, state = step(params, TX.init(params), 0.75)
    np.testing.assert_array_equal(state.masks, [True, False, False, False])
    np.testing.assert_array_equal(after[1:], 0)
    sparse_optax.check_sparsity(after, state)
    # An update cannot make it zero, which is noticed; `prune` can.
    moved, gone = step(params, state, 1.0)
    with pytest.raises(ValueError, match="not zero: 1 of 4"):
        sparse_optax.check_sparsity(moved, gone)
    pruned, gone = sparse_optax.prune(params, state, 1.0)
    np.testing.assert_array_equal(pruned, 0)
    sparse_optax.check_sparsity(pruned, gone)


def test_numbers_below_the_normal_are_not_zero():
    params = jnp.array([1e-40, 0.0, 1.0, -0.0, -1e-42])
    assert sparse_optax.sparsity(params) == pytest.approx(0.4)
    state = sparse_optax.masks_from_zeros(params, TX.init(params), mask=None)
    np.testing.assert_array_equal(state.masks, [True, False, True, False, True])
    with pytest.raises(ValueError, match="1 of 2"):
        sparse_optax.check_sparsity(params.at[1].set(1e-40), state)


# Traced numbers cannot be refused, and are clamped.

CLAMPED = [
    *((-1.0, 0.0), (-jnp.inf, 0.0), (jnp.nan, 0.0)),
    *((1.5, 1.0), (jnp.inf, 1.0), (0.5, 0.5)),
]


@pytest.mark.parametrize("name", ["fraction", "sparsity"])
def test_traced_fractions_are_clamped(name):
    prune = jax.jit(
        lambda value: sparse_optax.prune(PARAMS, TX.init(PARAMS), **{name: value})
    )
    make = sparse_optax.prune_by_magnitude
    if name == "sparsity":
        make = sparse_optax.prune_to_sparsity
    step = jax.jit(
        lambda state, value: make_step(make(lambda _: value, mask=None))(
            PARAMS, state, ZEROS, prune=True
        )
    )
    for given, used in CLAMPED:
        for params, state in (
            prune(jnp.float32(given)),
            step(make(0.5, mask=None).init(PARAMS), jnp.float32(given)),
        ):
            assert num_nonzero(params) == num_kept(state.masks) == 40 - round(40 * used)


def test_scheduled_strengths_and_scales_are_clamped():
    params, grads = jnp.ones(2), jnp.array([0.0, 50.0])

    @jax.jit
    def update(strength, scale):
        tx = sparse_optax.add_relevance_decay(
            lambda _: strength, lambda _: scale, mask=None
        )
        return tx.update(grads, tx.init(params), params)[0]

    for strength, scale, expected in (
        *((-1.0, 1.0, 0.0), (-jnp.inf, 1.0, 0.0), (jnp.nan, 1.0, 0.0)),
        *((0.5, 0.0, 1.0), (0.5, -1.0, 1.0)),
    ):
        updates = update(jnp.float32(strength), jnp.float32(scale))
        np.testing.assert_allclose(updates, [expected, 50.0], rtol=1e-6)


def test_an_injected_frequency_below_1_is_1():
    make = optax.inject_hyperparams(sparse_optax.prune_to_sparsity)
    tx = make(0.5, every=2, mask=None)
    step = jax.jit(make_step(tx))
    for every in (0, -1):
        state = tx.init(PARAMS)
        state.hyperparams["every"] = jnp.full_like(state.hyperparams["every"], every)
        after, _ = step(PARAMS, state, ZEROS)
        assert num_nonzero(after) == 20


def test_counters_saturate():
    most = jnp.iinfo(jnp.int32).max
    fading = optax.linear_schedule(0.1, 0.0, 10)
    tx = optax.chain(
        sparse_optax.add_relevance_decay(fading, mask=None),
        sparse_optax.prune_by_magnitude(
            lambda n: jnp.where(n > 10, 0.25, 0.0), mask=None
        ),
        sparse_optax.prune_to_sparsity(
            lambda t: jnp.where(t > 10, 0.5, 0.0), mask=None
        ),
    )
    state = jax.tree.map(
        lambda x: jnp.full_like(x, most) if x.dtype == jnp.int32 else x,
        tx.init(PARAMS),
    )
    update = jax.jit(tx.update)
    _, after = update(PARAMS, state, PARAMS, prune=jnp.array(False))
    assert after[0].num_steps == after[1].num_pruning_steps == most
    assert after[2].num_updates == after[2].num_pruning_steps == most
    _, after = update(PARAMS, state, PARAMS, prune=jnp.array(True))
    assert (int(after[0].num_steps), int(after[1].num_pruning_steps)) == (1, most)
    assert num_kept(after[1].masks) == 30
    _, after = sparse_optax.prune(PARAMS, state[1], 0.5)
    assert after.num_pruning_steps == most
