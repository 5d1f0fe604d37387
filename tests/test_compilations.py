"""No public function compiles on a second call of the same shapes."""

import inspect
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from helpers import random_tree

import sparse_optax

_COMPILATIONS: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **__: (
        _COMPILATIONS.append(event) if event.endswith("backend_compile_duration") else 0
    )
)


def num_compilations(call):
    before = len(_COMPILATIONS)
    jax.block_until_ready(call())
    return len(_COMPILATIONS) - before


def tree(seed):
    return random_tree(seed, shapes={"a": (7, 5), "b": {"c": (5, 3), "d": (3,)}})


def pruned(seed, tx=None):
    tx = tx or sparse_optax.prune_by_magnitude(0.1, min_kept=1)
    params = tree(seed)
    return sparse_optax.prune(params, tx.init(params), 0.5)


def update(tx, seed, **extra):
    params = tree(seed)
    return tx.update(tree(seed + 1), tx.init(params), params, **extra)


def updates(make):
    """Transformations made anew for each call, with and without a pruning step."""

    def call(seed):
        update(make(), seed)
        return update(make(), seed, prune=True)

    return call


def train(state):
    params, opt_state = state
    return jax.tree.map(lambda w: w * 0.9, params), opt_state


def evaluate(state):
    return jnp.float32(1) + 0 * state[0]["a"][0, 0]


def prune(state):
    return sparse_optax.prune(*state, fraction=0.2)


def iterate(seed):
    rounds = sparse_optax.iterative_pruning(
        pruned(seed), train, evaluate, prune, bound=0.5, max_rounds=2, patience=2
    )
    return [r.state for r in rounds]


def rounds(seed):
    init, step = sparse_optax.pruning_loop(train, evaluate, prune, bound=0.5)
    return step(step(init(pruned(seed))))


def on_disk(folder):
    def call(seed):
        sparse_optax.save_sparse(folder / "x", tree(seed))
        return sparse_optax.load_sparse(folder / "x")

    return call


def checked(seed):
    sparse_optax.check_sparsity(*pruned(seed))
    return 0


def reported(seed):
    params, state = pruned(seed)
    str(sparse_optax.sparsity_report(params, sparse_optax.get_masks(state)))
    str(sparse_optax.sparsity_report(params))
    return 0


def set_masks(seed):
    _, state = pruned(seed, sparse_optax.relevance_pruning(optax.adam(0.1), 0.1))
    return sparse_optax.set_masks(state, sparse_optax.get_masks(state))


def network(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]["c"] + params["b"]["d"][None]


def compact(seed):
    params = tree(seed)
    params["a"] = params["a"].at[:, 1].set(0)
    # The check compiles `apply`, which is another program for each compacted network.
    return sparse_optax.compact(network, params, jnp.ones((2, 7)), check=False).params


PER_LEAF = sparse_optax.per_leaf(sparse_optax.magnitude)
RIGL = sparse_optax.sparse_training(
    *(optax.sgd(0.1), 0.5),
    key=jax.random.key(0),
    drop_fraction=0.3,
    every=1,
    until=9,
)
RIGL_STEP = jax.jit(RIGL.update)  # outside of jit a condition is compiled every time


