"""Checkpoints: damage is noticed, and runs end the same whatever happens to them."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from short_runs import (
    ROOT,
    assert_same_run,
    checkpoints as checkpoints_of,
    compilation_settings,
    digits,
    error_line,
    quickly,  # noqa: F401
    read_rows,
    read_summary,
)

import sparse_optax
from experiments.__main__ import main
from experiments.networks.functional import Variables
from experiments.running import other_networks
from experiments.running.checkpoint import Checkpoints
from experiments.settings import ExperimentError
from experiments.training import loop

pytestmark = pytest.mark.quickly_compiled

NUM_DAMAGES = 60


def small_state(seed):
    """Returns what training has, as far as a checkpoint is concerned."""
    params = {"layer": {"kernel": jax.random.normal(jax.random.key(seed), (30, 20))}}
    tx = sparse_optax.relevance_pruning(optax.adam(1e-3), 1e-4, mask=None)
    return {"params": params, "opt_state": tx.init(params)}


def saved(folder, numbers, run="run"):
    checkpoints = Checkpoints(folder, run)
    for number in numbers:
        checkpoints.save(number, small_state(number), {"metrics": "", "seconds": 1.0})
    return checkpoints


def latest(folder, digest=lambda count: ""):
    """Returns the last valid checkpoint, and what is said about others."""
    said = []
    return Checkpoints(folder, "run").latest(said.append, digest), said


def flip_a_bit(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def test_every_damage_is_noticed(tmp_path):
    sound, folder = tmp_path / "sound", tmp_path / "damaged"
    saved(sound, [1, 2])
    assert latest(sound) == (2, [])
    rng = random.Random(0)
    for number in range(NUM_DAMAGES):
        shutil.copytree(sound, folder)
        other, path = sorted(folder.iterdir())
        if number % 2:  # half of them single bits, which are the hardest to notice
            flip_a_bit(path, rng)
        else:
            noise, content = rng.randbytes(rng.randrange(1, 2000)), path.read_bytes()
            cut = content[: rng.randrange(len(content))]
            path.write_bytes(rng.choice((noise, cut, other.read_bytes())))
        count, (message,) = latest(folder)
        assert count == 1, number
        assert message.startswith(f"{path} is damaged: ") and "set aside" in message
        assert path.with_name(path.name + ".damaged").exists() and not path.exists()
        assert latest(folder) == (1, [])
        shutil.rmtree(folder)


def test_valid_checkpoints_restore_bit_for_bit(tmp_path):
    checkpoints = saved(tmp_path / "checkpoints", [1, 2, 3])
    assert [*checkpoints.files()] == [2, 3]
    restored = checkpoints.restore(3, small_state(0))
    for a, b in zip(*map(jax.tree.leaves, (restored, small_state(3))), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    notes, arrays = checkpoints.read(3)
    assert notes["seconds"] == 1.0 and "params/layer/kernel" in arrays


def test_foreign_checkpoints_are_set_aside(tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    saved(own, [1])
    saved(other, [5], run="other")
    (first,), (foreign,) = map(list, (own.iterdir(), other.iterdir()))
    shutil.copy(first, own / first.name.replace("000001", "000004"))
    shutil.copy(foreign, own / foreign.name)
    (own / f"{first.name}.tmp").write_text("left by a kill")
    (own / "notes.txt").write_text("of no interest")
    count, said = latest(own)
    assert count == 1
    assert "is checkpoint 5 of other, not of this run" in said[0]
    assert "is checkpoint 1 of run, not of this run" in said[1]
    assert latest(own) == (1, []) and not [*own.glob("*.tmp")]


def test_checkpoints_whose_rows_are_gone_are_set_aside(tmp_path):
    checkpoints = Checkpoints(tmp_path, "run")
    for number in (1, 2):
        checkpoints.save(number, small_state(0), {"metrics": f"rows {number}"})
    with pytest.raises(ExperimentError, match="does not match any checkpoint"):
        latest(tmp_path, {}.get)
    count, (message,) = latest(tmp_path, {1: "rows 1", 2: "others"}.get)
    assert count == 1 and "metrics.jsonl does not match it" in message
    assert latest(tmp_path, {1: "rows 1"}.get) == (1, [])


def test_restoring_another_tree_raises(tmp_path):
    state = small_state(1)
    checkpoints = saved(tmp_path, [1])
    pruning = state["opt_state"].pruning
    pruning = pruning._replace(masks=jax.tree.map(jnp.float32, pruning.masks))
    wide = jax.tree.map(lambda x: jnp.zeros((*x.shape[:-1], 40), x.dtype), state)
    for changes, message in (
        (
            {"opt_state": state["opt_state"]._replace(pruning=pruning)},
            r"bool\[30, 20\] at opt_state/pruning/masks/layer/kernel.* has float32\[",
        ),
        ({"params": wide["params"]}, r"float32\[30, 20\] at params/layer/kern.*, 40\]"),
        ({"params": {"other": state["params"]}}, "nothing at params/other/layer/kern"),
        ({"opt_state": ()}, r"at opt_state.* has nothing"),
    ):
        with pytest.raises(ExperimentError, match=message):
            checkpoints.restore(1, {**state, **changes})


def test_checkpoints_restore_on_other_devices(tmp_path):
    mesh = jax.make_mesh((8,), ("x",))
    state = {"w": jnp.arange(16.0), "masks": jnp.arange(16) % 3 == 0}
    spread = jax.device_put(state, jax.NamedSharding(mesh, jax.P("x")))
    checkpoints = Checkpoints(tmp_path, "run")
    checkpoints.save(1, spread, {})
    for target in (jax.tree.map(jnp.zeros_like, state), spread):
        restored = checkpoints.restore(1, target)
        for name, leaf in state.items():
            np.testing.assert_array_equal(restored[name], leaf)
            assert restored[name].sharding == target[name].sharding


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the digits."""
    out = tmp_path_factory.mktemp("digits") / "run"
    main(digits(out))
    return out


