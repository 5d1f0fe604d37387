"""Compiles an update and a pruning step for other devices.

Nothing runs: programs are compiled ahead of time, for a TPU by libtpu and for a GPU by
JAX's CUDA plugin, which need no device (`pip install libtpu "jax[cuda12]"`). Kernels,
bytes and temporaries come from the compiler's own analysis.
"""

import os
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import sparse_optax
from experiments.cost import steps
from experiments.records import Row
from experiments.settings import ExperimentError

Target = Literal["h100", "v5e"]

# What XLA's CUDA compiler needs, from NVIDIA's data sheet and CUDA's properties.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 1 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def analyses(target: Target, size: int) -> Iterator[Row]:
    """Yields what a compiler reports about each program, for weights in 30 matrices."""
    sharding = SingleDeviceSharding(_device(target))

    def on_device(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    params = [jax.ShapeDtypeStruct((max(size // 30_000, 1), 1000), jnp.float32)] * 30
    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    fraction = jax.ShapeDtypeStruct((), jnp.float32)
    prune = jax.jit(sparse_optax.prune, donate_argnums=(0, 1))
    for name, tx, extra in (
        ("`chain(add_decayed_weights, adam)`", steps.PLAIN, {}),
        (steps.CHAIN_NAME, steps.CHAIN, {}),
        (f"{steps.CHAIN_NAME}, traced `prune`", steps.CHAIN, {"prune": flag}),
        ("`relevance_pruning(adam)`", steps.WHOLE, {}),
        ("`prune`", steps.CHAIN, None),
    ):
        state = jax.eval_shape(tx.init, params)
        if extra is None:
            lowered = prune.lower(*on_device((params, state, fraction)))
        else:
            given, extra = on_device(((params, state, params), extra))
            lowered = steps.make_update(tx).lower(*given, **extra)
        compiled = lowered.compile()
        # The CUDA compiler counts no bytes.
        moved = (compiled.cost_analysis() or {}).get("bytes accessed")
        weights = sum(x.size for x in params)
        yield {
            "program": name,
            "kernels": str(compiled.as_text()).count(" fusion("),
            "bytes a weight": None if moved is None else moved / weights,
            "temporaries, bytes a weight": steps.temporaries(compiled, params),
        }


def _device(target: Target) -> Any:
    try:
        if target == "v5e":
            os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to query
            os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
            found = topologies.get_topology_desc("v5e:2x2", platform="tpu")
        else:
            os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # no device
            found = topologies.get_topology_desc(
                "", platform="cuda", target_config=_H100, topology="1x1x1"
            )
    except Exception as error:  # whatever a missing plugin raises
        package = "libtpu" if target == "v5e" else "jax[cuda12]"
        raise ExperimentError(
            f"cannot compile for {target}, which needs {package}: {error}"
        ) from error
    return found.devices[0]
