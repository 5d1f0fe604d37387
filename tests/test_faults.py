"""Bad input and faults: a clear error where they come in, or the right result.

Cases of one kind of fault have a number in common, as `test_row_07_...`.
"""

import math
import re
from decimal import Decimal
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import exact_share, make_step, num_kept, num_nonzero, random_tree

import sparse_optax
from sparse_optax import _counts

PARAMS = {"dense": {"bias": jnp.arange(4.0), "kernel": jnp.ones((4, 4))}}
MASKED = optax.MaskedNode()


def relevance_pruning(**kwargs):
    arguments = {"strength": 1e-3, "scale": 0.5, "fraction": 0.5, "mask": None} | kwargs
    return sparse_optax.relevance_pruning(optax.sgd(0.1), **arguments)


def pruned_state(fraction=0.5, params=PARAMS):
    tx = sparse_optax.prune_by_magnitude(fraction, mask=None)
    return sparse_optax.prune(params, tx.init(params), fraction)


# Rows 1 to 4: what is given is wrong.

LINKS = {
    "add_relevance_decay": lambda mask=None, **k: sparse_optax.add_relevance_decay(
        0.1, mask=mask, **k
    ),
    "prune_by_magnitude": lambda mask=None, **k: sparse_optax.prune_by_magnitude(
        0.5, mask=mask, **k
    ),
    "prune_to_sparsity": lambda mask=None, **k: sparse_optax.prune_to_sparsity(
        0.5, mask=mask, **k
    ),
    "relevance_pruning": relevance_pruning,
}
every_link = pytest.mark.parametrize("link", LINKS)


@every_link
def test_row_01_params_none(link):
    tx = LINKS[link]()
    with pytest.raises(ValueError, match=r"not passing `params`.*params=None"):
        tx.update(PARAMS, tx.init(PARAMS))


def run_iterative(**kwargs):
    tx = relevance_pruning()
    arguments = {"bound": 0.0, "max_rounds": 1} | kwargs
    sparse_optax.iterative_pruning(
        *((PARAMS, tx.init(PARAMS)), lambda s: s, lambda s: 1.0, lambda s: s),
        **arguments,
    )


def prune_with(**kwargs):
    state = sparse_optax.prune_by_magnitude(0.5, mask=None).init(PARAMS)
    return sparse_optax.prune(PARAMS, state, **kwargs)


# Every numeric argument of every public function: how to give it, and its range.
NUMBERS = {
    "irrelevance.scale": (
        lambda v: sparse_optax.irrelevance(PARAMS, scale=v),
        "positive",
    ),
    "is_relevant.scale": (
        lambda v: sparse_optax.is_relevant(PARAMS, scale=v),
        "positive",
    ),
    "is_relevant.threshold": (
        lambda v: sparse_optax.is_relevant(PARAMS, threshold=v),
        "unit",
    ),
    "relevance_penalty.strength": (
        lambda v: sparse_optax.relevance_penalty(PARAMS, PARAMS, strength=v, mask=None),
        "not negative",
    ),
    "relevance_penalty.scale": (
        lambda v: sparse_optax.relevance_penalty(
            PARAMS, PARAMS, 0.1, scale=v, mask=None
        ),
        "positive",
    ),
    "add_relevance_decay.strength": (
        lambda v: sparse_optax.add_relevance_decay(strength=v, mask=None),
        "not negative",
    ),
    "add_relevance_decay.scale": (
        lambda v: sparse_optax.add_relevance_decay(0.1, scale=v, mask=None),
        "positive",
    ),
    "prune_by_magnitude.fraction": (
        lambda v: sparse_optax.prune_by_magnitude(fraction=v, mask=None),
        "unit",
    ),
    "prune_to_sparsity.sparsity": (
        lambda v: sparse_optax.prune_to_sparsity(sparsity=v, mask=None),
        "unit",
    ),
    "prune_to_sparsity.every": (
        lambda v: sparse_optax.prune_to_sparsity(0.5, every=v, mask=None),
        "integer",
    ),
    "prune.fraction": (lambda v: prune_with(fraction=v), "unit"),
    "prune.sparsity": (lambda v: prune_with(sparsity=v), "unit"),
    "relevance_pruning.strength": (
        lambda v: relevance_pruning(strength=v),
        "not negative",
    ),
    "relevance_pruning.scale": (lambda v: relevance_pruning(scale=v), "positive"),
    "relevance_pruning.fraction": (lambda v: relevance_pruning(fraction=v), "unit"),
    "iterative_pruning.bound": (lambda v: run_iterative(bound=v), "finite"),
    "iterative_pruning.max_rounds": (lambda v: run_iterative(max_rounds=v), "integer"),
    "iterative_pruning.patience": (lambda v: run_iterative(patience=v), "integer"),
    "iterative_pruning.finetune_rounds": (
        lambda v: run_iterative(finetune=lambda s: s, finetune_rounds=v),
        "integer",
    ),
}
OUT_OF_RANGE = {
    "unit": (-0.1, -1, 1.0000001, 2, math.nan, math.inf, -math.inf, np.float32(1.5)),
    "positive": (0, 0.0, -1.0, math.nan, -math.inf, np.float32(0)),
    "not negative": (-1e-9, -1, math.nan, math.inf, -math.inf),
    "finite": (math.nan, math.inf, -math.inf),
    "integer": (-1, np.int32(-5)),
}
WRONG_TYPE = (
    *(True, np.bool_(False), "0.5", [0.5], (0.5,), {}, 1j, None),
    *(Fraction(1, 2), Decimal("0.5")),
)


def cases(of_range):
    return [(name, value) for name in NUMBERS for value in of_range(name)]


def short(x):
    return x if isinstance(x, str) and "." in x else repr(x)


@pytest.mark.parametrize(
    ("argument", "value"),
    cases(lambda name: OUT_OF_RANGE[NUMBERS[name][1]]),
    ids=short,
)
def test_row_02_number_out_of_range(argument, value):
    name = argument.split(".")[1]
    with pytest.raises(ValueError, match=rf"{name} .*{re.escape(repr(value))}"):
        NUMBERS[argument][0](value)


