"""Sparse training: RigL, SET and static masks, around any optimizer."""

import itertools
import math
import pickle
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    exact_share,
    first_unmarked,
    make_step,
    mesh_of,
    num_kept,
    on_host,
    random_tree,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import sparse_optax
from sparse_optax import apply_masks, get_masks, sparse_training

KEY = jax.random.key(3)
SHAPES = {"a": {"bias": (8,), "kernel": (8, 16)}, "b": {"kernel": (16, 4)}}
METHODS = ("gradient", "random", None)
every_method = pytest.mark.parametrize("regrow", METHODS, ids=str)


def make(regrow="gradient", optimizer=None, sparsity=0.7, **options):
    if regrow is not None:
        options = {"every": 2, "until": 100, "drop_fraction": 0.3} | options
    optimizer = optax.adam(0.1) if optimizer is None else optimizer
    return sparse_training(optimizer, sparsity, key=KEY, regrow=regrow, **options)


def start(tx, params):
    state = tx.init(params)
    return apply_masks(params, get_masks(state)), state


def tree(seed):
    """With many ties, for the selection to cut through."""
    return jax.tree.map(
        lambda w: jnp.round(4 * w) / 4, random_tree(seed, shapes=SHAPES)
    )


def train(tx, num_steps=6, step=None, seed=0):
    params, state = start(tx, tree(seed))
    step = step or make_step(tx)
    for i in range(num_steps):
        params, state = step(params, state, tree(seed + i + 1))
    return params, state


def kept(state):
    return [int(jnp.sum(mask)) for mask in jax.tree.leaves(get_masks(state))]


def new_mask(mask, weight, scores, fraction=0.3):
    """A mask update of one leaf in NumPy, where the lowest scores grow."""
    mask, weight, scores = (np.asarray(x) for x in (mask, weight, scores))
    num = min(exact_share(fraction, mask.sum()), (~mask).sum())
    new = mask.ravel().copy()
    order = np.argsort(np.abs(weight.ravel()), kind="stable")
    new[order[new[order]][:num]] = False
    order = np.argsort(scores.ravel(), kind="stable")
    new[order[~new[order]][:num]] = True
    return new.reshape(mask.shape)


# What a mask update does.


def test_rigl_by_hand():
    params = jnp.array([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]])
    tx = make(optimizer=optax.sgd(1.0), drop_fraction=lambda t: 1.0 / t, sparsity=0.5)
    masks = jnp.array([[True] * 4 + [False] * 4])
    state = sparse_optax.set_masks(tx.init(params), masks)
    params, step = apply_masks(params, masks), make_step(tx)
    params, state = step(params, state, jnp.zeros((1, 8)))
    np.testing.assert_array_equal(params, [[1, 2, 3, 4, 0, 0, 0, 0]])
    # Half of four are dropped, the first two. Of what is inactive then, the first has
    # the largest gradient, and is kept after all; of two 4 the earlier one grows.
    grads = jnp.array([[-7.0, 1, 50, 0, jnp.nan, -4, 4, 3]])
    params, state = step(params, state, grads)
    np.testing.assert_array_equal(params, [[8, 0, -47, 4, 0, 4, 0, 0]])
    params, state = step(params, state, jnp.zeros((1, 8)))
    np.testing.assert_array_equal(params, [[8, 0, -47, 4, 0, 4, 0, 0]])
    # A quarter of four is the earlier weight of 4; the earliest gradient of 1 grows.
    params, state = step(params, state, jnp.array([[0.0, 1, 0, 1, 1, 0, 1, 1]]))
    np.testing.assert_array_equal(params, [[8, -1, -47, 0, 0, 4, 0, 0]])
    np.testing.assert_array_equal(get_masks(state), params != 0)


@every_method
def test_mask_updates_equal_numpy(regrow):
    tx = make(regrow, optax.sgd(0.1), mask=None)
    params, state = start(tx, tree(0))
    for i in range(4):
        grads, expected = tree(i + 1), get_masks(state)
        if i % 2 and regrow:
            scores = jax.tree.map(lambda g: -jnp.abs(g), grads)
            if regrow == "random":
                random = sparse_optax.random(jax.random.fold_in(KEY, i + 1))
                scores = random(grads)
            expected = jax.tree.map(new_mask, expected, params, scores)
        params, state = make_step(tx)(params, state, grads)
        chex.assert_trees_all_equal(get_masks(state), expected)