def test_damaged_runs_resume_from_earlier_checkpoints_or_raise(
    finished, tmp_path, capsys
):
    out = shutil.copytree(finished, tmp_path / "run")
    metrics, summary = out / "metrics.jsonl", out / "summary.json"

    def resume():
        """Goes on as if it had been killed at its end; returns what is said."""
        summary.unlink()
        main(digits(out))
        assert_same_run(finished, out)
        return capsys.readouterr().out

    path = checkpoints_of(out)[-1]
    flip_a_bit(path, random.Random(0))
    # Rows that are in no checkpoint, the last one torn by a kill.
    with metrics.open("a") as file:
        file.write('{"phase": "finetune"}\n{"phase": "fi')
    said = resume()
    assert f"{path} is damaged" in said and "Resuming after" in said
    # Rows that are gone are made again, and others are refused.
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    assert "does not match it" in resume()
    summary.unlink()
    metrics.write_text(metrics.read_text().replace('"step": 16,', '"step": 17,'))
    before = sorted(out.rglob("*"))
    assert "does not match any checkpoint" in error_line(digits(out))
    assert sorted(out.rglob("*")) == before  # nothing is lost


@pytest.mark.slow
def test_a_run_from_a_dense_network_is_the_run_that_trains_it(finished, tmp_path):
    flags = "--regularizer", "l2", "--epochs", "2", "--finetune-epochs", "0"
    main(digits(tmp_path / "l2", *flags))
    main(digits(tmp_path / "taken", *flags, "--dense-from", str(finished)))
    assert_same_run(tmp_path / "l2", tmp_path / "taken")


def test_unusable_dense_networks_raise(finished, tmp_path):
    def error(folder, *flags):
        out = tmp_path / "run"
        line = error_line(digits(out, *flags, "--dense-from", str(folder)))
        assert not out.exists()
        return line

    message = "its dense training differs (seed 0 there, 1 here)"
    assert message in error(finished, "--seed", "1")
    message = "its dense training differs (dense_strength 0.0 there, 0.1 here)"
    assert message in error(finished, "--dense-strength", "0.1")
    assert "there is no run" in error(tmp_path / "none")
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "metrics.jsonl").write_text("{}\n" * 20)
    assert "its metrics are damaged" in error(copy)
    for path in checkpoints_of(copy):
        path.write_bytes(path.read_bytes()[:-1])
    assert "it has no valid checkpoint" in error(copy)