@pytest.mark.parametrize("argument", NUMBERS)
def test_row_02_number_beyond_floats(argument):
    call, kind = NUMBERS[argument]
    if kind == "integer":
        call(10**9)  # a large integer is as good as any
        return
    with pytest.raises(ValueError, match=argument.split(".")[1]):
        call(-(10**400) if kind in ("positive", "not negative") else 10**400)


def wrong_types(name):
    # Both prune.fraction and .sparsity may be None, and so may patience.
    optional = ("prune.fraction", "prune.sparsity", "iterative_pruning.patience")
    return [v for v in WRONG_TYPE if v is not None or name not in optional]


@pytest.mark.parametrize(("argument", "value"), cases(wrong_types), ids=short)
def test_row_03_number_of_wrong_type(argument, value):
    name = argument.split(".")[1]
    with pytest.raises(TypeError, match=rf"{name} .*{re.escape(repr(value))}"):
        NUMBERS[argument][0](value)


@pytest.mark.parametrize("argument", NUMBERS)
def test_row_03_vector_where_a_number_is_due(argument):
    with pytest.raises(TypeError, match=argument.split(".")[1]):
        NUMBERS[argument][0](jnp.array([0.5, 0.5]))


GOOD = {
    "unit": (0, 1, 0.5, np.float32(0.5), jnp.float32(0.5)),
    "positive": (1e-30, 3, math.inf, np.float64(2)),
    "not negative": (0, 1e9, jnp.float32(3)),
    "finite": (-5, 0.0, 1e9),
    "integer": (1, np.int64(7)),
}


@pytest.mark.parametrize(
    ("argument", "value"), cases(lambda name: GOOD[NUMBERS[name][1]]), ids=short
)
def test_numbers_at_the_ends_of_ranges_are_taken(argument, value):
    result = NUMBERS[argument][0](value)
    if isinstance(result, optax.GradientTransformation):
        updates, _ = result.update(PARAMS, result.init(PARAMS), PARAMS)
        chex.assert_tree_all_finite(updates)


@pytest.mark.parametrize("scope", ["Global", "", None, 1, ["global"]], ids=repr)
@pytest.mark.parametrize(
    "make",
    [
        lambda scope: sparse_optax.prune_by_magnitude(0.5, scope=scope, mask=None),
        lambda scope: sparse_optax.prune_to_sparsity(0.5, scope=scope, mask=None),
        lambda scope: relevance_pruning(scope=scope),
        lambda scope: prune_with(fraction=0.5, scope=scope),
    ],
    ids=["prune_by_magnitude", "prune_to_sparsity", "relevance_pruning", "prune"],
)
def test_row_03_unknown_scope(make, scope):
    with pytest.raises(ValueError, match=rf"scope .*{re.escape(repr(scope))}"):
        make(scope)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"decoupled": 1}, "decoupled"),
        ({"decoupled": None}, "decoupled"),
    ],
)
def test_row_03_flag_of_wrong_type(arguments, name):
    with pytest.raises(TypeError, match=name):
        relevance_pruning(**arguments)


@pytest.mark.parametrize(
    "optimizer",
    [None, "adam", optax.adam, 0.1],
    ids=["none", "name", "factory", "number"],
)
def test_row_03_not_an_optimizer(optimizer):
    with pytest.raises(TypeError, match="optimizer"):
        sparse_optax.relevance_pruning(optimizer, 0.1, mask=None)


@pytest.mark.parametrize(
    "function", [0.5, "exp", (jnp.exp,)], ids=["number", "name", "tuple"]
)
def test_row_03_irrelevance_fn_of_wrong_type(function):
    with pytest.raises(TypeError, match="irrelevance_fn"):
        sparse_optax.add_relevance_decay(0.1, irrelevance_fn=function, mask=None)


def test_row_03_irrelevance_fn_of_wrong_shape():
    tx = sparse_optax.add_relevance_decay(
        0.1, irrelevance_fn=lambda g, s: g[:1], mask=None
    )
    with pytest.raises(ValueError, match=r"irrelevance_fn .*\(4,\).*\(1,\)"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    "value",
    ["yes", 1, 0, 1.0, [True], {}, jnp.array(1.0), jnp.array(1), np.array(0)],
    ids=repr,
)
@pytest.mark.parametrize(
    "link", ["add_relevance_decay", "prune_by_magnitude", "relevance_pruning"]
)
def test_row_03_prune_of_wrong_type(link, value):
    tx = LINKS[link]()
    with pytest.raises(TypeError, match="prune must be a boolean"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, prune=value)


@pytest.mark.parametrize(
    "link", ["add_relevance_decay", "prune_by_magnitude", "relevance_pruning"]
)
def test_row_03_prune_of_wrong_shape(link):
    tx = LINKS[link]()
    with pytest.raises(ValueError, match=r"prune must be a scalar.*\(2,\)"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, prune=jnp.array([True, False]))


@pytest.mark.parametrize(
    "value", [None, False, np.False_, np.array(False), jnp.array(False)], ids=repr
)
def test_every_kind_of_no_is_taken(value):
    tx = sparse_optax.prune_by_magnitude(0.5, mask=None)
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS, prune=value)
    assert num_kept(state.masks) == 20


def test_prune_needs_one_of_fraction_and_sparsity():
    for both in ({}, {"fraction": 0.5, "sparsity": 0.5}):
        with pytest.raises(ValueError, match="either fraction or sparsity"):
            prune_with(**both)


BAD_MASKS = {
    "another-tree": ({"conv": True}, ValueError, "mask .*conv"),
    "part-of-the-tree": ({"dense": {"kernel": True}}, ValueError, "mask .*dense/bias"),
    "below-a-leaf": (
        {"dense": {"bias": True, "kernel": [True, False]}},
        ValueError,
        "mask .*dense/kernel",
    ),
    "array-of-a-shape": (
        {"dense": {"bias": jnp.ones(4, bool), "kernel": True}},
        TypeError,
        "mask .*dense/bias",
    ),
    "numbers": ({"dense": 1}, TypeError, "mask .*1 at dense"),
    "float": (0.5, TypeError, r"mask .*0\.5"),
    "names": ({"dense": {"bias": "no", "kernel": "yes"}}, TypeError, "mask .*'no'"),
    "selects-nothing": (False, ValueError, "mask selects none.*dense/kernel"),
    "callable-selects-nothing": (
        lambda params: jax.tree.map(lambda _: False, params),
        ValueError,
        "mask selects none.*dense/bias",
    ),
    "callable-of-numbers": (lambda params: 3, TypeError, "mask .*3"),
}


