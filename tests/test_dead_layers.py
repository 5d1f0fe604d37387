"""Dead layers: those without weights, and chains without a path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparse_optax


def warnings(masks):
    """What is warned of in a network of these masks."""
    masks = jax.tree.map(lambda m: np.asarray(m, bool), masks)
    params = jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), masks)
    return sparse_optax.sparsity_report(params, masks).warnings


def chain(*shapes):
    return {f"layer{i}": {"kernel": np.ones(s, bool)} for i, s in enumerate(shapes)}


def test_a_layer_without_weights_is_named():
    masks = chain((4, 3), (3, 2))
    masks["layer1"]["kernel"][:] = False
    masks["layer0"]["bias"] = np.zeros(3, bool)  # of which there is nothing to say
    params = jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), masks)
    report = sparse_optax.sparsity_report(params, masks)
    assert report.warnings == ("layer1/kernel has no weight left",)
    last = str(report).splitlines()[-1]
    assert last == "warning: layer1/kernel has no weight left"
    assert "inf" not in str(report)


@pytest.mark.parametrize(
    "name, told", [("scale", True), ("gamma", True), ("bias", False), ("b1", False)]
)
def test_vectors_that_are_multiplied_count_as_layers(name, told):
    assert bool(warnings({"w": np.ones((2, 2)), name: np.zeros(2)})) == told


def test_an_empty_scale_hides_no_broken_path():
    masks = chain((2, 2), (2, 1)) | {"scale": np.zeros(2, bool)}
    masks["layer0"]["kernel"][:, 1] = False
    masks["layer1"]["kernel"][0] = False
    assert len(warnings(masks)) == 2


def autoencoder():
    shapes = {
        "encoder": {"Dense_0": (9, 5), "Dense_1": (5, 2)},
        "decoder": {"Dense_0": (2, 5), "Dense_1": (5, 9)},
    }
    return jax.tree.map(
        lambda shape: np.ones(shape, bool),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def test_nothing_is_said_where_any_layer_might_be_the_first():
    masks = autoencoder()
    masks["decoder"]["Dense_1"][:, 1:] = False
    masks["encoder"]["Dense_0"][0] = False  # alive, though not if it came second
    assert warnings(masks) == ()
    language = {"Dense_0": np.ones((4, 7), bool), "Embed_0": np.ones((7, 4), bool)}
    language["Dense_0"][:, 1:] = False
    language["Embed_0"][0] = False
    assert warnings(language) == ()


@pytest.mark.parametrize(
    "shapes",
    [
        {"input": (7, 5), "hidden1": (5, 5), "hidden2": (5, 5), "head": (5, 2)},
        {"conv1": (3, 3, 1, 4), "conv2": (3, 3, 4, 4), "classifier": (16, 2)},
        {"fc_in": (7, 5), "fc_mid": (5, 5), "fc_out": (5, 5), "a_last": (5, 2)},
    ],
    ids=str,
)
def test_the_last_layer_may_have_any_name(shapes):
    masks = {name: np.ones(shape, bool) for name, shape in shapes.items()}
    first, second, *_ = masks
    masks[first][..., 1:] = False
    assert warnings(masks) == ()
    masks[second][..., 0, :] = False
    (text,) = warnings(masks)
    assert f"none beyond {second}" in text
    assert text.endswith(f"the chain {', '.join(masks)}")


def test_a_chain_without_a_path_is_told():
    masks = chain((4, 3), (3, 3), (3, 2))
    assert warnings(masks) == ()
    masks["layer0"]["kernel"][:, 1:] = False  # leads to the first unit alone
    assert warnings(masks) == ()
    masks["layer1"]["kernel"][0, :] = False  # which leads nowhere
    (text,) = warnings(masks)
    assert "none beyond layer1/kernel" in text
    assert text.endswith("layer0/kernel, layer1/kernel, layer2/kernel")


def test_a_bias_makes_no_path():
    masks = chain((2, 2), (2, 2), (2, 1))
    masks["layer1"]["kernel"] = np.array([[0, 0], [0, 1]], bool)
    masks["layer0"]["kernel"] = np.array([[1, 0], [1, 0]], bool)
    masks["layer0"]["bias"] = np.ones(2, bool)
    assert len(warnings(masks)) == 1


def test_names_are_in_the_order_of_their_numbers():
    masks = [(f"Dense_{i}", np.ones((3, 3), bool)) for i in range(12)]
    masks = {name: mask.copy() for name, mask in masks}
    masks["Dense_0"] = np.ones((5, 3), bool)
    masks["Dense_9"][:, 1:] = False
    masks["Dense_10"][0] = False
    (text,) = warnings(masks)
    assert "none beyond Dense_10" in text
    assert "Dense_8, Dense_9, Dense_10, Dense_11" in text


def test_shapes_tell_the_order_where_names_do_not():
    masks = {
        "input": np.ones((7, 5), bool),
        "hidden": np.ones((5, 3), bool),
        "output": np.ones((3, 2), bool),
    }
    assert warnings(masks) == ()
    masks["input"][:, 0] = False
    masks["hidden"][1:] = False
    (text,) = warnings(masks)
    assert text.endswith("input, hidden, output")


def test_convolutions_are_flattened_channels_last():
    masks = {
        "conv": np.zeros((3, 3, 1, 4), bool),
        "dense": np.zeros((2 * 2 * 4, 5), bool),
        "output": np.ones((5, 2), bool),
    }
    masks["conv"][1, 2, 0, 3] = True  # channel 3 is reached
    for unit in range(16):
        masks["dense"][:] = False
        masks["dense"][unit, 0] = True
        assert bool(warnings(masks)) == (unit % 4 != 3)


@pytest.mark.parametrize(
    "shapes",
    [
        [],
        [(3, 2)],
        [(3, 2), (3, 2)],  # side by side
        [(3, 2), (2, 4), (5, 1)],  # does not fit
        [(0, 3), (3, 0)],
    ],
    ids=str,
)
def test_nothing_is_said_of_what_is_no_chain(shapes):
    masks = chain(*shapes)
    assert warnings(masks) == ()
    for layer in masks.values():
        if layer["kernel"].size:
            layer["kernel"].reshape(-1)[1:] = False
    assert warnings(masks) == ()


def test_layers_that_are_never_pruned_are_whole():
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2)), "c": jnp.ones(3)}
    masks = {"a": optax.MaskedNode(), "b": jnp.zeros((2, 2), bool)}
    masks["c"] = optax.MaskedNode()
    report = sparse_optax.sparsity_report(params, masks)
    assert report.warnings == ("b has no weight left",)
    assert report.leaves["a"].kept == 6


class Network(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(3)])


def test_a_pruned_nnx_network_is_warned_of():
    params = nnx.state(Network(nnx.Rngs(0)), nnx.Param)
    tx = sparse_optax.prune_by_magnitude(0.5, mask=sparse_optax.matrices_only)
    params, state = sparse_optax.prune(params, tx.init(params), sparsity=46 / 48)
    masks = sparse_optax.get_masks(state)
    report = sparse_optax.sparsity_report(params, masks)
    assert report.warnings
    kept = sparse_optax.prune_by_magnitude(
        0.5, min_kept=1, mask=sparse_optax.matrices_only
    )
    params = nnx.state(Network(nnx.Rngs(0)), nnx.Param)
    params, state = sparse_optax.prune(params, kept.init(params), sparsity=1.0)
    report = sparse_optax.sparsity_report(params, sparse_optax.get_masks(state))
    assert report.total.kept == 3 + 12
    assert all("has no weight" not in text for text in report.warnings)