def test_first_masks_are_random_and_erk():
    masks = get_masks(make().init(tree(0)))
    random = sparse_optax.random(jax.random.fold_in(KEY, 0))
    _, expected = sparse_optax.one_shot(
        tree(0), 0.7, criterion=random, distribution="erk"
    )
    chex.assert_trees_all_equal(masks, expected)
    others = sparse_training(optax.sgd(0.1), 0.7, key=jax.random.key(4), regrow=None)
    assert np.any(
        get_masks(others.init(tree(0)))["a"]["kernel"] != masks["a"]["kernel"]
    )


@every_method
def test_sparsity_of_every_leaf_is_constant(regrow):
    tx = make(regrow)
    params, state = start(tx, tree(0))
    step, first = jax.jit(make_step(tx)), kept(state)
    masks = [get_masks(state)]
    for i in range(12):
        params, state = step(params, state, tree(i + 1))
        assert kept(state) == first
        sparse_optax.check_sparsity(params, state)
        masks.append(get_masks(state))
    changed = [
        any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in itertools.pairwise(masks)
    ]
    assert changed == [regrow is not None and i % 2 == 1 for i in range(12)]


def test_no_more_are_dropped_than_are_inactive():
    params = jnp.arange(1.0, 11).reshape(2, 5)
    tx = make(optimizer=optax.sgd(0.0), sparsity=0.1, drop_fraction=1.0, every=1)
    params, state = start(tx, params)
    (inactive,) = np.flatnonzero(~get_masks(state))
    smallest = 0 if inactive else 1
    grads = jnp.zeros((2, 5)).at[np.unravel_index(inactive, (2, 5))].set(1.0)
    _, state = make_step(tx)(params, state, grads)
    assert np.flatnonzero(~get_masks(state)) == [smallest]


def test_mask_updates_are_made_until_the_last():
    tx = make(every=3, until=8)
    params, state = start(tx, tree(0))
    counts = []
    for i in range(12):
        params, state = make_step(tx)(params, state, tree(i + 1))
        counts.append(int(state.pruning.num_pruning_steps))
    assert counts == [1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3]
    assert state.pruning.num_updates == 12


def test_drop_fraction_falls_as_a_cosine_by_default():
    """Which is what is dropped where nothing that was dropped grows again."""
    params = jnp.ones((100, 100))
    tx = sparse_training(optax.set_to_zero(), 0.8, key=KEY, every=10, until=40)
    params, state = start(tx, params)
    schedule, changed = optax.cosine_decay_schedule(0.3, 40), {}
    for t in range(1, 41):
        before = get_masks(state)
        _, state = make_step(tx)(params, state, 1.0 - before)
        changed[t] = int(jnp.sum(before & ~get_masks(state)))
    assert changed == {
        t: exact_share(schedule(t), 2000) if t % 10 == 0 else 0 for t in range(1, 41)
    }


@pytest.mark.parametrize("grad", [False, True])
def test_gradients_that_are_not_finite_grow_last_or_first(grad):
    params = jnp.ones((1, 6))
    tx = make(optimizer=optax.identity(), drop_fraction=0.5, every=1, sparsity=0.5)
    masks = jnp.array([[True, True, False, False, False, True]])
    state = sparse_optax.set_masks(tx.init(params), masks)
    scores = jnp.array([[0.0, 0, jnp.nan, 0, -jnp.inf, 0]])
    given = (jnp.zeros((1, 6)), {"grad": scores}) if grad else (scores, {})
    _, state = tx.update(given[0], state, apply_masks(params, masks), **given[1])
    # Two are dropped; infinity grows, and a zero before NaN.
    np.testing.assert_array_equal(
        get_masks(state), [[True, False, False, False, True, True]]
    )


# What becomes of the optimizer.

