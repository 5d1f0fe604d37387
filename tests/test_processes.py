"""Several processes with devices of their own, as on several hosts: one's masks.

They find each other on this machine, and are killed and started anew as jobs are.
"""

import contextlib
import functools
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import on_host
from job import start, update
from transformer import transformer

PROGRAM = Path(__file__).parent / "job.py"
NUM_UPDATES = 4


@functools.cache
def expected():
    """What one device comes to, uninterrupted."""
    run, grads = start(transformer(0)), transformer(1)
    for number in range(NUM_UPDATES):
        run = update(run, grads, jnp.asarray(number))
    return jax.tree.leaves(on_host(run))


def free_port():
    with contextlib.closing(socket.socket()) as here:
        here.bind(("localhost", 0))
        return here.getsockname()[1]


def launch(folder, num_processes, num_devices, *more):
    """Starts a job and waits for its first process; returns how that ended.

    With it the job is over: the others are not left to wait for it.
    """
    command = [
        *(sys.executable, str(PROGRAM), str(folder)),
        *("--num-processes", str(num_processes), "--port", str(free_port())),
        *("--num-devices", str(num_devices), "--num-updates", str(NUM_UPDATES)),
        *more,
    ]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("w+"))
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, "--index", str(index)], stdout=log, stderr=log
                )
            )
            for index in range(num_processes)
        ]
        try:
            processes[0].wait(timeout=300)
        finally:
            for process in processes:
                process.kill()
        log.seek(0)
        return processes[0].returncode, log.read()


def check_result(folder, went_on_from):
    """Bit for bit what one device comes to, weights, moments, masks and counts."""
    result = np.load(folder / "result.npz")
    assert result["went_on_from"] == went_on_from
    for index, leaf in enumerate(expected()):
        found = result[str(index)]
        assert found.dtype == leaf.dtype
        np.testing.assert_array_equal(found, leaf)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_processes", "layout"), [(2, "tensor-parallel"), (4, "fsdp")]
)
def test_several_processes_prune_like_one(tmp_path, num_processes, layout):
    each = 8 // num_processes
    code, log = launch(tmp_path, num_processes, each, "--layout", layout)
    assert code == 0, log
    check_result(tmp_path, went_on_from=0)
    refused = (tmp_path / "refused-0").read_text()
    assert "which is partly on devices of other processes" in refused
    assert not (tmp_path / "sparse").exists()


@pytest.mark.slow
def test_killed_jobs_resume_on_other_devices(tmp_path):
    """Two processes of four devices each, then one of two, and then of one."""
    for jobs, killed_at in (((2, 4), 1), ((1, 2), 2)):
        code, log = launch(tmp_path, *jobs, "--killed-at", str(killed_at))
        assert code == -signal.SIGKILL, log
        assert not (tmp_path / "result.npz").exists()
    code, log = launch(tmp_path, 1, 1)
    assert code == 0, log
    check_result(tmp_path, went_on_from=2)