# Every public function: what calls it, with arrays of a seed.
CALLS: dict[str, Any] = {
    "add_relevance_decay": updates(
        lambda: sparse_optax.add_relevance_decay(0.1, optax.linear_schedule(1, 0.5, 9))
    ),
    "add_l1_decay": updates(lambda: sparse_optax.add_l1_decay(0.1)),
    "add_lobster_decay": lambda s: update(
        sparse_optax.add_lobster_decay(0.1), s, grad=tree(s)
    ),
    "cubic_sparsity": lambda s: sparse_optax.cubic_sparsity(0.0, 0.5, 0, 9)(s),
    "hide_pruned": updates(
        lambda: sparse_optax.hide_pruned(
            optax.sgd(0.1), sparse_optax.prune_by(sparse_optax.saliency, 0.2)
        )
    ),
    "magnitude": lambda s: sparse_optax.magnitude(tree(s)),
    "one_shot": lambda s: sparse_optax.one_shot(tree(s), 0.5),
    "per_leaf": lambda s: PER_LEAF(tree(s), None),
    "prune_by": updates(lambda: sparse_optax.prune_by(PER_LEAF, 0.2)),
    "random": lambda s: sparse_optax.random(jax.random.key(s))(tree(s)),
    "relevance": lambda s: sparse_optax.relevance(0.5)(tree(s), tree(s)),
    "saliency": lambda s: sparse_optax.saliency(tree(s), tree(s)),
    "sparse_training": lambda s: RIGL_STEP(tree(s), RIGL.init(tree(s)), tree(s)),
    "straight_through": lambda s: sparse_optax.straight_through(
        tree(s), sparse_optax.get_masks(pruned(s)[1])
    ),
    "apply_masks": lambda s: sparse_optax.apply_masks(
        tree(s), sparse_optax.get_masks(pruned(s)[1])
    ),
    "channel_groups": lambda s: str(
        sparse_optax.channel_groups(network, tree(s), jnp.ones((2, 7)))
    ),
    "check_sparsity": checked,
    "compact": compact,
    "from_bcoo": lambda s: sparse_optax.from_bcoo(sparse_optax.to_bcoo(tree(s))),
    "get_masks": lambda s: sparse_optax.get_masks(
        pruned(
            s,
            optax.chain(
                sparse_optax.prune_by_magnitude(0.1),
                sparse_optax.prune_by_magnitude(0.1),
            ),
        )[1]
    ),
    "irrelevance": lambda s: sparse_optax.irrelevance(tree(s), 0.5),
    "iterative_pruning": iterate,
    "load_sparse": on_disk,
    "masks_from_zeros": lambda s: sparse_optax.masks_from_zeros(*pruned(s)),
    "matrices_only": lambda s: sparse_optax.matrices_only(tree(s)),
    "prune": pruned,
    "prune_by_magnitude": updates(
        lambda: sparse_optax.prune_by_magnitude(optax.linear_schedule(0.1, 0.2, 9))
    ),
    "prune_to_sparsity": updates(
        lambda: sparse_optax.prune_to_sparsity(optax.linear_schedule(0.0, 0.5, 1))
    ),
    "pruning_loop": rounds,
    "is_relevant": lambda s: sparse_optax.is_relevant(tree(s), 0.5),
    "relevance_penalty": lambda s: sparse_optax.relevance_penalty(
        tree(s), tree(s), 0.5
    ),
    "relevance_pruning": updates(
        lambda: sparse_optax.relevance_pruning(optax.sgd(0.1), 0.1, min_kept=1)
    ),
    "save_sparse": on_disk,
    "set_masks": set_masks,
    "sparsity": lambda s: (
        sparse_optax.sparsity(tree(s)),
        sparse_optax.sparsity(sparse_optax.get_masks(pruned(s)[1])),
    ),
    "sparsity_report": reported,
    "to_bcoo": lambda s: sparse_optax.to_bcoo(pruned(0)[0] if s else tree(s)),
}


def test_every_public_function_has_a_row():
    public = {
        name
        for name, value in vars(sparse_optax).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    assert public == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_compiles_nothing(name, tmp_path):
    call = CALLS[name]
    if call is on_disk:
        call = on_disk(tmp_path)
    call(0)
    assert num_compilations(lambda: call(2)) == 0


def test_compacted_networks_compile_once():
    params = tree(0)
    params["a"] = params["a"].at[:, 1].set(0)
    compacted = sparse_optax.compact(network, params, jnp.ones((2, 7)))
    call = lambda: compacted.apply(compacted.params, jnp.zeros((2, 7)))  # noqa: E731
    assert num_compilations(call) == 0


KINDS_OF_NUMBERS = [
    *(0.25, 1, np.float64(0.5), np.float32(0.5), np.array(0.5), jnp.float32(0.5)),
    *(jnp.asarray(0.5), jnp.int32(1)),
]


@pytest.mark.parametrize("argument", ["fraction", "sparsity"])
def test_prune_compiles_once_for_all_kinds_of_numbers(argument):
    params = tree(0)
    state = sparse_optax.prune_by_magnitude(0.1).init(params)
    sparse_optax.prune(params, state, **{argument: 0.125})
    for number in KINDS_OF_NUMBERS:
        call = lambda x=number: sparse_optax.prune(params, state, **{argument: x})  # noqa: E731
        assert num_compilations(call) == 0, repr(number)


def iterate_with_all_new(seed):
    tx = sparse_optax.prune_by_magnitude(0.1)
    state = TrainState.create(apply_fn=None, params=tree(seed), tx=tx)

    def prune(state):
        params, opt_state = sparse_optax.prune(state.params, state.opt_state, 0.2)
        return state.replace(params=params, opt_state=opt_state)

    rounds = sparse_optax.iterative_pruning(
        *(state, lambda s: s, lambda _: 1.0, prune), bound=0.5, max_rounds=2
    )
    return [r.state for r in rounds]


def test_new_functions_and_training_states_compile_nothing():
    iterate_with_all_new(0)
    assert num_compilations(lambda: iterate_with_all_new(2)) == 0


def test_a_number_on_the_device_stays_there():
    params = tree(0)
    state, fraction = (
        sparse_optax.prune_by_magnitude(0.1).init(params),
        jnp.float32(0.5),
    )
    with jax.transfer_guard("disallow"):
        sparse_optax.prune(params, state, fraction)


def test_compilations_are_counted():
    assert num_compilations(lambda: jax.jit(lambda x: x + 1)(jnp.ones(3))) > 0
