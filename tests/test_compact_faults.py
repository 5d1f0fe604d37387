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

pytestmark = pytest.mark.quickly_compiled

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


def remove_too_much(monkeypatch):
    unread = compact_module.unread

    def wrong(program, leaves, table):
        found = unread(program, leaves, table)
        found.removed[table.resolve(program.ins[1].axes[1])[:5]] = True
        return found

    monkeypatch.setattr(compact_module, "unread", wrong)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_check_detects_wrong_removals_in_half_precision(dtype, monkeypatch):
    remove_too_much(monkeypatch)
    params, x = jax.tree.map(lambda w: w.astype(dtype), (PARAMS, X))
    with pytest.raises(RuntimeError, match="a bug in compact"):
        so.compact(mlp, params, x)


def test_keys_among_the_params():
    params = PARAMS | {"dropout": jax.random.key(0)}
    assert so.compact(mlp, params, X).params["w2"].shape == (5, 3)


def test_leaves_that_fn_does_not_read():
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
    with pytest.raises(ValueError, match="no leaf with the name of a param"):
        compacted.shrink({"w": PARAMS["w1"]})


def test_parts_of_the_params_that_may_be_one_or_the_other():
    def fn(p, x):
        return mlp(p["a"], x) + mlp(p["b"], x)

    other = PARAMS | {"w1": PARAMS["w1"].at[:, 0].set(0)}
    compacted = so.compact(fn, {"a": PARAMS, "b": other}, X)
    with pytest.raises(
        ValueError, match=r"leaf b, which could belong to any of \['a/b', 'b/b'\]"
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


def is_same(fn, params, *inputs):
    compacted = so.compact(fn, params, *inputs, check=False)
    found = jax.tree.leaves(compacted.apply(compacted.params, *inputs))
    for a, b in zip(found, jax.tree.leaves(fn(params, *inputs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert a.dtype == b.dtype
    return compacted


HALVES = jnp.array([[1.0, 1, 0, 0], [0, 0, 1, 1]])[:, None]  # alive, of two layers
STACKED = random_tree(0, shapes={"w1": (2, 4, 4), "w2": (2, 4, 4)})
STACKED["w1"] *= HALVES


@pytest.mark.parametrize(
    "act",
    [
        lambda h: jnp.concatenate([jnp.tanh(h[:, :2]), h[:, 2:]], 1),
        lambda h: h * jnp.arange(1.0, 5.0),
        lambda h: h * lax.iota(jnp.float32, 4),
        lambda h: jnp.where(jnp.arange(4) < 2, h, jnp.sin(h)),
        lambda h: h * jax.random.bernoulli(jax.random.key(0), 0.5, (4,)),
    ],
)
def test_bodies_of_scans_that_know_positions(act):
    def fn(p, x):
        def body(x, w):
            return x + act(x @ w["w1"]) @ w["w2"], None

        return lax.scan(body, x, p)[0]

    assert is_same(fn, STACKED, X).kept == {}


@pytest.mark.parametrize(
    "act",
    [
        lambda h, s: h * s,
        lambda h, s: h * np.arange(1, 5, dtype=np.float32),
        lambda h, s: h * jax.random.bernoulli(jax.random.key(0), 0.5, h.shape),
    ],
)
def test_other_functions_that_tell_units_of_stacked_layers_apart(act):
    def fn(p, x, scale=None):
        def body(x, w):
            hidden = jnp.tanh(x @ w["w1"])
            hidden = hidden if scale is None else act(hidden, scale)
            return x + hidden @ w["w2"], None

        return lax.scan(body, x, p)[0]

    compacted = is_same(fn, STACKED, X)
    assert compacted.kept["w1"][2].ndim == 2
    with pytest.raises(ValueError, match=r"does not treat all units alike .* \(w1, ax"):
        compacted.apply(compacted.params, X, jnp.arange(1.0, 5.0))


def test_functions_that_changed_since_they_were_compacted():
    scale = {"value": 1.0}

    def fn(p, x):
        return jax.nn.relu(x @ p["w1"]) @ p["w2"] * scale["value"]

    so.compact(fn, PARAMS, X)
    scale["value"] = 2.0
    found = so.compact(fn, PARAMS, X)
    np.testing.assert_allclose(found.apply(found.params, X), fn(PARAMS, X), rtol=1e-5)


@pytest.mark.parametrize("shape", [(0, 4), (5, 0, 4)])
def test_empty_axes(shape):
    def fn(p, x):
        return jax.nn.relu(x @ p["w1"]).sum(-2) @ p["w2"]

    is_same(fn, PARAMS, jnp.ones(shape))


def test_layers_without_units():
    params = random_tree(0, shapes={"w1": (4, 0), "w2": (0, 3)})
    found = so.compact(lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"], params, X)
    assert found.kept == {}


@pytest.mark.parametrize("read", [jnp.sum, lambda w: w, jnp.square])
def test_stacked_layers_that_are_read_outside_of_the_scan(read):
    def fn(p, x):
        def body(x, w):
            return x + jnp.tanh(x @ w["w1"]) @ w["w2"], None

        return lax.scan(body, x, p)[0], read(p["w2"])

    assert is_same(fn, STACKED, X).kept == {}


@pytest.mark.parametrize(
    "use",
    [
        lambda hs: jnp.concatenate([jnp.zeros((1, 4, 6)), hs]),
        lambda hs: hs.reshape(-1, 6),
        lambda hs: hs.reshape(7, 4, 2, 3).reshape(7, 4, 6),
    ],
)
def test_what_a_scan_stacks(use):
    def fn(p, x):
        def body(h, x):
            h = jnp.tanh(x @ p["w1"] + h @ p["wh"])
            return h, h

        hs = lax.scan(body, jnp.zeros((4, 6)), x)[1]
        return use(hs) @ p["w2"]

    params = PARAMS | random_tree(3, shapes={"wh": (6, 6)})
    del params["b"]
    params["wh"] = params["wh"].at[2].set(0)
    is_same(fn, params, random_tree(1, shapes=(7, 4, 4)))


def test_trees_with_params_and_parts_of_them():
    def fn(variables, x):
        return mlp(variables["params"], x)

    variables = {"params": PARAMS, "batch_stats": {}}
    compacted = so.compact(fn, variables, X)
    small = compacted.params
    assert "params" in small
    state = compacted.shrink(variables | {"opt_state": optax.adam(0.1).init(PARAMS)})
    assert state["opt_state"][0].mu["w2"].shape == state["params"]["w2"].shape == (5, 3)
    assert compacted.shrink(optax.sgd(0.1).init(PARAMS)) == optax.sgd(0.1).init(PARAMS)


def test_params_named_as_the_end_of_others():
    def fn(p, x):
        return jnp.tanh(x @ p["w"]) @ p["mu"]["w"]

    params = {"w": PARAMS["w1"], "mu": {"w": PARAMS["w2"]}}
    compacted = so.compact(fn, params, X)
    state = compacted.shrink(optax.adam(0.1).init(params))
    shapes = jax.tree.map(jnp.shape, compacted.params)
    assert jax.tree.map(jnp.shape, state[0].mu) == shapes
    with pytest.raises(ValueError, match="params has two leaves named a/w"):
        so.compact(fn, {"a/w": X, "a": {"w": X}}, X)


def test_axes_of_size_1_form_no_groups():
    def fn(p, x):
        return jnp.tanh(x @ p["w1"])[:, None, :].reshape(len(x), -1) @ p["w2"]

    groups = so.channel_groups(fn, PARAMS | {"b": X}, X)
    assert [group.size for group in groups] == [4, 6]


def test_indices_out_of_bounds_are_filled():
    def fn(p, i):
        return jnp.take(p["w1"], i, axis=0, mode="fill", fill_value=1.0) @ p["w2"]

    params = {"w1": PARAMS["w1"].at[:, 0].set(0), "w2": PARAMS["w2"]}
    assert is_same(fn, params, jnp.array([1, 9])).params["w2"].shape == (5, 3)


def test_integer_outputs_are_compared(monkeypatch):
    remove_too_much(monkeypatch)
    x = random_tree(0, shapes=(100, 4))
    for fn in (lambda p, x: mlp(p, x).argmax(1), lambda p, x: mlp(p, x) + 1j):
        with pytest.raises(RuntimeError, match="a bug in compact"):
            so.compact(fn, PARAMS, x)


def test_casts_to_integers_are_not_folded():
    def fn(p, x):
        h = jnp.tanh(x @ p["w1"] + p["b"]) @ p["w2"]
        return (3 * h).astype(int) + p["c"]

    params = PARAMS | {"w1": PARAMS["w1"].at[:, 1].set(0), "c": jnp.arange(3)}
    assert is_same(fn, params, X).folded == {}


def test_a_gate_that_is_zero_keeps_its_gradient():
    def fn(p, x):
        return (p["gate"] * jnp.tanh(x @ p["w1"])) @ p["w2"]

    params = PARAMS | {"gate": jnp.zeros(())}
    del params["b"]
    assert is_same(fn, params, X).params["w2"].shape == (5, 3)


def test_weak_types_stay():
    def fn(p, x, scale):
        return mlp(p, x) * scale

    params, x = jax.tree.map(lambda w: w.astype(jnp.bfloat16), (PARAMS, X))
    compacted = so.compact(fn, params, x, 0.5)
    assert compacted.apply(compacted.params, x, 0.5).dtype == jnp.bfloat16


def test_folded_leaves_stay_on_their_devices():
    params = PARAMS | {"w1": PARAMS["w1"].at[:, 1].set(0), "c": jnp.ones(3)}
    device = jax.devices()[1]
    params = jax.device_put(params, device)

    def fn(p, x):
        return jnp.tanh(x @ p["w1"] + p["b"]) @ p["w2"] + p["c"]

    found = so.compact(fn, params, X)
    assert found.folded == {"c": 1}
    assert all(w.devices() == {device} for w in jax.tree.leaves(found.params))


def test_callbacks_are_called():
    seen = []

    def fn(p, x):
        jax.debug.callback(lambda: seen.append(1))
        return mlp(p, x)

    compacted = so.compact(fn, PARAMS, X, check=False)
    jax.block_until_ready(compacted.apply(compacted.params, X))
    jax.effects_barrier()
    assert seen == [1]


def test_outputs_that_were_not_finite():
    params = PARAMS | {"w1": PARAMS["w1"].at[:, 1].set(0), "b": jnp.zeros(6)}
    params["w2"] = params["w2"].at[1, 0].set(jnp.nan)
    with pytest.raises(RuntimeError, match=r"outputs at \(root\) contain nan before"):
        so.compact(mlp, params, X)
