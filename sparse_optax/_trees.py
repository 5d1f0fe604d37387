"""Parameter trees: names of leaves, flax's boxes, and which leaves are weights.

Parameter trees contain three things besides arrays. `optax.MaskedNode()` stands for
weights that are left out. `None` stands for nothing. And flax wraps arrays in boxes
(`nnx.Variable`, linen's `Partitioned`). `nnx.Optimizer` adds the boxes at `init` and
removes them at `update`, so trees are compared and named without boxes.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.sparse import JAXSparse

PyTree = Any
KeyPath = tuple[Any, ...]

_WEIGHT_DTYPES = ("float16", "bfloat16", "float32", "float64")


def is_masked(x: Any) -> bool:
    """Whether `x` stands for weights that are left out."""
    return isinstance(x, optax.MaskedNode)


def is_sparse_array(x: Any) -> bool:
    """Whether `x` is an array of `jax.experimental.sparse`, such as a `BCOO`."""
    return isinstance(x, JAXSparse)


def is_leaf(x: Any) -> bool:
    """Whether `x`, a node for JAX, counts as one leaf when leaves are named."""
    return is_masked(x) or is_sparse_array(x)


def is_array(x: Any) -> bool:
    """Whether `x` is an array, a stand-in for one (a shape), or a Python number."""
    return hasattr(x, "dtype") or isinstance(x, bool | int | float | complex)


def is_weight(x: Any) -> bool:
    """Whether `x` is an array of real numbers that can be pruned and counted.

    The whole package uses this rule: weights are arrays of 16-bit or wider real
    floating dtypes. Complex numbers, integers, booleans, narrower floats (some have no
    zero), random keys and sparse arrays are not weights.
    """
    if is_sparse_array(x) or not is_array(x):
        return False
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    return dtype.name in _WEIGHT_DTYPES


def common_dtype(*xs: Any) -> Any:
    """The dtype that JAX's standard promotion gives these, whatever the setting."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*xs)


def describe(x: Any) -> str:
    """A leaf for an error message: the kind of an array rather than its elements."""
    if is_sparse_array(x):
        return f"a sparse array ({type(x).__name__})"
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"an array of {x.dtype}, shape {tuple(x.shape)}"
    return repr(x)


def leaf_name(path: KeyPath) -> str:
    """The name of a leaf, `layer/kernel`, from its path in a tree without boxes."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(root)"


def named_leaves(tree: PyTree, root: KeyPath = ()) -> list[tuple[str, Any]]:
    """The leaves of `tree`, which is at `root`, with their names; also `MaskedNode`s.

    A sparse array is one leaf.
    """
    with_path = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return [(leaf_name((*root, *path)), leaf) for path, leaf in with_path]


def map_masks(f: Callable, masks: PyTree, tree: PyTree, *rest: PyTree) -> PyTree:
    """`f(mask, leaf, *rest)` where there is a mask, and the leaf elsewhere."""

    def apply(mask, x, *others):
        return x if is_masked(mask) else f(mask, x, *others)

    return jax.tree.map(apply, masks, tree, *rest, is_leaf=is_masked)


def map_aligned(f: Callable, a: PyTree, b: PyTree, path: KeyPath = ()) -> PyTree:
    """Maps `f(path, x, y)` over the leaves of two trees; each may leave out parts.

    Where one has a `MaskedNode`, `f` gets that and whatever the other has there.

    Raises:
        ValueError: if they are not parts of one tree.
    """
    if is_masked(a) or is_masked(b):
        return f(path, a, b)
    if jax.tree_util.all_leaves([a]):
        if not jax.tree_util.all_leaves([b]):
            raise ValueError("a leaf cannot be matched with a subtree")
        return f(path, a, b)
    below, structure = _children(a)
    return structure.unflatten(
        [
            map_aligned(f, x, y, (*path, *key))
            for (key, x), y in zip(below, structure.flatten_up_to(b), strict=True)
        ]
    )


def _children(node: PyTree) -> tuple[list[tuple[KeyPath, Any]], Any]:
    """One level of a tree: the children with their paths, and the structure."""
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)


def unbox(tree: PyTree) -> PyTree:
    """`tree` without flax's boxes around its leaves; leaves keep their order."""
    boxes = _box_types()
    if not boxes:
        return tree

    def is_box(node):
        return isinstance(node, boxes)

    def open_box(node):
        return unbox(_children(node)[0][0][1]) if is_box(node) else node

    return jax.tree.map(open_box, tree, is_leaf=is_box)


def rebox(tree: PyTree, like: PyTree) -> PyTree:
    """Puts the leaves of `tree` into boxes like those around the leaves of `like`."""

    boxes = _box_types()
    if not boxes:
        return tree

    def put(node, x):
        if not isinstance(node, boxes):
            return x
        return jax.tree.map(lambda y: put(y, x), node, is_leaf=lambda y: y is not node)

    return jax.tree.map(
        put, like, tree, is_leaf=lambda x: isinstance(x, boxes) or is_leaf(x)
    )


def _box_types() -> tuple[type, ...]:
    # A dataclass with one field `value` looks the same in a tree: check the type.
    variable = find_class("flax.nnx", "Variable")
    return variable + find_class("flax.core.meta", "AxisMetadata")


def find_class(module: str, name: str) -> tuple[type, ...]:
    """The class in a tuple, for `isinstance`; an empty tuple if it is not imported."""
    found = getattr(sys.modules.get(module), name, None)
    return () if found is None else (found,)