def test_a_run_can_start_from_another_runs_pruned_network(
    finished, tmp_path, monkeypatch
):
    def zeros(out):
        params = sparse_optax.load_sparse(out / "network.safetensors")["params"]
        return jax.tree.map(lambda w: np.asarray(w) == 0, params)

    flags = "--epochs", "2", "--finetune-epochs", "0", "--dense-from", str(finished)
    main(digits(tmp_path / "run", *flags, "--pruned-from", str(finished)))
    still = jax.tree.map(
        lambda old, new: bool(new[old].all()), zeros(finished), zeros(tmp_path / "run")
    )
    assert all(jax.tree.leaves(still))
    assert any(x.any() for x in jax.tree.leaves(zeros(finished)))
    before = read_summary(finished)["sparsity"]
    assert read_summary(tmp_path / "run")["start_sparsity"] == pytest.approx(before)
    gradual = "--prune", "gradual", "--target-sparsity", "0.01"
    gradual = *gradual, "--pruned-from", str(finished)
    line = error_line(digits(tmp_path / "no", *flags, *gradual))
    assert f"--target-sparsity must be at least {before:.4g}, the sparsity of" in line
    line = error_line(digits(tmp_path / "no", *flags, "--pruned-from", str(tmp_path)))
    assert "contains no finished run" in line and not (tmp_path / "no").exists()
    (tmp_path / "run" / "summary.json").unlink()
    monkeypatch.setattr(loop, "sparsity", lambda params: before / 2)
    again = digits(tmp_path / "run", *flags, "--pruned-from", str(finished))
    assert "it has changed since the run in" in error_line(again)
    other = types.SimpleNamespace(variables=Variables({"w": np.ones(3)}, {}))
    config = types.SimpleNamespace(pruned_from=str(finished))
    with pytest.raises(ExperimentError, match=r"--pruned-from .*network.safetensors"):
        other_networks.pruned(config, other)


def start(out, *flags, limit=resource.RLIM_INFINITY):
    """Starts a run in a process of its own, which may write files up to a limit."""
    # Ctrl-C works even if this process was started in the background of a shell, which
    # makes it and its children ignore that.
    program = f"""
import resource, runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
runpy.run_module("experiments", run_name="__main__", alter_sys=True)
"""
    settings = compilation_settings(out.parent / "xla")
    return subprocess.Popen(
        [sys.executable, "-c", program, *digits(out, *flags)],
        cwd=ROOT,
        env=os.environ | {name.upper(): str(x) for name, x in settings.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(out, *flags):
    """Makes a run to its end; returns what it said."""
    process = start(out, *flags)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def count_rows(out):
    metrics = out / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def wait_for(condition, process):
    """Waits until something holds, or the process has ended."""
    deadline = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits(tmp_path):
    flags = "--epochs", "20", "--fraction", "0.05"
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    def last_write():
        metrics = killed / "metrics.jsonl"
        return metrics.stat().st_mtime_ns if metrics.exists() else None

    def kill_when(condition, delay=0.0, how=signal.SIGKILL):
        before = last_write()
        process = start(killed, *flags)
        # What the run before left may meet the condition: Python has not started then.
        wait_for(lambda: last_write() != before and condition(), process)
        time.sleep(delay)
        while True:
            process.send_signal(how)
            try:  # Where Python only reports exceptions, one signal may be lost.
                output, _ = process.communicate(timeout=10)
                break
            except subprocess.TimeoutExpired:
                continue
        interrupted = how == signal.SIGINT
        assert process.returncode == (130 if interrupted else -how), output
        assert ("interrupted" in output) == interrupted and "Traceback" not in output

    # In dense training, near the write of a checkpoint, and in pruning.
    kill_when(lambda: count_rows(killed) >= 1)
    kill_when(lambda: any(killed.glob("checkpoints/*.tmp")))
    kill_when(lambda: count_rows(killed) >= 8, random.uniform(0, 0.03))
    # By Ctrl-C, later than the last checkpoint: some rows are made again.
    kill_when(lambda: count_rows(killed) >= 14, how=signal.SIGINT)
    assert "Resuming after" in finish(killed, *flags)
    assert "Resuming after" not in finish(whole, *flags)
    assert_same_run(killed, whole)
    rows = read_rows(whole)
    assert len({(row["phase"], row["round"]) for row in rows}) == len(rows) == 25


@pytest.mark.slow
def test_a_run_on_a_full_disk_resumes_when_there_is_room(tmp_path):
    """A limit to the size of files fails as a full disk does, and only here."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    # The network and its moments fit, but not with the pruned and the best ones.
    process = start(out, limit=1_000_000)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in output, output
    said = " ".join(output.split())
    assert "error: cannot save checkpoint 6 in" in said and "File too large" in said
    assert "resumes from the checkpoint before" in said
    assert [path.name[:6] for path in (out / "checkpoints").iterdir()] == ["000003"]
    assert "Resuming after round 3." in finish(out)
    finish(whole)
    assert_same_run(out, whole)
