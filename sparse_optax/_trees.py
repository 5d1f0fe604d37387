"""Walking parameter trees: names of leaves, masks that select leaves, fitting trees.

Three things are met in parameter trees beside arrays. `optax.MaskedNode()` stands for
weights that take no part. `None` stands for nothing. And flax wraps arrays in boxes
(`nnx.Variable`, linen's `Partitioned`), which `nnx.Optimizer` puts on at `init` and
takes off at `update`: trees are therefore compared without boxes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

PyTree = Any
KeyPath = tuple[Any, ...]
Mask = PyTree | Callable[[PyTree], PyTree]


def is_masked(x: Any) -> bool:
    """Whether `x` stands for weights that take no part."""
    return isinstance(x, optax.MaskedNode)


def is_floating(x: Any) -> bool:
    """Whether `x`, an array or a stand-in for one, holds real floating numbers."""
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    return jnp.issubdtype(dtype, jnp.floating)


def _is_box_key(key: Any) -> bool:
    return isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value"


def leaf_name(path: KeyPath) -> str:
    """The name of a leaf, `layer/kernel`, whether or not it is in a box."""
    if path and _is_box_key(path[-1]):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(root)"


def named_leaves(tree: PyTree, root: KeyPath = ()) -> list[tuple[str, Any]]:
    """The leaves of `tree`, itself at `root`, with their names; `MaskedNode`s too."""
    with_path = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_masked)
    return [(leaf_name((*root, *path)), leaf) for path, leaf in with_path]


def children(node: PyTree) -> tuple[list[tuple[Any, Any]], Any]:
    """One level of a tree: the children with their keys, and the structure."""
    with_path, structure = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda x: x is not node
    )
    return [(path[0] if path else None, child) for path, child in with_path], structure


def map_masks(f: Callable, masks: PyTree, tree: PyTree, *rest: PyTree) -> PyTree:
    """`f(mask, leaf, *rest)` where `masks` has no `MaskedNode`, elsewhere the leaf."""
    return jax.tree.map(
        lambda m, x, *others: x if is_masked(m) else f(m, x, *others),
        *(masks, tree, *rest),
        is_leaf=is_masked,
    )


def map_aligned(f: Callable, a: PyTree, b: PyTree) -> PyTree:
    """`f` of the leaves of two trees, either of which may leave out parts.

    Where one has a `MaskedNode`, `f` gets that and whatever the other has there.

    Raises:
        ValueError: if they are not parts of one tree.
    """
    if is_masked(a) or is_masked(b):
        return f(a, b)
    if jax.tree_util.all_leaves([a]):
        if not jax.tree_util.all_leaves([b]):
            raise ValueError("a leaf does not align with a tree")
        return f(a, b)
    below, structure = children(a)
    pairs = zip(below, structure.flatten_up_to(b), strict=True)
    return structure.unflatten([map_aligned(f, x, y) for (_, x), y in pairs])


def unbox(tree: PyTree) -> PyTree:
    """`tree` without the boxes around its leaves; the order of leaves is the same."""

    def is_box(node):
        below, _ = children(node)
        return len(below) == 1 and _is_box_key(below[0][0])

    def open_box(node):
        return unbox(children(node)[0][0][1]) if is_box(node) else node

    return jax.tree.map(open_box, tree, is_leaf=is_box)


def rebox(tree: PyTree, like: PyTree) -> PyTree:
    """Puts the leaves of `tree` back into the boxes of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(tree))


_UNDER_INJECT = " Under optax.inject_hyperparams list 'mask' in static_args."


