"""Checkpoints: no damage unnoticed, and the same end whatever happens on the way."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import assert_same_run, digits, error_line, read_rows

import sparse_optax
from experiments.__main__ import main
from experiments.config import ExperimentError
from experiments.records import RunFolder
from experiments.running import checkpoint
from experiments.running.checkpoint import Checkpoints
from experiments.training import loop

ROOT = Path(__file__).parent.parent
# As many of each as CI has time for; fifty kills take some ten minutes.
NUM_KILLS = int(os.environ.get("SPARSE_OPTAX_KILLS", "5"))
NUM_DAMAGES = 200


def small_state(seed):
    """What training has, as far as a checkpoint is concerned."""
    params = {"layer": {"kernel": jax.random.normal(jax.random.key(seed), (30, 20))}}
    tx = sparse_optax.relevance_pruning(optax.adam(1e-3), 1e-4, mask=None)
    return {"params": params, "opt_state": tx.init(params)}


def saved(folder, numbers):
    """Checkpoints of small states."""
    checkpoints = Checkpoints(folder, "run")
    for number in numbers:
        checkpoints.save(number, small_state(number), {"seconds": 1.0})
    return checkpoints


def latest(folder, run="run", digest=lambda count: ""):
    """The last sound checkpoint, and what is told of others."""
    told = []
    return Checkpoints(folder, run).latest(told.append, digest), told


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------ damage


def flip_a_bit(rng, folder):
    path = rng.choice([path for path in files(folder) if path.stat().st_size])
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return path


def truncate(rng, folder):
    path = rng.choice([path for path in files(folder) if path.stat().st_size])
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    return path


def remove(rng, folder):
    path = rng.choice(files(folder))
    path.unlink()
    return path


def overwrite(rng, folder):
    path = rng.choice(files(folder))
    path.write_bytes(rng.randbytes(rng.randrange(1, 2000)))
    return path


def add(rng, folder):
    path = rng.choice([folder, *(x for x in folder.rglob("*") if x.is_dir())])
    path = path / f"{rng.randrange(10**9)}"
    path.write_bytes(b"foreign")
    return path


def replace_json(rng, folder):
    """What is read as JSON, but says something else."""
    texts = [path for path in files(folder) if path.read_bytes()[:1] in b"{["]
    path = rng.choice(texts)
    path.write_text(rng.choice(["[]", "{}", "1", "null", '{"item_handlers": 5}']))
    return path


def take_from_another(rng, folder):
    """A file of the checkpoint before in place of its own."""
    before = folder.parent / "1"
    names = [path.relative_to(folder) for path in files(folder)]
    path = folder / rng.choice(
        [
            name
            for name in names
            if (before / name).exists()
            and (before / name).read_bytes() != (folder / name).read_bytes()
        ]
    )
    shutil.copy(before / path.relative_to(folder), path)
    return path


DAMAGES = (
    *(flip_a_bit, truncate, remove, overwrite, add),
    *(replace_json, take_from_another),
)


def test_row_18_no_damage_goes_unnoticed(tmp_path):
    sound = tmp_path / "sound"
    saved(sound, [1, 2])
    assert latest(sound) == (2, [])
    rng = random.Random(0)
    for number in range(NUM_DAMAGES):
        folder = tmp_path / "damaged"
        shutil.copytree(sound, folder)
        # Half of them single bits, which are the hardest to notice.
        damage = flip_a_bit if number % 2 else rng.choice(DAMAGES)
        path = damage(rng, folder / "2").relative_to(folder / "2")
        count, told = latest(folder)
        assert count == 1, (damage, path)
        (message,) = told
        if damage is remove and path.name == "manifest.json":  # as a kill leaves it
            assert message == "Checkpoint 2 was not finished, and is removed."
        else:
            assert message.startswith("Checkpoint 2 cannot be used, and is put aside: ")
            # Of a damaged manifest it is told where it is at odds with the files.
            assert str(path) in message or path.name == "manifest.json"
            assert (folder / "2.damaged").exists()
        assert not (folder / "2").exists()
        assert latest(folder) == (1, [])
        shutil.rmtree(folder)


def test_row_18_a_sound_one_is_restored_bit_by_bit(tmp_path):
    checkpoints = saved(tmp_path / "checkpoints", [1, 2, 3])
    restored = checkpoints.restore(3, small_state(0))
    for a, b in zip(*map(jax.tree.leaves, (restored, small_state(3))), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert checkpoints.notes(3)["seconds"] == 1.0


def test_row_18_all_of_them_may_be_damaged(tmp_path):
    saved(tmp_path, [1, 2])
    for number in (1, 2):
        (tmp_path / str(number) / "manifest.json").write_text("{}")
    count, told = latest(tmp_path)
    assert count is None
    assert [message.split(":")[0] for message in told] == [
        "Checkpoint 2 cannot be used, and is put aside",
        "Checkpoint 1 cannot be used, and is put aside",
    ]


def test_row_18_foreign_checkpoints_are_told(tmp_path):
    other = tmp_path / "other"
    Checkpoints(other, "other").save(5, small_state(0), {})
    tmp_path = tmp_path / "own"
    saved(tmp_path, [1])
    # One that was copied; one of another run, whole and sound; and no one's.
    shutil.copytree(tmp_path / "1", tmp_path / "4")
    shutil.copytree(other / "5", tmp_path / "5")
    (tmp_path / "6").mkdir()
    (tmp_path / "6" / "file").write_text("text")
    (tmp_path / "7").write_text("no folder")
    (tmp_path / "8").symlink_to(tmp_path / "1")
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "manifest.json").write_text("{}\n")
    (tmp_path / "a").mkdir()
    count, told = latest(tmp_path)
    assert count == 1
    told = [message.partition("aside: ")[2] for message in told]
    assert told == [
        "it has no notes of a run.",
        "it is no folder.",
        "it is no folder.",
        "it has no manifest.json, which is written last.",
        "it is one of another run, other.",
        "it is number 1.",
    ]
    assert latest(tmp_path) == (1, [])
    # And once more, in place of what was put aside before.
    (tmp_path / "7").write_text("no folder")
    (tmp_path / "8").symlink_to(tmp_path / "1")
    (tmp_path / "9").mkdir()
    levels = [logging.getLogger(name).level for name in ("absl", "asyncio")]
    assert latest(tmp_path)[0] == 1
    assert levels == [logging.getLogger(name).level for name in ("absl", "asyncio")]
    # Nothing is saved in place of a sound one, which stays as it is.
    with pytest.raises(ExperimentError, match=r"there is a checkpoint .*1 already"):
        Checkpoints(tmp_path, "run").save(1, small_state(0), {})
    assert latest(tmp_path) == (1, [])


def test_row_18_what_a_kill_has_left_is_removed(tmp_path):
    saved(tmp_path, [1, 2])
    (tmp_path / "2" / "manifest.json").unlink()
    assert latest(tmp_path) == (1, ["Checkpoint 2 was not finished, and is removed."])
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_row_18_what_cannot_be_read_now_is_left_alone(tmp_path, monkeypatch):
    saved(tmp_path, [1, 2])

    def fail(folder):
        raise OSError(5, "Input/output error", str(folder))

    monkeypatch.setattr(checkpoint, "file_hashes", fail)
    with pytest.raises(ExperimentError, match=r"cannot read a checkpoint: .*Input"):
        latest(tmp_path)
    monkeypatch.undo()
    assert latest(tmp_path) == (2, [])


def test_row_18_one_whose_rows_are_gone_is_passed_over(tmp_path):
    checkpoints = Checkpoints(tmp_path, "run")
    for number in (1, 2, 3):
        checkpoints.save(number, small_state(0), {"metrics": f"rows {number}"})
    digests = {2: "rows 2", 3: None}
    assert latest(tmp_path, digest=digests.get)[0] == 2
    saved(tmp_path, [4])
    digests = {2: "others", 4: "any"}  # of which an earlier version said nothing
    assert latest(tmp_path, digest=digests.get) == (4, [])


def test_row_18_a_file_in_place_of_the_folder_is_told(tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    main(digits(out, "--epochs", "1"))
    (out / "summary.json").unlink()
    shutil.rmtree(out / "checkpoints")
    (out / "checkpoints").write_text("text")
    assert "checkpoints is no folder" in error_line(
        capsys, digits(out, "--epochs", "1")
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the digits."""
    out = tmp_path_factory.mktemp("digits") / "run"
    main(digits(out))
    return out


