"""Converts weights to sparse arrays and back, for products that skip the zeros."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental.sparse import BCOO

from sparse_optax import _leaves, _trees
from sparse_optax._leaves import Mask
from sparse_optax._masks import nonzero
from sparse_optax._trees import PyTree


def to_bcoo(params: PyTree, mask: Mask | None = "matrices") -> PyTree:
    """Converts matrices to `jax.experimental.sparse.BCOO`, without their zeros.

    Run a model with layers that expect arrays as `sparsify(fn, use_tracer=True)`, from
    `jax.experimental.sparse`, where `fn(params, x)` is, for

    - flax linen, `model.apply`;
    - flax nnx, with `graph, params = nnx.split(model)`:
      `lambda params, x: nnx.merge(graph, params)(x)`;
    - equinox, with `params, rest = eqx.partition(model, eqx.is_inexact_array)`:
      `lambda params, x: eqx.combine(params, rest)(x)`.

    JAX has no convolutions with sparse kernels: leave those out with `mask`.

    Args:
        params: a tree of concrete arrays (not inside `jit`, where the number of zeros
            is unknown).
        mask: the leaves to convert, as in `prune_by_magnitude`, except scalars.

    Returns:
        The tree with these leaves as `BCOO`, without batch or dense axes, with sorted
        and unique `int32` indices and values of JAX's dtypes. Zeros of either sign are
        left out. `x @ kernel` needs a kernel of two axes.

    Raises:
        TypeError: if `mask` contains leaves that are not booleans, or names a leaf that
            is not an array of weights, if a selected leaf is traced, or if any leaf is
            already a `BCOO`.
        ValueError: if `mask` does not fit or selects nothing.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> kernel = jnp.array([[0.0, 2.0], [0.0, 0.0]])
        >>> params = {"kernel": kernel, "bias": jnp.ones(2)}
        >>> sparse = sparse_optax.to_bcoo(params)
        >>> sparse["kernel"].nse, sparse["kernel"].indices
        (1, Array([[0, 1]], dtype=int32))
        >>> jnp.ones((1, 2)) @ sparse["kernel"] + sparse["bias"]
        Array([[1., 3.]], dtype=float32)
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_bcoo):
        if _is_bcoo(leaf):
            raise TypeError(f"params at {_trees.leaf_name(path)} is a BCOO already.")
    weights = _trees.unbox(params)

    def convert(path, selected, leaf):
        if not selected or not jnp.ndim(leaf):
            return leaf
        if isinstance(leaf, Tracer):
            name = _trees.leaf_name(path)
            raise TypeError(f"params at {name} is traced: its zeros are not known yet.")
        array = np.asarray(jnp.asarray(leaf))
        indices = np.argwhere(nonzero(array)).astype(np.int32)
        # Not `jnp.asarray`, which would compile again for every number of zeros.
        data, indices = jax.device_put((array[tuple(indices.T)], indices))
        return BCOO(
            (data, indices),
            shape=array.shape,
            indices_sorted=True,
            unique_indices=True,
        )

    selected = _leaves.select_leaves(mask, weights)
    sparse = jax.tree_util.tree_map_with_path(convert, selected, weights)
    leaves = jax.tree.leaves(sparse, is_leaf=_is_bcoo)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def from_bcoo(params: PyTree) -> PyTree:
    """Converts `BCOO` matrices back to arrays.

    Args:
        params: a tree that may contain `BCOO` leaves.

    Returns:
        The tree with arrays in their place: the same numbers, except that a backend may
        flush subnormal numbers to zero. Works inside `jit`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> kernel = jnp.array([[0.0, 2.0], [0.0, 0.0]])
        >>> params = {"kernel": kernel, "bias": jnp.ones(2)}
        >>> sparse_optax.from_bcoo(sparse_optax.to_bcoo(params))["kernel"]
        Array([[0., 2.],
               [0., 0.]], dtype=float32)
    """
    return jax.tree.map(
        lambda x: x.todense() if _is_bcoo(x) else x, params, is_leaf=_is_bcoo
    )


def _is_bcoo(x):
    return isinstance(x, BCOO)
