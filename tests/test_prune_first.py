"""A pruning step comes first, and the update is that of the network that is left."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import first_unmarked, make_chain, make_whole, random_tree

import sparse_optax as so

SHAPES = {"a": (6, 5), "b": (5, 3)}
GRADS = random_tree(5, shapes=SHAPES)
FADING = optax.linear_schedule(0.1, 0.0, 7)
OPTIMIZERS = {
    "adam": (optax.adam(0.1), True),
    "sgd": (optax.sgd(0.1, momentum=0.9), True),
    "clipped": (optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1)), False),
    "lamb": (optax.lamb(0.1), False),
}


def trained(tx, steps=3):
    params, state = random_tree(4, shapes=SHAPES), None
    state = tx.init(params)
    for i in range(steps):
        grads = jax.tree.map(lambda g, i=i: g * (i + 1), GRADS)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def both(tx):
    """A pruning step and then an update; and an update with a pruning step."""
    params, state = trained(tx)
    pruned, pruned_state = so.prune(params, state, 0.3)
    updates, apart = tx.update(GRADS, pruned_state, pruned)
    apart = optax.apply_updates(pruned, updates), apart
    for flag in (True, jnp.array(True)):
        updates, together = tx.update(GRADS, state, params, prune=flag)
        yield apart, (optax.apply_updates(params, updates), together)


@pytest.mark.parametrize("name", first_unmarked(*OPTIMIZERS, quick=2))
@pytest.mark.parametrize("decoupled", [False, True])
def test_in_the_wrapper_all_bits_are_those_of_prune_and_an_update(name, decoupled):
    tx = make_whole(OPTIMIZERS[name][0], strength=FADING, decoupled=decoupled)
    for apart, together in both(tx):
        chex.assert_trees_all_equal(apart, together)
        assert optax.tree.get(together[1], "num_steps") == 1  # it was 0 in this update


@pytest.mark.parametrize("name", first_unmarked(*OPTIMIZERS, quick=2))
def test_in_a_chain_masks_are_the_same(name):
    optimizer, is_elementwise = OPTIMIZERS[name]
    for apart, together in both(make_chain(optimizer, strength=FADING)):
        chex.assert_trees_all_equal(apart[1][-1].masks, together[1][-1].masks)
        assert together[1][0].num_steps == 1
        if is_elementwise:
            chex.assert_trees_all_equal(apart[0], together[0])


def test_gradual_pruning_restarts_what_counts_in_the_wrapper_alone():
    def counts(make):
        decay = so.add_relevance_decay(FADING, mask=None)
        gradual = so.prune_to_sparsity(
            lambda t: jnp.minimum(t / 10, 1), every=3, mask=None
        )
        tx = make(optax.chain(decay, optax.sgd(0.1)), gradual)
        params, state = random_tree(4, shapes=SHAPES), None
        state = tx.init(params)
        found = []
        for _ in range(7):
            _, state = tx.update(GRADS, state, params)
            found.append(int(optax.tree.get(state, "num_steps")))
        return found

    assert counts(so.hide_pruned) == [1, 2, 1, 2, 3, 1, 2]
    assert counts(optax.chain) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("make", [make_chain, make_whole])
def test_only_masks_and_counters_pass_the_conditional(make):
    tx = make(optax.adam(0.1))
    params, state = trained(tx, steps=0)
    program = jax.make_jaxpr(tx.update)(GRADS, state, params, prune=jnp.array(True))
    outer = [e for e in program.eqns if "_remove_if" in str(e.params.get("name", ""))]
    conds = [
        e for e in outer[0].params["jaxpr"].jaxpr.eqns if e.primitive.name == "cond"
    ]
    assert len(outer) == len(conds) == 1
    assert not [e for e in program.eqns if e.primitive.name == "cond"]
    for out in conds[0].outvars:
        assert out.aval.dtype == np.bool_ or out.aval.size <= 2


def test_the_optimizer_sees_no_newly_removed_weights():
    seen = []

    def update(updates, state, params=None):
        seen.append((updates, params, state))
        return updates, state

    spy = optax.GradientTransformation(lambda params: {"mu": GRADS}, update)
    tx = so.hide_pruned(spy, so.prune_by_magnitude(0.5, mask=None))
    params = random_tree(4, shapes=SHAPES)
    _, state = tx.update(GRADS, tx.init(params), params, prune=True)
    masks = so.get_masks(state)
    assert so.sparsity(masks) > 0.4
    for tree in (*seen[0][:2], seen[0][2]["mu"], state.optimizer["mu"]):
        chex.assert_trees_all_equal(tree, so.apply_masks(tree, masks))
