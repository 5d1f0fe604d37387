"""Matrices as jax.experimental.sparse has them: the same numbers, there and back."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from helpers import first_unmarked
from jax.experimental.sparse import BCOO, sparsify

import sparse_optax


def test_matrices_are_converted_and_come_back():
    kernel = jnp.array([[0.0, 2.0, jnp.nan], [-0.0, 0.0, -1e-30]])
    params = {"layer": {"kernel": kernel, "bias": jnp.zeros(3)}, "none": None}
    sparse = sparse_optax.to_bcoo(params)
    assert sparse["layer"]["kernel"].nse == 3
    assert sparse["layer"]["bias"] is params["layer"]["bias"]
    back = sparse_optax.from_bcoo(sparse)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    # The zero with a sign comes back without.
    expected = np.where(np.asarray(kernel) == 0, 0, kernel)
    assert np.asarray(back["layer"]["kernel"]).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(7, 5), (3, 3, 2, 4), (0, 3)])
def test_products_are_those_of_the_matrices(shape, dtype):
    w = jax.random.normal(jax.random.key(0), shape).astype(dtype)
    w = jnp.where(jnp.abs(w) > 1, w, 0)
    sparse = sparse_optax.to_bcoo({"w": w})["w"]
    assert (sparse.dtype, sparse.shape) == (w.dtype, w.shape)
    assert sparse.nse == jnp.count_nonzero(w)
    np.testing.assert_array_equal(sparse_optax.from_bcoo(sparse), w)
    if w.ndim == 2:
        product = jax.jit(lambda x, w: x @ w)(jnp.ones((2, shape[0]), dtype), sparse)
        wanted = np.ones((2, shape[0])) @ np.asarray(w, np.float64)
        np.testing.assert_allclose(product.astype("float32"), wanted, atol=0.05)


def test_bad_input_raises():
    with pytest.raises(TypeError, match="params at a is traced"):
        jax.jit(sparse_optax.to_bcoo)({"a": jnp.eye(3)})
    with pytest.raises(TypeError, match="params at b/c is a BCOO already"):
        sparse_optax.to_bcoo(sparse_optax.to_bcoo({"b": {"c": jnp.eye(3)}}))


def test_numbers_are_those_that_jax_has():
    wide = np.array([[1e-300, 0.0], [1.0, -0.0]])
    assert sparse_optax.to_bcoo({"w": wide})["w"].nse == 1  # as of float32
    with jax.enable_x64(True):
        assert sparse_optax.to_bcoo({"w": wide})["w"].nse == 2


# Models on sparse matrices, as the docstring of `to_bcoo` shows.


def nnx_model():
    model = nnx.Sequential(
        nnx.Linear(8, 6, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(6, 3, rngs=nnx.Rngs(1))
    )
    graph, params = nnx.split(model)
    return params, lambda params, x: nnx.merge(graph, params)(x)


def linen_model():
    model = linen.Sequential([linen.Dense(6), linen.relu, linen.Dense(3)])
    return model.init(jax.random.key(0), jnp.ones(8)), model.apply


def equinox_model():
    model = eqx.nn.MLP(8, 3, 6, 1, key=jax.random.key(0))
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    return params, lambda params, x: eqx.combine(params, rest)(x)


@pytest.mark.parametrize("compiled", first_unmarked(True, False), ids=["jit", "eager"])
@pytest.mark.parametrize("make", [nnx_model, linen_model, equinox_model])
def test_models_run_on_sparse_matrices(make, compiled):
    params, run = make()
    tx = sparse_optax.prune_by_magnitude(0.1)
    params, _ = sparse_optax.prune(params, tx.init(params), 0.5)
    sparse = sparse_optax.to_bcoo(params)
    leaves = jax.tree.leaves(sparse, is_leaf=lambda x: isinstance(x, BCOO))
    assert sum(isinstance(x, BCOO) for x in leaves) == 2
    x = jax.random.normal(jax.random.key(1), (8,))
    sparse_run = sparsify(run, use_tracer=True)
    sparse_run = jax.jit(sparse_run) if compiled else sparse_run
    np.testing.assert_allclose(
        sparse_run(sparse, x), run(params, x), rtol=1e-5, atol=1e-6
    )
    back = jax.jit(sparse_optax.from_bcoo)(sparse)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert jax.tree.structure(back) == jax.tree.structure(params)
