"""Selects leaves: the argument `mask`, and patterns of leaf names."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from sparse_optax import _fit, _trees
from sparse_optax._trees import PyTree

# "matrices", None, a tree of booleans or a prefix of one, a function from params to
# such a tree, or a dict from regular expressions to booleans.
Mask = PyTree | Callable[[PyTree], PyTree]

MATRICES = "matrices"

# Names of vectors, which become matrices in a stack of layers.
_VECTORS = ("bias", "scale", "offset", "beta", "gamma")
_UNDER_INJECT = " Under optax.inject_hyperparams list 'mask' in static_args."


def matrices_only(params: PyTree) -> PyTree:
    """Selects matrices and kernels, and leaves out biases, norms and scalars.

    `mask="matrices"`, the default of every function with a `mask`, means this function.
    It selects weights with two or more axes, unless their last name is that of a
    vector: `bias`, `scale`, `offset`, `beta`, `gamma`, `b` next to a `w`, or `weight`
    next to a `bias` of the same shape. Vectors of layers stacked by `nn.scan`,
    `nnx.vmap` or `eqx.filter_vmap` have two axes. Embeddings are matrices.

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
    _fit.check_tree(params, "params")
    return _trees.rebox(_matrices(_trees.unbox(params)), like=params)


def _matrices(weights: PyTree) -> PyTree:
    leaves = dict(_trees.named_leaves(weights))
    return _flags(lambda name, leaf: is_matrix(name, leaf, leaves), weights)


def is_matrix(name: str, leaf: Any, leaves: Mapping[str, Any]) -> bool:
    """Whether a leaf is a matrix or a kernel: by its shape, its name, and its siblings.

    Args:
        name: the name of the leaf.
        leaf: an array.
        leaves: all leaves of the tree by their names.
    """
    above, _, last = name.rpartition("/")

    def shape_of(sibling):
        found = leaves.get(f"{above}/{sibling}" if above else sibling)
        return None if found is None else np.shape(found)

    if not _trees.is_weight(leaf) or np.ndim(leaf) < 2 or last in _VECTORS:
        return False
    if last == "b":  # haiku's
        return shape_of("w") is None
    if last == "weight":  # of a norm of equinox
        return shape_of("bias") != np.shape(leaf)
    return True


