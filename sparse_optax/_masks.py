"""Using masks: which leaves to prune, applying masks, counting what is kept."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sparse_optax import _counts, _trees
from sparse_optax._dead_layers import dead_layers
from sparse_optax._trees import PyTree

# Names of vectors, which a stack of layers turns into matrices.
_VECTORS = ("bias", "scale", "offset", "beta", "gamma")


def matrices_only(params: PyTree) -> PyTree:
    """Selects matrices and kernels, and leaves out biases, norms and scalars.

    A ready `mask` for every function of this package that takes one. It selects the
    floating leaves of two or more axes, unless their last name is that of a vector
    (`bias`, `scale`, `offset`, `beta` or `gamma`): under `nn.scan` or `nnx.vmap`
    the vectors of a stack of layers have two axes. Embeddings are matrices.

    Args:
        params: a tree of arrays: plain containers, flax linen or flax nnx state.

    Returns:
        A tree of Python booleans with the structure of `params`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> params = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
        >>> sparse_optax.matrices_only(params)
        {'dense': {'bias': False, 'kernel': True}}
    """

    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _is_matrix(_trees.leaf_name(path), leaf), params
    )


def _is_matrix(name: str, leaf: jax.Array) -> bool:
    is_vector = name.rpartition("/")[2] in _VECTORS
    return jnp.ndim(leaf) >= 2 and _trees.is_floating(leaf) and not is_vector


def apply_masks(params: optax.Params, masks: optax.Params) -> optax.Params:
    """Sets pruned weights to zero.

    Args:
        params: the weights, or anything shaped like them.
        masks: as returned by `get_masks`.

    Returns:
        `params` with zeros, of their dtypes, where `masks` is False.

    Raises:
        TypeError: if masks are not boolean.
        ValueError: if masks do not fit params.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> masks = jnp.array([True, False])
        >>> print(sparse_optax.apply_masks(jnp.array([3.0, jnp.nan]), masks))
        [3. 0.]
    """
    weights, masks = _trees.unbox(params), _trees.unbox(masks)
    _trees.check_masks_fit(masks, weights, "params")
    return _trees.rebox(zero_pruned(weights, masks), like=params)


def zero_pruned(tree: PyTree, masks: PyTree) -> PyTree:
    """Zeros where a mask is False; by `where`, as a product would keep NaNs."""
    return _trees.map_masks(
        lambda m, x: jnp.where(m, x, jnp.zeros_like(x)), masks, tree
    )


def sparsity(tree: PyTree) -> jax.Array:
    """The fraction of zeros (or of False) over all arrays of a tree.

    Args:
        tree: weights, or masks.

    Returns:
        A `float32` scalar in [0, 1]; 0 for a tree without elements. Usable inside
        `jit`; `sparsity_report` has the exact counts. Random keys are left out.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> params = {"w": jnp.array([[0.0, 1.0], [0.0, -0.0]]), "b": jnp.ones(1)}
        >>> print(sparse_optax.sparsity(params))
        0.6
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    leaves = [x for x in leaves if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    zeros = _counts.count_true_in(map(is_zero, leaves))
    return _counts.as_float(zeros) / max(sum(leaf.size for leaf in leaves), 1)


def is_zero(x: jax.Array) -> jax.Array:
    """Where `x` is exactly zero, of either sign."""
    if not _trees.is_floating(x):
        return x == 0
    # By bits: a comparison may take numbers too small to be normal for zeros.
    unsigned = jnp.dtype(f"uint{jnp.finfo(x.dtype).bits}")
    return lax.bitcast_convert_type(x, unsigned) << 1 == 0


class LeafSparsity(NamedTuple):
    """How much of some weights is kept."""

    kept: int
    size: int

    @property
    def sparsity(self) -> float:
        """The fraction that is pruned, in [0, 1]; 0 of no weights."""
        return 1 - self.kept / self.size if self.size else 0.0

    @property
    def compression(self) -> float:
        """How many times fewer weights are kept: size / kept, infinite if none is."""
        return self.size / self.kept if self.kept else float("inf")


class SparsityReport(NamedTuple):
    """What is kept of each leaf and in total; `str` makes it a table."""

    leaves: dict[str, LeafSparsity]
    total: LeafSparsity
    warnings: tuple[str, ...]  # of dead layers, one sentence each

    def __str__(self) -> str:
        rows = [("", "kept", "size", "sparsity", "compression")]
        for name, leaf in [*self.leaves.items(), ("total", self.total)]:
            sparsity = f"{leaf.sparsity:.2%}"
            compression = f"{leaf.compression:.1f}x" if leaf.kept else "-"
            rows.append(
                (name, f"{leaf.kept:,}", f"{leaf.size:,}", sparsity, compression)
            )
        name_width, *widths = (
            max(map(len, column)) for column in zip(*rows, strict=True)
        )
        lines = [
            name.ljust(name_width)
            + "".join(f"  {x:>{w}}" for x, w in zip(row, widths, strict=True))
            for name, *row in rows
        ]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])