@pytest.mark.parametrize("case", BAD_MASKS)
@every_link
def test_row_04_mask_does_not_fit(link, case):
    mask, error, message = BAD_MASKS[case]
    tx = LINKS[link](mask=mask)
    with pytest.raises(error, match=message):
        tx.init(PARAMS)


@pytest.mark.parametrize("case", BAD_MASKS)
def test_row_04_mask_does_not_fit_functions(case):
    mask, error, message = BAD_MASKS[case]
    state = sparse_optax.prune_by_magnitude(0.5, mask=None).init(PARAMS)
    with pytest.raises(error, match=message):
        sparse_optax.masks_from_zeros(PARAMS, state, mask=mask)
    with pytest.raises(error, match=message):
        sparse_optax.relevance_penalty(PARAMS, PARAMS, 0.1, mask=mask)


def test_grads_of_another_shape():
    grads = {"dense": {"bias": jnp.ones(1), "kernel": jnp.ones((1, 4))}}
    for link in LINKS:
        tx = LINKS[link]()
        with pytest.raises(ValueError, match="updates"):
            tx.update(grads, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=r"\(1,\)"):
        sparse_optax.relevance_penalty(PARAMS, grads, 0.1, mask=None)


# Rows 5 to 9 and 14: numbers that are not, too large, or all alike.


def with_nan_gradient(params, everywhere):
    grads = jax.tree.map(jnp.ones_like, params)
    if everywhere:
        return jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), grads)
    bias = grads["dense"]["bias"].at[0].set(jnp.nan)
    return {"dense": grads["dense"] | {"bias": bias}}


@pytest.mark.parametrize(
    "everywhere", [False, True], ids=["row_05_one_nan", "row_06_all_nan"]
)
def test_nan_gradient_on_a_pruning_step(everywhere):
    params = random_tree(0)
    tx = relevance_pruning()
    params, state = sparse_optax.prune(params, tx.init(params), 0.5)
    grads = with_nan_gradient(params, everywhere)
    step = jax.jit(make_step(tx))
    after, after_state = step(params, state, grads, prune=jnp.array(True))
    masks, after_masks = state.pruning.masks, after_state.pruning.masks
    assert num_kept(after_masks) == 10, "k is exact"
    kept_before = jax.tree.map(lambda a, b: np.all(a | ~b), masks, after_masks)
    assert all(jax.tree.leaves(kept_before)), "nothing is revived"
    sparse_optax.check_sparsity(after, after_state)
    assert num_nonzero(after) == 10  # NaNs included


@pytest.mark.parametrize(
    "everywhere", [False, True], ids=["row_05_one_nan", "row_06_all_nan"]
)
def test_nan_gradient_on_a_pruning_step_is_rejected_with_its_prune(everywhere):
    params = random_tree(0)
    tx = optax.apply_if_finite(relevance_pruning(), 3)
    state = tx.init(params)
    grads = with_nan_gradient(params, everywhere)
    step = jax.jit(make_step(tx))
    after, after_state = step(params, state, grads, prune=jnp.array(True))
    chex.assert_trees_all_equal(after, params)
    chex.assert_trees_all_equal(after_state.inner_state, state.inner_state)
    good = jax.tree.map(jnp.ones_like, params)
    after, after_state = step(after, after_state, good, prune=jnp.array(True))
    assert num_nonzero(after) == 20
    assert after_state.inner_state.pruning.num_prunes == 1


def test_row_05_nan_gradients_leave_the_decay_without_memory():
    tx = sparse_optax.add_relevance_decay(0.1, mask=None)
    state = tx.init(jnp.ones(2))
    updates, state = tx.update(jnp.array([jnp.nan, 0.0]), state, jnp.ones(2))
    np.testing.assert_allclose(updates, [jnp.nan, 0.2], rtol=1e-6)
    updates, _ = tx.update(jnp.zeros(2), state, jnp.ones(2))
    np.testing.assert_allclose(updates, [0.2, 0.2], rtol=1e-6)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf], ids=str)
def test_row_07_weights_that_are_not_finite(value):
    params = jnp.array([value, 3.0, 1.0, 2.0])
    tx = sparse_optax.prune_by_magnitude(0.75, mask=None)
    updates, state = tx.update(jnp.zeros(4), tx.init(params), params, prune=True)
    np.testing.assert_array_equal(state.masks, [True, False, False, False])
    after = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(after[1:], 0)
    sparse_optax.check_sparsity(after, state)
    # Dropped at last, an update cannot make it zero, which is noticed; a prune can.
    everything = sparse_optax.prune_by_magnitude(1.0, mask=None)
    updates, gone = everything.update(jnp.zeros(4), state, params, prune=True)
    with pytest.raises(ValueError, match="not zero: 1 of 4"):
        sparse_optax.check_sparsity(optax.apply_updates(params, updates), gone)
    pruned, gone = sparse_optax.prune(params, state, 1.0)
    np.testing.assert_array_equal(pruned, 0)
    sparse_optax.check_sparsity(pruned, gone)


def test_row_07_zero_times_infinity_in_apply_masks():
    params = jnp.array([jnp.nan, jnp.inf, 1.0])
    masks = jnp.array([False, False, True])
    np.testing.assert_array_equal(sparse_optax.apply_masks(params, masks), [0, 0, 1])


@pytest.mark.parametrize("scale", [1e-30, 1e-45, 1.0, 1e30])
def test_row_08_dead_layer(scale):
    """Gradients of exactly zero are irrelevant whatever the scale, and no 0 / 0."""
    tx = sparse_optax.add_relevance_decay(0.1, scale=scale, mask=None)
    params = jnp.array([1.0, -2.0])
    updates, _ = tx.update(jnp.zeros(2), tx.init(params), params)
    np.testing.assert_allclose(updates, [0.2, -0.4], rtol=1e-6)


def test_row_08_scale_that_a_schedule_lets_run_to_zero():
    tx = sparse_optax.add_relevance_decay(
        0.1, optax.linear_schedule(1.0, 0.0, 1), mask=None
    )
    params, grads = jnp.ones(2), jnp.array([0.0, 1e-3])
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(grads, state, params)
    np.testing.assert_allclose(updates, [0.2, 1e-3], rtol=1e-6)