def _flags(f: Callable[[str, Any], bool], tree: PyTree) -> PyTree:
    """Maps `f(name, leaf)` over the leaves of a tree; a sparse array is one leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: f(_trees.leaf_name(path), leaf),
        tree,
        is_leaf=_trees.is_sparse_array,
    )


def check_mask(mask: Mask | None) -> None:
    """Raises if `mask` is a string or a dict that cannot be valid for any params."""
    if isinstance(mask, str) and mask != MATRICES:
        raise ValueError(
            f"mask must be {MATRICES!r}, None (every floating leaf), a tree of "
            f"booleans, a function or a dict; got {mask!r}. To select leaves by name, "
            f"use a dict from regular expressions to booleans: {{'.*{mask}': True}}."
        )
    check_patterns("mask", mask)


def select_leaves(mask: Mask | None, params: PyTree) -> PyTree:
    """A tree of Python booleans like `params`: True for selected leaves.

    A sparse array is one leaf, and is never selected.

    Args:
        mask: `"matrices"`; None, for every weight; a tree of booleans, a prefix of one,
            or a function from params (without flax's boxes) to one; or a dict from
            regular expressions to booleans, where the first match wins and leaves
            without a match are not selected.
        params: the weights, or anything with their shapes.

    Returns:
        The tree; `params` itself if it has no leaves.

    Raises:
        TypeError: if a leaf of the mask is not a boolean, if the mask names a leaf that
            is not an array of weights, or if `params` has leaves that are not arrays.
        ValueError: if the tree does not fit, or if no leaf is selected.
    """
    check_mask(mask)
    if not jax.tree.leaves(params):  # empty, or a placeholder for params
        return params
    _fit.check_tree(params, "params")
    weights = _trees.unbox(params)
    is_weight = _flags(lambda _, leaf: _trees.is_weight(leaf), weights)
    if not any(jax.tree.leaves(is_weight)):
        named = _trees.named_leaves(weights)
        found = [f"{name} is {_trees.describe(x)}" for name, x in named[:3]]
        raise ValueError(
            "params has no leaf that can be pruned, which are arrays of real floating "
            f"numbers of 16 bits or more: {', '.join(found)}, ..."
        )
    if mask is None:
        selected = is_weight
    elif isinstance(mask, str):
        selected = _matrices(weights)
    else:
        selected = _selected_by(mask, weights)
        selected = jax.tree.map(lambda s, w: s and w, selected, is_weight)
    if not any(jax.tree.leaves(selected)):
        names = [name for name, flag in _trees.named_leaves(is_weight) if flag is True]
        if isinstance(mask, str):
            raise ValueError(
                f"params has no matrix, which is what mask={mask!r} selects: {names}. "
                "mask=None selects every floating leaf."
            )
        raise ValueError(
            f"mask selects none of the floating leaves of params: {names}."
            + (_UNDER_INJECT if mask is False else "")
        )
    return _trees.rebox(selected, like=params)


def _selected_by(mask: Mask, weights: PyTree) -> PyTree:
    """The selection by a tree, a function or patterns, for leaves of all kinds."""
    tree = mask
    if _is_function(mask):
        tree = mask(weights)
    check_patterns("mask", tree)
    patterns = as_patterns(tree)  # in the given order
    tree = jax.tree.map(
        _as_one_leaf, _trees.unbox(tree), is_leaf=_trees.is_sparse_array
    )
    for name, leaf in _trees.named_leaves(tree):
        # A single True, which would select what None selects, is the result of a
        # function that optax.inject_hyperparams mistook for a schedule.
        lone = leaf is True and not jax.tree_util.all_leaves([weights])
        if not (_is_boolean(leaf) or _trees.is_masked(leaf)) or (lone and tree is leaf):
            raise TypeError(
                "mask must be a tree of Python booleans like params, or a function "
                f"that returns one; got {_trees.describe(leaf)} at {name}."
                f"{_UNDER_INJECT}"
            )
    try:
        selected = jax.tree.map(_broadcast, tree, weights)
    except ValueError as error:
        if patterns is None:
            raise ValueError(
                "mask does not fit the tree of params: "
                f"{_fit.difference(tree, weights)}. A function from params to a tree "
                "of booleans always fits."
            ) from error
        return _selected_by_pattern(patterns, weights)

    def check(path, flag, below):
        named = jax.tree_util.all_leaves([below]) or _trees.is_sparse_array(below)
        if named and flag and not _trees.is_weight(below):
            raise _no_weight(_trees.leaf_name(path), below)

    jax.tree_util.tree_map_with_path(check, tree, weights)
    return selected


def _as_one_leaf(x: Any) -> Any:
    """The flag of a sparse array, if the user's function made several flags for it."""
    flags = jax.tree.leaves(x)
    is_sparse = _trees.is_sparse_array(x) and all(map(_is_boolean, flags))
    return any(flags) if is_sparse else x


def _broadcast(flag: Any, below: PyTree) -> PyTree:
    return jax.tree.map(lambda _: bool(flag), below, is_leaf=_trees.is_sparse_array)


def _is_function(mask: Mask) -> bool:
    """Whether `mask` is to be called; its leaves decide that, as in optax.

    A module of booleans may also have a `__call__`.
    """
    leaves = jax.tree.leaves(mask)
    return callable(mask) and bool(leaves) and all(map(callable, leaves))


def _selected_by_pattern(patterns: Mapping[str, Any], weights: PyTree) -> PyTree:
    indices = match_patterns("mask", patterns, weights)
    leaves = list(
        zip(_trees.named_leaves(weights), jax.tree.leaves(indices), strict=True)
    )
    for index, selects in enumerate(patterns.values()):
        matched = [
            (name, leaf)
            for (name, leaf), i in leaves
            if i == index and not _trees.is_masked(leaf)
        ]
        if selects and matched and not any(_trees.is_weight(x) for _, x in matched):
            raise _no_weight(*matched[0])
    flags = [False, *map(bool, patterns.values())]

    def flag(leaf, index):
        return leaf if _trees.is_masked(leaf) else flags[index + 1]

    return jax.tree.map(flag, weights, indices, is_leaf=_trees.is_leaf)


def _no_weight(name: str, leaf: Any) -> TypeError:
    return TypeError(
        f"mask selects {_trees.describe(leaf)} at {name}, which cannot be pruned: only "
        "arrays of real floating numbers of 16 bits or more can."
    )


def _is_boolean(x: Any) -> bool:
    """Whether `x` is a boolean with a known value, also during tracing."""
    if isinstance(x, np.ndarray | jax.Array) and not isinstance(x, Tracer):
        return x.shape == () and x.dtype == np.bool_
    return isinstance(x, bool | np.bool_)


def as_patterns(value: Any) -> dict[str, Any] | None:
    """A dict of values by regular expression, or None if `value` is something else."""
    if isinstance(value, Mapping) and all(
        isinstance(key, str) and jax.tree_util.all_leaves([x])
        for key, x in value.items()
    ):
        return dict(value)
    return None


def check_patterns(argument: str, value: Any) -> None:
    """Raises if `value` is a dict with a key that is not a regular expression."""
    for pattern in as_patterns(value) or ():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{argument} has {pattern!r}, which is not a regular expression: "
                f"{error}."
            ) from error


def match_patterns(
    argument: str, patterns: Mapping[str, Any], params: PyTree
) -> PyTree:
    """For each leaf, the index of the first pattern that matches its name, or -1.

    A pattern must match the full name of the leaf, or of a subtree around it: `layer`
    and `layer/kernel` both match the leaf `layer/kernel`.

    Raises:
        ValueError: if a pattern is not the first to match any leaf.
    """
    unused = set(patterns)

    def find(path, _):
        parts = _trees.leaf_name(path).split("/")
        names = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
        for index, pattern in enumerate(patterns):
            # An exact name matches too, as it may contain special characters.
            if pattern in names or any(re.fullmatch(pattern, x) for x in names):
                unused.discard(pattern)
                return index
        return -1

    # Match the names of leaves that other transformations prune, too.
    found = jax.tree_util.tree_map_with_path(find, params, is_leaf=_trees.is_leaf)
    if unused and jax.tree.leaves(params):
        names = [name for name, _ in _trees.named_leaves(params)]
        raise ValueError(
            f"{argument} has patterns that match no leaf, or only leaves that earlier "
            f"patterns match: {sorted(unused)}; there are {names}."
        )
    return found
