"""Every public function under JAX's strictest settings."""

import contextlib

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import random_tree
from test_compilations import CALLS, on_disk

import sparse_optax

pytestmark = pytest.mark.quickly_compiled


@pytest.mark.parametrize("name", CALLS)
def test_every_public_function_works(name, tmp_path):
    call = on_disk(tmp_path) if CALLS[name] is on_disk else CALLS[name]
    with contextlib.ExitStack() as stack:
        for setting in (
            *(jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise")),
            *(jax.debug_infs(True), jax.debug_nans(True)),
        ):
            stack.enter_context(setting)
        jax.block_until_ready(call(0))


def test_every_kind_of_pruning_step_works():
    params, grads = random_tree(0), random_tree(1, "bfloat16")
    floors = {"min_kept": 2, "max_sparsity": 0.9}
    for tx in (
        sparse_optax.prune_by_magnitude(0.5, **floors),
        sparse_optax.prune_to_sparsity(0.5, distribution="uniform", **floors),
        sparse_optax.relevance_pruning(optax.sgd(0.1), 0.1, decoupled=True, **floors),
        *(
            sparse_optax.hide_pruned(
                optax.sgd(0.1), sparse_optax.prune_by(criterion, 0.5, **floors)
            )
            for criterion in (sparse_optax.saliency, sparse_optax.relevance(0.1))
        ),
    ):
        state = tx.init(params)
        with jax.numpy_dtype_promotion("strict"):
            _, state = jax.jit(tx.update)(grads, state, params, prune=jnp.array(True))
            params_now, state = sparse_optax.prune(params, state, 0.5, scores=grads)
        sparse_optax.check_sparsity(params_now, state)
