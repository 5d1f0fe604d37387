"""Sparse files: the same bits again, next to no space for zeros, damage refused."""

import collections
import dataclasses
import errno
import functools
import io
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
from sparse_optax import _containers, _sparse_code, _trees

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
        if isinstance(x, bool | int | float | str) or callable(x):
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
    check_same(sparse_optax.load_sparse(tmp_path / "params.safetensors", tree), loaded)
    check_same(loaded[:4], tree[:4])
    with jax.enable_x64(True):
        wide = {"layer": {"w": jnp.ones(3)}}
        assert wide["layer"]["w"].dtype == jnp.float64
        check_same(round_trip(wide, tmp_path), wide)
    with pytest.raises(ValueError, match=r"layer/w: float64\[3\].*jax_enable_x64"):
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


def compressed(leaves):
    """The bytes of what is not zero in some arrays, and of bits, as NumPy has them."""
    file = io.BytesIO()
    arrays = {}
    for i, leaf in enumerate(leaves):
        flat = np.asarray(leaf).reshape(-1)
        mask = flat.view(f"u{flat.itemsize}") != 0
        arrays |= {f"values{i}": flat[mask], f"mask{i}": np.packbits(mask)}
    np.savez_compressed(file, **arrays)
    return len(file.getvalue())


def normal(size, kept, dtype, places="random"):
    """Normal numbers, of which this share is kept: at random places, or whole rows."""
    rng = np.random.default_rng(0)
    order = rng.permutation(size)
    if places == "rows":
        order = (
            size // 10 * rng.permutation(10)[:, None] + np.arange(size // 10)
        ).ravel()
    if places == "columns":
        order = (rng.permutation(100)[:, None] + 100 * np.arange(size // 100)).ravel()
    flat = rng.standard_normal(size, np.float32)
    flat[order[round(kept * size) :]] = 0
    return jnp.asarray(flat.reshape(10, -1), dtype)


DENSITIES = (0.5, 0.3, 0.1, 0.05, 0.01, 0.001)


@pytest.mark.parametrize("places", ["random", "rows", "columns"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_are_never_larger_than_those_of_numpy(dtype, places, tmp_path):
    for size in (1000, 100_000):
        for kept in DENSITIES:
            weights = normal(size, kept, dtype, places)
            sparse_optax.save_sparse(tmp_path / "file", {"kernel": weights})
            found = (tmp_path / "file").stat().st_size
            assert found <= compressed([weights]) + 512, (size, kept)


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
    }.items():
        yield pytest.param(values, id=f"{name} dense")
        yield pytest.param(values * mask.astype(values.dtype), id=name)
    blocks = np.kron(rng.random((100, 30)) < 0.2, np.ones((10, 10)))
    yield pytest.param(blocks.astype(np.float32), id="blocks")
    yield pytest.param(np.ones(1, np.float32), id="one")
    yield pytest.param(np.zeros((0, 3), np.float32), id="none")
    yield pytest.param(np.zeros((), np.float32), id="zero")


@pytest.mark.parametrize("values", [*other_numbers()])
def test_neither_are_files_of_other_numbers(values, tmp_path):
    sparse_optax.save_sparse(tmp_path / "file", values)
    assert (tmp_path / "file").stat().st_size <= compressed([values]) + 512


@pytest.mark.parametrize("kind", ["nnx", "nested"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kept", [0.1, 0.01, 0.001])
def test_neither_are_files_of_many_leaves(kind, dtype, kept, tmp_path):
    leaf = normal(10_000, kept, dtype)
    box = nnx.Param if kind == "nnx" else lambda x: x
    block = {
        "attention": {"query": {"kernel": box(leaf)}, "key": {"kernel": box(leaf)}}
    }
    tree = {"encoder": {"layers": {i: block for i in range(100)}}}
    tree = nnx.State(tree) if kind == "nnx" else tree
    sparse_optax.save_sparse(tmp_path / "file", tree)
    assert (tmp_path / "file").stat().st_size <= compressed(200 * [leaf]) + 512


@pytest.mark.parametrize("kept", DENSITIES)
def test_files_are_about_as_small_as_values_and_entropy(kept, tmp_path):
    sparse_optax.save_sparse(tmp_path / "file", normal(1_000_000, kept, "float32"))
    entropy = -(kept * np.log2(kept) + (1 - kept) * np.log2(1 - kept))
    bits = (kept * 32 + entropy) * 1_000_000
    assert 8 * (tmp_path / "file").stat().st_size <= 1.10 * bits


def test_a_dense_network_takes_hardly_more_than_its_arrays(tmp_path):
    tree = [jnp.ones((100, 100))] * 5
    sparse_optax.save_sparse(tmp_path / "file", tree)
    assert (tmp_path / "file").stat().st_size < 5 * (40_000 + 256) + 4096


def test_others_can_see_what_is_in_the_container(tmp_path):
    tree = {"dense": jnp.ones((2, 3)), "sparse": sparse((10, 100), 5)}
    sparse_optax.save_sparse(tmp_path / "file", tree)
    with safetensors.safe_open(tmp_path / "file", framework="np") as file:
        assert set(file.keys()) == {"0", "1", "about", "~sha256"}
        about = json.loads(zlib.decompress(file.get_tensor("about")))
    assert [leaf["shape"] for leaf in about["leaves"]] == [[2, 3], [10, 100]]


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"a": {"b": object()}}, "a/b: object, no concrete array"),
        ({"a": np.array(["x"])}, r"a: str32\[1\], no concrete array"),
        ({"a": np.zeros(9, np.clongdouble)}, r"a: complex\d+\[9\], no concrete"),
        ({"a": np.zeros(9, np.longdouble)}, r"a: float\d+\[9\], no concrete"),
        ({"a": np.zeros(9, "m8[s]")}, "a: timedelta64.*, no concrete"),
        ({"a": np.ma.masked_equal([1, 2], 2)}, r"a: int64\[2\], no .*: masked_array"),
        ({"a": 2j}, "a: complex, no concrete array of numbers: 2j"),
        (
            {"a": jax.ShapeDtypeStruct((1,), jnp.float32)},
            "a: float32.*, no concrete array .*: Shape",
        ),
    ],
    ids=lambda x: "" if isinstance(x, str) else type(x).__name__,
)
def test_what_a_file_cannot_hold_is_named(tree, message, tmp_path):
    path = tmp_path / "file"
    with pytest.raises(TypeError, match=f"tree has {message}"):
        sparse_optax.save_sparse(path, tree)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------- any tree, by like


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
    params = {"kernel": sparse((20, 30), 200), "bias": jnp.zeros(30)}
    inner = {"a": optax.adamw(0.1), "b": optax.sgd(0.1, momentum=0.9)}
    inner = optax.multi_transform(inner, {"kernel": "a", "bias": "b"})
    tx = sparse_optax.relevance_pruning(inner, strength=0.1)
    state = tx.init(params)
    params, state = sparse_optax.prune(params, state, 0.8)
    assert any(
        _trees.is_masked(x) for x in jax.tree.leaves(state, is_leaf=_trees.is_masked)
    )
    return params, state


TREES = {
    "equinox": lambda: eqx.nn.MLP(4, 3, 20, 2, key=jax.random.key(0)),
    "dataclass": lambda: {"layer": Layer(sparse((9, 9), 5), 0.5, "first")},
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
    "sparse array": lambda: BCOO.fromdense(sparse((9, 9), 5)),
    "known": lambda: {"a": None, "b": [], "c": ({}, [optax.MaskedNode(), "x"])},
    "dtypes": lambda: [jnp.float32, np.float64, jax.nn.relu, jax.random.key(0)],
}


def blank(leaf):
    """What `like` may have in place of a leaf: numbers and strings are not taken."""
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return leaf if callable(leaf) else 0 * leaf


@pytest.mark.parametrize("name", TREES)
def test_any_registered_tree_comes_back(name, tmp_path):
    tree = TREES[name]()
    sparse_optax.save_sparse(tmp_path / "file", tree)
    like = jax.tree.map(blank, tree)
    loaded = sparse_optax.load_sparse(tmp_path / "file", like=like)
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    check_same(loaded, tree)


def test_an_equinox_model_works_again(tmp_path):
    make = functools.partial(eqx.nn.MLP, 4, 3, 20, 2, activation=jax.nn.gelu)
    model = make(key=jax.random.key(0))
    sparse_optax.save_sparse(tmp_path / "file", model)
    like = eqx.filter_eval_shape(make, key=jax.random.key(1))
    loaded = sparse_optax.load_sparse(tmp_path / "file", like=like)
    x = jnp.arange(4.0)
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.mark.parametrize(
    "tree, named",
    [
        (Layer(jnp.ones(1), 0.5, "x"), r".*\.Layer"),
        ({"a": [Pair((jnp.ones(1),))]}, r".*\.Pair"),
        ({"a": {(1, 2): jnp.ones(1)}}, r"builtins\.dict"),
        (optax.sgd(0.1, 0.9).init({"a": jnp.ones(1)}), r"optax\..*\.TraceState"),
        (nnx.State({"w": Own(jnp.ones(1))}), r".*\.Own"),
        ({"a": jnp.ones(1), "f": len}, r"builtins\.builtin_function_or_method"),
        (
            {"w": nnx.Param(jnp.ones(3), units=len)},
            r"builtins\.builtin_function_or_method",
        ),
        ({"w": nnx.Param(jnp.ones(3), units=np.ones(3))}, r"numpy\.ndarray"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_without_like_what_needs_it_is_named(tree, named, tmp_path):
    sparse_optax.save_sparse(tmp_path / "file", tree)
    with pytest.raises(ValueError, match=f"the file has a {named}: pass `like`"):
        sparse_optax.load_sparse(tmp_path / "file")


@pytest.mark.parametrize(
    "like, message",
    [
        ({"a": jnp.ones((2, 3))}, "has b/c: float32.* where `like` has None"),
        (
            {"b": {"c": jnp.ones(4)}},
            r"has a: float32\[2, 3\] where .* has b/c: float32",
        ),
        ({"a": jnp.ones((2, 4))}, r"has a: float32\[2, 3\] where .* has a: .*\[2, 4\]"),
        ({"a": np.ones((2, 3))}, r"has a: float32.* where .* has a: float64\[2, 3\]"),
        ({"a": 1.0}, r"has a: float32\[2, 3\] where `like` has a: float\."),
        ({"a": len}, "where `like` has a: function"),
        ({"a": optax.MaskedNode()}, "where `like` has None"),
        ([jnp.ones((2, 3))], "where `like` has 0: float32"),
        (
            {"a": jnp.ones((2, 3)), "b": {"c": jnp.ones(4), "d": 1}},
            "has None .*b/d: int",
        ),
    ],
)
def test_what_differs_from_like_is_named(like, message, tmp_path):
    tree = {"a": jnp.ones((2, 3)), "b": {"c": jnp.ones(4)}}
    sparse_optax.save_sparse(tmp_path / "file", tree)
    with pytest.raises(ValueError, match=message):
        sparse_optax.load_sparse(tmp_path / "file", like=like)


@pytest.mark.parametrize(
    "data",
    [
        ["Popen", None, ["touch", "file"]],
        ["os.system", None, ["true"]],
        ["nnx.jit", ["dict", [], []], [1]],
        ["nnx.Module", ["dict", [], []], [1]],
    ],
    ids=str,
)
def test_a_file_makes_only_containers(data, monkeypatch, tmp_path):
    monkeypatch.setattr(_containers, "to_json", lambda tree: data)
    sparse_optax.save_sparse(tmp_path / "file", jnp.ones(1))
    with pytest.raises(ValueError, match="pass `like`"):
        sparse_optax.load_sparse(tmp_path / "file")


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


def test_tracers_cannot_be_saved(tmp_path):
    with pytest.raises(TypeError, match=r"w: float32\[\], no concrete array .*Tracer"):
        jax.jit(lambda w: sparse_optax.save_sparse(tmp_path / "file", {"w": w}))(1.0)


def test_missing_folders_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        sparse_optax.load_sparse(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none"):
        sparse_optax.save_sparse(tmp_path / "none" / "file", jnp.ones(1))


@pytest.mark.parametrize("extra", ["safetensors", "flax"])
def test_missing_libraries_raise(extra, monkeypatch, tmp_path):
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
    with pytest.raises(
        ValueError, match="file is damaged, incomplete or not of save_sparse"
    ):
        sparse_optax.load_sparse(path)


def test_other_files_of_safetensors_are_refused(tmp_path):
    safetensors.numpy.save_file({"w": np.ones(100)}, tmp_path / "file")
    with pytest.raises(ValueError, match="not of save_sparse"):
        sparse_optax.load_sparse(tmp_path / "file")


def test_later_versions_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("sparse_optax._sparse_files._VERSION", 3)
    sparse_optax.save_sparse(tmp_path / "file", jnp.ones(1))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="file has version 3 of the format, not 2"):
        sparse_optax.load_sparse(tmp_path / "file")


def test_files_of_the_first_version_are_refused_by_name():
    # Written by save_sparse before what is stored was compressed by zlib.
    path = pathlib.Path(__file__).parent / "version1.safetensors"
    assert set(safetensors.numpy.load_file(path)) == {"0/kernel", "1/bias", "masks"}
    with pytest.raises(ValueError, match="has version 1 of the format, not 2"):
        sparse_optax.load_sparse(path)


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
            with pytest.raises(
                ValueError, match="file is damaged, incomplete or not of save_sparse"
            ):
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


@pytest.mark.slow
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
        printed = writer.communicate()[0].split()
        last = int(printed[-1]) if printed else 0
        (value,) = set(sparse_optax.load_sparse(path)["w"].tolist())
        assert last <= value <= last + 1
