"""Weights as `jax.experimental.sparse` has them, for products that skip the zeros."""

import jax
import jax.numpy as jnp
import numpy as np
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
            as nothing is won with vectors.

    Returns:
        The tree with `BCOO` in place of these leaves: no batch or dense axes, indices
        sorted and unique, `int32`. The zeros that are left out are those of either
        sign. To multiply: `x @ kernel`.

    Raises:
        TypeError: if `mask` holds something else than booleans.
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
    weights = _trees.unbox(params)

    def convert(selected, leaf):
        if not selected:
            return leaf
        array = np.asarray(leaf)
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

    sparse = jax.tree.map(convert, _trees.select_leaves(mask, weights), weights)
    return jax.tree.unflatten(jax.tree.structure(params), _leaves(sparse))


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


def _leaves(tree):
    return jax.tree.leaves(tree, is_leaf=_is_bcoo)
