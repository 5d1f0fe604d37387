"""One process of a job that trains the transformer, for test_processes to start.

It goes on from the job's last checkpoint, makes one after every update, and leaves the
weights and masks of the whole network at the end.
"""

import argparse
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from helpers import make_step, on_host
from jax.experimental import multihost_utils
from jax.sharding import AxisType
from transformer import TX, shardings, transformer

import sparse_optax


def start(params):
    """The network after a first prune, with the state of its optimizer."""
    return sparse_optax.prune(params, jax.jit(TX.init)(params), 0.3)


@jax.jit
def update(run, grads, number):
    """An update, and a pruning step at every second one."""
    return make_step(TX)(*run, grads, prune=number % 2 == 1)


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", default="fsdp")
    parser.add_argument("--num-processes", type=int, default=1)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--port", type=int)
    parser.add_argument("--num-devices", type=int, help="of this process")
    parser.add_argument("--num-updates", type=int)
    parser.add_argument("--killed-at", type=int, help="this update, made and not saved")
    return parser.parse_args()


def main(job):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", job.num_devices)
    if job.num_processes > 1:
        jax.distributed.initialize(
            f"localhost:{job.port}", job.num_processes, job.index
        )
    assert jax.device_count() == job.num_processes * job.num_devices
    model = min(jax.device_count(), 2)
    mesh = jax.make_mesh(
        (jax.device_count() // model, model),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
    )
    with jax.set_mesh(mesh):
        params, grads = (
            jax.device_put(on_host(transformer(seed)), shardings(job.layout, mesh))
            for seed in range(2)
        )
        run = start(params)
        manager = ocp.CheckpointManager(
            job.folder / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2, enable_async_checkpointing=False
            ),
        )
        done = manager.latest_step() or 0
        if done:
            like = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                run,
            )
            run = manager.restore(done, args=ocp.args.StandardRestore(like))
        for number in range(done, job.num_updates):
            run = jax.block_until_ready(update(run, grads, jnp.asarray(number)))
            if number == job.killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            manager.save(number + 1, args=ocp.args.StandardSave(run))
        if job.num_processes > 1:
            try:  # of which this process has a part
                sparse_optax.save_sparse(job.folder / "sparse", run[0])
            except ValueError as error:
                (job.folder / f"refused-{job.index}").write_text(str(error))
        result = multihost_utils.process_allgather(run, tiled=True)
    if job.index == 0:
        leaves = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(result))}
        np.savez(job.folder / "result.npz", went_on_from=done, **leaves)


if __name__ == "__main__":
    main(parse())