def select_leaves(mask: Mask | None, params: PyTree) -> PyTree:
    """Python booleans shaped like `params`: True for the leaves that take part.

    Those are the floating leaves for which `mask` is True, all if `mask` is None. It
    may be a tree of booleans, a prefix of such a tree, or a function from `params` to
    one, as in `optax.masked`.

    Raises:
        TypeError: if a leaf of the mask is not a boolean.
        ValueError: if its tree does not fit, or if it selects none of the leaves.
    """
    if not jax.tree.leaves(params):  # empty, or a stand-in for some params to come
        return params
    selected = jax.tree.map(lambda _: True, params)
    if mask is not None:
        tree = mask(params) if callable(mask) else mask
        for name, leaf in named_leaves(tree):
            # A lone True, which selects what None does, comes of a function that
            # optax.inject_hyperparams took for a schedule.
            lone = leaf is True and not jax.tree_util.all_leaves([params])
            if not (_is_boolean(leaf) or is_masked(leaf)) or (lone and tree is leaf):
                raise TypeError(
                    "mask must be a tree of Python booleans like params, or a function "
                    f"that returns one; got {_short(leaf)} at {name}.{_UNDER_INJECT}"
                )
        try:
            selected = jax.tree.map(bool, jax.tree.broadcast(tree, params))
        except ValueError as error:
            raise ValueError(
                f"mask does not fit the tree of params: {_difference(tree, params)}. "
                "One made of params, as a function of them does, always fits."
            ) from error
    floating = jax.tree.map(is_floating, params)
    taking_part = jax.tree.map(lambda s, f: s and f, selected, floating)
    if any(jax.tree.leaves(floating)) and not any(jax.tree.leaves(taking_part)):
        names = [name for name, leaf in named_leaves(floating) if leaf is True]
        raise ValueError(
            f"mask selects none of the floating leaves of params: {names}."
            + (_UNDER_INJECT if mask is False else "")
        )
    return taking_part


def _short(x: Any) -> str:
    """A leaf for a message: of an array its kind, and not all that it holds."""
    if getattr(x, "shape", ()):
        return f"an array of {x.dtype}, shape {x.shape},"
    return repr(x)


def _is_boolean(x: Any) -> bool:
    """Whether `x` is a boolean that is known while tracing."""
    if isinstance(x, np.ndarray | jax.Array) and not isinstance(x, Tracer):
        return x.shape == () and x.dtype == np.bool_
    return isinstance(x, bool | np.bool_)


def check_masks_fit(masks: PyTree, tree: PyTree, argument: str) -> None:
    """Raises where `masks`, from a state, cannot be those of `tree`."""
    for name, mask in named_leaves(masks):
        if not is_masked(mask) and jnp.result_type(mask) != np.bool_:
            raise TypeError(
                f"the mask at {name} has dtype {jnp.result_type(mask)} instead of "
                "bool: was the state cast, or restored into another dtype?"
            )
    check_fits(masks, tree, argument, like="the masks in the state")


def check_fits(reference: PyTree, tree: PyTree, argument: str, like: str) -> None:
    """Raises where `tree` has not the leaves of `reference`, or other shapes.

    Nothing is broadcast: shape (1, 4) does not fit shape (4, 4).
    """

    def check(path, wanted, leaf):
        if is_masked(wanted):
            return
        shape = None if is_masked(leaf) else jnp.shape(leaf)
        if shape != jnp.shape(wanted):
            raise ValueError(
                f"{argument} has shape {shape} at {leaf_name(path)}, where {like} has "
                f"{jnp.shape(wanted)}. Are they of the same model?"
            )

    try:
        jax.tree.map(lambda *_: None, reference, tree, is_leaf=is_masked)
    except ValueError as error:
        raise ValueError(
            f"{argument} has another tree than {like}: {_difference(reference, tree)}. "
            "Are they of the same model?"
        ) from error
    jax.tree_util.tree_map_with_path(check, reference, tree, is_leaf=is_masked)


def _difference(prefix: PyTree, tree: PyTree) -> str:
    """Says where `prefix`, which is not a prefix of `tree`, first differs from it."""
    names = [name for name, _ in named_leaves(prefix)]
    full = [name for name, _ in named_leaves(tree)]
    for name in names:
        if not any(_is_below(leaf, name) for leaf in full):
            return f"they differ first at {name}"
    for leaf in full:
        if not any(_is_below(leaf, name) for name in names):
            return f"they differ first at {leaf}"
    return f"{type(prefix).__name__} for {type(tree).__name__}"


def _is_below(leaf: str, name: str) -> bool:
    return name in ("(root)", leaf) or leaf.startswith(f"{name}/")