RATE = {
    *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw"),
    *("adamw", "adan", "amsgrad", "fromage", "lamb", "lars", "lion", "nadam"),
    *("nadamw", "novograd", "optimistic_adam_v2", "optimistic_gradient_descent"),
    *("radam", "rmsprop", "rprop", "sgd", "sign_sgd", "signum", "sm3", "yogi"),
}
CONTRIB = ("acprop", "ademamix", "adopt", "dowg", "galore", "madgrad", "muon")
CONTRIB = (*CONTRIB, "schedule_free_adamw", "simplified_ademamix")
OPTIMIZERS = (
    {name: lambda name=name: getattr(optax, name)(0.1) for name in sorted(RATE)}
    | {name: lambda name=name: getattr(optax.contrib, name)(0.1) for name in CONTRIB}
    | {
        name: lambda name=name: getattr(optax.contrib, name)()
        for name in ("cocob", "dadapt_adamw", "dog", "prodigy")
    }
    | {
        "momentum": lambda: optax.sgd(0.1, momentum=0.9),
        "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=0),
        "lbfgs": lambda: optax.lbfgs(0.1, linesearch=None),
        "polyak_sgd": optax.polyak_sgd,
        "masked": lambda: optax.masked(optax.adam(0.1), {"a": False, "b": True}),
        "inject": lambda: optax.inject_hyperparams(optax.adamw)(0.1),
    }
)


def key_data(x):
    """The numbers of a random key, and all else as it is."""
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x


@pytest.mark.parametrize(
    "name", first_unmarked("adagrad", "rprop", "adafactor", *OPTIMIZERS, quick=3)
)
def test_grown_weights_begin_with_the_state_of_init(name):
    """Against the optimizer alone, with what NumPy picks of its state and of init's."""
    if (
        not hasattr(optax, name)
        and name in CONTRIB
        and not hasattr(optax.contrib, name)
    ):
        pytest.skip("this optax has no such optimizer")
    tx, optimizer = make(optimizer=OPTIMIZERS[name]()), OPTIMIZERS[name]()
    optimizer = optax.with_extra_args_support(optimizer)
    step = jax.jit(make_step(tx))
    params, state = start(tx, random_tree(0, shapes=SHAPES))
    for i in range(4):
        grads = random_tree(i + 1, shapes=SHAPES)
        before, old, weights = get_masks(state), state.optimizer, params
        params, state = step(params, state, grads, value=jnp.float32(1.0))
        sparse_optax.check_sparsity(params, state)
        after = get_masks(state)

        hidden = apply_masks(weights, after)
        pairs = zip(*map(jax.tree.leaves, (before, after)), strict=True)
        masks = {pair[0].shape: pair for pair in pairs}

        def begin(x, fresh, masks=masks):
            if x.shape not in masks or not jnp.issubdtype(x.dtype, jnp.floating):
                return x
            before, after = masks[x.shape]
            return jnp.where(after, jnp.where(before, x, fresh), 0)

        inner = jax.tree.map(begin, old, optimizer.init(hidden))
        updates, inner = jax.jit(optimizer.update)(
            apply_masks(grads, after), inner, hidden, value=jnp.float32(1.0)
        )
        close = jax.tree.map(key_data, (state.optimizer, inner))
        chex.assert_trees_all_close(*close, rtol=1e-5, atol=1e-6)
        expected = apply_masks(optax.apply_updates(hidden, updates), after)
        chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-6)


def test_grown_weights_get_the_initial_optimizer_state():
    tx = make(optimizer=optax.adagrad(0.1, initial_accumulator_value=0.5), every=2)
    params, state = start(tx, random_tree(0, shapes=SHAPES))
    for i in range(2):
        before, grads = get_masks(state), random_tree(i + 1, shapes=SHAPES)
        params, state = make_step(tx)(params, state, grads)
    grown = np.asarray(get_masks(state)["b"]["kernel"] & ~before["b"]["kernel"])
    squares = state.optimizer[0].sum_of_squares["b"]["kernel"]
    assert grown.any()
    np.testing.assert_allclose(
        squares[grown], 0.5 + np.square(grads["b"]["kernel"])[grown], rtol=1e-6
    )


def test_first_step_of_adam_for_a_late_weight():
    """Is 3.2 learning rates, as the documentation says."""
    tx = make(optimizer=optax.adam(0.1), every=500, until=500)
    params, state = start(tx, random_tree(0, shapes=SHAPES))
    grads = random_tree(1, shapes=SHAPES)

    def step(carry, _):
        return make_step(tx)(*carry, grads), None

    (params, state), _ = jax.lax.scan(step, (params, state), length=499)
    before = get_masks(state)["b"]["kernel"]
    params, state = make_step(tx)(params, state, grads)
    grown = np.asarray(get_masks(state)["b"]["kernel"] & ~before)
    assert grown.any()
    sizes = np.abs(params["b"]["kernel"][grown])
    np.testing.assert_allclose(
        sizes, 0.1 * 0.1 / np.sqrt(0.001 / (1 - 0.999**500)), rtol=0.01
    )