def test_row_08_strength_that_a_schedule_lets_become_nan():
    tx = sparse_optax.add_relevance_decay(lambda step: jnp.nan, mask=None)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(updates, PARAMS)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0])
@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_row_09_ties(value, scope):
    params = jax.tree.map(lambda w: jnp.full_like(w, value), PARAMS)
    tx = sparse_optax.prune_by_magnitude(0.5, mask=None)
    _, state = sparse_optax.prune(params, tx.init(params), 0.5, scope=scope)
    kept = np.concatenate([np.ravel(m) for m in jax.tree.leaves(state.masks)])
    if scope == "global":
        expected = np.arange(20) >= 10
    else:
        expected = np.concatenate([np.arange(4) >= 2, np.arange(16) >= 8])
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_row_14_half_precision_does_not_overflow(dtype):
    grads = jnp.array([300.0, 0.0, 6e4], dtype)
    relevance = sparse_optax.irrelevance(grads, scale=6e4)
    assert relevance.dtype == jnp.float32
    exact = np.exp(-np.asarray(grads, np.float64) / 6e4)
    np.testing.assert_allclose(relevance, exact, atol=1e-6)
    penalty = sparse_optax.relevance_penalty(
        grads, jnp.zeros_like(grads), 1.0, mask=None
    )
    exact = np.sum(np.square(np.asarray(grads, np.float64)))
    np.testing.assert_allclose(penalty, exact, rtol=1e-6)  # 3.6e9, float16 ends at 6e4


# Rows 11 and 12: leaves that are no floating arrays.


def odd_tree():
    return {
        "complex": jnp.ones(2, jnp.complex64),
        "empty": jnp.zeros((0, 3)),
        "integer": jnp.arange(3),
        "boolean": jnp.array([True, False]),
        "key": jax.random.key(0),
        "masked": MASKED,
        "none": None,
        "scalar": jnp.float32(0.5),
        "weights": jnp.array([1.0, -2.0, 3.0, -4.0]),
    }


@pytest.mark.parametrize("extra", [{}, {"prune": True}], ids=["step", "prune"])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@every_link
def test_row_11_and_12_odd_leaves_pass_through(link, jit, extra):
    if link == "relevance_pruning":  # sgd itself cannot take them
        tx = sparse_optax.relevance_pruning(
            optax.identity(), 0.1, fraction=0.4, mask=None
        )
    elif link == "add_relevance_decay":
        tx = sparse_optax.add_relevance_decay(0.1, mask=None)
    elif link == "prune_by_magnitude":
        tx = sparse_optax.prune_by_magnitude(0.4, mask=None)
    else:
        tx = sparse_optax.prune_to_sparsity(0.4, mask=None)
    params = odd_tree()
    grads = params | {
        "boolean": np.zeros(2, jax.dtypes.float0),
        "integer": np.zeros(3, jax.dtypes.float0),
        "key": np.zeros((), jax.dtypes.float0),
    }
    update = lambda g, s, p: tx.update(g, s, p, **extra)  # noqa: E731
    if jit:
        odd = {name: grads[name] for name in ("boolean", "integer", "key")}
        rest = {name: g for name, g in grads.items() if name not in odd}
        inner = update
        update = jax.jit(lambda g, s, p: inner({**g, **odd}, s, p))
        updates, state = update(rest, tx.init(params), params)
    else:
        updates, state = update(grads, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    np.testing.assert_array_equal(updates["complex"], grads["complex"])
    assert updates["empty"].shape == (0, 3)
    for name in ("boolean", "integer", "key"):
        assert updates[name].dtype == jax.dtypes.float0
    if link == "add_relevance_decay":
        assert updates["scalar"] > grads["scalar"]
        return
    masks = sparse_optax.get_masks(state)
    for name in ("complex", "integer", "boolean", "key", "masked"):
        assert masks[name] == MASKED
    prunes = link == "prune_to_sparsity" or bool(extra)
    kept = (False, [False, True, True, True]) if prunes else (True, [True] * 4)
    assert bool(masks["scalar"]) == kept[0]
    np.testing.assert_array_equal(masks["weights"], kept[1])
    assert updates["scalar"] == (-0.5 if prunes else grads["scalar"]) or (
        link == "relevance_pruning" and not prunes
    )


def test_row_11_and_12_odd_leaves_outside_of_updates():
    params = odd_tree()
    tx = sparse_optax.prune_by_magnitude(0.4, mask=None)
    pruned, state = sparse_optax.prune(params, tx.init(params), 0.4)
    assert jax.tree.structure(pruned) == jax.tree.structure(params)
    np.testing.assert_array_equal(pruned["weights"], [0, -2, 3, -4])
    assert pruned["scalar"] == 0
    np.testing.assert_array_equal(pruned["integer"], [0, 1, 2])
    sparse_optax.check_sparsity(pruned, state)
    marked = sparse_optax.masks_from_zeros(pruned, tx.init(params), mask=None)
    chex.assert_trees_all_equal(marked.masks, state.masks)
    report = sparse_optax.sparsity_report(pruned, state.masks)
    assert report.leaves["weights"] == (3, 4)
    assert report.leaves["empty"] == (0, 0)
    assert "none" not in report.leaves and "masked" not in report.leaves
    floating = {name: params[name] for name in ("empty", "integer", "weights")}
    relevance = sparse_optax.irrelevance(floating)
    assert relevance["integer"] == MASKED and relevance["empty"].shape == (0, 3)
    assert sparse_optax.relevance_penalty(floating, floating, 0.1, mask=None) > 0


@pytest.mark.parametrize(
    "params", [{}, (), [], MASKED, {"a": {}, "b": MASKED, "c": None}], ids=repr
)
@every_link
def test_row_11_trees_without_arrays(link, params):
    tx = LINKS[link]()
    updates, state = tx.update(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    if link != "add_relevance_decay":
        updates, state = tx.update(params, state, params, prune=True)
        pruned, _ = sparse_optax.prune(params, state, 0.5)
        assert jax.tree.structure(pruned) == jax.tree.structure(params)
        sparse_optax.check_sparsity(params, state)
    assert sparse_optax.sparsity(params) == 0


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 4), (1, 1, 1)], ids=str)
def test_row_11_single_leaves(shape):
    params = jnp.ones(shape)
    tx = relevance_pruning(fraction=1.0)
    updates, state = tx.update(params, tx.init(params), params, prune=True)
    after = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(after, jnp.zeros(shape))
    assert num_kept(sparse_optax.get_masks(state)) == 0


