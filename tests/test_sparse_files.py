"""Sparse files: the same bits again, next to no space for zeros, damage refused."""

import collections
import errno
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from flax import nnx
from hypothesis import given, strategies as st

import sparse_optax
from sparse_optax import _mask_code

DTYPES = (
    *("bool", "int4", "int8", "uint8", "int16", "uint16", "int32", "uint32"),
    *("float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "complex64"),
)


def sparse(shape, kept, dtype="float32", seed=0):
    """An array with exactly so many elements that are not zero, at random places."""
    rng = np.random.default_rng(seed)
    flat = np.zeros(np.prod(shape, dtype=int), np.float32)
    places = rng.choice(flat.size, kept, replace=False)
    flat[places] = rng.integers(1, 7, kept) * rng.choice([-1, 1], kept)
    if dtype in ("bool", "uint8", "uint16", "uint32"):
        flat = np.abs(flat)
    return jnp.asarray(flat.reshape(shape), dtype)


def check_same(a, b):
    """Asserts that two trees have the same containers and the same bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert isinstance(y, jax.Array) == isinstance(x, jax.Array)
        if isinstance(x, bool | int | float | str):
            assert (type(x), x) == (type(y), y)
            continue
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.shape(x) == np.shape(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def round_trip(tree, folder):
    sparse_optax.save_sparse(folder / "params.safetensors", tree)
    return sparse_optax.load_sparse(folder / "params.safetensors")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", [0, 1, 100, 1000])
def test_every_dtype_comes_back(dtype, kept, tmp_path):
    tree = {"w": sparse((10, 100), kept, dtype)}
    check_same(round_trip(tree, tmp_path), tree)


def test_numpy_comes_back_as_numpy_and_64_bits_where_jax_has_them(tmp_path):
    tree = [
        np.arange(5),
        np.asfortranarray(np.eye(50)),
        np.float64(2.5) * np.ones(()),
        np.zeros(1000, np.complex128),
        np.arange(3, dtype=">i4"),
    ]
    loaded = round_trip(tree, tmp_path)
    assert loaded[4].tolist() == [0, 1, 2]
    check_same(loaded[:4], tree[:4])
    with jax.enable_x64(True):
        wide = {"layer": {"w": jnp.ones(3)}}
        assert wide["layer"]["w"].dtype == jnp.float64
        check_same(round_trip(wide, tmp_path), wide)
    with pytest.raises(ValueError, match=r"float64 at layer/w.*jax_enable_x64"):
        sparse_optax.load_sparse(tmp_path / "params.safetensors")


def test_arrays_mapped_from_files_are_arrays(tmp_path):
    np.save(tmp_path / "array.npy", np.arange(5.0))
    mapped = np.load(tmp_path / "array.npy", mmap_mode="r")
    loaded = round_trip([mapped], tmp_path)[0]
    assert type(loaded) is np.ndarray and loaded.tolist() == [0, 1, 2, 3, 4]


def test_every_bit_comes_back(tmp_path):
    special = np.array([np.nan, -np.inf, -0.0, 0.0, 1e-45, 3.4e38], np.float32)
    special = np.append(special, np.array([0x7FC12345], np.uint32).view(np.float32))
    tree = {
        "dense": jnp.asarray(special),
        "sparse": jnp.zeros(1000).at[:7].set(special),
    }
    check_same(round_trip(tree, tmp_path), tree)


@pytest.mark.parametrize(
    "tree",
    [
        None,
        {},
        [],
        (),
        {"a": None, "b": [], "c": ({}, [None])},
        jnp.ones(3),
        jnp.zeros(()),
        jnp.zeros((0, 3)),
        {"a/b": jnp.ones(1), "a": {"b": jnp.zeros(1)}},
        {0: jnp.ones(1), 10: jnp.zeros(1), 2: jnp.ones(2)},
        collections.OrderedDict(b=jnp.ones(1), a=jnp.zeros(2)),
        flax.core.freeze({"a": {"b": jnp.zeros(3)}}),
        {"number": 0.1, "flag": True, "name": "x", "count": 3},
        {"masks": jnp.ones(1), 'sha256":"' + "0" * 64: jnp.zeros(100)},
        {"key": jax.random.key(3), "keys": jax.random.split(jax.random.key(0), 4)},
        {"rbg": jax.random.key(1, impl="rbg")},
    ],
    ids=str,
)
def test_every_tree_comes_back(tree, tmp_path):
    check_same(round_trip(tree, tmp_path), tree)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(20, 30, rngs=rngs) for _ in range(3)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(30, rngs=rngs)


class Own(nnx.Variable):
    """A type of variables that nnx does not know by name."""


def test_nnx_state_comes_back(tmp_path):
    model = Model(nnx.Rngs(0))
    state = nnx.state(model)
    check_same(round_trip(state, tmp_path), state)
    # And the model works with it.
    other = Model(nnx.Rngs(1))
    nnx.update(other, sparse_optax.load_sparse(tmp_path / "params.safetensors"))
    check_same(nnx.state(other), state)
    partitioned = nnx.Param(jnp.ones(3), out_sharding=("data",), eager_sharding=False)
    state = nnx.State({"w": partitioned})
    check_same(round_trip(state, tmp_path), state)


def test_a_network_goes_on_from_a_sparse_file(tmp_path):
    params = {"w": sparse((100, 10), 50), "b": jnp.zeros(10)}
    tx = sparse_optax.prune_by_magnitude(0.1, mask=sparse_optax.matrices_only)
    loaded = round_trip(params, tmp_path)
    state = sparse_optax.masks_from_zeros(loaded, tx.init(loaded), mask=None)
    assert jnp.sum(sparse_optax.get_masks(state)["w"]) == 50


def test_sharded_arrays_are_stored_whole(tmp_path):
    mesh = jax.make_mesh((8,), ("data",))
    spec = jax.sharding.PartitionSpec("data")
    w = sparse((64, 100), 300)
    sharded = jax.device_put(w, jax.sharding.NamedSharding(mesh, spec))
    check_same(round_trip({"w": sharded}, tmp_path), {"w": w})


def test_the_same_tree_makes_the_same_file(tmp_path):
    tree = {"b": sparse((100, 10), 50), "a": jnp.ones(3)}
    for name in ("one", "other"):
        sparse_optax.save_sparse(tmp_path / name, tree)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 70_000)), max_size=6),
    st.integers(0, 9),
)
def test_the_code_of_any_mask_is_undone(runs, tail):
    mask = np.concatenate([*(np.full(n, on) for on, n in runs), np.ones(tail, bool)])
    mask = mask.astype(bool)
    blocks = _mask_code.encode(mask)
    np.testing.assert_array_equal(_mask_code.decode(blocks, len(mask)), mask)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 1.0])
def test_the_code_of_masks_of_several_blocks_is_undone(kept, monkeypatch):
    monkeypatch.setattr(_mask_code, "_BLOCK", 1000)
    for size in (999, 1000, 1001, 3500):
        mask = np.random.default_rng(0).random(size) < kept
        blocks = _mask_code.encode(mask)
        assert len(blocks) == -(-size // 1000)
        np.testing.assert_array_equal(_mask_code.decode(blocks, size), mask)


def entropy(share):
    shares = np.array([share, 1 - share])
    return -(shares * np.log2(shares)).sum()


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32"])
@pytest.mark.parametrize(
    "sparsity", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999]
)
@pytest.mark.parametrize("size", [10_000, 1_000_000])
def test_a_file_is_as_small_as_promised(dtype, sparsity, size, tmp_path):
    num_leaves = 20 if size == 10_000 else 2
    names = [f"encoder/layers/{i}/attention/query/kernel" for i in range(num_leaves)]
    kept = round((1 - sparsity) * size)
    tree = {
        name: sparse((100, size // 100), kept, dtype, seed=i)
        for i, name in enumerate(names)
    }
    sparse_optax.save_sparse(tmp_path / "file", tree)
    itemsize = jnp.dtype(dtype).itemsize
    bound = kept * itemsize + size * entropy(kept / size) / 8
    allowed = num_leaves * (1.25 * bound + 256) + 4096
    assert (tmp_path / "file").stat().st_size <= allowed


@pytest.mark.parametrize("kind", ["nnx", "nested"])
@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32"])
@pytest.mark.parametrize("sparsity", [0.9, 0.99, 0.999])
def test_trees_of_many_leaves_are_as_small_as_promised(kind, dtype, sparsity, tmp_path):
    kept = round((1 - sparsity) * 10_000)
    leaf = sparse((100, 100), kept, dtype)
    if kind == "nnx":
        leaf = nnx.Param(leaf)
    block = {"attention": {"query": {"kernel": leaf}, "key": {"kernel": leaf}}}
    tree = {"encoder": {"layers": {i: block for i in range(100)}}}
    if kind == "nnx":
        tree = nnx.State(tree)
    sparse_optax.save_sparse(tmp_path / "file", tree)
    bound = kept * leaf.dtype.itemsize + 10_000 * entropy(kept / 10_000) / 8
    size = (tmp_path / "file").stat().st_size
    assert size <= 200 * (1.25 * bound + 256) + 4096


def test_a_dense_network_takes_hardly_more_than_its_arrays(tmp_path):
    tree = [jnp.ones((100, 100))] * 5
    sparse_optax.save_sparse(tmp_path / "file", tree)
    assert (tmp_path / "file").stat().st_size < 5 * (40_000 + 256) + 4096


def test_others_can_read_the_container(tmp_path):
    tree = {"dense": jnp.ones((2, 3)), "sparse": sparse((10, 100), 5)}
    sparse_optax.save_sparse(tmp_path / "file", tree)
    with safetensors.safe_open(tmp_path / "file", framework="np") as file:
        assert set(file.keys()) == {"0/dense", "1/sparse", "masks"}
        np.testing.assert_array_equal(file.get_tensor("0/dense"), tree["dense"])
        values = tree["sparse"][tree["sparse"] != 0]
        np.testing.assert_array_equal(file.get_tensor("1/sparse"), values)


class Pair(tuple):
    """A container that no file can hold."""


jax.tree_util.register_pytree_node(
    Pair, lambda p: (tuple(p), None), lambda _, c: Pair(c)
)


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"a": {"b": lambda: 3}}, "params at a/b is no concrete array"),
        ({"a": np.array(["x"])}, "params at a has the dtype <U1"),
        ({"a": np.zeros(9, np.clongdouble)}, "params at a has the dtype complex"),
        ({"a": np.zeros(9, np.longdouble)}, "params at a has the dtype"),
        ({"a": np.zeros(9, "m8[s]")}, "params at a has the dtype timedelta"),
        ({"a": np.ma.masked_equal([1, 2], 2)}, "params at a is no concrete array"),
        ({"a": 2j}, "params at a is no concrete array but 2j"),
        ({"a": jax.ShapeDtypeStruct((1,), jnp.float32)}, "params at a is no concrete"),
        ({"a": {(1, 2): jnp.ones(1)}}, r"params at a has a key .* \(1, 2\)"),
        ({"a": Pair((jnp.ones(1),))}, "params at a is a Pair"),
        (sparse_optax.PruneState(None, jnp.ones(()), jnp.ones(1)), "is a PruneState"),
        (nnx.State({"w": Own(jnp.ones(1))}), "params at w .* type Own"),
    ],
    ids=lambda x: "" if isinstance(x, str) else type(x).__name__,
)
def test_what_a_file_cannot_hold_is_named(tree, message, tmp_path):
    path = tmp_path / "file"
    with pytest.raises(TypeError, match=message):
        sparse_optax.save_sparse(path, tree)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["own", "metrics", "Param"])
def test_variables_of_registered_types_come_back(name, monkeypatch, tmp_path):
    monkeypatch.setattr(
        nnx.variablelib, "VariableTypeCache", {**nnx.variablelib.VariableTypeCache}
    )
    nnx.register_variable_name(name, Own)
    state = nnx.State({"w": Own(jnp.ones(1)), "v": nnx.Param(jnp.ones(2))})
    check_same(round_trip(state, tmp_path), state)


@pytest.mark.parametrize("spec", [("data", None), jax.P("data", ("a", "b"), None)])
def test_metadata_of_variables_come_back(spec, tmp_path):
    kernel = nnx.Param(jnp.ones(3), out_sharding=spec, eager_sharding=False, x=[1.5])
    state = nnx.State({"w": kernel})
    check_same(round_trip(state, tmp_path), state)
    loaded = sparse_optax.load_sparse(tmp_path / "params.safetensors")
    assert loaded["w"].get_metadata() == kernel.get_metadata()
    alike = {str(i): nnx.Param(jnp.ones(1), x=x) for i, x in enumerate([1, True, 1.0])}
    loaded = round_trip(nnx.State(alike), tmp_path)
    kinds = [type(loaded[str(i)].get_metadata()["x"]) for i in range(3)]
    assert kinds == [int, bool, float]
    for odd in (lambda: "m", jnp.ones(3)):
        state = nnx.State({"w": nnx.Param(jnp.ones(3), units=odd)})
        with pytest.raises(TypeError, match=r"w/\(metadata\)/units is .*cannot hold"):
            sparse_optax.save_sparse(tmp_path / "file", state)


def test_tracers_cannot_be_saved(tmp_path):
    with pytest.raises(TypeError, match=r"w is no concrete array but .*Tracer"):
        jax.jit(lambda w: sparse_optax.save_sparse(tmp_path / "file", {"w": w}))(1.0)


def test_missing_places_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        sparse_optax.load_sparse(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none"):
        sparse_optax.save_sparse(tmp_path / "none" / "file", jnp.ones(1))


@pytest.mark.parametrize("extra", ["safetensors", "flax"])
def test_missing_libraries_are_told(extra, monkeypatch, tmp_path):
    sparse_optax.save_sparse(
        tmp_path / "file", nnx.state(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    )
    for name in [n for n in sys.modules if n.partition(".")[0] == extra]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=extra):
        sparse_optax.load_sparse(tmp_path / "file")


FOREIGN = {
    "empty": b"",
    "short": b"abc",
    "text": b"Lorem ipsum dolor sit amet " * 10,
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s."
    * 9,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_refused(name, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(FOREIGN[name])
    with pytest.raises(ValueError, match="file cannot be read"):
        sparse_optax.load_sparse(path)


def test_other_files_of_safetensors_are_refused(tmp_path):
    safetensors.numpy.save_file({"w": np.ones(100)}, tmp_path / "file")
    with pytest.raises(ValueError, match="not written by save_sparse"):
        sparse_optax.load_sparse(tmp_path / "file")


def test_later_versions_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("sparse_optax._sparse_files._VERSION", 2)
    sparse_optax.save_sparse(tmp_path / "file", jnp.ones(1))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"version 2 .* reads version 1"):
        sparse_optax.load_sparse(tmp_path / "file")


def test_no_damage_goes_unnoticed(tmp_path):
    path = tmp_path / "file"
    tree = {"w": sparse((50, 20), 30), "b": jnp.ones(20), "s": [None, jnp.zeros(9)]}
    sparse_optax.save_sparse(path, tree)
    sound = path.read_bytes()
    damaged = []
    for place in range(len(sound)):
        flipped = bytearray(sound)
        flipped[place] ^= 1 << place % 8
        damaged += [bytes(flipped), sound[:place]]
    rng = random.Random(0)
    for _ in range(200):
        start, end = sorted(rng.choices(range(len(sound)), k=2))
        damaged += [
            sound[:start] + sound[end + 1 :],
            sound[:start] + rng.randbytes(end - start + 1) + sound[end + 1 :],
            sound + rng.randbytes(start + 1),
        ]
    for content in damaged:
        if content != sound:
            path.write_bytes(content)
            with pytest.raises(ValueError, match="file cannot be read"):
                sparse_optax.load_sparse(path)
    path.write_bytes(sound)
    check_same(sparse_optax.load_sparse(path), tree)


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_a_failure_to_write_leaves_the_old_file(step, monkeypatch, tmp_path):
    path = tmp_path / "file"
    tree = {"w": jnp.ones(3)}
    sparse_optax.save_sparse(path, tree)
    before = path.read_bytes()
    written = []

    def fail(*_):
        # All of the new file is somewhere by then, and the old one where it was.
        assert path.read_bytes() == before
        written.extend(x.stat().st_size for x in tmp_path.iterdir() if x != path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="No space left"):
        sparse_optax.save_sparse(path, {"w": jnp.zeros(3)})
    monkeypatch.undo()
    assert written and all(size > 200 for size in written)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_files_can_be_read_by_whom_others_can(tmp_path):
    (tmp_path / "other").touch()
    sparse_optax.save_sparse(tmp_path / "file", jnp.ones(3))
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_links_stay_links(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    sparse_optax.save_sparse(tmp_path / "link", jnp.ones(3))
    assert (tmp_path / "link").is_symlink()
    check_same(sparse_optax.load_sparse(tmp_path / "file"), jnp.ones(3))


def test_what_is_loaded_needs_the_file_no_more(tmp_path):
    path = tmp_path / "file"
    sparse_optax.save_sparse(path, [np.ones(1000), jnp.ones(1000)])
    loaded = sparse_optax.load_sparse(path)
    path.write_bytes(b"")
    loaded[0][:] = 2.0  # and may be written to
    assert loaded[0].sum() == 2000 and loaded[1].sum() == 1000


WRITER = """
import sys, jax.numpy as jnp, sparse_optax
for value in range(1_000_000):
    sparse_optax.save_sparse(sys.argv[1], {"w": jnp.full(200_000, value)})
    print(value, flush=True)
"""


def test_a_kill_while_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "file"
    rng = random.Random(0)
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, path],
            stdout=subprocess.PIPE,
            cwd=pathlib.Path(__file__).parents[1],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            text=True,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "0\n"
        time.sleep(rng.random() / 2)
        writer.send_signal(signal.SIGKILL)
        told = writer.communicate()[0].split()
        (value,) = set(sparse_optax.load_sparse(path)["w"].tolist())
        assert int(told[-1] if told else 0) <= value <= int(told[-1] if told else 0) + 1
