"""Short runs of the experiments, and what they leave behind."""

import contextlib
import json
import math
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from safetensors import numpy as safetensors

from experiments.__main__ import main
from experiments.networks.resnet import Norm
from experiments.records import RunFolder
from experiments.running import figures
from experiments.running.checkpoint import NOTES

ROOT = Path(__file__).parent.parent
draw_run = figures.draw_run

# Sixteen updates are an epoch of the digits, and here a round.
DIGITS = (
    *("--dense-epochs", "3", "--epochs", "8", "--interval", "16"),
    *("--finetune-epochs", "2", "--batch-size", "64", "--checkpoint-every", "3"),
)
# A round is half an epoch.
TOY = (
    *("--num-train", "640", "--batch-size", "32", "--interval", "10"),
    *("--dense-epochs", "2", "--epochs", "2", "--finetune-epochs", "1"),
    *("--features", "16", "--hidden", "16", "--heads", "2", "--warmup-steps", "5"),
    *("--checkpoint-every", "3", "--dropout", "0.05", "--bound", "0.5"),
)


class Stopped(Exception):
    """A kill, as far as this process is concerned."""


class Small(nnx.Module):
    """A network with a batch norm, which compiles fast."""

    def __init__(self, image_shape, rngs):
        self.hidden = nnx.Linear(math.prod(image_shape), 8, rngs=rngs)
        self.norm = Norm(8, rngs)
        self.output = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, images):
        x = self.hidden(images.reshape(images.shape[0], -1))
        return self.output(nnx.relu(self.norm(x)))


def digits(out, *flags):
    """Returns the command of a run of the digits into a folder."""
    return ["digits", "--out", str(out), *DIGITS, *flags]


def toy(out, *flags):
    """Returns the command of a run of the transformer into a folder."""
    return ["transformer-toy", "--out", str(out), *TOY, *flags]


def folder_of(variable):
    """Returns the folder of real data that a variable names, or skips the test."""
    folder = os.environ.get(variable)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"{variable} names no folder of real data")
    return Path(folder)


def compilation_settings(folder):
    """Returns settings of JAX, which subprocesses take from the environment."""
    return {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_disable_most_optimizations": True,
    }


@contextlib.contextmanager
def quick_compilation(folder):
    """Compiles fast, and keeps programs in a folder: many runs have the same ones."""
    wanted = compilation_settings(folder)
    before = {name: jax.config.values[name] for name in wanted}
    for values in (wanted, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is wanted:
            yield


@pytest.fixture(scope="module", autouse=True)
def quickly(tmp_path_factory):
    """Compiles fast, and draws no runs, in the modules that import this."""
    with (
        quick_compilation(tmp_path_factory.getbasetemp() / "xla"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(figures, "draw_run", lambda rounds, summary, path: None)
        yield


def stop(command, number):
    """Makes a run that is killed after some rows, as far as this process can."""
    append = RunFolder.append

    def append_or_stop(self, row):
        if len(self.rows) == number:
            raise Stopped
        append(self, row)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(RunFolder, "append", append_or_stop)
        main(command)


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_rows(out, phase=None):
    """Returns the metrics of a run, or those of a phase."""
    rows = read_lines(out / "metrics.jsonl")
    return [row for row in rows if phase in (None, row["phase"])]


def read_summary(out):
    """Returns the summary without what may differ between equal runs."""
    summary = json.loads((out / "summary.json").read_text())
    times = "wall_seconds", "date", "compacted_time"
    return {k: v for k, v in summary.items() if k not in times}


def checkpoints(out):
    """Returns the checkpoints in the folder of a run, the last one last."""
    return sorted((out / "checkpoints").glob("*.safetensors"))


def read_state(out):
    """Returns the last checkpoint of a run: arrays by name."""
    arrays = safetensors.load_file(checkpoints(out)[-1])
    del arrays[NOTES]
    return arrays


def assert_same_run(left, right):
    """Checks that two folders hold runs with the same course and outcome."""
    for name in ("metrics.jsonl", "network.safetensors"):
        assert (left / name).read_bytes() == (right / name).read_bytes(), name
    assert read_summary(left) == read_summary(right)
    assert not [*left.rglob("*.tmp"), *right.rglob("*.tmp")]
    states = read_state(left), read_state(right)
    assert states[0].keys() == states[1].keys()
    for name, array in states[0].items():
        np.testing.assert_array_equal(array, states[1][name], err_msg=name)


def error_line(arguments):
    """Runs a command that must fail; returns its one line."""
    with pytest.raises(SystemExit) as info:
        main([str(argument) for argument in arguments])
    message = str(info.value.code)
    assert message.startswith("error: ") and "\n" not in message, message
    return message
