"""Eight devices: the same masks as on one, sharded like weights, from counts alone."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import (
    find_states,
    first_unmarked,
    make_chain,
    make_whole,
    mesh_of,
    on_host,
    random_tree,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import sparse_optax
from sparse_optax import PruneState

SHAPES = {"a": {"bias": (16,), "kernel": (8, 16)}, "b": {"kernel": (16, 4)}}
LAYOUTS = {
    "model": {"a": {"bias": P("model"), "kernel": P(None, "model")},
              "b": {"kernel": P("model", None)}},
    "both": {"a": {"bias": P(("data", "model")), "kernel": P("data", "model")},
             "b": {"kernel": P("model", "data")}},
}  # fmt: skip
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
every_case = pytest.mark.parametrize(
    ("kind", "layout", "distribution"),
    first_unmarked(
        *((AUTO, "both", "global"), (EXPLICIT, "both", "uniform")),
        *((AUTO, "model", "uniform"), (EXPLICIT, "model", "global")),
    ),
    ids=lambda x: getattr(x, "name", x),
)


def shard(tree, layout, mesh):
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        LAYOUTS[layout],
        is_leaf=lambda x: isinstance(x, P),
    )
    return jax.device_put(tree, shardings)


def tied(seed, dtype=jnp.float32):
    """Few different magnitudes, so that pruning has to cut through many equal ones."""
    tree = random_tree(seed, dtype, shapes=SHAPES)
    return jax.tree.map(lambda w: jnp.round(2 * w) / 2, tree)


@every_case
def test_pruning_equals_one_device(kind, layout, distribution):
    tx = sparse_optax.prune_by_magnitude(
        0.5,
        distribution=distribution,
        min_kept={"a/bias": 12, "b": 50},
        max_sparsity=0.9,
        mask=None,
    )

    def prune_twice(params):
        state = jax.jit(tx.init)(params)
        params, state = sparse_optax.prune(params, state, 0.3)
        return sparse_optax.prune(params, state, sparsity=0.6)

    params = tied(0, jnp.bfloat16 if layout == "both" else jnp.float32)
    expected = prune_twice(params)
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        sharded = shard(params, layout, mesh)
        result = prune_twice(sharded)
        text = jax.jit(prune_twice).lower(sharded).compile().as_text()
    gathered = re.findall(r"= .*?\[([\d,]*)\][^=]* all-gather\(", text)
    assert len(gathered) == len(re.findall(r"all-gather(-start)?\(", text))
    # A number from each device at the most, and no part of any leaf.
    assert "all-reduce" in text or gathered
    assert all(math.prod(map(int, shape.split(","))) <= 8 for shape in gathered)
    for tree in (result[0], result[1].masks):
        for a, w in zip(*map(jax.tree.leaves, (tree, sharded)), strict=True):
            assert a.sharding.is_equivalent_to(w.sharding, w.ndim)
    chex.assert_trees_all_equal(on_host(result), on_host(expected))
    kept = jax.tree.map(jnp.count_nonzero, expected[1].masks)
    assert (kept["a"]["bias"], kept["b"]["kernel"]) == (12, 50)  # floors are at work
    assert (expected[1].shortfall > 0) == (distribution == "uniform")


STRUCTURES = {
    "n:m": {"structure": sparse_optax.NM(2, 4)},
    "n:m of layers": {
        "structure": sparse_optax.NM(1, 2, axis=-1),
        "stacked": {"a/kernel": 1, "b/kernel": 0},
    },
    "blocks": {"structure": sparse_optax.Block((4, 2))},
    "channels": {"structure": sparse_optax.Channel()},
}
CRITERIA = {
    "n:m": sparse_optax.saliency,
    "n:m of layers": sparse_optax.random(jax.random.key(0)),
    "blocks": sparse_optax.per_leaf(sparse_optax.magnitude),
    "channels": sparse_optax.relevance(1.0),
}


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT], ids=lambda x: x.name)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", STRUCTURES)
def test_units_that_extend_over_devices_equal_those_of_one(name, layout, kind):
    tx = sparse_optax.prune_by(CRITERIA[name], 0.4, **STRUCTURES[name])

    def step(params, grads):
        updates, state = tx.update(
            grads, tx.init(params), params, prune=jnp.array(True), grad=grads
        )
        return optax.apply_updates(params, updates), state

    trees = tied(0), tied(1)
    expected = step(*trees)
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        sharded = [shard(tree, layout, mesh) for tree in trees]
        params, state = jax.jit(step)(*sharded)
        chex.assert_trees_all_equal(on_host((params, state)), on_host(expected))
        for weight, new in zip(
            *map(jax.tree.leaves, (sharded[0], params)), strict=True
        ):
            assert new.sharding.is_equivalent_to(weight.sharding, weight.ndim)
        for leaf in ("a", "b"):
            mask = state.masks[leaf]["kernel"]
            weight = sharded[0][leaf]["kernel"]
            assert mask.sharding.is_equivalent_to(weight.sharding, weight.ndim)


def types(tree):
    return jax.tree.map(jax.typeof, tree)


TRANSFORMATIONS = {
    "chain": lambda: make_chain(optax.adam(0.1)),
    "gradual": lambda: sparse_optax.prune_to_sparsity(0.3, mask=None),
    "whole": lambda: make_whole(optax.adam(0.1), decoupled=True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_state_has_the_same_types_after_init_and_update(name, layout):
    """On an explicit mesh shardings are part of types; jit and eager agree on them."""
    tx, mesh = TRANSFORMATIONS[name](), mesh_of(EXPLICIT)
    with jax.set_mesh(mesh):
        params, grads = (
            shard(random_tree(seed, shapes=SHAPES), layout, mesh) for seed in range(2)
        )
        state = tx.init(params)
        assert types(state) == types(jax.jit(tx.init)(params))
        (pruning,) = find_states(state, PruneState)
        for mask, weight in zip(
            *map(jax.tree.leaves, (pruning.masks, params)), strict=True
        ):
            assert jax.typeof(mask).sharding == jax.typeof(weight).sharding
        for extra in ({}, {"prune": True}, {"prune": jnp.array(True)}):
            updates, after = jax.eval_shape(
                lambda g, s, p, extra=extra: tx.update(g, s, p, **extra),
                *(grads, state, params),
            )
            assert types(after) == types(state)
            assert types(updates) == types(params)


def test_other_functions_work_on_sharded_arrays():
    tx = sparse_optax.prune_by_magnitude(0.5, mask=None)
    mesh = mesh_of(EXPLICIT)
    with jax.set_mesh(mesh):
        params = shard(random_tree(0, shapes=SHAPES), "both", mesh)
        pruned, state = sparse_optax.prune(params, tx.init(params), 0.5)
        sparse_optax.check_sparsity(pruned, state)
        assert sparse_optax.sparsity(pruned) == 0.5
        masks = sparse_optax.get_masks(state)
        assert sparse_optax.sparsity_report(pruned, masks).total.kept == 104
        marked = sparse_optax.masks_from_zeros(pruned, tx.init(params), mask=None)
        assert types(marked) == types(state)
        chex.assert_trees_all_equal(on_host(marked.masks), on_host(masks))


@pytest.mark.slow
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
        one_of_them = jax.tree.map(lambda x, i=index: x[i], pruned)
        chex.assert_trees_all_equal(on_host(one_of_them), on_host(prune(params)))