def test_schedules_restart_at_mask_updates():
    decay = sparse_optax.add_l1_decay(optax.linear_schedule(0.1, 0.0, 5))
    tx = make(optimizer=optax.chain(decay, optax.sgd(0.1)))
    counts = [train(tx, n)[1].optimizer[0].num_steps for n in range(1, 5)]
    assert [int(n) for n in counts] == [1, 1, 2, 1]


# Where it runs.


@every_method
def test_jit_eager_and_scan_are_equal(regrow):
    tx = make(regrow, optax.sgd(0.5))  # which no compiler rounds differently
    eager = train(tx)
    chex.assert_trees_all_equal(train(tx, step=jax.jit(make_step(tx))), eager)

    grads = [tree(i + 1) for i in range(6)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)
    scanned, _ = jax.lax.scan(
        lambda carry, g: (make_step(tx)(*carry, g), None), start(tx, tree(0)), stacked
    )
    chex.assert_trees_all_equal(scanned, eager)


@pytest.mark.parametrize("regrow", ["gradient", "random"])
def test_vmap_equals_a_loop(regrow):
    tx = make(regrow, optax.sgd(0.5))
    members = [start(tx, tree(seed)) for seed in range(3)]
    stack = lambda *leaves: jnp.stack(leaves)  # noqa: E731
    many = jax.tree.map(stack, *members)
    for i in range(2):
        grads = [tree(10 * i + seed) for seed in range(3)]
        members = [
            make_step(tx)(*member, g) for member, g in zip(members, grads, strict=True)
        ]
        many = jax.vmap(make_step(tx))(*many, jax.tree.map(stack, *grads))
    chex.assert_trees_all_equal(many, jax.tree.map(stack, *members))


@every_method
def test_stacked_layers_are_leaves_of_their_own(regrow):
    """As the same layers in leaves of their own, whose order among ties is the same."""
    kernels = jax.random.normal(jax.random.key(1), (3, 4, 8))
    grads = jax.random.normal(jax.random.key(2), (2, 3, 4, 8))
    together = make(regrow, optax.sgd(0.5), stacked={"a": 1})
    apart = make(regrow, optax.sgd(0.5))
    params, state = start(together, {"a": jnp.moveaxis(kernels, 0, 1)})
    layers = list(jnp.moveaxis(get_masks(state)["a"], 1, 0))
    state_apart = sparse_optax.set_masks(apart.init(list(kernels)), layers)
    params_apart = apply_masks(list(kernels), layers)
    for g in grads:
        params, state = make_step(together)(params, state, {"a": jnp.moveaxis(g, 0, 1)})
        params_apart, state_apart = make_step(apart)(params_apart, state_apart, list(g))
    after = list(jnp.moveaxis(get_masks(state)["a"], 1, 0))
    assert [m.sum() for m in after] == [m.sum() for m in layers] == [10] * 3
    if regrow != "random":  # whose order is drawn for each leaf
        chex.assert_trees_all_equal(get_masks(state_apart), after)
        moved = jnp.moveaxis(params["a"], 1, 0)
        chex.assert_trees_all_equal(params_apart, list(moved))


LAYOUT = {
    "a": {"bias": P("model"), "kernel": P("data", "model")},
    "b": {"kernel": P("model", None)},
}


@pytest.mark.parametrize(
    ("regrow", "kind"),
    [("gradient", AxisType.Auto), ("random", AxisType.Explicit)],
    ids=str,
)
def test_devices_choose_the_same_masks(regrow, kind):
    tx, mesh = make(regrow, optax.sgd(0.5)), mesh_of(kind)
    expected = on_host(train(tx))

    def shard(tree):
        return jax.tree.map(
            lambda spec, x: jax.device_put(x, NamedSharding(mesh, spec)),
            *(LAYOUT, tree),
            is_leaf=lambda x: isinstance(x, P),
        )

    with jax.set_mesh(mesh):
        params = shard(tree(0))
        state = jax.jit(tx.init)(params)
        params = apply_masks(params, get_masks(state))
        step = jax.jit(make_step(tx))
        for i in range(6):
            grads = shard(tree(i + 1))
            params, state = step(params, state, grads)
        text = step.lower(params, state, grads).compile().as_text()
    chex.assert_trees_all_equal(on_host((params, state)), expected)
    for mask in jax.tree.leaves(get_masks(state)):
        assert len(mask.sharding.device_set) == 8 and not mask.is_fully_replicated
    # What they gather are counts, and no leaf.
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", text)
    assert all(math.prod(map(int, dims.split(","))) < 64 for dims in gathered)