# Rows 13 and 15 to 17: states and weights that do not belong together.


@pytest.mark.parametrize("steps", [1, 3])
def test_row_13_float32_params_with_bfloat16_gradients(steps):
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=1000), jnp.float32)
    tx = sparse_optax.prune_by_magnitude(0.9, mask=None)
    state = tx.init(params)
    for i in range(steps):
        grads = jnp.asarray(rng.normal(size=1000), jnp.bfloat16)
        updates, state = tx.update(grads, state, params, prune=i == 0)
        params = optax.apply_updates(params, updates)
        assert (updates.dtype, params.dtype) == (jnp.float32, jnp.float32)
        assert np.count_nonzero(np.asarray(params) == 0) == 900


def test_row_15_a_link_after_the_pruning_one():
    tx = optax.chain(sparse_optax.prune_by_magnitude(0.5, mask=None), optax.scale(0.5))
    updates, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS, prune=True)
    with pytest.raises(ValueError, match=r"not zero: .*8 of 8 at dense/kernel"):
        sparse_optax.check_sparsity(optax.apply_updates(PARAMS, updates), state)


OTHER_MODELS = {
    "another-tree": ({"conv": jnp.ones((4, 4))}, "dense/bias"),
    "a-leaf-less": ({"dense": {"kernel": jnp.ones((4, 4))}}, "dense/bias"),
    "a-leaf-more": (
        {"dense": PARAMS["dense"] | {"scale": jnp.ones(4)}},
        "dense/scale",
    ),
    "another-shape": (
        {"dense": {"bias": jnp.ones(4), "kernel": jnp.ones((4, 5))}},
        r"\(4, 5\) at dense/kernel.*\(4, 4\)",
    ),
    "that-broadcasts": (
        {"dense": {"bias": jnp.ones(4), "kernel": jnp.ones((1, 4))}},
        r"\(1, 4\) at dense/kernel.*\(4, 4\)",
    ),
    "no-array": (
        {"dense": {"bias": jnp.ones(4), "kernel": MASKED}},
        "dense/kernel",
    ),
}


@pytest.mark.parametrize("case", OTHER_MODELS)
@pytest.mark.parametrize("extra", [{}, {"prune": True}], ids=["step", "prune"])
@pytest.mark.parametrize(
    "link", ["prune_by_magnitude", "prune_to_sparsity", "relevance_pruning"]
)
def test_row_16_state_of_another_model_in_update(link, extra, case):
    other, message = OTHER_MODELS[case]
    tx = LINKS[link]()
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=f"params .*{message}"):
        tx.update(other, state, other, **extra)


@pytest.mark.parametrize("case", OTHER_MODELS)
def test_row_16_state_of_another_model_elsewhere(case):
    other, message = OTHER_MODELS[case]
    state = sparse_optax.prune_by_magnitude(0.5, mask=None).init(PARAMS)
    for call in (
        lambda: sparse_optax.prune(other, state, 0.5),
        lambda: sparse_optax.masks_from_zeros(other, state, mask=None),
        lambda: sparse_optax.check_sparsity(other, state),
        lambda: sparse_optax.apply_masks(other, state.masks),
        lambda: sparse_optax.sparsity_report(other, state.masks),
    ):
        with pytest.raises(ValueError, match=f"params .*{message}"):
            call()


def test_row_16_wide_weights_and_a_narrow_mask():
    """The mask of (1, 4) that would silently broadcast to weights of (4, 4)."""
    state = sparse_optax.prune_by_magnitude(0.5, mask=None).init(jnp.ones((1, 4)))
    with pytest.raises(ValueError, match=r"\(4, 4\) at \(root\).*\(1, 4\)"):
        sparse_optax.prune(jnp.ones((4, 4)), state, 0.5)
    tx = sparse_optax.prune_by_magnitude(0.5, mask=None)
    with pytest.raises(ValueError, match=r"\(4, 4\) at \(root\).*\(1, 4\)"):
        tx.update(jnp.ones((4, 4)), state, jnp.ones((4, 4)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8, jnp.uint8])
def test_row_17_masks_cast_to_another_dtype(dtype):
    params, state = pruned_state()
    cast = jax.tree.map(lambda m: m.astype(dtype), state.masks)
    cast_state = state._replace(masks=cast)
    tx, whole = sparse_optax.prune_by_magnitude(0.5, mask=None), relevance_pruning()
    whole_state = whole.init(params)._replace(pruning=cast_state)
    for call in (
        lambda: tx.update(params, cast_state, params),
        lambda: whole.update(params, whole_state, params),
        lambda: sparse_optax.prune(params, cast_state, 0.5),
        lambda: sparse_optax.masks_from_zeros(params, cast_state, mask=None),
        lambda: sparse_optax.check_sparsity(params, cast_state),
        lambda: sparse_optax.apply_masks(params, cast),
        lambda: sparse_optax.sparsity_report(params, cast),
    ):
        with pytest.raises(
            TypeError, match=f"array of {dtype.__name__}.* at dense/bias"
        ):
            call()


def test_row_17_dense_weights_beside_sparse_masks():
    _, state = pruned_state()
    dense = jax.tree.map(lambda w: w + 1, PARAMS)
    with pytest.raises(ValueError, match=r"not zero: .*8 of 8 at dense/kernel"):
        sparse_optax.check_sparsity(dense, state)
    after, state = make_step(sparse_optax.prune_by_magnitude(0.5, mask=None))(
        dense, state, dense
    )
    sparse_optax.check_sparsity(after, state)  # the next update zeroes again
    assert num_nonzero(after) == 10


def test_row_17_sparse_weights_beside_dense_masks():
    params, _ = pruned_state()
    tx = sparse_optax.prune_by_magnitude(0.5, mask=None)
    state = sparse_optax.masks_from_zeros(params, tx.init(PARAMS), mask=None)
    assert num_kept(state.masks) == num_nonzero(params) == 10


