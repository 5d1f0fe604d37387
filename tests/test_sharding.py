"""Eight devices: the same masks as on one, sharded like weights, gathering nothing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import find_states, make_step, num_kept, random_tree
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import sparse_optax
from sparse_optax import PruneState

SHAPES = {"a": {"bias": (16,), "kernel": (8, 16)}, "b": {"kernel": (16, 4)}}
LAYOUTS = {
    "model": {"a": {"bias": P("model"), "kernel": P(None, "model")},
              "b": {"kernel": P("model", None)}},
    "data": {"a": {"bias": P("data"), "kernel": P("data", None)},
             "b": {"kernel": P("data", None)}},
    "both": {"a": {"bias": P(("data", "model")), "kernel": P("data", "model")},
             "b": {"kernel": P("model", "data")}},
}  # fmt: skip
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
every_case = pytest.mark.parametrize(
    ("kind", "layout", "scope"),
    [
        (AUTO, "both", "global"),
        (AUTO, "model", "leaf"),
        (EXPLICIT, "data", "global"),
        (EXPLICIT, "both", "leaf"),
    ],
    ids=lambda x: getattr(x, "name", x),
)


def mesh_of(kind):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))


def shard(tree, layout, mesh):
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        LAYOUTS[layout],
        is_leaf=lambda x: isinstance(x, P),
    )
    return jax.device_put(tree, shardings)


def tied(tree):
    """Few different magnitudes, so that a prune has to cut through many equal ones."""
    return jax.tree.map(lambda w: jnp.round(2 * w) / 2, tree)


def on_host(tree):
    return jax.tree.map(np.asarray, tree)


def sharded_like(tree, weights):
    """Whether the arrays of `tree` lie as those of `weights` do."""
    return all(
        a.sharding.is_equivalent_to(w.sharding, w.ndim)
        for a, w in zip(jax.tree.leaves(tree), jax.tree.leaves(weights), strict=True)
    )


def test_there_are_eight_devices():
    assert jax.device_count() == 8


@every_case
def test_prune_by_magnitude_equals_one_device(kind, layout, scope):
    tx = optax.chain(
        sparse_optax.add_relevance_decay(
            2.0**-6, irrelevance_fn=lambda g, _: g < 1, mask=None
        ),
        optax.sgd(0.25),  # exact numbers all the way: weights stay tied, bit for bit
        sparse_optax.prune_by_magnitude(0.3, scope=scope, mask=None),
    )
    step = jax.jit(make_step(tx))

    def train(params, grads):
        state = jax.jit(tx.init)(params)
        for prune in (False, True, True):
            flag = jnp.array(prune)
            params, state = step(params, state, grads, prune=flag)
        return params, state

    params, grads = (tied(random_tree(i, shapes=SHAPES)) for i in range(2))
    expected, expected_state = train(params, grads)
    assert 0 < num_kept(sparse_optax.get_masks(expected_state)) < 208

    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        params = shard(params, layout, mesh)
        result, state = train(params, shard(grads, layout, mesh))
        assert sharded_like(result, params)
        assert sharded_like(sparse_optax.get_masks(state), params)
    chex.assert_trees_all_equal(on_host(result), on_host(expected))
    chex.assert_trees_all_equal(on_host(state), on_host(expected_state))


@every_case
def test_prune_equals_one_device(kind, layout, scope):
    tx = sparse_optax.relevance_pruning(optax.adam(0.1), 1e-3, mask=None)
    params = tied(random_tree(0, shapes=SHAPES))

    def prune_twice(params):
        state = jax.jit(tx.init)(params)
        params, state = sparse_optax.prune(params, state, 0.3, scope=scope)
        return sparse_optax.prune(params, state, sparsity=0.6, scope=scope)

    expected = prune_twice(params)
    assert num_kept(sparse_optax.get_masks(expected[1])) in (83, 84)
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        params = shard(params, layout, mesh)
        result, state = prune_twice(params)
        assert sharded_like(result, params)
        assert sharded_like(sparse_optax.get_masks(state), params)
    chex.assert_trees_all_equal(on_host((result, state)), on_host(expected))


@every_case
def test_floors_equal_one_device(kind, layout, scope):
    tx = sparse_optax.prune_by_magnitude(
        0.5, min_kept={"a/bias": 12, "b": 50}, max_sparsity=0.9, mask=None
    )
    params = tied(random_tree(0, shapes=SHAPES))

    def prune_twice(params):
        state = jax.jit(tx.init)(params)
        params, state = sparse_optax.prune(params, state, 0.3, scope=scope)
        return sparse_optax.prune(params, state, sparsity=0.6, scope=scope)

    expected = prune_twice(params)
    kept = jax.tree.map(jnp.count_nonzero, expected[1].masks)
    assert (kept["a"]["bias"], kept["b"]["kernel"]) == (12, 50)  # both are at work
    assert (expected[1].shortfall > 0) == (scope == "leaf")
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        params = shard(params, layout, mesh)
        result, state = prune_twice(params)
        assert sharded_like(result, params)
        assert sharded_like(state.masks, params)
    chex.assert_trees_all_equal(on_host((result, state)), on_host(expected))


@pytest.mark.parametrize("layout", ["data", "both"])
def test_prune_to_sparsity_equals_one_device(layout):
    tx = sparse_optax.prune_to_sparsity(lambda t: 0.2 * t, mask=None)
    step = jax.jit(make_step(tx))
    params = tied(random_tree(0, shapes=SHAPES))

    def train(params):
        state = jax.jit(tx.init)(params)
        for _ in range(3):
            params, state = step(params, state, jax.tree.map(jnp.zeros_like, params))
        return params, state

    expected = train(params)
    assert num_kept(expected[1].masks) == 208 - round(0.6 * 208)
    mesh = mesh_of(EXPLICIT)
    with jax.set_mesh(mesh):
        result = train(shard(params, layout, mesh))
    chex.assert_trees_all_equal(on_host(result), on_host(expected))


def types(tree):
    return jax.tree.map(jax.typeof, tree)


TRANSFORMATIONS = {
    "chain": lambda: optax.chain(
        sparse_optax.add_relevance_decay(1e-3, mask=None),
        optax.adam(0.1),
        sparse_optax.prune_by_magnitude(0.3, mask=None),
    ),
    "prune_to_sparsity": lambda: optax.chain(
        optax.adam(0.1), sparse_optax.prune_to_sparsity(0.3, mask=None)
    ),
    "coupled": lambda: sparse_optax.relevance_pruning(optax.adam(0.1), 1e-3, mask=None),
    "decoupled": lambda: sparse_optax.relevance_pruning(
        optax.adam(0.1), 1e-3, decoupled=True, mask=None
    ),
}


@every_layout
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_state_has_the_same_types_after_init_and_update(name, layout):
    """On an explicit mesh shardings are part of types; jit and eager agree on them."""
    tx, mesh = TRANSFORMATIONS[name](), mesh_of(EXPLICIT)
    with jax.set_mesh(mesh):
        params = shard(random_tree(0, shapes=SHAPES), layout, mesh)
        grads = shard(random_tree(1, shapes=SHAPES), layout, mesh)
        eager, compiled = tx.init(params), jax.jit(tx.init)(params)
        assert types(eager) == types(compiled)
        (link,) = find_states(eager, PruneState)
        for mask, weight in zip(
            jax.tree.leaves(link.masks), jax.tree.leaves(params), strict=True
        ):
            assert jax.typeof(mask).sharding == jax.typeof(weight).sharding
        for extra in ({}, {"prune": True}, {"prune": jnp.array(True)}):
            updates, state = jax.eval_shape(
                lambda g, s, p, extra=extra: tx.update(g, s, p, **extra),
                *(grads, eager, params),
            )
            assert types(state) == types(eager)
            assert types(updates) == types(params)


def gathers(compiled):
    """The lines of a compiled program that bring whole arrays to a device."""
    words = ("all-gather", "all-to-all", "collective-permute")
    return [
        line.strip()
        for line in compiled.as_text().splitlines()
        if any(f" {word}(" in line or f" {word}-start(" in line for word in words)
    ]


def test_gathers_are_seen_where_there_are_some():
    mesh = mesh_of(AUTO)
    weights = jax.device_put(jnp.ones((8, 16)), NamedSharding(mesh, P("data", "model")))
    assert gathers(jax.jit(lambda w: jnp.sort(w, axis=None)).lower(weights).compile())


@every_case
def test_prune_gathers_nothing(kind, layout, scope):
    tx = sparse_optax.prune_by_magnitude(0.3, scope=scope, mask=None)
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        params = shard(random_tree(0, shapes=SHAPES), layout, mesh)
        state = jax.jit(tx.init)(params)
        step = jax.jit(make_step(tx))
        lowered = step.lower(params, state, params, prune=jnp.array(True))
        assert gathers(lowered.compile()) == []
        prune = jax.jit(sparse_optax.prune, static_argnames="scope")
        assert gathers(prune.lower(params, state, 0.3, scope=scope).compile()) == []


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_equals_one_device(dtype):
    params = random_tree(0, dtype, shapes=SHAPES)
    tx = sparse_optax.prune_by_magnitude(0.55, mask=None)
    expected = sparse_optax.prune(params, tx.init(params), 0.55)
    mesh = mesh_of(EXPLICIT)
    with jax.set_mesh(mesh):
        sharded = shard(params, "both", mesh)
        result = sparse_optax.prune(sharded, tx.init(sharded), 0.55)
    chex.assert_trees_all_equal(on_host(result), on_host(expected))


def test_masks_helpers_work_on_sharded_arrays():
    tx = sparse_optax.prune_by_magnitude(0.5, mask=None)
    mesh = mesh_of(EXPLICIT)
    params = random_tree(0, shapes=SHAPES)
    with jax.set_mesh(mesh):
        params = shard(params, "both", mesh)
        pruned, state = sparse_optax.prune(params, tx.init(params), 0.5)
        sparse_optax.check_sparsity(pruned, state)
        assert sparse_optax.sparsity(pruned) == 0.5
        masks = sparse_optax.get_masks(state)
        assert sparse_optax.sparsity_report(pruned, masks).total.kept == 104
        marked = sparse_optax.masks_from_zeros(pruned, tx.init(params), mask=None)
        assert types(marked) == types(state)
        chex.assert_trees_all_equal(on_host(marked.masks), on_host(masks))


def test_devices_can_prune_networks_of_their_own():
    """Inside `shard_map`, where every device has another member of an ensemble."""
    tx = sparse_optax.prune_by_magnitude(0.5, mask=None)
    mesh = jax.make_mesh((8,), ("member",), axis_types=(AUTO,))
    members = [random_tree(seed, shapes=SHAPES) for seed in range(8)]

    def prune(params):
        return sparse_optax.prune(params, tx.init(params), 0.3)

    def one(params):
        pruned = prune(jax.tree.map(lambda x: x[0], params))
        return jax.tree.map(lambda x: x[None], pruned)

    pruned = jax.jit(
        jax.shard_map(one, mesh=mesh, in_specs=P("member"), out_specs=P("member"))
    )(jax.tree.map(lambda *leaves: jnp.stack(leaves), *members))
    for index, params in enumerate(members):
        chex.assert_trees_all_equal(
            on_host(jax.tree.map(lambda x, i=index: x[i], pruned)),
            on_host(prune(params)),
        )