@every_method
def test_resumes_bit_for_bit(regrow):
    tx = make(regrow)
    step = jax.jit(make_step(tx))
    whole = train(tx, 7, step)
    params, state = train(tx, 3, step)
    leaves = pickle.loads(pickle.dumps(jax.tree.leaves(on_host((params, state)))))
    fresh = jax.tree.structure(start(make(regrow), tree(0)))
    params, state = fresh.unflatten(map(jnp.asarray, leaves))
    step = jax.jit(make_step(make(regrow)))
    for i in range(3, 7):
        params, state = step(params, state, tree(i + 1))
    chex.assert_trees_all_equal((params, state), whole)


# With the rest of the library.


def test_prune_makes_the_network_sparser_for_good():
    tx = make()
    params, state = train(tx, 2)
    params, state = sparse_optax.prune(params, state, sparsity=0.9)
    total = sparse_optax.sparsity_report(params, get_masks(state)).prunable
    assert total.kept == round(0.1 * 192)
    memory = state.optimizer[0].mu["b"]["kernel"]
    assert not np.any(memory[~get_masks(state)["b"]["kernel"]])
    fewer = kept(state)
    for i in range(4):
        params, state = make_step(tx)(params, state, tree(i + 7))
    assert kept(state) == fewer
    sparse_optax.check_sparsity(params, state)


def test_regrowth_continues_from_set_masks():
    tx = make(every=1)
    masks = {"a": {"bias": optax.MaskedNode(), "kernel": tree(5)["a"]["kernel"] > 1},
             "b": {"kernel": tree(5)["b"]["kernel"] > 0}}  # fmt: skip
    state = sparse_optax.set_masks(tx.init(tree(0)), masks)
    before = kept(state)
    _, state = make_step(tx)(apply_masks(tree(0), masks), state, tree(1))
    assert kept(state) == before == [num_kept(m) for m in masks.values()]
    assert np.any(get_masks(state)["a"]["kernel"] != masks["a"]["kernel"])


def test_sparse_training_ignores_prune():
    tx = optax.chain(make())
    params, state = start(tx, tree(0))
    _, state = tx.update(tree(1), state, params, prune=True)
    assert state[0].pruning.num_pruning_steps == 1


# Bad arguments.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsity": 1.5}, ValueError, "sparsity must be .*1.5"),
        ({"key": 0}, TypeError, "key must be .*0"),
        ({"optimizer": 0.1}, TypeError, "optimizer must be .*0.1"),
        ({"regrow": "rigl"}, ValueError, "regrow must be .*'rigl'"),
        ({"every": 0}, ValueError, "every must be at least 1; got 0"),
        ({"every": None}, ValueError, "needs every; got None"),
        ({"until": 1}, ValueError, "until must be at least 2; got 1"),
        ({"drop_fraction": 2.0}, ValueError, "drop_fraction must be .*2.0"),
        ({"regrow": None}, ValueError, "regrow=None .*'every': 2"),
        ({"distribution": "even"}, ValueError, "distribution must be .*'even'"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    given = {"optimizer": optax.sgd(0.1), "sparsity": 0.5, "key": KEY}
    with pytest.raises(error, match=message):
        sparse_training(**given | {"every": 2, "until": 10} | options)


def test_states_and_optimizers_of_others_are_refused():
    params = tree(0)
    pruning = sparse_optax.prune_by_magnitude(0.5)
    with pytest.raises(ValueError, match="optimizer must not prune"):
        make(optimizer=optax.chain(optax.sgd(0.1), pruning)).init(params)
    other = sparse_optax.hide_pruned(optax.adam(0.1), pruning).init(params)
    with pytest.raises(ValueError, match="state belongs to prune_by"):
        make().update(params, other, params)
    with pytest.raises(ValueError, match="params"):
        make().update(params, make().init(params))
    with pytest.raises(ValueError, match="updates has"):
        make(None).update(params["a"], make(None).init(params), params)