STATES_WITHOUT_MASKS = {
    "adam": lambda: optax.adam(0.1).init(PARAMS),
    "decay": lambda: sparse_optax.add_relevance_decay(0.1, mask=None).init(PARAMS),
    "empty": lambda: (),
    "none": lambda: None,
    "params": lambda: PARAMS,
}


@pytest.mark.parametrize("name", STATES_WITHOUT_MASKS)
def test_row_17_state_without_masks(name):
    state = STATES_WITHOUT_MASKS[name]()
    for call in (
        lambda: sparse_optax.prune(PARAMS, state, 0.5),
        lambda: sparse_optax.masks_from_zeros(PARAMS, state, mask=None),
        lambda: sparse_optax.get_masks(state),
        lambda: sparse_optax.check_sparsity(PARAMS, state),
    ):
        with pytest.raises(ValueError, match="opt_state has no masks"):
            call()


# Rows 21 to 28, as far as they belong to the library itself.


@pytest.mark.parametrize(
    "function", [jnp.ravel, lambda w: jnp.sort(w, axis=None)], ids=["ravel", "sort"]
)
def test_row_21_explicit_mesh_where_others_fail(function):
    types = (jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((8,), ("x",), axis_types=types)
    with jax.set_mesh(mesh):
        spec = jax.sharding.PartitionSpec(None, "x")
        params = jax.device_put(
            jnp.arange(64.0).reshape(4, 16), jax.sharding.NamedSharding(mesh, spec)
        )
        with pytest.raises(Exception, match=r"[Ss]harding"):
            function(params)
        tx = sparse_optax.prune_by_magnitude(0.5, mask=None)
        pruned, _ = sparse_optax.prune(params, tx.init(params), 0.5)
        np.testing.assert_array_equal(
            pruned, np.arange(64).reshape(4, 16) // 32 * params
        )


def test_row_23_donated_buffers_are_not_shared():
    params = random_tree(0)
    for link in LINKS:
        tx = LINKS[link]()
        leaves = jax.tree.leaves((params, tx.init(params)))
        pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves if leaf.size]
        assert len(set(pointers)) == len(pointers)


@every_link
def test_row_24_types_of_the_state_do_not_drift(link):
    tx = LINKS[link]()
    for dtype in (jnp.bfloat16, jnp.float32):
        params = random_tree(0, dtype)
        state = tx.init(params)
        for extra in ({}, {"prune": True}, {"prune": jnp.array(True)}):
            _, after = jax.eval_shape(
                lambda g, s, p, extra=extra: tx.update(g, s, p, **extra),
                *(params, state, params),
            )
            assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)


def test_row_25_callable_mask_under_inject_hyperparams():
    factory = sparse_optax.prune_by_magnitude
    mask = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
    forgotten = optax.inject_hyperparams(factory)(fraction=0.5, mask=mask)
    # The wrapper takes it for a schedule, and calls it with a step count.
    with pytest.raises((TypeError, ValueError), match="mask"):
        forgotten.init(PARAMS)
    listed = optax.inject_hyperparams(factory, static_args="mask")(0.5, mask=mask)
    masks = sparse_optax.get_masks(listed.init(PARAMS))
    assert masks["dense"]["bias"] == MASKED


def test_row_25_mask_evaluated_to_true_for_a_step_count():
    small = lambda params: jax.tree.map(lambda p: jnp.ndim(p) < 2, params)  # noqa: E731
    forgotten = optax.inject_hyperparams(sparse_optax.prune_by_magnitude)(
        fraction=0.5, mask=small
    )
    # True would stand for all leaves, the matrices that were to be left out as well.
    with pytest.raises(TypeError, match="static_args"):
        forgotten.init(PARAMS)


def test_row_25_mask_evaluated_to_false_for_a_step_count():
    forgotten = optax.inject_hyperparams(sparse_optax.prune_by_magnitude)(
        fraction=0.5, mask=sparse_optax.matrices_only
    )
    with pytest.raises(ValueError, match="static_args"):
        forgotten.init(PARAMS)


def test_row_04_elementwise_mask_is_not_printed_whole():
    mask = {"dense": {"bias": np.ones(3, bool), "kernel": True}}
    with pytest.raises(TypeError, match=r"an array of bool, shape \(3,\) at dense/b"):
        sparse_optax.prune_by_magnitude(0.5, mask=mask).init(PARAMS)


def test_row_25_mask_evaluated_to_a_traced_scalar():
    forgotten = optax.inject_hyperparams(sparse_optax.prune_by_magnitude)(
        fraction=0.5, mask=lambda step: step == 0
    )
    with pytest.raises(TypeError, match="static_args"):
        jax.jit(forgotten.init)(PARAMS)


LARGE = 2**24 + 3


@pytest.mark.parametrize("shape", [(LARGE,), (1, LARGE), (LARGE, 1)], ids=str)
def test_row_26_counts_above_2_to_the_24(shape):
    x = jnp.ones(shape, bool)
    count = jax.jit(_counts.count_true)(x)
    assert (int(count.high), int(count.low)) == (0, LARGE)
    count = jax.jit(_counts.count_true)(x.at[(0,) * len(shape)].set(False))
    assert (int(count.high), int(count.low)) == (0, LARGE - 1)


def test_row_26_counts_above_2_to_the_32():
    words = np.random.default_rng(0).integers(2**31, 2**32, size=2**18, dtype=np.uint32)
    count = _counts.sum_words(jnp.asarray(words))
    total = (int(count.high) << 32) + int(count.low)
    assert total == int(words.astype(object).sum()) > 2**48
    huge = jax.ShapeDtypeStruct((2**24, 2**31), bool)
    assert jax.eval_shape(_counts.count_true, huge).low.shape == ()
    # All numbers of a kind that are not added up within a word, whatever their axes.
    flat = jax.ShapeDtypeStruct((2**32, 3), bool)
    assert jax.eval_shape(_counts.count_true, flat).low.shape == ()


COUNTS = (0, 1, 2, 3, 25, 1000, 2**24 + 1, LARGE, 2**26 + 1, 2**31 - 1, 2**31 + 3,
          2**32 - 1, 2**32, 2**40 + 12345, 2**48 - 1, 2**62 + 1, 2**64 - 1)  # fmt: skip
