"""The warnings of a report: layers without weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
