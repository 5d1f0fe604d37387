"""Sparse files: the same bits again, next to no space for zeros, damage refused."""

import collections
import dataclasses
import errno
import functools
import io
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import zlib

import equinox as eqx
import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx
from hypothesis import given, strategies as st
from jax.experimental.sparse import BCOO

import sparse_optax
from sparse_optax import _containers, _sparse_code

DTYPES = (
    *("bool", "int4", "int8", "uint8", "int16", "uint16", "int32", "uint32"),
    *("float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "complex64"),
)
DAMAGED = "file is corrupted, incomplete or not written by save_sparse"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


def normal(shape, kept, dtype="float32", places="random"):
    """Normal numbers, a share of which is kept: at random, or in whole rows."""
    rng = np.random.default_rng(0)
    flat = rng.standard_normal(np.prod(shape), np.float32)
    order = rng.permutation(flat.size)
    if places != "random":
        rows = rng.permutation(10)[:, None] * (flat.size // 10)
        order = (rows + np.arange(flat.size // 10)).ravel()
    flat[order[round(kept * flat.size) :]] = 0
    flat = flat.reshape(shape)
    return jnp.asarray((flat.T.copy() if places == "columns" else flat).astype(dtype))


def check_same(a, b):
    """Asserts that two trees have the same containers and the same bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert isinstance(y, jax.Array) == isinstance(x, jax.Array)
        if isinstance(x, bool | int | float | str) or callable(x):
            assert (type(x), x) == (type(y), y)
            continue
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.shape(x) == np.shape(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def round_trip(tree, path):
    sparse_optax.save_sparse(path, tree)
    loaded = sparse_optax.load_sparse(path)
    check_same(loaded, tree)
    return loaded


# ----------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back(dtype, path):
    for kept in (0, 0.001, 0.1, 1):
        round_trip({"w": normal((10, 100), kept, dtype)}, path)


def test_numpy_comes_back_as_numpy_and_64_bits_where_jax_has_them(path):
    np.save(path.with_suffix(".npy"), np.arange(5.0))
    swapped = np.arange(3, dtype=">i4")
    mapped = np.load(path.with_suffix(".npy"), mmap_mode="r")
    tree = [np.asfortranarray(np.eye(50)), np.ones(()), np.zeros(9, np.complex128)]
    round_trip(tree, path)
    sparse_optax.save_sparse(path, [swapped, mapped, np.float64(2.5)])
    loaded = sparse_optax.load_sparse(path)
    assert [x.tolist() for x in loaded] == [[0, 1, 2], [0, 1, 2, 3, 4], 2.5]
    assert {type(x) for x in loaded} == {np.ndarray}
    with jax.enable_x64(True):
        round_trip({"layer": {"w": jnp.ones(3)}}, path)
    with pytest.raises(ValueError, match=r"layer/w: float64\[3\].*jax_enable_x64"):
        sparse_optax.load_sparse(path)


def test_every_bit_comes_back(path):
    special = np.array([np.nan, -np.inf, -0.0, 0.0, 1e-45, 3.4e38], np.float32)
    special = np.append(special, np.array([0x7FC12345], np.uint32).view(np.float32))
    round_trip([jnp.asarray(special), jnp.zeros(1000).at[:7].set(special)], path)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 2000)), max_size=6),
    st.integers(0, 9),
    st.sampled_from(["uint8", "float16", "float32", "complex64", "complex128"]),
)
def test_any_zeros_come_back(runs, tail, dtype):
    mask = np.concatenate([*(np.full(n, on) for on, n in runs), np.ones(tail, bool)])
    array = mask * np.arange(1, len(mask) + 1)
    special = [0] if dtype == "uint8" else [0.1, np.inf, -0.0, np.nan]
    array = np.append(array % 199, special).astype(dtype)
    code = _sparse_code.encode(array)
    found = _sparse_code.decode(*code, [*array.shape], array.dtype)
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "tree",
    [
        *(None, {}, [], ()),
        {"a": None, "b": [], "c": ({}, [None])},
        *(jnp.ones(3), jnp.zeros(()), jnp.zeros((0, 3))),
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
def test_every_tree_comes_back(tree, path):
    check_same(round_trip(tree, path), tree)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(20, 30, rngs=rngs) for _ in range(3)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(30, rngs=rngs)


class Own(nnx.Variable):
    """A type of variables that nnx does not know by name."""


def test_nnx_state_comes_back(path):
    state = nnx.state(Model(nnx.Rngs(0)))
    other = Model(nnx.Rngs(1))
    nnx.update(other, round_trip(state, path))
    check_same(nnx.state(other), state)


@pytest.mark.parametrize("spec", [("data", None), jax.P("data", ("a", "b"), None)])
def test_metadata_of_variables_come_back(spec, path):
    kernel = nnx.Param(jnp.ones(3), out_sharding=spec, eager_sharding=False, x=[1.5])
    state = nnx.State({"w": kernel})
    loaded = round_trip(state, path)
    assert loaded["w"].get_metadata() == kernel.get_metadata()
    alike = {str(i): nnx.Param(jnp.ones(1), x=x) for i, x in enumerate([1, True, 1.0])}
    loaded = round_trip(nnx.State(alike), path)
    kinds = [type(variable.get_metadata()["x"]) for variable in loaded.values()]
    assert kinds == [int, bool, float]


@pytest.mark.parametrize("name", ["own", "metrics", "Param"])
def test_variables_of_registered_types_come_back(name, monkeypatch, path):
    monkeypatch.setattr(
        nnx.variablelib, "VariableTypeCache", {**nnx.variablelib.VariableTypeCache}
    )
    nnx.register_variable_name(name, Own)
    round_trip(nnx.State({"w": Own(jnp.ones(1)), "v": nnx.Param(jnp.ones(2))}), path)


def test_sharded_arrays_are_stored_whole(path):
    mesh = jax.make_mesh((8,), ("data",))
    w = normal((64, 100), 0.1)
    sharded = jax.device_put(w, jax.NamedSharding(mesh, jax.P("data")))
    check_same(round_trip({"w": sharded}, path), {"w": w})


def test_the_same_tree_makes_the_same_file(path):
    sparse_optax.save_sparse(path, {"b": normal((100, 10), 0.1), "a": jnp.ones(3)})
    first = path.read_bytes()
    sparse_optax.save_sparse(path, {"b": normal((100, 10), 0.1), "a": jnp.ones(3)})
    assert path.read_bytes() == first


# ----------------------------------------------------------------------- any tree, like


class Pair(tuple):
    """A container that only JAX knows."""


jax.tree_util.register_pytree_node(
    Pair, lambda p: (tuple(p), None), lambda _, c: Pair(c)
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: jax.Array
    rate: float
    name: str = dataclasses.field(metadata={"static": True})


def linen_boxes():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("data", None))
    return nn.Dense(5, kernel_init=init).init(jax.random.key(0), jnp.ones((1, 4)))


def optimizer_state():
    params = {"kernel": normal((20, 30), 0.5), "bias": jnp.zeros(30)}
    inner = {"a": optax.adamw(0.1), "b": optax.sgd(0.1, momentum=0.9)}
    inner = optax.multi_transform(inner, {"kernel": "a", "bias": "b"})
    state = sparse_optax.relevance_pruning(inner, strength=0.1).init(params)
    return sparse_optax.prune(params, state, 0.8)


TREES = {
    "equinox": lambda: eqx.nn.MLP(4, 3, 20, 2, key=jax.random.key(0)),
    "dataclass": lambda: {"layer": Layer(normal((9, 9), 0.1), 0.5, "first")},
    "linen": linen_boxes,
    "optimizer": optimizer_state,
    "nnx module": lambda: Model(nnx.Rngs(0)),
    "nnx optimizer": lambda: nnx.Optimizer(
        Model(nnx.Rngs(0)), optax.adam(0.1), wrt=nnx.Param
    ),
    "registered": lambda: [Pair((jnp.ones(1), 3)), Pair((np.zeros(2), jnp.ones(2)))],
    "unknown variable": lambda: nnx.State({"w": Own(jnp.ones(1))}),
    "metadata": lambda: {"w": nnx.Param(jnp.ones(3), units=len)},
    "keys of a dict": lambda: {(1, 2): jnp.ones(1), (0, 1): jnp.zeros(1)},
    "sparse array": lambda: BCOO.fromdense(normal((9, 9), 0.1)),
    "known": lambda: {"a": None, "b": [], "c": ({}, [optax.MaskedNode(), "x"])},
    "dtypes": lambda: [jnp.float32, np.float64, jax.nn.relu, jax.random.key(0)],
}


def blank(leaf):
    """What `like` may have in place of a leaf: numbers and strings are not taken."""
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return leaf if callable(leaf) else 0 * leaf


@pytest.mark.parametrize("name", TREES)
def test_any_registered_tree_comes_back(name, path):
    tree = TREES[name]()
    sparse_optax.save_sparse(path, tree)
    loaded = sparse_optax.load_sparse(path, like=jax.tree.map(blank, tree))
    check_same(loaded, tree)


def test_an_equinox_model_works_again(path):
    make = functools.partial(eqx.nn.MLP, 4, 3, 20, 2, activation=jax.nn.gelu)
    model = make(key=jax.random.key(0))
    sparse_optax.save_sparse(path, model)
    like = eqx.filter_eval_shape(make, key=jax.random.key(1))
    x = jnp.arange(4.0)
    np.testing.assert_array_equal(sparse_optax.load_sparse(path, like)(x), model(x))


@pytest.mark.parametrize(
    "tree, named",
    [
        (Layer(jnp.ones(1), 0.5, "x"), r".*\.Layer"),
        ({"a": [Pair((jnp.ones(1),))]}, r".*\.Pair"),
        ({"a": {(1, 2): jnp.ones(1)}}, r"builtins\.dict"),
        (optax.sgd(0.1, 0.9).init({"a": jnp.ones(1)}), r"optax\..*\.TraceState"),
        (nnx.State({"w": Own(jnp.ones(1))}), r".*\.Own"),
        ({"a": jnp.ones(1), "f": len}, r"builtins\.builtin_function_or_method"),
        ({"w": nnx.Param(jnp.ones(3), units=len)}, r"builtins\.builtin_function.*"),
        ({"w": nnx.Param(jnp.ones(3), units=np.ones(3))}, r"numpy\.ndarray"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_trees_that_need_like_are_named(tree, named, path):
    sparse_optax.save_sparse(path, tree)
    with pytest.raises(ValueError, match=f"the file contains {named}: pass `like`"):
        sparse_optax.load_sparse(path)


@pytest.mark.parametrize(
    "like, file_has, like_has",
    [
        ({"a": jnp.ones((2, 3))}, "b/c: float32[4]", ""),
        ({"b": {"c": jnp.ones(4)}}, "a: float32[2, 3]", ""),
        ({"a": jnp.ones((2, 4))}, "a: float32[2, 3]", "a: float32[2, 4]"),
        ({"a": np.ones((2, 3))}, "a: float32[2, 3]", "a: float64[2, 3]"),
        ({"a": 1.0}, "a: float32[2, 3]", "a: float"),
        ({"a": len}, "a: float32[2, 3]", "a: function"),
        ({"a": optax.MaskedNode()}, "a: float32[2, 3]", ""),
        ([jnp.ones((2, 3))], "a: float32[2, 3]", "0: float32[2, 3]"),
        ({"a": jnp.ones((2, 3)), "b": {"c": jnp.ones(4), "d": 1}}, "", "b/d: int"),
    ],
)
def test_differences_from_like_are_named(like, file_has, like_has, path):
    sparse_optax.save_sparse(path, {"a": jnp.ones((2, 3)), "b": {"c": jnp.ones(4)}})
    with pytest.raises(ValueError, match="and `like` differ") as info:
        sparse_optax.load_sparse(path, like=like)
    here, there = str(info.value).split("the file has ")[1].split(", `like` has ")
    assert file_has in here and like_has in there
    assert (here == "[]") == (not file_has) and (there == "[].") == (not like_has)


@pytest.mark.parametrize("kind", ["Popen", "os.system", "nnx.jit", "nnx.Module"])
def test_a_file_makes_only_containers(kind, monkeypatch, path):
    for data in ([kind, None, ["true"]], [kind, ["dict", [], []], [1]]):
        monkeypatch.setattr(_containers, "to_json", lambda tree, data=data: data)
        sparse_optax.save_sparse(path, jnp.ones(1))
        with pytest.raises(ValueError, match="pass `like`"):
            sparse_optax.load_sparse(path)


# -------------------------------------------------------------------------------- sizes


def compressed(leaves):
    """The size of the values and packed bits of arrays, as NumPy compresses them."""
    file, arrays = io.BytesIO(), {}
    for i, leaf in enumerate(leaves):
        flat = np.asarray(leaf).reshape(-1)
        mask = flat.view(f"V{flat.itemsize}") != np.zeros((), f"V{flat.itemsize}")
        arrays |= {f"values{i}": flat[mask], f"mask{i}": np.packbits(mask)}
    np.savez_compressed(file, **arrays)
    return len(file.getvalue())


DENSITIES = (0.5, 0.3, 0.1, 0.05, 0.01, 0.001)


@pytest.mark.parametrize("places", ["random", "rows", "columns"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_are_never_larger_than_those_of_numpy(dtype, places, path):
    for size, kept in itertools.product((1000, 100_000), DENSITIES):
        weights = normal((10, size // 10), kept, dtype, places)
        sparse_optax.save_sparse(path, {"kernel": weights})
        assert path.stat().st_size <= compressed([weights]) + 512, (size, kept)


def other_numbers():
    rng = np.random.default_rng(0)
    mask = rng.random(300_000) < 0.3
    for name, values in {
        "ones": np.ones(300_000, np.float32),
        "signs": rng.choice([-0.1, 0.1], 300_000).astype(np.float32),
        "integers": rng.integers(-3, 4, 300_000).astype(np.float32),
        "int8": rng.integers(-100, 101, 300_000).astype(np.int8),
        "repeated": np.tile(rng.standard_normal(1000, np.float32), 300),
        "sorted": np.sort(rng.standard_normal(300_000, np.float32)),
        "counts": np.arange(300_000, dtype=np.int32),
        "wide": rng.standard_normal(300_000),
        "complex": rng.standard_normal(300_000) * (1 + 0j),
    }.items():
        yield pytest.param(values, id=f"{name} dense")
        yield pytest.param(values * mask.astype(values.dtype), id=name)
    blocks = np.kron(rng.random((100, 30)) < 0.2, np.ones((10, 10)))
    yield pytest.param(blocks.astype(np.float32), id="blocks")
    yield pytest.param(np.ones(1, np.float32), id="one")
    yield pytest.param(np.zeros((0, 3), np.float32), id="none")
    yield pytest.param(np.zeros((), np.float32), id="zero")


@pytest.mark.parametrize("values", [*other_numbers()])
def test_files_of_other_values_are_no_larger_than_numpys(values, path):
    sparse_optax.save_sparse(path, values)
    assert path.stat().st_size <= compressed([values]) + 512


@pytest.mark.parametrize("box", [nnx.Param, jnp.asarray])
def test_files_of_many_leaves_are_no_larger_than_numpys(box, path):
    leaf = normal((100, 100), 0.01)
    heads = {name: {"kernel": box(leaf)} for name in ("query", "key")}
    tree = {"encoder": {"layers": {i: {"attention": heads} for i in range(100)}}}
    sparse_optax.save_sparse(path, nnx.State(tree) if box is nnx.Param else tree)
    assert path.stat().st_size <= compressed(200 * [leaf]) + 512


@pytest.mark.parametrize("kept", DENSITIES)
def test_files_are_about_as_small_as_values_and_entropy(kept, path):
    sparse_optax.save_sparse(path, normal((1000, 1000), kept))
    entropy = -(kept * np.log2(kept) + (1 - kept) * np.log2(1 - kept))
    assert 8 * path.stat().st_size <= 1.10 * (kept * 32 + entropy) * 1_000_000


def test_others_can_see_what_is_in_the_container(path):
    sparse_optax.save_sparse(path, [jnp.ones((2, 3)), normal((10, 100), 0.1)])
    with safetensors.safe_open(path, framework="np") as file:
        assert set(file.keys()) == {"about", "codes", "~sha256"}
        about = json.loads(zlib.decompress(file.get_tensor("about")))
    assert [leaf["shape"] for leaf in about["leaves"]] == [[2, 3], [10, 100]]


# --------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "leaf, named",
    [
        (object(), "object, which is not a concrete"),
        (np.array(["x"]), r"str32\[1\], which is not a concrete"),
        (np.zeros(9, np.clongdouble), r"complex\d+\[9\], which is not a concrete"),
        (np.zeros(9, np.longdouble), r"float\d+\[9\], which is not a concrete"),
        (np.zeros(9, "m8[s]"), "timedelta64.*, which is not a concrete"),
        (np.ma.masked_equal([1, 2], 2), r"int64\[2\], which .*: masked_array"),
        (2j, "complex, which is not a concrete numeric array: 2j"),
        (jax.ShapeDtypeStruct((1,), jnp.float32), "float32.*, which is not .*: Shape"),
    ],
    ids=lambda x: "" if isinstance(x, str) else type(x).__name__,
)
def test_leaves_that_cannot_be_saved_are_named(leaf, named, path):
    with pytest.raises(TypeError, match=f"tree has a/b: {named}"):
        sparse_optax.save_sparse(path, {"a": {"b": leaf}})
    assert list(path.parent.iterdir()) == []


def test_deleted_arrays_and_tracers_are_named(path):
    def save(w):
        sparse_optax.save_sparse(path, {"w": w})

    with pytest.raises(TypeError, match=r"w: float32\[\], which is not .*Tracer"):
        jax.jit(save)(1.0)
    w = jnp.ones(3)
    w.delete()
    with pytest.raises(ValueError, match=r"w: float32\[3\], which is deleted"):
        save(w)


def test_missing_folders_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        sparse_optax.load_sparse(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none"):
        sparse_optax.save_sparse(tmp_path / "none" / "file", jnp.ones(1))


@pytest.mark.parametrize("extra", ["safetensors", "flax"])
def test_missing_libraries_raise(extra, monkeypatch, path):
    sparse_optax.save_sparse(path, nnx.State({"w": nnx.Param(jnp.ones(1))}))
    for name in [n for n in sys.modules if n.partition(".")[0] == extra]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=extra):
        sparse_optax.load_sparse(path)


def test_foreign_files_are_refused(path):
    safetensors.numpy.save_file({"w": np.ones(100)}, path)
    for content in (path.read_bytes(), b"Lorem ipsum dolor " * 10, b"abc", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=DAMAGED):
            sparse_optax.load_sparse(path)


def test_other_versions_of_the_format_are_refused_by_name(monkeypatch, path):
    monkeypatch.setattr("sparse_optax._sparse_files._VERSION", 3)
    sparse_optax.save_sparse(path, jnp.ones(1))
    monkeypatch.undo()
    # Written by save_sparse before what is stored was compressed by zlib.
    first = pathlib.Path(__file__).parent / "version1.safetensors"
    for file, version in ((first, 1), (path, 3)):
        with pytest.raises(ValueError, match=f"has version {version} of .*, not 2"):
            sparse_optax.load_sparse(file)


def test_damage_at_any_byte_raises(path):
    tree = {"w": normal((50, 20), 0.03), "b": jnp.ones(20), "s": [None, jnp.zeros(9)]}
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
        other = rng.randbytes(end - start + 1)
        damaged += [sound[:start] + sound[end + 1 :], sound + other]
        damaged += [sound[:start] + other + sound[end + 1 :]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=DAMAGED):
            sparse_optax.load_sparse(path)


# ------------------------------------------------------------------------ writing files


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_a_failure_to_write_leaves_the_old_file(step, monkeypatch, path):
    sparse_optax.save_sparse(path, {"w": jnp.ones(3)})
    before = path.read_bytes()
    written = []

    def fail(*_):
        # All of the new file is somewhere by then, and the old one where it was.
        assert path.read_bytes() == before
        written.extend(x.stat().st_size for x in path.parent.iterdir() if x != path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="No space left"):
        sparse_optax.save_sparse(path, {"w": jnp.zeros(3)})
    monkeypatch.undo()
    assert written and all(size > 200 for size in written)
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == before


def test_mode_and_links_are_kept(tmp_path):
    (tmp_path / "other").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    sparse_optax.save_sparse(tmp_path / "link", jnp.ones(3))
    assert (tmp_path / "link").is_symlink()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
    check_same(sparse_optax.load_sparse(tmp_path / "file"), jnp.ones(3))


def test_loaded_arrays_do_not_need_the_file(path):
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


@pytest.mark.slow
def test_a_kill_while_writing_leaves_a_whole_file(path):
    rng = random.Random(0)
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, path],
            stdout=subprocess.PIPE,
            cwd=pathlib.Path(__file__).parents[1],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            text=True,
        )
        assert writer.stdout.readline() == "0\n"
        time.sleep(rng.random() / 2)
        writer.send_signal(signal.SIGKILL)
        printed = writer.communicate()[0].split()
        last = int(printed[-1]) if printed else 0
        (value,) = set(sparse_optax.load_sparse(path)["w"].tolist())
        assert last <= value <= last + 1
