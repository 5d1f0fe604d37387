"""Every public function under JAX's strictest settings."""

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import random_tree
from test_compilations import CALLS, on_disk

import sparse_optax

SETTINGS = {
    "strict promotion": (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ),
    "debug": (jax.debug_infs(True), jax.debug_nans(True)),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", CALLS)
def test_every_public_function_works(name, setting, tmp_path):
    call = on_disk(tmp_path) if CALLS[name] is on_disk else CALLS[name]
    first, second = SETTINGS[setting]
    with first, second:
        jax.block_until_ready(call(0))


@pytest.mark.parametrize("scope", ["global", "leaf"])
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float32", "bfloat16")])
def test_every_kind_of_pruning_step_works_under_strict_promotion(scope, dtypes):
    params, grads = (random_tree(0, dtype) for dtype in dtypes)
    floors = {"min_kept": 2, "max_sparsity": 0.9}
    for make in (
        lambda: sparse_optax.prune_by_magnitude(0.5, scope=scope, **floors),
        lambda: sparse_optax.prune_to_sparsity(0.5, scope=scope, **floors),
        lambda: sparse_optax.relevance_pruning(
            optax.sgd(0.1), 0.1, scope=scope, decoupled=True, **floors
        ),
        lambda: optax.chain(
            sparse_optax.add_relevance_decay(0.1), sparse_optax.prune_by_magnitude()
        ),
    ):
        tx = make()
        state = tx.init(params)
        with jax.numpy_dtype_promotion("strict"):
            for flag in (True, jnp.array(True)):
                _, after = jax.jit(tx.update)(grads, state, params, prune=flag)
            _, after = sparse_optax.prune(params, after, 0.5, scope=scope)
        _, expected = jax.jit(tx.update)(grads, state, params, prune=True)
        _, expected = sparse_optax.prune(params, expected, 0.5, scope=scope)
        for a, b in zip(*map(jax.tree.leaves, (after, expected)), strict=True):
            assert jnp.array_equal(a, b)
