"""Weights as `jax.experimental.sparse` has them, for products that skip the zeros."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental.sparse import BCOO

from sparse_optax import _trees
from sparse_optax._masks import matrices_only
from sparse_optax._trees import Mask, PyTree


def to_bcoo(params: PyTree, mask: Mask | None = matrices_only) -> PyTree:
    """Turns matrices into those of `jax.experimental.sparse`, without their zeros.

    Args:
        params: a tree of concrete arrays (not inside `jit`, where nobody knows how many
            are zero).
        mask: which leaves: a tree of booleans, a prefix of one, a function from params
            to one, or None, for every floating leaf. By default matrices and kernels,
            as nothing is won with vectors. Scalars stay as they are.

    Returns:
        The tree with `BCOO` in place of these leaves: no batch or dense axes, indices
        sorted and unique, `int32`, numbers of the dtypes that JAX has for them. Zeros
        of either sign are left out. `x @ kernel` multiplies by one of two axes.

    Raises:
        TypeError: if `mask` holds something else than booleans, if a leaf that it
            selects is traced, or of less than 16 bits, or if any is a `BCOO` already.
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
        name = _trees.leaf_name(path)
        if isinstance(leaf, Tracer):
            raise TypeError(f"params at {name} is traced: its zeros are not known yet.")
        array = np.asarray(jnp.asarray(leaf))
        if array.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
            raise TypeError(f"params at {name} has the dtype {array.dtype}.")
        # By bits, where a comparison might take the smallest numbers for zeros.
        unsigned = array.view(f"uint{8 * array.itemsize}")
        indices = np.argwhere(unsigned << 1).astype(np.int32)
        data = jnp.asarray(array[tuple(indices.T)])
        return BCOO(
            (data, jnp.asarray(indices)),
            shape=array.shape,
            indices_sorted=True,
            unique_indices=True,
        )

    selected = _trees.select_leaves(mask, weights)
    sparse = jax.tree_util.tree_map_with_path(convert, selected, weights)
    leaves = jax.tree.leaves(sparse, is_leaf=_is_bcoo)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def from_bcoo(params: PyTree) -> PyTree:
    """Turns matrices of `jax.experimental.sparse` into arrays again.

    Args:
        params: a tree with any number of `BCOO` in it.

    Returns:
        The tree with arrays in their place: the same numbers, except that a backend may
        make zeros of those too small to be normal. Usable inside `jit`.

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
