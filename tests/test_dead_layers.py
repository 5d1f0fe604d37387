"""Dead layers: those without weights, and chains without a path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparse_optax


def report_of(masks):
    params = jax.tree.map(jnp.float32, masks)
    return sparse_optax.sparsity_report(params, masks)


def warnings(masks):
    return report_of(masks).warnings


def whole(shapes):
    return {name: np.ones(shape, bool) for name, shape in shapes.items()}


def chain(*shapes):
    return whole({f"layer{i}": shape for i, shape in enumerate(shapes)})


def test_a_layer_without_weights_is_named():
    masks = chain((4, 3), (3, 2)) | {"bias": np.zeros(3, bool)}  # which may be zero
    masks["layer1"][:] = False
    report = report_of(masks)
    assert report.warnings == ("layer1 has no weight left",)
    assert str(report).splitlines()[-1] == "warning: layer1 has no weight left"
    assert "inf" not in str(report)
    # What is not pruned has all of its weights.
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2)), "c": jnp.ones(3)}
    masks = {"a": optax.MaskedNode(), "b": np.zeros((2, 2), bool)}
    report = sparse_optax.sparsity_report(params, masks | {"c": optax.MaskedNode()})
    assert report.warnings == ("b has no weight left",)
    assert report.leaves["a"].kept == 6


def test_vectors_that_are_multiplied_count_as_layers():
    for name, named in (("scale", 1), ("gamma", 1), ("bias", 0), ("b1", 0)):
        masks = {"w": np.ones((2, 2), bool), name: np.zeros(2, bool)}
        assert len(warnings(masks)) == named
    # And hide no broken path.
    masks = chain((2, 2), (2, 1)) | {"scale": np.zeros(2, bool)}
    masks["layer0"][:, 1] = masks["layer1"][0] = False
    assert len(warnings(masks)) == 2


@pytest.mark.parametrize(
    "shapes",
    [
        {"input": (7, 5), "hidden1": (5, 5), "hidden2": (5, 5), "head": (5, 2)},
        {"conv1": (3, 3, 1, 4), "conv2": (3, 3, 4, 4), "classifier": (16, 2)},
        {"fc_in": (7, 5), "fc_mid": (5, 5), "fc_out": (5, 5), "a_last": (5, 2)},
    ],
    ids=str,
)
def test_a_chain_without_a_path_is_named(shapes):
    masks = whole(shapes)
    first, second, *_ = masks
    assert warnings(masks) == ()
    masks[first][..., 1:] = False  # leads to the first unit alone
    assert warnings(masks) == ()
    masks[second][..., 0, :] = False  # which leads nowhere
    (text,) = warnings(masks)
    assert f"none beyond {second}" in text
    assert text.endswith(f"the chain {', '.join(masks)}")


def test_a_bias_makes_no_path():
    masks = chain((2, 2), (2, 2), (2, 1)) | {"bias": np.ones(2, bool)}
    masks["layer0"][:, 1] = masks["layer1"][0] = masks["layer1"][1, 0] = False
    assert len(warnings(masks)) == 1


def test_names_are_in_the_order_of_their_numbers():
    masks = whole({f"Dense_{i}": (3, 3) for i in range(12)} | {"Dense_0": (5, 3)})
    masks["Dense_9"][:, 1:] = masks["Dense_10"][0] = False
    (text,) = warnings(masks)
    assert "none beyond Dense_10" in text
    assert "Dense_8, Dense_9, Dense_10, Dense_11" in text


def test_convolutions_are_flattened_channels_last():
    masks = whole({"conv": (3, 3, 1, 4), "dense": (2 * 2 * 4, 5), "output": (5, 2)})
    masks["conv"][:] = False
    masks["conv"][1, 2, 0, 3] = True  # channel 3 is reached
    for unit in range(16):
        masks["dense"][:] = False
        masks["dense"][unit, 0] = True
        assert bool(warnings(masks)) == (unit % 4 != 3)


@pytest.mark.parametrize(
    "shapes",
    [
        *([], [(3, 2)], [(0, 3), (3, 0)]),
        [(3, 2), (3, 2)],  # side by side
        [(3, 2), (2, 4), (5, 1)],  # does not fit
    ],
    ids=str,
)
def test_nothing_is_said_of_what_is_no_chain(shapes):
    masks = chain(*shapes)
    for mask in masks.values():
        mask.reshape(-1)[1:] = False
    assert warnings(masks) == ()


def test_nothing_is_said_where_any_layer_might_be_the_first():
    shapes = {"decoder/a": (2, 5), "decoder/b": (5, 9), "encoder/a": (9, 5)}
    masks = whole(shapes | {"encoder/b": (5, 2)})
    masks["decoder/b"][:, 1:] = False
    masks["encoder/a"][0] = False  # alive, though not if it came second
    assert warnings(masks) == ()
    language = whole({"Dense_0": (4, 7), "Embed_0": (7, 4)})
    language["Dense_0"][:, 1:] = language["Embed_0"][0] = False
    assert warnings(language) == ()