@pytest.fixture
def unfinished(finished, tmp_path):
    """The same, as if it had been killed at its end."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "summary.json").unlink()
    return out


def test_row_18_damaged_checkpoint_is_passed_over(finished, unfinished, capsys):
    out = unfinished
    last = max((out / "checkpoints").iterdir(), key=lambda path: int(path.name))
    largest = max((last / "state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    # Rows that are in no checkpoint, the last one torn by a kill.
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "finetune"}\n{"phase": "fi')
    main(digits(out))
    output = "".join(capsys.readouterr().out.split())
    assert f"Checkpoint{last.name}cannotbeused,andisputaside:notasit" in output
    assert largest.name in output
    assert_same_run(finished, out)


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_row_18_damaged_metrics_are_made_again(finished, unfinished, capsys, damage):
    path = unfinished / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    last = lines.pop()
    if damage == "changed":
        lines.append(last.replace('"step": ', '"step":  '))
    path.write_text("".join(lines))
    main(digits(unfinished))
    told = capsys.readouterr().out
    assert "metrics.jsonl has not the rows that it was saved with" in told
    assert "Going on after" in told
    assert_same_run(finished, unfinished)


def test_row_18_metrics_of_no_checkpoint_are_told(unfinished, capsys):
    path = unfinished / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace('"step": 16,', '"step": 17,'))
    before = sorted(unfinished.rglob("*"))
    message = error_line(capsys, digits(unfinished))
    assert "metrics.jsonl has not the rows that any checkpoint" in message
    assert sorted(unfinished.rglob("*")) == before  # of which nothing is lost


# -------------------------------------------------------------------- kills, full disks


def start(out, *flags):
    """A run in a process of its own, by `python -m experiments`."""
    # But that Ctrl-C works even if this process was started in the background of a
    # shell, which makes it and its children ignore that.
    program = (
        "import runpy, signal; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('experiments', run_name='__main__', alter_sys=True)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *digits(out, *flags)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(out, *flags):
    """A run to its end; what it said."""
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
        time.sleep(0.002)


def test_row_19_killed_runs_end_like_an_uninterrupted_one(tmp_path):
    flags = ("--epochs", "40", "--fraction", "0.05")
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    def kill_when(condition, how=signal.SIGKILL):
        process = start(killed, *flags)
        wait_for(condition, process)
        while True:
            process.send_signal(how)
            try:  # Where Python only reports exceptions, one signal may be lost.
                output, _ = process.communicate(timeout=10)
                break
            except subprocess.TimeoutExpired:
                continue
        if how == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL, output
        else:
            assert process.returncode == 130, output
            assert "interrupted" in output and "Traceback" not in output

    # In dense training, in the middle of a checkpoint, and in pruning.
    kill_when(lambda: count_rows(killed) >= 1)
    kill_when(lambda: any(killed.glob("checkpoints/*tmp*")))
    kill_when(lambda: count_rows(killed) >= 20)
    # By Ctrl-C, and later than the last checkpoint: with rows to be made again.
    kill_when(lambda: count_rows(killed) >= 26, how=signal.SIGINT)
    assert "Going on after" in finish(killed, *flags)
    assert "Going on after" not in finish(whole, *flags)
    assert_same_run(killed, whole)
    rows = read_rows(whole)
    assert len({(row["phase"], row["round"]) for row in rows}) == len(rows) == 45


def test_row_19_runs_killed_at_random_end_like_an_uninterrupted_one(tmp_path):
    flags = ("--epochs", "60", "--fraction", "0.05", "--checkpoint-every", "1")
    whole = tmp_path / "whole"
    finish(whole, *flags)
    rng = random.Random(0)
    kills = number = 0
    while kills < NUM_KILLS:
        out = tmp_path / f"killed{number}"
        number += 1
        while not (out / "summary.json").exists() and kills < NUM_KILLS:
            process, rows = start(out, *flags), count_rows(out)
            if rng.random() < 0.8:
                # When it goes on. A checkpoint takes longer than a round, so that most
                # of the kills are in the middle of one.
                wait_for(lambda: count_rows(out) not in (0, rows), process)  # noqa: B023
                time.sleep(rng.uniform(0, 1.5))
            else:  # before
                time.sleep(rng.uniform(0, 8))
            process.kill()
            output, _ = process.communicate()
            assert process.returncode in (0, -signal.SIGKILL), output
            kills += process.returncode != 0
        if not (out / "summary.json").exists():
            finish(out, *flags)
        assert_same_run(out, whole)


def test_row_19_a_full_disk_is_told_and_leaves_earlier_checkpoints(tmp_path):
    """By a limit to the size of files, which fails like a full disk, but here alone."""
    program = f"""
