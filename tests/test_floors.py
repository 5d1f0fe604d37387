"""Floors under the threshold: exactly k where they allow it, else the most they do."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, strategies as st

import sparse_optax
from sparse_optax import _counts, _selection
from tests.helpers import random_tree

LINKS = {
    "prune_by_magnitude": lambda mask=None, **kw: sparse_optax.prune_by_magnitude(
        0.5, mask=mask, **kw
    ),
    "prune_to_sparsity": lambda mask=None, **kw: sparse_optax.prune_to_sparsity(
        0.5, mask=mask, **kw
    ),
    "relevance_pruning": lambda mask=None, **kw: sparse_optax.relevance_pruning(
        optax.sgd(0.0), 0.0, fraction=0.5, mask=mask, **kw
    ),
}


def greedy(weights, masks, k, floors):
    """One weight after the other goes, the smallest first, where its leaf has some."""
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
    shapes = [(7,), (), (3, 4), (7,), (0, 2)]  # always, as others take long to compile
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    levels = draw(st.sampled_from([2, 5, 1000]))  # few of them make ties
    weights = [
        np.array(rng.integers(-levels, levels + 1, shape) / 7, np.float32)
        for shape in shapes
    ]
    for odd in draw(st.lists(st.sampled_from([np.nan, -np.inf, 0.0, -0.0, 1e-42]))):
        leaf = weights[rng.integers(4)]
        leaf[(0,) * leaf.ndim] = odd
    masks = [np.array(rng.random(shape) < 0.8) for shape in shapes]
    floors = [draw(st.integers(0, w.size)) for w in weights]
    share = draw(st.floats(0, 1))
    return weights, masks, floors, share


@given(networks())
def test_it_is_the_greedy_choice(network):
    weights, masks, floors, share = network
    tree = dict(enumerate(map(jnp.asarray, weights)))
    tx = sparse_optax.prune_by_magnitude(
        0.5, min_kept=dict(enumerate(floors)), mask=None
    )
    state = tx.init(tree)
    state = state._replace(masks=dict(enumerate(map(jnp.asarray, masks))))
    params, state = sparse_optax.prune(tree, state, share)
    kept = sum(int(mask.sum()) for mask in masks)
    k = round(Fraction(float(np.float32(share))) * kept)
    expected, missing = greedy(weights, masks, k, floors)
    for i, mask in enumerate(expected):
        np.testing.assert_array_equal(state.masks[i], mask)
        np.testing.assert_array_equal(params[i], np.where(mask, weights[i], 0))
    assert state.shortfall == missing
    assert state.num_prunes == 1


@given(networks())
def test_leaf_by_leaf_it_is_the_greedy_choice_of_each(network):
    weights, masks, floors, share = network
    tree = dict(enumerate(map(jnp.asarray, weights)))
    tx = sparse_optax.prune_by_magnitude(
        0.5, min_kept=dict(enumerate(floors)), mask=None
    )
    state = tx.init(tree)
    state = state._replace(masks=dict(enumerate(map(jnp.asarray, masks))))
    _, state = sparse_optax.prune(tree, state, share, scope="leaf")
    short = 0
    for i, mask in enumerate(masks):
        k = round(Fraction(float(np.float32(share))) * int(mask.sum()))
        (expected,), missing = greedy([weights[i]], [mask], k, [floors[i]])
        np.testing.assert_array_equal(state.masks[i], expected)
        short += missing
    assert state.shortfall == short


def test_floors_of_zero_change_nothing():
    weights = jax.tree.leaves(random_tree(0))
    masks = [jnp.ones_like(w, bool) for w in weights]
    for k in (0, 1, 17, 40):
        count = _counts.constant(k)
        most = _counts.stack([_counts.constant(w.size) for w in weights])
        with_floors = _selection.drop_smallest(weights, masks, count, most)
        without = _selection.drop_smallest(weights, masks, count)
        for a, b in zip(with_floors, without, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", LINKS)
def test_no_leaf_falls_below_its_floor(name):
    params = {"small": jnp.full(5, 1e-3), "large": jnp.arange(1.0, 16.0)}
    tx = LINKS[name](min_kept=2)
    state = tx.init(params)
    updates, state = tx.update(
        jax.tree.map(jnp.zeros_like, params), state, params, prune=True
    )
    params = optax.apply_updates(params, updates)
    # Ten of twenty go; two small ones stay, and larger ones go instead.
    assert jnp.count_nonzero(params["small"]) == 2
    assert jnp.count_nonzero(params["large"]) == 8
    assert optax.tree.get(state, "shortfall") == 0
    # Then no more than is there.
    params, state = sparse_optax.prune(params, state, 1.0)
    assert jnp.count_nonzero(params["small"]) == 2
    assert jnp.count_nonzero(params["large"]) == 2
    assert optax.tree.get(state, "shortfall") == 4


PARAMS = {
    "conv1": {"kernel": jnp.ones((5, 4)), "bias": jnp.ones(4)},
    "conv2": {"kernel": jnp.ones((10, 10)), "bias": jnp.ones(10)},
    "layers": [jnp.ones(6), jnp.ones(7)],
}
# In the order of the leaves: conv1 bias, kernel, conv2 bias, kernel, layers.
SIZES = [4, 20, 10, 100, 6, 7]


@pytest.mark.parametrize(
    "arguments, expected",
    [
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
        ({"max_sparsity": 0.0}, SIZES),
        ({"max_sparsity": {"conv2": 0.9}}, [0, 0, 1, 10, 0, 0]),
        ({"max_sparsity": {"conv2": 0.9}, "min_kept": 4}, [4, 4, 4, 10, 4, 4]),
    ],
    ids=str,
)
def test_floors_are_given_in_many_ways(arguments, expected):
    state = sparse_optax.prune_by_magnitude(0.5, mask=None, **arguments).init(PARAMS)
    assert state.min_kept.dtype == jnp.uint32
    assert state.min_kept.tolist() == expected
    assert state.shortfall.dtype == jnp.uint32


@pytest.mark.parametrize("size", [1, 7, 10, 1000, 12_345])
@pytest.mark.parametrize("sparsity", [0.1, 0.7, 0.9, 0.999, 1 / 3])
def test_max_sparsity_allows_what_a_prune_to_that_sparsity_takes(size, sparsity):
    params = jnp.arange(1.0, 1 + size)
    tx = sparse_optax.prune_by_magnitude(0.5, max_sparsity=sparsity, mask=None)
    state = tx.init(params)
    pruned, _ = sparse_optax.prune(params, state, sparsity=sparsity)
    furthest, _ = sparse_optax.prune(params, state, 1.0)
    np.testing.assert_array_equal(pruned, furthest)


def test_leaves_that_are_not_pruned_have_no_floors():
    tx = sparse_optax.prune_by_magnitude(
        0.5, min_kept={".*kernel": 1, ".*bias": 2}, mask=sparse_optax.matrices_only
    )
    assert tx.init(PARAMS).min_kept.tolist() == [1, 1]


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        ({"min_kept": -1}, ValueError, "min_kept must be at least 0; got -1"),
        ({"min_kept": 0.5}, TypeError, "min_kept must be an integer; got 0.5"),
        ({"min_kept": True}, TypeError, "min_kept must be an integer; got True"),
        ({"min_kept": "3"}, TypeError, "min_kept must be an integer; got '3'"),
        ({"min_kept": 2**32}, ValueError, r"min_kept must be below 2\^32"),
        (
            {"min_kept": jnp.ones([], int)},
            TypeError,
            "min_kept must be a Python number",
        ),
        (
            {"min_kept": {"a": 1, "b": -2}},
            ValueError,
            "min_kept at b must be at least 0",
        ),
        ({"min_kept": {"(": 1}}, ValueError, r"min_kept has '\(', which is no regular"),
        (
            {"max_sparsity": 1.5},
            ValueError,
            r"max_sparsity must be in \[0, 1\]; got 1.5",
        ),
        ({"max_sparsity": float("nan")}, ValueError, "max_sparsity must be in"),
        ({"max_sparsity": [0.5, None, "x"]}, TypeError, r"max_sparsity at 2 must be"),
        ({"max_sparsity": lambda n: 0.5}, TypeError, "max_sparsity must be a number"),
    ],
)
@pytest.mark.parametrize("name", LINKS)
def test_bad_numbers_are_refused_where_they_are_given(name, arguments, kind, message):
    with pytest.raises(kind, match=message):
        LINKS[name](**arguments)


@pytest.mark.parametrize(
    "floors, message",
    [
        ({"dense": 1}, r"patterns that match no leaf, .*: \['dense'\]; there are"),
        ({"conv": 1}, "patterns that match no leaf, or only"),
        ({".*": 1, "conv1": 2}, r"patterns match: \['conv1'\]"),
        ({"conv1": {"kernel": 1}}, "does not fit the tree of params"),
        ([1, 2], "does not fit the tree of params"),
    ],
    ids=str,
)
def test_floors_that_fit_no_leaf_are_refused(floors, message):
    tx = sparse_optax.prune_by_magnitude(0.5, min_kept=floors, mask=None)
    with pytest.raises(ValueError, match=f"min_kept .*{message}"):
        tx.init(PARAMS)


def test_floors_that_the_state_cannot_hold_are_refused():
    tx = sparse_optax.prune_by_magnitude(0.5, max_sparsity=0.1, mask=None)
    huge = jax.ShapeDtypeStruct((1 << 33,), jnp.float32)
    with pytest.raises(ValueError, match="max_sparsity keeps 7730941120 weights"):
        jax.eval_shape(tx.init, {"w": huge})


def test_an_ordinary_step_does_nothing_for_them():
    params = random_tree(0)
    grads = jax.tree.map(jnp.ones_like, params)

    def steps(**floors):
        tx = sparse_optax.relevance_pruning(optax.adam(1e-3), 1e-4, mask=None, **floors)
        program = jax.make_jaxpr(tx.update)(grads, tx.init(params), params)
        return [equation.primitive.name for equation in program.eqns]

    assert steps(min_kept=3) == steps()


def test_the_schedule_is_no_longer_due_where_floors_allow_no_more():
    params = jnp.arange(1.0, 11.0)
    tx = sparse_optax.prune_to_sparsity(0.9, min_kept=4, mask=None)
    state = tx.init(params)
    for _ in range(3):
        updates, state = jax.jit(tx.update)(jnp.zeros(10), state, params)
        params = optax.apply_updates(params, updates)
    assert jnp.count_nonzero(params) == 4
    assert (state.num_prunes, state.num_updates, state.shortfall) == (1, 3, 3)


def test_the_shortfall_is_told_where_nothing_may_go():
    params = jnp.arange(1.0, 11.0)
    rising = sparse_optax.prune_to_sparsity(
        lambda t: jnp.minimum(0.3 * t, 0.9), min_kept=4, every=2, mask=None
    )
    state, found = rising.init(params), []
    for _ in range(9):
        updates, state = rising.update(jnp.zeros(10), state, params)
        params = optax.apply_updates(params, updates)
        found.append((int(jnp.count_nonzero(params)), int(state.shortfall)))
    # At the 2nd, 4th, 6th and 8th update: to 60 % and then 90 %, of which 60 % may go.
    assert found == [(10, 0), (4, 0), (4, 0), *[(4, 3)] * 6]
    assert state.num_prunes == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_floats_have_floors(dtype):
    params = {"a": jnp.arange(1, 9).astype(dtype), "b": jnp.arange(9, 17).astype(dtype)}
    tx = sparse_optax.prune_by_magnitude(0.5, min_kept={"a": 5}, mask=None)
    params, state = sparse_optax.prune(params, tx.init(params), 0.5)
    assert params["a"].tolist() == [0, 0, 0, 4, 5, 6, 7, 8]
    assert params["b"].tolist() == [0, 0, 0, 0, 0, 14, 15, 16]
    assert state.shortfall == 0


def test_a_round_tells_the_shortfall():
    params = jnp.arange(1.0, 11.0)
    tx = sparse_optax.prune_by_magnitude(0.5, min_kept=4, mask=None)
    rounds = sparse_optax.iterative_pruning(
        (params, tx.init(params)),
        train=lambda state: state,
        evaluate=lambda state: 1.0,
        prune=lambda state: sparse_optax.prune(*state, 0.5),
        bound=0.0,
        max_rounds=4,
    )
    assert [(r.shortfall, r.pruned) for r in rounds] == [
        (0, True),
        (1, True),
        (2, False),
        (2, False),
    ]


def test_trees_made_of_nnx_state_fit_it():
    model = nnx.Linear(10, 10, rngs=nnx.Rngs(0))
    floors = jax.tree.map(lambda w: w.ndim, nnx.state(model, nnx.Param))
    tx = sparse_optax.prune_by_magnitude(0.9, min_kept=floors, mask=None)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    assert optax.tree.get(optimizer.opt_state, "min_kept").tolist() == [1, 2]


def test_names_with_characters_of_patterns_are_names():
    params = {"w+": jnp.ones(5), "v(1": jnp.ones(5), "ww": jnp.ones(5)}
    with pytest.raises(ValueError, match="no regular expression"):
        sparse_optax.prune_by_magnitude(0.5, min_kept={"v(1": 1}, mask=None)
    tx = sparse_optax.prune_by_magnitude(
        0.5, min_kept={"w+": 3, "(?i)V.*": 1}, mask=None
    )
    assert tx.init(params).min_kept.tolist() == [1, 3, 3]


def test_patterns_of_what_other_links_prune_are_no_mistake():
    params = {"a": jnp.ones(10), "b": jnp.ones(10)}
    link = sparse_optax.prune_by_magnitude(0.5, min_kept={"a": 8, "b": 2}, mask=None)
    state = optax.masked(link, {"a": True, "b": False}).init(params)
    assert optax.tree.get(state, "min_kept").tolist() == [8]


def test_nnx_optimizers_know_the_names():
    model = nnx.Linear(10, 10, rngs=nnx.Rngs(0))
    tx = sparse_optax.prune_by_magnitude(
        0.9, min_kept={"kernel": 30, "bias": 10}, mask=None
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads, prune=True)
    assert jnp.count_nonzero(model.kernel.get_value()) == 30
    assert optax.tree.get(optimizer.opt_state, "shortfall") == 99 - 70


def test_wrappers_keep_them():
    params = {"a": jnp.arange(1.0, 11.0), "b": jnp.arange(1.0, 11.0)}
    tx = optax.multi_transform(
        {
            "floor": sparse_optax.prune_by_magnitude(0.5, min_kept={"a": 8}, mask=None),
            "none": sparse_optax.prune_by_magnitude(0.5, mask=None),
        },
        {"a": "floor", "b": "none"},
    )
    params, _ = sparse_optax.prune(params, tx.init(params), 0.5)
    assert jnp.count_nonzero(params["a"]) == 8
    assert jnp.count_nonzero(params["b"]) == 5


def test_they_need_not_be_injected():
    make = optax.inject_hyperparams(
        sparse_optax.prune_by_magnitude, static_args=("min_kept", "max_sparsity")
    )
    tx = make(0.5, min_kept=8, mask=None)
    params = jnp.arange(1.0, 11.0)
    params, _ = sparse_optax.prune(params, tx.init(params), 0.5)
    assert jnp.count_nonzero(params) == 8
    tx = optax.inject_hyperparams(sparse_optax.prune_by_magnitude)(0.5, min_kept=8)
    with pytest.raises(TypeError, match="'min_kept' in static_args"):
        tx.init(params)


def test_init_knows_them_from_shapes_alone():
    tx = LINKS["relevance_pruning"](min_kept={"dense/kernel": 3})
    params = random_tree(0)
    shapes = jax.eval_shape(tx.init, params)
    state = tx.init(params)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    doubled = optax.tree.map_params(tx, lambda x: (x, x), state)
    assert doubled.pruning.min_kept.tolist() == [0, 3]


def test_members_of_a_vmap_have_them_each():
    members = jnp.stack([jnp.arange(1.0, 11.0), jnp.arange(10.0, 0.0, -1.0)])
    tx = sparse_optax.prune_by_magnitude(0.5, min_kept=7, mask=None)
    states = jax.vmap(tx.init)(members)
    pruned, states = jax.vmap(sparse_optax.prune, (0, 0, None))(members, states, 0.5)
    assert jnp.count_nonzero(pruned, axis=1).tolist() == [7, 7]
    assert states.shortfall.tolist() == [2, 2]