FRACTIONS = (0.0, 1.0, 0.5, 0.1, 0.9, 0.98, 1 / 3, 1e-3, 1e-8, 1e-38, 1e-45,
             float(np.nextafter(np.float32(1), np.float32(0))), 2.0**-24)  # fmt: skip


def test_row_26_fractions_of_counts_are_exact():
    fraction_of = jax.jit(_counts.fraction_of)
    for fraction in FRACTIONS:
        for n in COUNTS:
            k = fraction_of(jnp.float32(fraction), _counts.constant(n))
            k = (int(k.high) << 32) + int(k.low)
            assert k == exact_share(fraction, n), (fraction, n)


@pytest.mark.parametrize(
    ("a", "b"),
    [(0, 0), (1, 0), (0, 1), (2**32 - 1, 1), (2**40, 2**32 + 1), (2**33, 2**33 - 1)],
)
def test_row_26_arithmetic_of_counts(a, b):
    def value(count):
        return (int(count.high) << 32) + int(count.low)

    x, y = _counts.constant(a), _counts.constant(b)
    assert value(_counts.add(x, y)) == a + b
    assert value(_counts.subtract(x, y)) == max(a - b, 0)
    assert value(_counts.minimum(x, y)) == min(a, b)
    assert bool(_counts.less(x, y)) == (a < b)
    assert bool(_counts.is_zero(x)) == (a == 0)
    assert int(_counts.as_word(x)) == min(a, 2**32 - 1)
    assert float(_counts.ratio(x, y)) == np.float32(a / b if b else a)


def test_row_26_prune_of_a_leaf_above_2_to_the_24():
    params = jnp.ones(LARGE, jnp.bfloat16)
    tx = sparse_optax.prune_by_magnitude(0.9, mask=None)
    pruned, state = sparse_optax.prune(params, tx.init(params), 0.9)
    k = exact_share(0.9, LARGE)
    assert k != int(np.float32(0.9) * np.float32(LARGE))  # float32 is off
    kept = np.asarray(state.masks)
    assert not kept[:k].any() and kept[k:].all()
    assert int(np.count_nonzero(np.asarray(pruned))) == LARGE - k
    report = sparse_optax.sparsity_report(pruned, state.masks)
    assert report.total == (LARGE - k, LARGE)
    np.testing.assert_allclose(sparse_optax.sparsity(pruned), k / LARGE, rtol=1e-7)


def test_row_27_counters_saturate():
    most = jnp.iinfo(jnp.int32).max
    params = random_tree(0)
    tx = optax.chain(
        sparse_optax.add_relevance_decay(
            optax.linear_schedule(0.1, 0.0, 10), mask=None
        ),
        sparse_optax.prune_by_magnitude(
            lambda n: jnp.where(n > 10, 0.25, 0.0), mask=None
        ),
        sparse_optax.prune_to_sparsity(
            lambda t: jnp.where(t > 10, 0.5, 0.0), mask=None
        ),
    )
    state = jax.tree.map(
        lambda x: jnp.full_like(x, most) if x.dtype == jnp.int32 else x,
        tx.init(params),
    )
    update = jax.jit(tx.update)
    _, after = update(params, state, params, prune=jnp.array(False))
    assert after[0].steps_since_prune == after[1].num_prunes == most
    assert after[2].num_updates == after[2].num_prunes == most
    _, after = update(params, state, params, prune=jnp.array(True))
    assert (int(after[0].steps_since_prune), int(after[1].num_prunes)) == (0, most)
    assert num_kept(after[1].masks) == 30
    _, after = sparse_optax.prune(params, state[1], 0.5)
    assert after.num_prunes == most


def test_row_28_paths_are_named_the_same_with_and_without_boxes():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        model,
        sparse_optax.prune_by_magnitude(0.5, mask=sparse_optax.matrices_only),
        wrt=nnx.Param,
    )
    grads = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads, prune=True)
    params = nnx.state(model, nnx.Param)
    sparse_optax.check_sparsity(params, optimizer.opt_state)
    masks = sparse_optax.get_masks(optimizer.opt_state)
    report = sparse_optax.sparsity_report(params, masks)
    assert report.leaves["kernel"].kept == 8 and report.leaves["bias"].kept == 4


# Traced values cannot be refused, and are clamped.

CLAMPED = [
    *((-1.0, 0.0), (-jnp.inf, 0.0), (jnp.nan, 0.0)),
    *((1.5, 1.0), (jnp.inf, 1.0), (0.5, 0.5)),
]


@pytest.mark.parametrize(("given", "used"), CLAMPED, ids=str)
@pytest.mark.parametrize("name", ["fraction", "sparsity"])
def test_row_02_traced_fraction_is_clamped(name, given, used):
    params = random_tree(0)
    state = sparse_optax.prune_by_magnitude(0.5, mask=None).init(params)
    prune = jax.jit(lambda v: sparse_optax.prune(params, state, **{name: v}))
    pruned, _ = prune(jnp.float32(given))
    assert num_nonzero(pruned) == 40 - round(40 * used)


@pytest.mark.parametrize(("given", "used"), CLAMPED, ids=str)
def test_row_02_scheduled_fraction_is_clamped(given, used):
    params = random_tree(0)
    schedule = lambda _: jnp.float32(given)  # noqa: E731
    for tx in (
        sparse_optax.prune_by_magnitude(schedule, mask=None),
        sparse_optax.prune_to_sparsity(schedule, mask=None),
    ):
        step = jax.jit(make_step(tx))
        zeros = jax.tree.map(jnp.zeros_like, params)
        after, state = step(params, tx.init(params), zeros, prune=jnp.array(True))
        assert num_nonzero(after) == num_kept(state.masks) == 40 - round(40 * used)


@pytest.mark.parametrize(
    ("strength", "scale", "update"),
    [(-1.0, 1.0, 0.0), (0.5, 0.0, 1.0), (0.5, -1.0, 1.0), (-jnp.inf, 1.0, 0.0)],
)
def test_row_02_scheduled_strength_and_scale_are_clamped(strength, scale, update):
    tx = sparse_optax.add_relevance_decay(
        lambda _: jnp.float32(strength), lambda _: jnp.float32(scale), mask=None
    )
    params = jnp.ones(2)
    updates, _ = jax.jit(tx.update)(jnp.array([0.0, 50.0]), tx.init(params), params)
    np.testing.assert_allclose(updates, [update, 50.0], rtol=1e-6)