import resource, shutil, signal, sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import test_checkpoints
from experiments.config import ExperimentError
from experiments.running import checkpoint
from pathlib import Path
import jax.numpy as jnp
write_json = checkpoint.write_json
folder = Path({str(tmp_path)!r})
checkpoints = test_checkpoints.saved(folder, [1, 2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in (0, 500, 100_000, None):
    if limit is None:
        def full(path, data):
            raise OSError(27, "File too large", str(path))
        checkpoint.write_json = full  # where the manifest is written
        limit = hard
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        state = test_checkpoints.small_state(3), jnp.arange(1_000_000.0)
        checkpoints.save(3, state, {{}})
    except ExperimentError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    # Orbax's threads go on after an error, which ends a run; here another save follows.
    calm = 0
    while calm < 10:
        unfinished = list(folder.glob("*.orbax-checkpoint-tmp*"))
        for path in unfinished:
            shutil.rmtree(path, ignore_errors=True)
        calm = 0 if unfinished else calm + 1
        time.sleep(0.05)
    print(sorted(path.name for path in folder.iterdir() if path.name.isdecimal()))
checkpoint.write_json = write_json
checkpoints.save(3, test_checkpoints.small_state(3), {{}})
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    for message, left in zip(lines[::2], lines[1::2], strict=True):
        assert message.startswith(f"cannot save checkpoint 3 in {tmp_path}: ")
        assert "File too large" in message
        assert left == "['1', '2']"
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    assert latest(tmp_path) == (3, [])


def test_row_19_a_run_on_a_full_disk_goes_on_when_there_is_room(tmp_path):
    """On a disk of its own, if this process may have one."""
    disk, whole = tmp_path / "disk", tmp_path / "whole"
    disk.mkdir()
    command = [sys.executable, "-m", "experiments", *digits(disk / "run")]
    script = (
        'mount -t tmpfs -o size=$1 none "$2" && cd "$3" && shift 3 && '
        '"$@"; cp -r "$0"/run "$0"/../left'
    )
    enter = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*enter, "true"]).returncode:
        pytest.skip("this process may not mount a disk of its own")
    done = subprocess.run(
        [*enter, "sh", "-c", script, disk, "3m", disk, ROOT, *command],
        capture_output=True,
        text=True,
    )
    message = done.stderr.splitlines()[-1]
    assert message.startswith("error: "), done.stderr
    assert "No space left on device" in message
    assert "goes on from" in message
    assert "Traceback" not in done.stderr
    left = tmp_path / "left"
    assert not (left / "summary.json").exists()
    before = latest(left / "checkpoints", read_config(left), RunFolder(left).digest)
    assert before[0] is not None and before[1] == []
    assert "Going on after" in finish(left)
    finish(whole)
    assert_same_run(left, whole)


