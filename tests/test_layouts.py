"""A transformer laid out over eight devices as it is in practice.

Given the same weights and gradients, a step and `prune` do what they do on one device,
bit for bit, and what devices exchange does not grow with the network.
"""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import make_step, mesh_of, num_kept, on_host
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from transformer import (
    NUM_LEAVES,
    TX,
    shardings,
    train,
    transformer,
)

import sparse_optax
from experiments.cost import footprint

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


@functools.cache
def on_one_device():
    return on_host(train(transformer(0), transformer(1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "kind", "within_mesh"),
    [
        ("fsdp", EXPLICIT, True),
        ("fsdp", AUTO, False),
        ("data-parallel", EXPLICIT, True),
        ("tensor-parallel", AUTO, True),
    ],
)
def test_a_step_and_prune_are_those_of_one_device(layout, kind, within_mesh):
    mesh = mesh_of(kind)
    params, grads = (
        jax.device_put(transformer(seed), shardings(layout, mesh)) for seed in range(2)
    )
    with jax.set_mesh(mesh) if within_mesh else contextlib.nullcontext():
        result = train(params, grads)
    chex.assert_trees_all_equal(on_host(result), on_one_device())
    masks = sparse_optax.get_masks(result[1])
    assert 0 < num_kept(masks) < 0.43 * sum(w.size for w in jax.tree.leaves(params))
    for mask, weight in zip(*map(jax.tree.leaves, (masks, result[0])), strict=True):
        assert mask.sharding.is_equivalent_to(weight.sharding, weight.ndim)


def assert_exchange_does_not_grow(compiled):
    """`compiled` makes the program for a width of the network."""
    small, large = (footprint.exchanged(compiled(n).as_text()) for n in (16, 64))
    assert 0 < small == large <= 80 * NUM_LEAVES  # bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "kind", "within_mesh"),
    [
        ("fsdp", AUTO, False),
        ("fsdp", EXPLICIT, True),
        ("tensor-parallel", AUTO, True),
    ],
)
def test_what_devices_exchange_does_not_grow_with_the_network(
    layout, kind, within_mesh
):
    mesh = mesh_of(kind)

    def compiled(width):
        params = jax.device_put(transformer(0, width), shardings(layout, mesh))
        with jax.set_mesh(mesh) if within_mesh else contextlib.nullcontext():
            state = TX.init(params)
            if layout == "fsdp":
                lowered = jax.jit(sparse_optax.prune).lower(params, state, 0.3)
            else:
                lowered = jax.jit(make_step(TX)).lower(
                    params, state, params, prune=jnp.array(True)
                )
            return lowered.compile()

    assert_exchange_does_not_grow(compiled)


@pytest.mark.slow
def test_arrays_without_a_sharding_of_their_own_are_not_gathered_either():
    """Where only `jit` says how arguments lie, and the mesh is that of the context."""
    mesh = mesh_of(AUTO)

    def compiled(width):
        params = transformer(0, width)
        state = TX.init(params)
        of_params = shardings("fsdp", mesh)
        of_state = optax.tree.map_params(
            *(TX, lambda _, s: s, state, of_params),
            transform_non_params=lambda _: NamedSharding(mesh, P()),
        )
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, state)
        )
        with jax.set_mesh(mesh):
            program = jax.jit(
                sparse_optax.prune,
                in_shardings=(of_params, of_state, None),
                out_shardings=(of_params, of_state),
            )
            return program.lower(*abstract, 0.3).compile()

    assert_exchange_does_not_grow(compiled)
