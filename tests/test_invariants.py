"""What holds for any weights, gradients and pruning steps."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from helpers import first_unmarked, make_chain, make_step, make_whole

import sparse_optax


def gradual(optimizer, strength=0.01, fraction=0.3):
    pruning = sparse_optax.prune_to_sparsity(
        lambda t: 1 - (1 - fraction) ** t, every=2, mask=None
    )
    decay = sparse_optax.add_relevance_decay(strength, 0.1, mask=None)
    return optax.chain(decay, optimizer, pruning)


FORMS = {"chain": make_chain, "whole": make_whole, "gradual": gradual}


def masks_of(state):
    return [np.asarray(m) for m in jax.tree.leaves(sparse_optax.get_masks(state))]


def flat_masks(state):
    return np.concatenate([m.ravel() for m in masks_of(state)])


def assert_zeros_where_pruned(params, state):
    for p, m in zip(jax.tree.leaves(params), masks_of(state), strict=True):
        assert not np.any(np.asarray(p)[~m])  # a NaN would count as true


@pytest.mark.parametrize(
    ("form", "dtype", "grad_dtype"),
    first_unmarked(
        ("chain", jnp.bfloat16, jnp.float32),
        ("whole", jnp.float32, jnp.bfloat16),
        ("gradual", jnp.float16, jnp.float16),
        ("chain", jnp.float32, jnp.float16),
        quick=3,
    ),
)
def test_pruned_weights_are_exactly_zero_in_every_dtype(form, dtype, grad_dtype):
    tx = FORMS[form](optax.adam(0.1))
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(30, 10)), "b": rng.normal(size=40)}
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)
    state, step = tx.init(params), jax.jit(make_step(tx))
    for i in range(8):
        grads = jax.tree.map(
            lambda p: jnp.asarray(rng.normal(size=p.shape), grad_dtype), params
        )
        before = state
        params, state = step(params, state, grads, prune=i % 3 == 1)
        if dtype == grad_dtype:  # else the state of Adam itself changes its dtypes
            chex.assert_trees_all_equal_dtypes(state, before)
        assert all(p.dtype == dtype for p in params.values())
        assert_zeros_where_pruned(params, state)
    assert (~flat_masks(state)).sum() > 100
    if form == "gradual":
        return  # it would go on to drop weights that are NaN
    masks = masks_of(state)
    # What is gone does not come back for anything in a gradient or an update.
    for bad in (np.nan, np.inf, -np.inf, float(jnp.finfo(grad_dtype).max)):
        grads = jax.tree.map(lambda p, b=bad: jnp.full(p.shape, b, grad_dtype), params)
        params, state = step(params, state, grads, prune=False)
        assert_zeros_where_pruned(params, state)
        chex.assert_trees_all_equal(masks_of(state), masks)


# Few different weights, so that most tie; those that are not numbers among them.


OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(0.1, weight_decay=0.1),
    "lamb": optax.lamb(0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
}


NOTHING = FORMS | {"decoupled": functools.partial(make_whole, decoupled=True)}


@pytest.mark.parametrize(
    ("form", "optimizer"),
    first_unmarked(
        *(("gradual", "adamw"), ("whole", "clipped")),
        *(("chain", "clipped"), ("decoupled", "lamb"), ("whole", "sgd")),
        quick=2,
    ),
)
def test_without_decay_and_pruning_it_equals_the_optimizer(form, optimizer):
    inner = OPTIMIZERS[optimizer]
    tx = NOTHING[form](inner, strength=0.0, fraction=0.0)
    rng = np.random.default_rng(2)
    params = {"a": jnp.float32(rng.normal(size=(3, 4))), "b": jnp.ones(5)}
    state, inner_state = tx.init(params), inner.init(params)
    for i in range(3):
        grads = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), params)
        # Not compiled: XLA may round a step in two ways, as a part of two programs.
        updates, state = tx.update(grads, state, params, prune=i == 1)
        expected, inner_state = inner.update(grads, inner_state, params)
        chex.assert_trees_all_equal(updates, expected)
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("form", first_unmarked("whole", "gradual"))
def test_saved_restored_and_continued_is_uninterrupted(form, tmp_path):
    tx = FORMS[form](optax.adam(0.1))
    rng = np.random.default_rng(4)

    def tree(steps):
        return {
            "a": jnp.asarray(rng.normal(size=(6, 5)), jnp.float32),
            "b": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
            "steps": jnp.int32(steps),
        }

    params, grads = tree(3), [tree(0) for _ in range(8)]
    prunes = [False, True, False, True, False, True, True, False]
    step = jax.jit(make_step(tx))

    def train(carry, steps):
        for i in steps:
            carry = step(*carry, grads[i], prune=prunes[i])
        return carry

    middle = train((params, tx.init(params)), range(4))
    expected = train(middle, range(4, 8))
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), middle
    )
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "middle", middle)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "middle", target)
    assert jax.tree.structure(restored) == jax.tree.structure(middle)
    chex.assert_trees_all_equal(restored, middle)
    chex.assert_trees_all_equal_dtypes(restored, middle)
    chex.assert_trees_all_equal(train(restored, range(4, 8)), expected)
    assert (~flat_masks(expected[1])).sum() > (~flat_masks(middle[1])).sum() > 0
