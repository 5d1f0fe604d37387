"""Smaller networks: what `compact` removes, returns and refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from channel_networks import NETWORKS, layer_norm, mlp, quickly_compiled
from helpers import random_tree
from jax import lax

import sparse_optax as so
from sparse_optax._compaction import compact as compact_module

pytestmark = pytest.mark.quickly_compiled

X = random_tree(9, shapes=(5, 4))
SHAPES = {"w1": (4, 6), "b": (6,), "w2": (6, 3)}


def without(params, **units):
    """Params with zeros: `w1=(1, [0, 2])` for two columns of `w1`."""
    params = dict(params)
    for name, (axis, indices) in units.items():
        where = (slice(None),) * axis + (jnp.array(indices),)
        params[name] = params[name].at[where].set(0)
    return params


# Nothing writes to unit 1, and nothing reads units 3 and 4, nor feature 2 of the input.
PARAMS = without(random_tree(0, shapes=SHAPES), w1=(1, [1]), b=(0, [1]), w2=(0, [3, 4]))
PARAMS = without(PARAMS, w1=(0, [2]))


@pytest.fixture(scope="module")
def compacted():
    return so.compact(mlp, PARAMS, X)


def shapes_of(tree):
    return jax.tree.map(jnp.shape, tree)


def assert_same(actual, expected, rtol=1e-5):
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def test_units_and_features_that_are_not_read_are_gone(compacted):
    assert shapes_of(compacted.params) == {"w1": (3, 3), "b": (3,), "w2": (3, 3)}
    kept = {
        name: {k: i.tolist() for k, i in x.items()}
        for name, x in compacted.kept.items()
    }
    units, features = [0, 2, 5], [0, 1, 3]
    assert kept == {"w1": {0: features, 1: units}, "b": {0: units}, "w2": {0: units}}
    np.testing.assert_array_equal(compacted.params["b"], PARAMS["b"][jnp.array(units)])
    assert compacted.not_removed == () and compacted.folded == {}


def test_the_table_has_sizes_of_all_layers(compacted):
    (weights, fewer) = compacted.layers["w1"]
    assert (weights.weights, weights.num_bytes, weights.multiplications) == (
        24,
        96,
        120,
    )
    assert (fewer.weights, fewer.num_bytes, fewer.multiplications) == (9, 36, 45)
    before, after = compacted.total
    assert (before.weights, after.weights) == (24 + 6 + 18, 9 + 3 + 9)
    assert (before.multiplications, after.multiplications) == (120 + 90, 45 + 45)
    assert str(compacted).splitlines()[-1].split() == [
        "total", "48", "21", "192", "84", "210", "90", "2.3x"
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 5, 7])
def test_batches_of_any_size(compacted, size):
    x = random_tree(size, shapes=(size, 4))
    found = compacted.apply(compacted.params, x)
    assert_same(found, mlp(PARAMS, x))


def test_transformations_of_jax(compacted):
    def loss(apply):
        return lambda params, x: jnp.sum(jnp.sin(apply(params, x)))

    value, gradients = jax.value_and_grad(loss(mlp), (0, 1))(PARAMS, X)
    found = jax.jit(jax.value_and_grad(loss(compacted.apply), (0, 1)))
    expected = value, (compacted.shrink(gradients[0]), gradients[1])
    assert_same(found(compacted.params, X), expected)
    batches = random_tree(1, shapes=(3, 5, 4))
    mapped = jax.vmap(compacted.apply, (None, 0))(compacted.params, batches)
    assert_same(mapped, mlp(PARAMS, batches))
    ensemble = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), compacted.params)
    assert jax.vmap(compacted.apply, (0, None))(ensemble, X).shape == (2, 5, 3)


@pytest.mark.parametrize("name", ["flat attention", "lstm"])
def test_networks_are_exported_for_batches_of_any_size(name):
    net = NETWORKS[name]
    params = so.apply_masks(net.params(), net.masks_of_two_thirds())
    compacted = so.compact(net.fn, params, net.inputs(), check=False)
    assert compacted.total[1].weights < 0.6 * compacted.total[0].weights
    (size,) = jax.export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((size, *net.input[1:]), X.dtype)
    shapes = jax.eval_shape(lambda: compacted.params)
    exported = jax.export.export(jax.jit(compacted.apply))(shapes, x)
    again = jax.export.deserialize(exported.serialize())
    x = random_tree(1, shapes=(5, *net.input[1:]))
    assert_same(again.call(compacted.params, x), quickly_compiled(net.fn)(params, x))


def test_shrink_and_expand(compacted):
    masks = jax.tree.map(lambda w: w != 0, PARAMS)
    assert shapes_of(compacted.shrink(masks)) == shapes_of(compacted.params)
    whole = compacted.expand(compacted.params)
    assert shapes_of(whole) == shapes_of(PARAMS)
    assert_same(mlp(whole, X), mlp(PARAMS, X))
    again = compacted.shrink(whole)
    jax.tree.map(np.testing.assert_array_equal, again, compacted.params)
    state = {"mu": PARAMS, "count": jnp.int32(3), "other": jnp.ones(7)}
    small = compacted.shrink(state)
    assert shapes_of(small) == shapes_of(
        {"mu": compacted.params, "count": 3, "other": jnp.ones(7)}
    )
    assert shapes_of(compacted.expand(small)) == shapes_of(state)


def test_compacting_twice_changes_nothing(compacted):
    again = so.compact(compacted.apply, compacted.params, X)
    assert again.kept == {}
    assert shapes_of(again.params) == shapes_of(compacted.params)


def test_nothing_to_remove():
    params = random_tree(0, shapes=SHAPES)
    compacted = so.compact(mlp, params, X)
    assert (compacted.kept, compacted.not_removed) == ({}, ())
    assert_same(compacted.apply(params, X), mlp(params, X))


def test_shapes_are_enough_without_a_check(compacted):
    x = jax.ShapeDtypeStruct((1, 4), X.dtype)
    found = so.compact(mlp, PARAMS, x, check=False)
    assert shapes_of(found.params) == shapes_of(compacted.params)


def test_a_unit_that_is_read_only_by_one_that_is_removed():
    def chain(p, x):
        for name in ("w1", "w2", "w3"):
            x = jax.nn.gelu(x @ p[name])
        return x @ p["w4"]

    shapes = {"w1": (4, 6), "w2": (6, 6), "w3": (6, 6), "w4": (6, 2)}
    params = random_tree(0, shapes=shapes)
    params = without(params, w4=(0, [0, 1]))
    for name in ("w2", "w3"):  # units 0 and 1 are read by units 0 and 1 alone
        params[name] = params[name].at[:2, 2:].set(0)
    found = so.compact(chain, params, X)
    assert [w.shape for w in found.params.values()] == [(4, 4), (4, 4), (4, 4), (4, 2)]


@pytest.mark.parametrize("name", ["mlp", "in groups", "flat attention", "gated"])
def test_at_least_one_unit_of_each_kind_stays(name):
    net = NETWORKS[name]
    zeros = jax.tree.map(jnp.zeros_like, net.params())
    groups = so.channel_groups(net.fn, zeros, net.inputs()).groups
    found = so.compact(net.fn, zeros, net.inputs(), check=False)
    for leaf, axis, *_ in (member for group in groups for member in group.members):
        assert found.params[leaf].shape[axis] == 1
    assert not np.any(quickly_compiled(found.apply)(found.params, net.inputs()))


@pytest.mark.parametrize(
    ("num_dead", "round_to", "left"),
    [
        (11, 1, 9),
        (11, 8, 16),
        (3, 8, 20),
        (4, 8, 16),
        (13, 4, 8),
        (20, 8, 8),
        (2, 100, 20),
    ],
)
def test_numbers_of_units_are_rounded_up(num_dead, round_to, left):
    params = random_tree(0, shapes={"w1": (4, 20), "b": (20,), "w2": (20, 3)})
    params = without(params, w2=(0, range(num_dead)))
    found = so.compact(mlp, params, X, round_to=round_to, check=False)
    assert len(found.params["b"]) == left


def test_constant_units_become_part_of_a_bias():
    def fn(p, x):
        return jax.nn.sigmoid(x @ p["w1"] + p["b"]) @ p["w2"] + p["b2"]

    params = random_tree(0, shapes=SHAPES | {"b2": (3,)})
    params = without(params, w1=(1, [0, 4]))
    found = so.compact(fn, params, X)
    assert found.params["w2"].shape == (4, 3) and found.folded == {"b2": 2}
    constants = jax.nn.sigmoid(params["b"][jnp.array([0, 4])])
    bias = params["b2"] + constants @ params["w2"][jnp.array([0, 4])]
    assert_same(found.params["b2"], bias)
    assert "folded: 2 constant units into b2" in str(found)


@pytest.mark.parametrize(
    "output, num_folded",
    [
        (lambda y, b: y + b, 1),
        (lambda y, b: jnp.tanh(y) + b, 0),
        (lambda y, b: y + jnp.exp(b), 0),
    ],
)
def test_constant_units_become_part_of_a_scalar_bias(output, num_folded):
    def fn(p, x):
        y = jax.nn.sigmoid(x @ p["w1"]) @ p["readout"]
        return output(y, jnp.broadcast_to(p["scalar"], y.shape))

    params = {"w1": random_tree(0, shapes=SHAPES)["w1"].at[:, 2].set(0)}
    params |= {"readout": jnp.arange(1.0, 7), "scalar": jnp.array(0.5)}
    found = so.compact(fn, params, X)
    assert sum(found.folded.values()) == num_folded
    assert_same(found.apply(found.params, X), fn(params, X))


def test_layers_of_a_scan_lose_units_of_their_own():
    net = NETWORKS["stacked layers"]
    params = net.params()
    up = params["layers"]["up"]
    for layer, unit in enumerate((0, 3, 4)):
        up = up.at[layer, :, unit].set(0)
    up = up.at[1, :, 1].set(0)  # of which only one is removed
    params["layers"]["up"] = up
    found = so.compact(net.fn, params, net.inputs())
    assert shapes_of(found.params["layers"]) == {"up": (3, 6, 4), "down": (3, 4, 6)}
    kept = found.kept["layers/up"][2]
    assert kept.shape == (3, 4)
    assert 0 not in kept[0] and (1 not in kept[1] or 3 not in kept[1])
    assert 4 not in kept[2]
    whole = found.expand(found.params)
    assert_same(net.fn(whole, net.inputs()), net.fn(params, net.inputs()))


def test_features_of_an_image_that_is_flattened():
    def fn(p, x):
        return jax.nn.relu(x.reshape(len(x), -1) @ p["w1"]) @ p["w2"]

    params = random_tree(0, shapes={"w1": (12, 5), "w2": (5, 2)})
    params = without(params, w1=(0, [0, 3, 4, 11]))
    x = random_tree(1, shapes=(2, 3, 2, 2))
    found = so.compact(fn, params, x)
    assert found.params["w1"].shape == (8, 5)
    assert found.apply(found.params, x[:1]).shape == (1, 2)


def one_pass(p, x):
    x = x @ p["in"]
    mean, square = x.mean(-1, keepdims=True), jnp.square(x).mean(-1, keepdims=True)
    x = (x - mean) * lax.rsqrt(square - mean**2 + 1e-5)
    return (x * p["scale"]) @ p["out"]


@pytest.mark.parametrize(("fn", "left"), [(one_pass, 4), (layer_norm, 6)])
def test_norms_over_a_stream_with_zeros(fn, left):
    params = random_tree(0, shapes=NETWORKS["layer norm"].shapes)
    params = without(
        params, **{"in": (1, [0, 5]), "out": (0, [0, 5])}, scale=(0, [0, 5])
    )
    found = so.compact(fn, params, X)
    assert found.params["in"].shape == (4, left)
    reasons = {d.reason for d in found.not_removed}
    assert reasons == ({"read by reduce_sum"} if left == 6 else set())


def test_zeros_that_stay_are_listed():
    net = NETWORKS["tied"]
    params = net.params()
    params["embed"] = params["embed"].at[6].set(0)  # a word that could be looked up
    found = so.compact(net.fn, params, net.inputs())
    (not_removed,) = found.not_removed
    assert not_removed[:3] == ("embed", 0, 1) and "gather" in not_removed.reason
    assert f"kept: 1 zero slices of embed, axis 0: {not_removed.reason}" in str(found)


def test_tied_weights_stay_tied():
    net = NETWORKS["tied"]
    params = without(net.params(), embed=(1, [2]), down=(1, [2]))
    found = so.compact(net.fn, params, net.inputs())
    assert found.params["embed"].shape == (7, 3) and found.params["up"].shape == (3, 3)
    params = without(net.params(), down=(1, [2]))  # the embedding goes on writing to it
    assert so.compact(net.fn, params, net.inputs()).kept == {}


def test_wrong_arguments():
    with pytest.raises(TypeError, match="fn must be callable"):
        so.compact(PARAMS, mlp, X)
    with pytest.raises(TypeError, match=r"compact.*Call it outside, and `apply`"):
        jax.jit(lambda params: so.compact(mlp, params, X).params)(PARAMS)
    with pytest.raises(ValueError, match="check=True needs arrays as inputs"):
        so.compact(mlp, PARAMS, jax.ShapeDtypeStruct((1, 4), X.dtype))
    for round_to, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="round_to"):
            so.compact(mlp, PARAMS, X, round_to=round_to)


def test_params_that_do_not_fit(compacted):
    params = compacted.params
    with pytest.raises(
        ValueError, match=r"params has shape \(4, 6\) at w1; it must be "
    ):
        compacted.apply(params | {"w1": PARAMS["w1"]}, X)
    with pytest.raises(ValueError, match=r"params does not match .* at \['w3'\]"):
        compacted.apply(params | {"w3": params["w2"]}, X)
    with pytest.raises(ValueError, match=r"at \['b'\]"):
        compacted.apply({"w1": params["w1"], "w2": params["w2"]}, X)
    with pytest.raises(
        ValueError, match=r"tree has shape \(3,\) at mu/b; it must be \(6,"
    ):
        compacted.shrink({"mu": params})
    with pytest.raises(
        ValueError, match=r"tree has shape \(6,\) at b; it must be \(3,"
    ):
        compacted.expand({"b": PARAMS["b"]})


def test_another_function_that_reads_what_was_removed(compacted):
    other = compacted.convert(lambda p, x: (x @ p["w1"] + p["b"])[:, ::-1] @ p["w2"])
    message = r"needs units .* \(3 of 6 slices of b, axis 0\): it couples other units"
    with pytest.raises(ValueError, match=message):
        other.apply(compacted.params, X)
    message = "reduce_sum reads units that were removed from w1, axis 1, and that are"
    other = compacted.convert(lambda p, x: jax.nn.sigmoid(x @ p["w1"]).mean())
    with pytest.raises(ValueError, match=message):
        other.apply(compacted.params, X)


@pytest.mark.parametrize(
    "fn",
    [
        lambda p, x: jnp.square(x @ p["w1"] + p["b"]).mean(),
        lambda p, x: sum(jnp.sum(leaf**2) for leaf in p.values()) + x.sum(),
        lambda p, x: (jnp.arange(6.0) + x @ p["w1"] + p["b"]) @ p["w2"],
    ],
)
def test_removed_units_count_as_zero_in_another_function(compacted, fn):
    expected = fn(compacted.expand(compacted.params), X)
    assert_same(compacted.convert(fn).apply(compacted.params, X), expected)


def test_check_detects_wrong_removals(monkeypatch):
    unread = compact_module.unread

    def wrong(program, leaves, table):
        found = unread(program, leaves, table)
        found.removed[table.resolve(program.ins[1].axes[1])[0]] = True
        return found

    monkeypatch.setattr(compact_module, "unread", wrong)
    with pytest.raises(
        RuntimeError, match=r"outputs at \(root\) differ by .* a bug in"
    ):
        so.compact(mlp, PARAMS, X)
    so.compact(mlp, PARAMS, X, check=False)
