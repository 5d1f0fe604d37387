"""Using masks: setting pruned weights to zero, and counting zeros."""

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
        params: the weights, or anything floating shaped like them.
        masks: as returned by `get_masks`.

    Returns:
        `params` with zeros, of their dtypes, where `masks` is False.

    Raises:
        TypeError: if masks are not boolean, or are of leaves that are no weights.
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
    """Zeros where a mask is False; by `where`, as a product would keep NaNs."""
    return _trees.map_masks(
        lambda m, x: jnp.where(m, x, jnp.zeros_like(x)), masks, tree
    )


def sparsity(tree: PyTree) -> jax.Array:
    """The fraction of zeros over all weights of a tree, or of False over its masks.

    Of masks, it is the share of the *prunable* weights that are pruned, which is also
    the `sparsity` of a `PruningRound`. Of params, it is the share of *all* weights that
    are zero, whether pruned or not.

    Args:
        tree: weights; or, where there is none, masks. Other leaves (complex numbers,
            integers, random keys, sparse arrays) are not counted.

    Returns:
        A scalar in [0, 1], the nearest `float32`, with and without `jit`; 0 for a tree
        without elements. `sparsity_report` has the exact counts.

    Raises:
        TypeError: if a leaf is no array.
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


@jax.jit  # so that outside of jit too it is compiled once
def _sparsity(leaves: list[jax.Array]) -> jax.Array:
    with _counts.exact_numbers():
        zeros = _counts.count_true_in(map(is_zero, leaves))
        return _counts.ratio(zeros, sum(x.size for x in leaves))


def is_zero(x: jax.Array) -> jax.Array:
    """Where an array of weights, or a mask, is exactly zero, of either sign."""
    if x.dtype == jnp.bool_:
        return ~x
    # By bits: a comparison may take numbers too small to be normal for zeros.
    unsigned = jnp.dtype(f"uint{jnp.finfo(x.dtype).bits}")
    return lax.bitcast_convert_type(x, unsigned) << unsigned.type(1) == 0


def nonzero(array: np.ndarray) -> np.ndarray:
    """Where an array of weights, in NumPy, is not exactly zero."""
    # By bits: a comparison may take numbers too small to be normal for zeros.
    return array.view(f"uint{8 * array.itemsize}") << 1 != 0
