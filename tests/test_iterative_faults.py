"""Faults of the iterative algorithm's callers, named in the round they occur in."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparse_optax

PARAMS = {"a": jnp.arange(1.0, 61).reshape(6, 10), "b": jnp.arange(61.0, 101)[None]}
INTERLEAVED = jax.tree.map(lambda w: (37.0 * w) % 101, PARAMS)  # none is empty soon
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def identity(state):
    return state


def add_one(state):
    return jax.tree.map(lambda w: w + 1, state[0]), state[1]


def train_with(tx):
    @jax.jit
    def train(state):
        params, opt_state = state
        updates, opt_state = tx.update(GRADS, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return train


def pruner(*fraction, **sparsity):
    return lambda state: sparse_optax.prune(*state, *fraction, **sparsity)


PRUNE_FIFTH = pruner(0.2)


def run(
    tx,
    train=None,
    evaluate=lambda state: 1.0,
    prune=PRUNE_FIFTH,
    state=None,
    bound=0.5,
    max_rounds=4,
    **options,
):
    return sparse_optax.iterative_pruning(
        (PARAMS, tx.init(PARAMS)) if state is None else state,
        train_with(tx) if train is None else train,
        *(evaluate, prune),
        bound=bound,
        max_rounds=max_rounds,
        **options,
    )


PRUNING = sparse_optax.prune_by_magnitude(0.2)

# Weights that are not zero although masks call them pruned.

MOVED = {
    "first in the chain": (optax.chain(PRUNING, optax.adam(0.1)), None),
    "before noise": (optax.chain(PRUNING, optax.add_noise(0.1, 0.5, 0)), None),
    "by train": (PRUNING, add_one),
}


@pytest.mark.parametrize("case", MOVED)
def test_zeros_that_are_moved_raise_in_the_round_of_the_pruning_step(case):
    tx, train = MOVED[case]
    rounds = run(tx, train)
    first = next(rounds)
    assert first.pruned and first.revived == 0
    # The second pruning step is the first that is given pruned weights.
    message = r"round 1: pruned weights .* 20 at a\. .*last"
    with pytest.raises(ValueError, match=message):
        next(rounds)


def test_moved_zeros_are_counted_in_the_state_inside_jit():
    @jax.jit
    def step(params, state):
        params, state = sparse_optax.prune(params, state, 0.2)
        params = jax.tree.map(lambda w: w.at[0].add(1.0), params)
        return sparse_optax.prune(params, state, 0.2)

    _, state = step(PARAMS, PRUNING.init(PARAMS))
    assert state.revived.tolist() == [10, 0]  # one row of `a` was pruned
    # In a training step too, and the next pruning step counts anew.
    _, state = PRUNING.update(GRADS, state, PARAMS, prune=True)
    assert state.revived.tolist() == [36, 0]
    params = sparse_optax.apply_masks(PARAMS, sparse_optax.get_masks(state))
    for flag in (True, jnp.array(True)):
        _, after = PRUNING.update(GRADS, state, params, prune=flag)
        assert after.revived.tolist() == [0, 0]
    tx = sparse_optax.prune_to_sparsity(optax.linear_schedule(0, 1, 10))
    state = tx.init(PARAMS)
    for _ in range(2):
        _, state = jax.jit(tx.update)(GRADS, state, PARAMS)  # weights are never zeroed
    assert state.revived.tolist() == [10, 0]


def test_counts_of_earlier_pruning_steps_raise_no_more():
    params, state = sparse_optax.prune(PARAMS, PRUNING.init(PARAMS), 0.2)
    _, state = sparse_optax.prune(PARAMS, state, 0.2)  # given weights that are not zero
    assert state.revived.tolist() == [20, 0]
    params = sparse_optax.apply_masks(PARAMS, sparse_optax.get_masks(state))
    (r,) = run(PRUNING, state=(params, state), max_rounds=1, evaluate=lambda _: 0.1)
    assert not r.pruned and r.revived == 20
    assert next(run(PRUNING, state=(params, state))).revived == 0
    masks = sparse_optax.get_masks(state)
    assert sparse_optax.set_masks(state, masks).revived.tolist() == [0, 0]


def test_an_ensemble_counts_over_its_members():
    members = jax.tree.map(lambda w: jnp.stack([w, -w]), PARAMS)
    state = members, jax.vmap(PRUNING.init)(members)
    vmapped = jax.vmap(lambda p, s: sparse_optax.prune(p, s, 0.2))
    prune = lambda s: vmapped(*s)  # noqa: E731
    rounds = run(PRUNING, identity, prune=prune, state=state)
    first, second = next(rounds), next(rounds)
    assert (first.revived, second.sparsity) == (0, 0.2)
    rounds = run(PRUNING, add_one, prune=prune, state=state)
    next(rounds)
    with pytest.raises(ValueError, match="not zero: 40 at a"):
        next(rounds)


def test_functions_may_donate_what_they_are_given():
    tx = sparse_optax.relevance_pruning(optax.adam(0.1), 1e-4)
    train = jax.jit(train_with(tx), donate_argnums=0)
    prune = jax.jit(PRUNE_FIFTH, donate_argnums=0)
    state = jax.tree.map(jnp.copy, (PARAMS, tx.init(PARAMS)))
    options = {"finetune": train, "finetune_rounds": 1, "max_rounds": 3}
    rounds = run(tx, train, prune=prune, state=state, **options)
    *seen, last = [(r.sparsity, r.best_sparsity, r.revived) for r in rounds]
    assert seen == [(0.0, 0.0, 0), (0.2, 0.2, 0), (0.36, 0.36, 0)]
    assert last == (0.36, 0.36, 0)


# Sparsities.


def test_a_sparsity_that_was_asked_for_is_reached():
    state = INTERLEAVED, PRUNING.init(INTERLEAVED)
    rounds = list(run(PRUNING, prune=pruner(sparsity=0.8), state=state))
    assert [r.sparsity >= 0.8 for r in rounds] == [False, True, True, True]
    assert rounds[-1].best_sparsity == 0.8


def test_two_transformations_over_one_leaf_count_it_once():
    tx = optax.chain(sparse_optax.prune_by_magnitude(0.1), PRUNING)
    state = INTERLEAVED, tx.init(INTERLEAVED)
    rounds = list(run(tx, identity, prune=pruner(0.5), state=state))
    assert [r.sparsity for r in rounds] == [0, 0.5, 0.75, 0.87]  # 12.5 to even
    functions = identity, lambda _: 1.0, pruner(0.5)
    init, step = sparse_optax.pruning_loop(*functions, bound=0.5)
    assert step(step(init((PARAMS, tx.init(PARAMS))))).sparsity == 0.5


def test_two_networks_count_apart():
    networks = {"generator": PARAMS, "critic": {"c": jnp.arange(1.0, 101)[None]}}
    state = {name: (params, PRUNING.init(params)) for name, params in networks.items()}

    def prune(state):
        return state | {"critic": sparse_optax.prune(*state["critic"], fraction=0.5)}

    rounds = list(run(PRUNING, identity, prune=prune, state=state, max_rounds=2))
    assert [r.sparsity for r in rounds] == [0, 0.25]
    same_names = [PRUNING.init(jnp.ones((n, n))) for n in (2, 3)]
    for states in (state, same_names):
        with pytest.raises(ValueError, match="masks of 2 networks"):
            sparse_optax.get_masks(states)


# Resuming with other arguments.


def metrics(*values):
    remaining = iter(values)
    return lambda _: next(remaining)


def test_a_bound_above_the_best_metric_raises():
    rounds = list(run(PRUNING, evaluate=metrics(0.9, 0.6), max_rounds=2))
    assert rounds[-1].best_metric == np.float32(0.6)
    with pytest.raises(ValueError, match=r"bound=0.7 is not met by state.best.*0\.6"):
        run(PRUNING, state=rounds[-1].state, bound=0.7)
    run(PRUNING, state=rounds[-1].state, bound=0.55)  # a looser one is fine


def test_tighter_bounds_reset_the_best_network():
    def rounds(bound, *values):
        functions = identity, metrics(*values), PRUNE_FIFTH
        return sparse_optax.pruning_loop(*functions, bound=bound)

    init, step = rounds(0.5, 0.9, 0.6, 0.9)
    state = step(step(step(init((PARAMS, PRUNING.init(PARAMS))))))
    assert state.best_sparsity == np.float32(0.36)
    assert state.best_metric == np.float32(0.9)
    worse = state._replace(best_metric=jnp.float32(0.6))
    _, step = rounds(0.7, 0.65, 0.8)
    missed = step(worse)  # 0.65 is not above
    assert missed.best_metric == np.finfo(np.float32).min
    found = step(missed)
    assert found.best_metric == np.float32(0.8)
    chex.assert_trees_all_equal(found.best, missed.current)


# Functions that return something else, or change what they are given.


def test_an_evaluate_that_returns_no_metric_is_named():
    for returned, message in (
        (None, "scalar; got None"),
        ({"loss": 1.0}, "scalar; got {'loss'"),
        (jnp.ones(2), r"scalar; got an array of float32, shape \(2,\)"),
        (1j, "real number"),
    ):
        with pytest.raises(ValueError, match=rf"evaluate must return a {message}"):
            list(run(PRUNING, evaluate=lambda _, x=returned: x))


@pytest.mark.parametrize("name", ["train", "prune"])
def test_functions_that_change_the_state_raise(name):
    def change(function):
        return lambda s: (s[0] | {"a": function(s[0]["a"])}, s[1])

    def another_leaf(state):
        return state[0] | {"c": jnp.ones(3)}, state[1]

    def to_bfloat16(w):
        return w.astype(jnp.bfloat16)

    same_tree = f"{name} must return a state with the tree"
    another_dtype = (
        rf"{name} must .* at 0/a it turned float32\[6, 10\] into bfloat16\[6"
    )
    for function, error, message in (
        (lambda s: None, ValueError, same_tree),
        (another_leaf, ValueError, f"{same_tree} .* differ first at 0/c"),
        (change(lambda w: len), TypeError, f"{name} returned has .* at 0/a, which"),
        (change(lambda w: w[:1]), ValueError, f"{name} must .* at 0/a it turned"),
        (change(to_bfloat16), ValueError, another_dtype),
    ):
        with pytest.raises(error, match=message):
            list(run(PRUNING, **{"train": identity, name: function}))
    given = {"train": identity, "prune": identity} | {name: change(to_bfloat16)}
    init, step = sparse_optax.pruning_loop(**given, evaluate=evaluate_ones, bound=0.5)
    with pytest.raises(ValueError, match=another_dtype):
        jax.jit(step)(init((PARAMS, PRUNING.init(PARAMS))))


def evaluate_ones(state):
    return jnp.float32(1) + 0 * state[0]["a"][0, 0]


def test_states_of_another_kind_are_named():
    _, step = sparse_optax.pruning_loop(identity, evaluate_ones, None, bound=0.5)
    with pytest.raises(TypeError, match="step takes the IterativePruningState"):
        step((PARAMS, PRUNING.init(PARAMS)))
    state = {"params": PARAMS, "opt_state": PRUNING.init(PARAMS), "act": jax.nn.relu}
    message = r"state has .* at act, which is not an array: .*eqx.filter\(mod"
    with pytest.raises(TypeError, match=message):
        run(PRUNING, state=state)


def test_iterative_pruning_inside_jit_is_named():
    def whole(params):
        return list(run(PRUNING, state=(params, PRUNING.init(params))))

    with pytest.raises(TypeError, match=r"iterative_pruning needs .*use pruning_loop"):
        jax.jit(whole)(PARAMS)


# Empty leaves.


def test_a_leaf_that_becomes_empty_is_warned_of_once():
    # Any other warning is an error: see conftest.py.
    rounds = run(PRUNING, identity, prune=pruner(0.5), max_rounds=4)
    next(rounds)
    with pytest.warns(UserWarning, match="round 1 removed all weights of a. Use min"):
        second = next(rounds)
    list(rounds)
    # Nor is it where it was empty already.
    list(run(PRUNING, identity, prune=pruner(0.5), state=second.state, max_rounds=3))
