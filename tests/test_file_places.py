"""Where sparse files are written: the home folder, places that are missing, modes."""

import os
import stat

import jax
import numpy as np
import pytest
from helpers import random_tree

import sparse_optax

PARAMS = random_tree(0)


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    sparse_optax.save_sparse("~/params.safetensors", PARAMS)
    assert (tmp_path / "params.safetensors").is_file()
    loaded = sparse_optax.load_sparse("~/params.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded, PARAMS)


def test_unwritable_paths_are_named(tmp_path):
    (tmp_path / "plain").touch()
    (tmp_path / "folder").mkdir()
    for path, error in (
        (tmp_path / "missing" / "params", FileNotFoundError),
        (tmp_path / "plain" / "params", NotADirectoryError),
        (tmp_path / "folder", IsADirectoryError),
    ):
        with pytest.raises(error) as caught:
            sparse_optax.save_sparse(path, PARAMS)
        assert str(path) in str(caught.value) and ".tmp" not in str(caught.value)
    assert {entry.name for entry in tmp_path.iterdir()} == {"plain", "folder"}


def test_the_mode_of_a_file_is_kept(tmp_path):
    path, plain = tmp_path / "params", tmp_path / "plain"
    plain.touch()
    sparse_optax.save_sparse(path, PARAMS)
    assert path.stat().st_mode == plain.stat().st_mode
    for mode in (0o600, 0o640, 0o664):
        os.chmod(path, mode)
        sparse_optax.save_sparse(path, PARAMS)
        assert stat.S_IMODE(path.stat().st_mode) == mode
