"""The programs of the documentation, one for each framework, prune and still learn."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PROGRAMS = sorted(path.name for path in DOCS.glob("frameworks/*.py"))
# Weights that are left of 672, after six times 30 % or at 90 %.
KEPT = {
    "train_equinox.py": 79,
    "train_haiku.py": 79,
    "train_keras.py": 79,
    "train_linen.py": 67,
    "train_nnx.py": 79,
}


def output_of(program, folder):
    finished = subprocess.run(
        [sys.executable, "-W", "error", DOCS / "frameworks" / program],
        cwd=folder,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("program", KEPT)
def test_program_prunes_and_learns(program, tmp_path):
    output = output_of(program, tmp_path)
    report = re.search(r"^prunable +(\d+) +672 ", output, re.MULTILINE)
    assert report, output
    assert int(report[1]) == KEPT[program]
    loss = re.search(r"^loss: (\S+)$", output, re.MULTILINE)
    assert loss and float(loss[1]) < 0.05  # of a variance of 3


def test_program_makes_a_model_smaller_and_trains_on(tmp_path):
    output = output_of("compact_equinox.py", tmp_path)
    assert re.search(r"^total +5,569 +625 ", output, re.MULTILINE), output
    before, after = re.findall(r"^loss .*: (\S+)$", output, re.MULTILINE)
    assert float(after) < float(before) < 0.05


def test_page_shows_every_program():
    page = (DOCS / "frameworks.md").read_text()
    shown = re.findall(r"literalinclude\} frameworks/(\S+)", page)
    assert sorted(shown) == PROGRAMS
