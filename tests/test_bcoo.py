"""Matrices as jax.experimental.sparse has them: the same numbers, there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.sparse import BCOO

import sparse_optax


def test_matrices_are_converted_and_come_back():
    kernel = jnp.array([[0.0, 2.0, jnp.nan], [-0.0, 0.0, -1e-30]])
    params = {"layer": {"kernel": kernel, "bias": jnp.zeros(3)}, "none": None}
    sparse = sparse_optax.to_bcoo(params)
    assert isinstance(sparse["layer"]["kernel"], BCOO)
    assert sparse["layer"]["kernel"].nse == 3
    assert sparse["layer"]["bias"] is params["layer"]["bias"]
    back = sparse_optax.from_bcoo(sparse)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    # The zero with a sign comes back without.
    expected = np.where(np.asarray(kernel) == 0, 0, kernel)
    assert np.asarray(back["layer"]["kernel"]).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(7, 5), (3, 3, 2, 4), (0, 3), (4, 0)])
def test_products_are_those_of_the_matrices(shape, dtype):
    w = jax.random.normal(jax.random.key(0), shape).astype(dtype)
    w = jnp.where(jnp.abs(w) > 1, w, 0)
    sparse = sparse_optax.to_bcoo({"w": w})["w"]
    assert (sparse.dtype, sparse.shape) == (w.dtype, w.shape)
    assert sparse.nse == jnp.count_nonzero(w)
    np.testing.assert_array_equal(sparse_optax.from_bcoo(sparse), w)
    if w.ndim == 2:
        x = jnp.ones((2, shape[0]), dtype)
        product = jax.jit(lambda x, w: x @ w)(x, sparse)
        wanted = np.asarray(x @ w, np.float32)
        np.testing.assert_allclose(
            np.asarray(product, np.float32), wanted, rtol=1e-2, atol=1e-2
        )


def test_nnx_state_can_be_converted():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    state = nnx.state(model)
    sparse = sparse_optax.to_bcoo(state)
    assert isinstance(sparse["kernel"].get_value(), BCOO)
    back = jax.jit(sparse_optax.from_bcoo)(sparse)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    np.testing.assert_array_equal(back["kernel"].get_value(), model.kernel.get_value())


def test_the_mask_says_which_leaves():
    params = {"a": jnp.eye(2), "b": jnp.eye(2), "c": jnp.ones(2), "n": jnp.arange(3)}
    sparse = sparse_optax.to_bcoo(
        params, {"a": True, "b": False, "c": True, "n": False}
    )
    kinds = {name: isinstance(leaf, BCOO) for name, leaf in sparse.items()}
    assert kinds == {"a": True, "b": False, "c": True, "n": False}
    everything = sparse_optax.to_bcoo(params, None)
    assert isinstance(everything["c"], BCOO)


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="params has no matrix"):
        sparse_optax.to_bcoo({"bias": jnp.ones(3)})
    with pytest.raises(ValueError, match="mask has patterns that match no leaf"):
        sparse_optax.to_bcoo({"a": jnp.ones(3)}, {"b": True})
    with pytest.raises(TypeError, match="mask must be a tree"):
        sparse_optax.to_bcoo({"a": jnp.ones(3)}, {"a": 1})
    with pytest.raises(TypeError, match="params at a is traced"):
        jax.jit(sparse_optax.to_bcoo)({"a": jnp.eye(3)})
    with pytest.raises(TypeError, match="params at b/c is a BCOO already"):
        sparse_optax.to_bcoo(sparse_optax.to_bcoo({"b": {"c": jnp.eye(3)}}))
    with pytest.raises(
        ValueError, match=r"params has no leaf that can be pruned.*float8_e4m3fn"
    ):
        sparse_optax.to_bcoo({"a": jnp.eye(3).astype("float8_e4m3fn")})


def test_scalars_stay_as_they_are():
    params = {"w": jnp.eye(2), "s": jnp.float32(3)}
    sparse = sparse_optax.to_bcoo(params, None)
    assert isinstance(sparse["w"], BCOO)
    assert sparse["s"] is params["s"]


def test_numbers_are_those_that_jax_has():
    wide = np.array([[1e-300, 0.0], [1.0, -0.0]])
    assert sparse_optax.to_bcoo({"w": wide})["w"].nse == 1  # as of float32
    with jax.enable_x64(True):
        assert sparse_optax.to_bcoo({"w": wide})["w"].nse == 2
