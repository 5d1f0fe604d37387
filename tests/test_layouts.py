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
import orbax.checkpoint as ocp
import pytest
from helpers import make_step, num_kept
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from transformer import (
    NUM_LEAVES,
    TX,
    on_host,
    shardings,
    train,
    transformer,
)

import sparse_optax
from experiments.cost import footprint
from sparse_optax import PruneState

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


def mesh_of(kind):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))


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
    assert small == large
    assert set(small) == {"all-reduce"}
    assert 0 < small["all-reduce"] <= 80 * NUM_LEAVES  # bytes


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


def test_masks_can_be_sharded_like_weights():
    """On an automatic mesh `jit` of `init` decides alone without `out_shardings`."""
    mesh = mesh_of(AUTO)
    with jax.set_mesh(mesh):
        params = jax.device_put(transformer(0), shardings("fsdp", mesh))
        tx = sparse_optax.prune_by_magnitude(0.1, mask=None)
        everywhere = NamedSharding(mesh, P())
        like = PruneState(shardings("fsdp", mesh), everywhere, everywhere)
        state = jax.jit(tx.init, out_shardings=like)(params)
    for mask, weight in zip(*map(jax.tree.leaves, (state.masks, params)), strict=True):
        assert mask.sharding.is_equivalent_to(weight.sharding, weight.ndim)


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_devices(tmp_path):
    """From a checkpoint of eight devices on two, and from that on one."""
    step = jax.jit(make_step(TX))
    grads = transformer(1)

    def go_on(run):
        params, state = run
        here = jax.tree.map(lambda g, w: jax.device_put(g, w.sharding), grads, params)
        params, state = step(params, state, here, prune=jnp.array(True))
        return step(params, state, here, prune=jnp.array(False))

    def on(num_devices):
        """A run, as it lies on that many devices: what a checkpoint is restored to."""
        mesh = jax.make_mesh(
            (num_devices, 1),
            ("data", "model"),
            axis_types=(AxisType.Auto,) * 2,
            devices=jax.devices()[:num_devices],
        )
        params = jax.device_put(transformer(0), shardings("fsdp", mesh))
        with jax.set_mesh(mesh):  # so that counts, too, lie on all of its devices
            return params, jax.jit(TX.init)(params)

    expected = on(1)
    run = on(8)
    with ocp.StandardCheckpointer() as checkpointer:
        for number, num_devices in enumerate((2, 1)):
            expected, run = go_on(expected), go_on(run)
            checkpointer.save(tmp_path / str(number), run)
            checkpointer.wait_until_finished()
            like = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                on(num_devices),
            )
            run = checkpointer.restore(tmp_path / str(number), like)
            for weight in jax.tree.leaves(run[0]):
                assert len(weight.sharding.device_set) == num_devices
            chex.assert_trees_all_equal(on_host(run), on_host(expected))
    chex.assert_trees_all_equal(on_host(go_on(run)), on_host(go_on(expected)))