def sparsity_report(params: optax.Params, masks: optax.Params) -> SparsityReport:
    """How much of each leaf, and in total, is kept; and which layers are dead.

    A layer is dead if a matrix of it, or a vector named `scale` or `gamma`, has no
    weight left; and all are, if there is no path along kept weights from an input to an
    output. That is told of plain chains: of networks all of whose matrices, kernels
    `[..., in, out]` of convolutions among them, fit one another by their shapes, each
    used once, and begin with the only one that none of the others fits; or with the
    first by name, if names differ in numbers alone. Of several that fit next, the first
    by name is taken that others fit in turn. Connections past layers cannot be seen,
    nor can stacks of layers be told from convolutions: the warning says which chain it
    is of.

    Args:
        params: the weights.
        masks: as returned by `get_masks`, concrete (not inside `jit`).

    Returns:
        A `SparsityReport` of exact counts, and of warnings. Leaves that are never
        pruned are kept whole, and count in the total.

    Raises:
        TypeError: if masks are not boolean.
        ValueError: if masks do not fit params.

    Examples:
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
        >>> tx = sparse_optax.prune_by_magnitude(0.75, mask=sparse_optax.matrices_only)
        >>> params, state = sparse_optax.prune(params, tx.init(params), 0.75)
        >>> report = sparse_optax.sparsity_report(params, sparse_optax.get_masks(state))
        >>> report.leaves["w"].kept
        1
        >>> print(report)
               kept  size  sparsity  compression
        b         2     2     0.00%         1.0x
        w         1     4    75.00%         4.0x
        total     3     6    50.00%         2.0x
    """
    params, masks = _trees.unbox(params), _trees.unbox(masks)
    _trees.check_masks_fit(masks, params, "params")
    by_name: dict[str, np.ndarray] = {}
    matrices: set[str] = set()

    def add(path, mask, subtree):
        for name, leaf in _trees.named_leaves(subtree, path):
            if _trees.is_masked(leaf):
                continue
            if name in by_name:  # {"a/b": x, "a": {"b": y}}
                name = jax.tree_util.keystr(path)
            if _is_matrix(name, leaf):
                matrices.add(name)
            # Of one that is never pruned, a view without memory of its own.
            whole = np.broadcast_to(True, np.shape(leaf))
            by_name[name] = whole if _trees.is_masked(mask) else np.asarray(mask)

    jax.tree_util.tree_map_with_path(add, masks, params, is_leaf=_trees.is_masked)
    leaves = {
        name: LeafSparsity(int(np.count_nonzero(mask)), mask.size)
        for name, mask in by_name.items()
    }
    total = LeafSparsity(
        sum(leaf.kept for leaf in leaves.values()),
        sum(leaf.size for leaf in leaves.values()),
    )
    return SparsityReport(leaves, total, dead_layers(by_name, matrices))
