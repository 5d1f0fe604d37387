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


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_prunes_and_learns(program, tmp_path):
    finished = subprocess.run(
        [sys.executable, "-W", "error", DOCS / "frameworks" / program],
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    report = re.search(r"^prunable +(\d+) +672 ", finished.stdout, re.MULTILINE)
    assert report, finished.stdout
    assert int(report[1]) == KEPT[program]
    loss = re.search(r"^loss: (\S+)$", finished.stdout, re.MULTILINE)
    assert loss and float(loss[1]) < 0.05  # of a variance of 3


def test_page_shows_every_program():
    page = (DOCS / "frameworks.md").read_text()
    shown = re.findall(r"literalinclude\} frameworks/(\S+)", page)
    assert sorted(shown) == PROGRAMS