def read_config(out):
    config = json.loads((out / "config.json").read_text())
    return f"{config['config_id']}-seed{config['seed']}"


# ---------------------------------------------------------------------- other programs


def test_row_17_masks_of_another_dtype_are_told(tmp_path):
    state = small_state(1)
    masks = sparse_optax.get_masks(state["opt_state"])
    cast = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), masks)
    pruning = state["opt_state"].pruning._replace(masks=cast)
    wrong = {**state, "opt_state": state["opt_state"]._replace(pruning=pruning)}
    checkpoints = Checkpoints(tmp_path, "run")
    checkpoints.save(1, wrong, {})
    message = r"float32\[30, 20\] at opt_state/pruning/masks/layer/kernel.* has bool\["
    with pytest.raises(ExperimentError, match=message):
        checkpoints.restore(1, state)


def test_row_16_the_state_of_another_model_is_told(tmp_path):
    checkpoints = saved(tmp_path, [1])
    state = small_state(1)
    wide = jax.tree.map(lambda x: jnp.zeros((*x.shape[:-1], 40), x.dtype), state)
    with pytest.raises(
        ExperimentError, match=r"float32\[30, 20\] at params/layer/kern"
    ):
        checkpoints.restore(1, {**state, "params": wide["params"]})
    named = {"params": {"other": state["params"]["layer"]}}
    with pytest.raises(ExperimentError, match="nothing at params/other/kernel"):
        checkpoints.restore(1, {**state, **named})
    with pytest.raises(ExperimentError, match=r"at opt_state.* has nothing"):
        checkpoints.restore(1, {"params": state["params"]})


def test_row_20_checkpoint_of_another_version(capsys, unfinished, monkeypatch):
    # As if a later version kept another field in its state.
    init_state = loop.init_state

    def with_another_field(*arguments):
        state = init_state(*arguments)
        return state._replace(opt_state=(state.opt_state, jnp.zeros(3)))

    monkeypatch.setattr(loop, "init_state", with_another_field)
    message = error_line(capsys, digits(unfinished))
    assert "where this version of the program has" in message
    assert "opt_state" in message


def test_row_22_checkpoint_of_other_devices(tmp_path):
    mesh = jax.make_mesh((8,), ("x",))
    spread = jax.NamedSharding(mesh, jax.P("x"))
    state = {"w": jnp.arange(16.0), "masks": jnp.arange(16) % 3 == 0}
    Checkpoints(tmp_path, "run").save(1, jax.device_put(state, spread), {})
    here = jax.tree.map(jnp.zeros_like, state)
    restored = Checkpoints(tmp_path, "run").restore(1, here)
    for name, leaf in state.items():
        np.testing.assert_array_equal(restored[name], leaf)
        assert restored[name].dtype == leaf.dtype
        assert restored[name].sharding == here[name].sharding