@pytest.mark.parametrize("every", [0, -1])
def test_row_02_injected_frequency_is_clamped(every):
    tx = optax.inject_hyperparams(sparse_optax.prune_to_sparsity)(
        0.5, every=2, mask=None
    )
    params = random_tree(0)
    state = tx.init(params)
    state.hyperparams["every"] = jnp.full_like(state.hyperparams["every"], every)
    zeros = jax.tree.map(jnp.zeros_like, params)
    after, state = jax.jit(make_step(tx))(params, state, zeros)
    assert num_nonzero(after) == 20  # as with every=1


@pytest.mark.parametrize("value", [1.5, -1.0, jnp.nan])
@pytest.mark.parametrize("array", [np.float32, np.array, jnp.float32])
def test_row_02_numbers_in_arrays_are_checked_where_they_are_known(array, value):
    tx = sparse_optax.prune_by_magnitude(0.5, mask=None)
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\]"):
        sparse_optax.prune(PARAMS, tx.init(PARAMS), array(value))


@pytest.mark.parametrize("value", [jnp.array(True), np.array("a"), np.array(True)])
def test_row_03_scalar_array_that_is_no_number(value):
    with pytest.raises(TypeError, match="strength"):
        sparse_optax.add_relevance_decay(strength=value, mask=None)


def test_row_04_mask_of_leaves_that_cannot_take_part():
    params = {"w": jnp.ones(3), "n": jnp.arange(3)}
    tx = sparse_optax.prune_by_magnitude(0.5, mask={"w": False, "n": True})
    with pytest.raises(TypeError, match=r"mask selects .*int32, shape \(3,\) at n,"):
        tx.init(params)


@pytest.mark.parametrize("decoupled", [False, True])
def test_row_05_nan_gradients_do_not_pass_an_optimizer_that_rejects_them(decoupled):
    inner = optax.apply_if_finite(optax.adam(0.1), 3)
    tx = sparse_optax.relevance_pruning(inner, 0.1, decoupled=decoupled, mask=None)
    grads = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), PARAMS)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    chex.assert_tree_all_finite(updates)


def test_row_07_numbers_below_the_normal_are_not_zero():
    params = jnp.array([1e-40, 0.0, 1.0, -0.0, -1e-42])
    tx = sparse_optax.prune_by_magnitude(0.5, mask=None)
    assert sparse_optax.sparsity(params) == pytest.approx(0.4)
    assert jax.jit(sparse_optax.sparsity)(params) == pytest.approx(0.4)
    state = sparse_optax.masks_from_zeros(params, tx.init(params), mask=None)
    expected = jnp.array([True, False, True, False, True])
    chex.assert_trees_all_equal(sparse_optax.get_masks(state), expected)
    with pytest.raises(ValueError, match="1 of 2"):
        sparse_optax.check_sparsity(params.at[1].set(1e-40), state)


def test_row_12_sparsity_leaves_random_keys_out():
    tree = {"key": jax.random.key(0), "w": jnp.array([0.0, 1.0])}
    assert sparse_optax.sparsity(tree) == 0.5


def test_row_16_gradients_of_another_model_are_named():
    grads = {"dense": {"bias": jnp.ones(4), "kernel": jnp.ones((4, 1))}}
    with pytest.raises(ValueError, match=r"grads .*\(4, 1\) at dense/kernel"):
        sparse_optax.relevance_penalty(PARAMS, grads, 0.1, mask=None)
    tx = sparse_optax.add_relevance_decay(0.1, mask=None)
    with pytest.raises(ValueError, match=r"updates .*\(4, 1\) at dense/kernel"):
        tx.update(grads, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=r"updates .*dense/kernel"):
        tx.update({"dense": {"bias": jnp.ones(4)}}, tx.init(PARAMS), PARAMS)


def test_row_26_axis_beyond_int32():
    # By shapes alone: a flat buffer of a large model, as fully sharded training has.
    params = jax.ShapeDtypeStruct((2**31 + 8,), jnp.float32)
    tx = sparse_optax.prune_by_magnitude(0.1, mask=None)
    state = jax.eval_shape(tx.init, params)
    after = jax.eval_shape(lambda p, s: sparse_optax.prune(p, s, 0.1), params, state)
    assert after == (params, state)


def test_row_24_what_is_no_array_in_an_inner_state_stays():
    def init(params):
        return {"count": 0, "mom": jax.tree.map(jnp.ones_like, params), "name": "abc"}

    inner = optax.GradientTransformation(init, lambda u, s, p=None: (u, s))
    tx = sparse_optax.relevance_pruning(inner, 0.1, mask=None)
    _, state = sparse_optax.prune(PARAMS, tx.init(PARAMS), 1.0)
    assert (state.optimizer["count"], state.optimizer["name"]) == (0, "abc")
    assert num_nonzero(state.optimizer["mom"]) == 0


def test_links_inside_of_relevance_pruning_are_reached():
    inner = optax.chain(
        sparse_optax.add_relevance_decay(0.1, mask=None),
        optax.sgd(0.1),
        sparse_optax.prune_to_sparsity(0.25, every=100, mask=None),
    )
    tx = sparse_optax.relevance_pruning(inner, 0.1, mask=None)
    params = {"w": jnp.arange(1.0, 9.0)}
    _, state = tx.update(params, tx.init(params), params)
    assert state.optimizer[0].steps_since_prune == 1
    _, state = sparse_optax.prune(params, state, 0.5)
    assert state.decay.steps_since_prune == state.optimizer[0].steps_since_prune == 0
    assert state.pruning.num_prunes == state.optimizer[2].num_prunes == 1
    zeros = {"w": jnp.zeros(8)}
    state = sparse_optax.masks_from_zeros(zeros, state, mask=None)
    assert not state.pruning.masks["w"].any()
    assert not state.optimizer[2].masks["w"].any()


def test_leaves_of_one_name_are_reported_apart():
    params = {"a/b": jnp.ones(3), "a": {"b": jnp.ones(5)}}
    masks = jax.tree.map(lambda p: jnp.ones_like(p, bool), params)
    report = sparse_optax.sparsity_report(params, masks)
    assert len(report.leaves) == 2
    assert report.total == (8, 8)
