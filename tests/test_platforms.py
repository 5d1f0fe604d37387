"""Programs for CPU, GPU and TPU, and what they cost on a CPU by XLA's count."""

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import make_chain, make_step, make_whole

import sparse_optax

PARAMS = {
    "embedding": jax.ShapeDtypeStruct((60, 40), jnp.bfloat16),
    "kernel": jax.ShapeDtypeStruct((40, 30), jnp.float32),
    "bias": jax.ShapeDtypeStruct((30,), jnp.float32),
}
CHAIN, WHOLE = (make(optax.adam(1e-3)) for make in (make_chain, make_whole))
GRADUAL = sparse_optax.prune_to_sparsity(optax.linear_schedule(0, 1, 100), mask=None)


def exported(function, *args):
    """The program of each platform; none of them has to be there."""
    function = jax.jit(function)
    return {
        platform: jax.export.export(function, platforms=[platform])(*args).mlir_module()
        for platform in ("cpu", "cuda", "tpu")
    }


def pruning_step(tx):
    extra = {} if tx is GRADUAL else {"prune": True}
    return lambda params, state, grads: make_step(tx)(params, state, grads, **extra)


@pytest.mark.parametrize("tx", [CHAIN, WHOLE, GRADUAL], ids=["chain", "whole", "alone"])
def test_a_step_lowers_for_every_platform(tx):
    state = jax.eval_shape(tx.init, PARAMS)
    modules = exported(pruning_step(tx), PARAMS, state, PARAMS)
    for platform, module in modules.items():
        # There an `exp` costs nothing, and to sort or to scatter is slow.
        assert ("stablehlo.exponential" in module) == (
            platform != "cpu" and tx is not GRADUAL
        )
        assert "stablehlo.sort" not in module and "stablehlo.scatter" not in module


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_prune_lowers_for_every_platform(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        params = [jax.ShapeDtypeStruct(w.shape, dtype) for w in PARAMS.values()]
        state = jax.eval_shape(CHAIN.init, params)
        modules = exported(sparse_optax.prune, params, state, 0.1)
    for module in modules.values():
        assert "stablehlo.while" in module and "stablehlo.reduce" in module
        assert "stablehlo.sort" not in module and "stablehlo.scatter" not in module


def test_a_step_on_many_devices_lowers_for_every_platform():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        rows = jax.NamedSharding(mesh, jax.P("data"))
        params = [jax.ShapeDtypeStruct((40, 30), jnp.float32, sharding=rows)]
        state = jax.eval_shape(CHAIN.init, params)
        modules = exported(pruning_step(CHAIN), params, state, params)
    for module in modules.values():
        assert "num_partitions = 8" in module


def costs(tx):
    """Bytes moved and bytes of temporaries of a step, for each of a million weights."""
    params = {str(i): jax.ShapeDtypeStruct((500, 400), jnp.float32) for i in range(5)}
    state = jax.eval_shape(tx.init, params)
    step = jax.jit(make_step(tx), donate_argnums=(0, 1))
    compiled = step.lower(params, state, params).compile()
    return (
        compiled.cost_analysis()["bytes accessed"] / 1e6,
        compiled.memory_analysis().temp_size_in_bytes / 1e6,
    )


def test_an_update_reads_one_byte_per_weight_more_than_weight_decay():
    plain, _ = costs(optax.chain(optax.add_decayed_weights(1e-4), optax.adam(1e-3)))
    moved, temporaries = costs(CHAIN)
    assert plain < moved <= plain + 1.01
    assert temporaries < 0.01
