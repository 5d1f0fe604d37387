"""Applies masks to weights, and counts zeros."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sparse_optax import _counts, _fit, _trees
from sparse_optax._trees import PyTree


def apply_masks(params: optax.Params, masks: optax.Params) -> optax.Params:
    """Sets pruned weights to zero.

    Args:
        params: the weights, or floating arrays of the same shapes.
        masks: as returned by `get_masks`.

    Returns:
        `params`, in their dtypes, with zeros where `masks` is False.

    Raises:
        TypeError: if masks are not boolean, or if a leaf with a mask is not a weight.
        ValueError: if masks do not fit params.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> masks = jnp.array([True, False])
        >>> print(sparse_optax.apply_masks(jnp.array([3.0, jnp.nan]), masks))
        [3. 0.]
    """
    _fit.check_tree(params, "params")
    _fit.check_masks_fit(masks, params, "params")
    weights = zero_pruned(_trees.unbox(params), _trees.unbox(masks))
    return _trees.rebox(weights, like=params)


def zero_pruned(tree: PyTree, masks: PyTree) -> PyTree:
    """Zeroes weights where a mask is False, even NaNs, which a product would keep."""
    return _trees.map_masks(
        lambda m, x: jnp.where(m, x, jnp.zeros_like(x)), masks, tree
    )


def sparsity(tree: PyTree) -> jax.Array:
    """The fraction of zeros in a tree of weights, or of False in a tree of masks.

    For masks, this is the share of the *prunable* weights that are pruned, like the
    `sparsity` of a `PruningRound`. For params, it is the share of *all* weights that
    are zero, whether pruned or not.

    Args:
        tree: weights; or masks, if there are no weights. Other leaves (complex numbers,
            integers, random keys, sparse arrays) are not counted.

    Returns:
        A scalar in [0, 1], the nearest `float32`, with or without `jit`; 0 for a tree
        without elements. `sparsity_report` has the exact counts.

    Raises:
        TypeError: if a leaf is not an array.
        ValueError: if there are leaves, but none that can be counted.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> params = {"w": jnp.array([[0.0, 1.0], [0.0, -0.0]]), "b": jnp.ones(1)}
        >>> print(sparse_optax.sparsity(params))
        0.6
    """
    _fit.check_tree(tree, "tree")
    leaves = jax.tree.leaves(tree, is_leaf=_trees.is_sparse_array)
    masks = [x for x in leaves if getattr(x, "dtype", None) == jnp.bool_]
    countable = [x for x in leaves if _trees.is_weight(x)] or masks
    if leaves and not countable:
        raise ValueError(
            "tree has neither weights nor masks to count: "
            f"{[_trees.describe(x) for x in leaves]}."
        )
    return _sparsity(list(map(jnp.asarray, countable)))


@jax.jit  # compile it once, outside of jit too
def _sparsity(leaves: list[jax.Array]) -> jax.Array:
    with _counts.exact_numbers():
        zeros = _counts.count_true_in(map(is_zero, leaves))
        return _counts.ratio(zeros, sum(x.size for x in leaves))


def is_zero(x: jax.Array) -> jax.Array:
    """Where an array of weights, or a mask, is exactly zero, of either sign."""
    if x.dtype == jnp.bool_:
        return ~x
    # Compare bits: a comparison of floats may treat subnormal numbers as zeros.
    unsigned = jnp.dtype(f"uint{jnp.finfo(x.dtype).bits}")
    return lax.bitcast_convert_type(x, unsigned) << unsigned.type(1) == 0


def nonzero(array: np.ndarray) -> np.ndarray:
    """Where an array of weights, in NumPy, is not exactly zero."""
    # Compare bits: a comparison of floats may treat subnormal numbers as zeros.
    return array.view(f"uint{8 * array.itemsize}") << 1 != 0
