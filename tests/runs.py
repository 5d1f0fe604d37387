"""Short runs of an experiment, and what they leave."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.__main__ import main

# Sixteen updates are an epoch of the digits, and here a round.
TINY = (
    *("--dense-epochs", "3", "--interval", "16", "--finetune-epochs", "2"),
    *("--bound", "0.95", "--checkpoint-every", "3", "--batch-size", "64"),
)


def digits(out, *flags):
    """Returns the arguments of a run of the digits into a folder."""
    return ["digits", "--out", str(out), *TINY, "--epochs", "8", *flags]


def read_rows(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def read_summary(out):
    """Returns the summary but for what may differ between equal runs."""
    summary = json.loads((out / "summary.json").read_text())
    return {k: v for k, v in summary.items() if k not in ("wall_seconds", "date")}


def read_state(out):
    """Returns the last checkpoint of a run as NumPy arrays by path."""
    names = [path.name for path in (out / "checkpoints").iterdir()]
    count = max(int(name) for name in names if name.isdecimal())
    folder = (out / "checkpoints" / str(count) / "state").resolve()
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(folder)
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def assert_same_run(left, right):
    """Checks that two folders hold runs with the same course and outcome."""
    assert (left / "metrics.jsonl").read_bytes() == (
        right / "metrics.jsonl"
    ).read_bytes()
    assert read_summary(left) == read_summary(right)
    files = [out / "network.safetensors" for out in (left, right)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not [*left.glob(".*.tmp"), *right.glob(".*.tmp")]
    states = read_state(left), read_state(right)
    assert states[0].keys() == states[1].keys()
    for path, leaf in states[0].items():
        np.testing.assert_array_equal(leaf, states[1][path], err_msg=path)


def error_line(capsys, arguments):
    """Runs a command that must fail; returns its one line."""
    with pytest.raises(SystemExit) as info:
        main(arguments)
    message = str(info.value.code)
    assert message.startswith("error: ") and "\n" not in message, message
    assert "Traceback" not in capsys.readouterr().err
    return message
