"""Caps: exactly k weights are removed where they allow it, else the most they do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import (
    PRUNING,
    TRANSFORMATIONS,
    exact_share,
    first_unmarked,
    num_kept,
    random_tree,
)
from hypothesis import given, settings, strategies as st

import sparse_optax

by_magnitude = functools.partial(sparse_optax.prune_by_magnitude, 0.5, mask=None)
TEN = jnp.arange(1.0, 11.0)
SHAPES = [
    (7,),
    (),
    (3, 4),
    (7,),
    (0, 2),
]  # the same always: others take long to compile


FLOORS = [0] * 5, [3, 1, 12, 0, 0], [7, 0, 5, 6, 0]


def greedy(weights, masks, k, floors):
    """One weight after the other is removed, the smallest first, if its leaf allows."""
    masks = [np.array(mask) for mask in masks]
    size = np.concatenate([np.abs(np.ravel(w).astype(np.float64)) for w in weights])
    leaf = np.repeat(np.arange(len(weights)), [w.size for w in weights])
    place = np.concatenate([np.arange(w.size) for w in weights])
    for i in np.argsort(size, kind="stable"):
        mask = masks[leaf[i]].reshape(-1)
        if k and mask[place[i]] and mask.sum() > floors[leaf[i]]:
            mask[place[i]], k = False, k - 1
    return masks, k


@st.composite
def networks(draw):
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    levels = draw(st.sampled_from([2, 5, 1000]))  # few of them make ties
    weights = [
        np.array(rng.integers(-levels, levels + 1, shape) / 7, np.float32)
        for shape in SHAPES
    ]
    for odd in draw(st.lists(st.sampled_from([np.nan, -np.inf, 0.0, -0.0, 1e-42]))):
        leaf = weights[rng.integers(4)]
        leaf[(0,) * leaf.ndim] = odd
    masks = [np.array(rng.random(shape) < 0.8) for shape in SHAPES]
    floors = draw(st.sampled_from(FLOORS))  # part of the program
    return weights, masks, floors, draw(st.floats(0, 1, width=32))


@pytest.mark.parametrize("distribution", ["global", "uniform"])
@settings(max_examples=50)
@given(network=networks())
def test_it_is_the_greedy_choice(network, distribution):
    weights, masks, floors, share = network
    tx = by_magnitude(min_kept=floors, distribution=distribution)
    state = tx.init(weights)._replace(masks=masks)
    params, state = sparse_optax.prune(weights, state, share)
    leaves = range(len(SHAPES))
    shortfall = 0
    for group in [leaves] if distribution == "global" else [[i] for i in leaves]:
        of_group = [[given[i] for i in group] for given in (weights, masks, floors)]
        k = exact_share(share, num_kept(of_group[1]))
        expected, missing = greedy(*of_group[:2], k, of_group[2])
        shortfall += missing
        for i, mask in zip(group, expected, strict=True):
            np.testing.assert_array_equal(state.masks[i], mask)
            np.testing.assert_array_equal(params[i], np.where(mask, weights[i], 0))
    assert (state.shortfall, state.num_pruning_steps) == (shortfall, 1)


@pytest.mark.parametrize("name", first_unmarked(*PRUNING))
def test_no_leaf_keeps_less_than_min_kept(name):
    params = {"small": jnp.full(5, 1e-3), "large": jnp.arange(1.0, 16.0)}
    tx = TRANSFORMATIONS[name](min_kept=2, mask=None)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(zeros, tx.init(params), params, prune=True)
    masks = sparse_optax.get_masks(state)
    # Ten of twenty are removed; two small ones stay, and larger ones do not.
    assert [num_kept(masks[name]) for name in ("small", "large")] == [2, 8]
    assert optax.tree.get(state, "shortfall") == 0
    _, state = sparse_optax.prune(optax.apply_updates(params, updates), state, 1.0)
    masks = sparse_optax.get_masks(state)
    assert [num_kept(masks[name]) for name in ("small", "large")] == [2, 2]
    assert optax.tree.get(state, "shortfall") == 4


PARAMS = {
    "conv1": {"kernel": jnp.ones((5, 4)), "bias": jnp.ones(4)},
    "conv2": {"kernel": jnp.ones((10, 10)), "bias": jnp.ones(10)},
    "layers": [jnp.ones(6), jnp.ones(7)],
}
WAYS = [  # floors of conv1's bias and kernel, those of conv2, and of both layers
    ({"min_kept": 5}, [4, 5, 5, 5, 5, 5]),
    ({"min_kept": 0}, [0] * 6),
    ({"min_kept": {}}, [0] * 6),
    ({"min_kept": {"conv1/kernel": 3}}, [0, 3, 0, 0, 0, 0]),
    ({"min_kept": {"conv1": 3, ".*/bias": 2, "layers/1": 1}}, [3, 3, 2, 0, 0, 1]),
    ({"min_kept": {r"conv\d/kernel": 3, ".*": 1}}, [1, 3, 1, 3, 1, 1]),
    ({"min_kept": {"conv1": 1, "conv2": 2, "layers": 3}}, [1, 1, 2, 2, 3, 3]),
    (
        {"min_kept": {"conv1": {"kernel": 1, "bias": 2}, "conv2": 3, "layers": 4}},
        [2, 1, 3, 3, 4, 4],
    ),
    ({"min_kept": jax.tree.map(lambda w: w.ndim, PARAMS)}, [1, 2, 1, 2, 1, 1]),
    ({"max_sparsity": 0.75}, [1, 5, 2, 25, 2, 2]),
    ({"max_sparsity": 1}, [0] * 6),
    ({"max_sparsity": 0.0}, [4, 20, 10, 100, 6, 7]),
    ({"max_sparsity": {"conv2": 0.9}}, [0, 0, 1, 10, 0, 0]),
    ({"max_sparsity": {"conv2": 0.9}, "min_kept": 4}, [4, 4, 4, 10, 4, 4]),
    ({"min_kept": 3, "mask": "matrices"}, [3, 3]),
    ({"min_kept": {".*kernel": 1, ".*bias": 2}, "mask": "matrices"}, [1, 1]),
]


def least_kept(tx, params):
    """How many weights of each leaf are kept when as many as may be are removed."""
    _, state = sparse_optax.prune(params, tx.init(params), 1.0)
    return [num_kept(mask) for mask in jax.tree.leaves(state.masks)]


def test_min_kept_accepts_numbers_trees_and_dicts():
    for arguments, expected in WAYS:
        assert least_kept(by_magnitude(**arguments), PARAMS) == expected
    params = {"w+": jnp.ones(5), "v": jnp.ones(5), "ww": jnp.ones(5)}
    tx = by_magnitude(min_kept={"w+": 3, "(?i)V.*": 1})  # a name, and a pattern
    assert least_kept(tx, params) == [1, 3, 3]


@pytest.mark.parametrize("sparsity", first_unmarked(0.7, 0.999, 1 / 3))
def test_max_sparsity_allows_what_pruning_to_that_sparsity_removes(sparsity):
    for size in (7, 1000):
        params = jnp.arange(1.0, 1 + size)
        state = by_magnitude(max_sparsity=sparsity).init(params)
        pruned, _ = sparse_optax.prune(params, state, sparsity=sparsity)
        furthest, _ = sparse_optax.prune(params, state, 1.0)
        np.testing.assert_array_equal(pruned, furthest)


BAD = [  # when given
    ({"min_kept": {"a": 1, "b": -2}}, ValueError, "min_kept at b must be at least 0"),
    (
        {"min_kept": {"v(1": 1}},
        ValueError,
        r"min_kept has 'v\(1', which is not a regular",
    ),
    ({"max_sparsity": [0.5, None, "x"]}, TypeError, r"max_sparsity at 2 must be"),
]
DO_NOT_FIT = [  # at init
    ({"dense": 1}, r"patterns that match no leaf, .*: \['dense'\]; there are"),
    ({"conv": 1}, "patterns that match no leaf, or only"),
    ({".*": 1, "conv1": 2}, r"patterns match: \['conv1'\]"),
    ({"conv1": {"kernel": 1}}, "does not fit the tree of params"),
    ([1, 2], "does not fit the tree of params"),
]


def test_invalid_min_kept_raises():
    for arguments, error, message in BAD:
        for name in PRUNING:
            with pytest.raises(error, match=message):
                TRANSFORMATIONS[name](**arguments)
    for floors, message in DO_NOT_FIT:
        with pytest.raises(ValueError, match=f"min_kept .*{message}"):
            by_magnitude(min_kept=floors).init(PARAMS)
    huge = jax.ShapeDtypeStruct((1 << 33,), jnp.float32)
    state = jax.eval_shape(by_magnitude(max_sparsity=0.1).init, {"w": huge})
    assert state.rules.max_sparsity.value == 0.1


def test_caps_cost_nothing_without_a_pruning_step():
    params = random_tree(0)

    def steps(**floors):
        tx = sparse_optax.relevance_pruning(optax.adam(1e-3), 1e-4, mask=None, **floors)
        program = jax.make_jaxpr(tx.update)(params, tx.init(params), params)
        return [equation.primitive.name for equation in program.eqns]

    assert steps(min_kept=3) == steps()


def test_the_shortfall_of_a_schedule():
    rising = sparse_optax.prune_to_sparsity(
        lambda t: jnp.minimum(0.3 * t, 0.9), min_kept=4, every=2, mask=None
    )
    params, state, found = TEN, rising.init(TEN), []
    for _ in range(9):
        updates, state = rising.update(jnp.zeros(10), state, params)
        params = optax.apply_updates(params, updates)
        found.append((int(jnp.count_nonzero(params)), int(state.shortfall)))
    # At the 2nd, 4th, 6th and 8th update: to 60 % and then 90 %, of which 60 % may be.
    assert found == [(10, 0), (4, 0), (4, 0), *[(4, 3)] * 6]
    assert state.num_pruning_steps == 1


def test_the_shortfall_of_a_round():
    rounds = sparse_optax.iterative_pruning(
        (TEN, by_magnitude(min_kept=4).init(TEN)),
        train=lambda state: state,
        evaluate=lambda state: 1.0,
        prune=lambda state: sparse_optax.prune(*state, 0.5),
        bound=0.0,
        max_rounds=4,
    )
    found = [(r.shortfall, r.pruned) for r in rounds]
    assert found == [(0, True), (1, True), (2, False), (2, False)]


def test_nnx_optimizers_know_the_names_and_take_trees_of_nnx_state():
    model = nnx.Linear(10, 10, rngs=nnx.Rngs(0))
    floors = jax.tree.map(lambda w: w.ndim, nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, by_magnitude(min_kept=floors), wrt=nnx.Param)
    _, state = sparse_optax.prune(nnx.state(model, nnx.Param), optimizer.opt_state, 1.0)
    masks = jax.tree.leaves(sparse_optax.get_masks(state))
    assert [num_kept(mask) for mask in masks] == [1, 2]
    tx = by_magnitude(min_kept={"kernel": 70, "bias": 10})
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads, prune=True)
    assert jnp.count_nonzero(model.kernel.get_value()) == 70
    assert optax.tree.get(optimizer.opt_state, "shortfall") == 55 - 30


def test_wrappers_keep_them():
    params = {"a": TEN, "b": TEN}
    with_floors = by_magnitude(
        min_kept={"a": 8, "b": 2}
    )  # also names b, pruned by none
    tx = optax.multi_transform(
        {"floors": with_floors, "none": by_magnitude()}, {"a": "floors", "b": "none"}
    )
    params, _ = sparse_optax.prune(params, tx.init(params), 0.5)
    assert [num_kept(w) for w in (params["a"], params["b"])] == [8, 5]
    make = optax.inject_hyperparams(
        sparse_optax.prune_by_magnitude, static_args=("min_kept", "max_sparsity")
    )
    tx = make(0.5, min_kept=8, mask=None)
    assert num_kept(sparse_optax.prune(TEN, tx.init(TEN), 0.5)[0]) == 8
    tx = optax.inject_hyperparams(sparse_optax.prune_by_magnitude)(0.5, min_kept=8)
    with pytest.raises(TypeError, match="'min_kept' in static_args"):
        tx.init(TEN)


def test_members_of_a_vmap_have_them_each():
    members = jnp.stack([TEN, TEN[::-1]])
    states = jax.vmap(by_magnitude(min_kept=7).init)(members)
    pruned, states = jax.vmap(sparse_optax.prune, (0, 0, None))(members, states, 0.5)
    assert jnp.count_nonzero(pruned, axis=1).tolist() == [7, 7]
    assert states.shortfall.tolist() == [2, 2]
