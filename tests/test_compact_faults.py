"""What `compact` once did wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from channel_networks import mlp
from helpers import mesh_of, random_tree
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import sparse_optax as so
from sparse_optax._compaction import compact as compact_module

X = random_tree(9, shapes=(5, 4))
PARAMS = random_tree(0, shapes={"w1": (4, 6), "b": (6,), "w2": (6, 3)})
PARAMS["w2"] = PARAMS["w2"].at[2].set(0)


def test_constant_units_that_two_products_with_the_same_weights_read():
    def fn(p, x):
        x = jax.nn.sigmoid(x @ p["w1"] + p["b"])
        return x @ p["w2"] + p["c"], (2 * x) @ p["w2"] + p["d"]

    params = PARAMS | random_tree(1, shapes={"c": (3,), "d": (3,)})
    params["w1"] = params["w1"].at[:, 1].set(0)
    compacted = so.compact(fn, params, X, check=False)
    assert compacted.folded == {"c": 1, "d": 1}
    found = compacted.apply(compacted.params, X)
    for a, b in zip(found, fn(params, X), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_windows_of_padding_alone():
    def fn(p, x):
        x, low = x @ p["w1"], ((0, 0), (2, 0), (0, 0))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), low)
        return jnp.maximum(x, -1.0) @ p["w2"]

    params = PARAMS | {"w1": PARAMS["w1"].at[:, 1].set(0)}
    del params["b"]
    x = random_tree(1, shapes=(2, 4, 4))
    compacted = so.compact(fn, params, x, check=False)
    found = compacted.apply(compacted.params, x)
    np.testing.assert_allclose(found, fn(params, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_wrong_removal_is_found_in_halves(dtype, monkeypatch):
    unread = compact_module.unread

    def wrong(program, leaves, table):
        found = unread(program, leaves, table)
        found.removed[table.resolve(program.ins[1].axes[1])[:5]] = True
        return found

    monkeypatch.setattr(compact_module, "unread", wrong)
    params, x = jax.tree.map(lambda w: w.astype(dtype), (PARAMS, X))
    with pytest.raises(RuntimeError, match="a bug of compact"):
        so.compact(mlp, params, x)


def test_keys_among_the_params():
    params = PARAMS | {"dropout": jax.random.key(0)}
    assert so.compact(mlp, params, X).params["w2"].shape == (5, 3)


def test_params_that_are_left_out():
    params = PARAMS | {"other": optax.MaskedNode()}
    assert so.compact(mlp, params, X).params["w2"].shape == (5, 3)


def test_explicit_meshes():
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        spec = NamedSharding(mesh, P(None, "model"))
        params = PARAMS | {"w1": jax.device_put(PARAMS["w1"], spec)}
        with pytest.raises(ValueError, match=r"explicit axes of a mesh at w1"):
            so.compact(mlp, params, X)
        compacted = so.compact(mlp, jax.device_get(params), X)
        assert compacted.params["w2"].shape == (5, 3)
        with pytest.raises(ValueError, match="tree is sharded over explicit"):
            compacted.shrink(params)


def test_optimizer_states_of_a_part_of_the_params():
    """As in linen, where params are one of the variables."""

    def fn(variables, x):
        return mlp(variables["params"], x)

    compacted = so.compact(fn, {"params": PARAMS, "batch_stats": {}}, X)
    state = compacted.shrink(optax.adam(0.1).init(PARAMS))
    assert state[0].mu["w2"].shape == compacted.params["params"]["w2"].shape == (5, 3)
    jax.tree.map(
        np.testing.assert_array_equal,
        compacted.shrink(PARAMS),
        compacted.params["params"],
    )
    with pytest.raises(ValueError, match="no leaf named as one of the params"):
        compacted.shrink({"w": PARAMS["w1"]})


def test_parts_of_the_params_that_may_be_one_or_the_other():
    def fn(p, x):
        return mlp(p["a"], x) + mlp(p["b"], x)

    other = PARAMS | {"w1": PARAMS["w1"].at[:, 0].set(0)}
    compacted = so.compact(fn, {"a": PARAMS, "b": other}, X)
    with pytest.raises(
        ValueError, match=r"leaf b, which may be any of \['a/b', 'b/b'\]"
    ):
        compacted.shrink(PARAMS)


def test_equations_whose_results_are_not_used():
    def fn(p, x):
        energy = jax.grad(lambda h: jnp.sum(jnp.tanh(h)))
        return energy(x @ p["w1"] + p["b"]) @ p["w2"]

    assert so.compact(fn, PARAMS, X).params["w2"].shape == (5, 3)


def test_complex_params():
    def fn(p, x):
        return jnp.abs(jnp.square(x @ p["w1"]) @ p["w2"])

    params = {name: w + 1j * w for name, w in PARAMS.items() if name != "b"}
    compacted = so.compact(fn, params, X)
    assert compacted.params["w2"].shape == (5, 3)
