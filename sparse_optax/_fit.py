"""Checks that trees fit together, with errors that say what to pass instead."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sparse_optax import _trees
from sparse_optax._prune_state import PruneState
from sparse_optax._trees import KeyPath, PyTree

_EQUINOX = "for an equinox module, pass eqx.filter(model, eqx.is_inexact_array)"
_NNX = "for an nnx module, pass nnx.state(model, nnx.Param)"


def check_function(argument: str, fn: Any, inputs: tuple) -> None:
    """Raises unless `fn` may be a function of params and inputs."""
    if isinstance(fn, _trees.find_class("equinox", "Module")) and not _takes(
        fn, 1 + len(inputs)
    ):
        wanted = "lambda params, x: jax.vmap(eqx.combine(params, static))(x)"
    elif isinstance(fn, _trees.find_class("flax.nnx", "Module")):
        wanted = "lambda params, x: nnx.merge(graphdef, params)(x)"
    elif isinstance(fn, _trees.find_class("flax.linen", "Module")):
        wanted = "model.apply"
    elif callable(fn):
        return
    else:
        raise TypeError(f"{argument} must be callable; got {fn!r}.")
    raise TypeError(
        f"{argument} is an instance of {type(fn).__name__}, which does not take "
        f"(params, *inputs): pass {wanted}."
    )


def _takes(fn: Callable, number: int) -> bool:
    """Whether a function can be called with this number of arguments."""
    try:
        inspect.signature(fn).bind(*[None] * number)
    except TypeError:
        return False
    return True


def check_tree(tree: PyTree, argument: str) -> None:
    """Raises unless `tree` contains only parameters, or arrays like them."""
    modules = _trees.find_class("flax.nnx", "Module")
    found = jax.tree.leaves(
        tree, is_leaf=lambda x: isinstance(x, (*modules, PruneState))
    )
    if any(isinstance(node, modules) for node in found):
        raise TypeError(f"{argument} contains an nnx module: {_NNX}.")
    if any(isinstance(node, PruneState) for node in found):
        raise TypeError(
            f"{argument} contains the state of an optimizer; pass the params and the "
            "opt_state of a training state separately."
        )
    check_arrays(tree, argument)


def check_arrays(tree: PyTree, argument: str) -> None:
    """Raises if a leaf of `tree` is not an array."""
    for name, leaf in _trees.named_leaves(tree):
        if not (_trees.is_array(leaf) or _trees.is_leaf(leaf)):
            raise TypeError(
                f"{argument} has {_trees.describe(leaf)} at {name}, which is not "
                f"an array: {_EQUINOX}."
            )


def check_concrete(tree: PyTree, function: str, instead: str) -> None:
    """Raises if a leaf of `tree` has no values: it is traced, or only a shape."""
    without_values = Tracer | jax.ShapeDtypeStruct
    if any(isinstance(leaf, without_values) for leaf in jax.tree.leaves(tree)):
        raise TypeError(
            f"{function} needs concrete arrays, outside of jit, vmap, scan and grad. "
            f"{instead}"
        )


def check_masks_fit(masks: PyTree, tree: PyTree, argument: str) -> None:
    """Raises if `masks` do not fit `tree`, or if a leaf with a mask is not a weight."""
    check_boolean(masks)
    check_fits(masks, tree, argument, like="the masks")

    def check(path, mask, leaf):
        if not _trees.is_masked(mask) and not _trees.is_weight(leaf):
            hint = ""
            if jnp.result_type(leaf) == np.bool_:
                hint = " Use set_masks to put masks into a state."
            raise TypeError(
                f"{argument} has {_trees.describe(leaf)} at "
                f"{_trees.leaf_name(path)}, where the masks expect weights: real "
                f"floating numbers of 16 bits or more.{hint}"
            )

    masks, tree = _trees.unbox(masks), _trees.unbox(tree)
    jax.tree_util.tree_map_with_path(check, masks, tree, is_leaf=_trees.is_masked)


def check_boolean(masks: PyTree) -> None:
    """Raises if a leaf of `masks` is not boolean."""
    for name, mask in _trees.named_leaves(_trees.unbox(masks)):
        if not _trees.is_masked(mask) and getattr(mask, "dtype", None) != np.bool_:
            raise TypeError(
                f"masks must be boolean; got {_trees.describe(mask)} at {name}. Was "
                "the state cast, or restored into another dtype?"
            )


def check_fits(reference: PyTree, tree: PyTree, argument: str, like: str) -> None:
    """Raises unless `tree` has the leaves of `reference`, with the same shapes.

    Nothing is broadcast: shape (1, 4) does not fit shape (4, 4).
    """
    boxed, reference, tree = tree, _trees.unbox(reference), _trees.unbox(tree)

    def check(path, wanted, leaf):
        if _trees.is_masked(wanted):
            return
        if not (_trees.is_masked(leaf) or jax.tree_util.all_leaves([leaf])):
            raise other_tree(reference, boxed, argument, like)
        check_shape(path, wanted, leaf, argument, like)

    try:
        jax.tree.map(lambda *_: None, reference, tree, is_leaf=_trees.is_masked)
    except ValueError as error:
        raise other_tree(reference, boxed, argument, like) from error
    jax.tree_util.tree_map_with_path(check, reference, tree, is_leaf=_trees.is_masked)


def check_shape(
    path: KeyPath, wanted: Any, leaf: Any, argument: str, like: str
) -> None:
    """Raises if two leaves have different shapes."""
    shape = None if _trees.is_masked(leaf) else np.shape(leaf)
    if shape != np.shape(wanted):
        raise ValueError(
            f"{argument} has shape {shape} at {_trees.leaf_name(path)}, where {like} "
            f"have {np.shape(wanted)}. {_hint(wanted, leaf)}"
        )


def map_aligned(
    f: Callable, reference: PyTree, tree: PyTree, argument: str, like: str
) -> PyTree:
    """`_trees.map_aligned`, with an error that says where the trees differ."""
    try:
        _trees.map_aligned(lambda *_: None, reference, tree)
    except ValueError as error:
        raise other_tree(reference, tree, argument, like) from error
    return _trees.map_aligned(f, reference, tree)


def other_tree(reference: PyTree, tree: PyTree, argument: str, like: str) -> ValueError:
    """An error that says where two trees differ, and what to pass instead."""
    where = difference(_trees.unbox(reference), _trees.unbox(tree))
    hint = _hint(reference, tree)
    return ValueError(f"{argument} has another tree than {like}: {where}. {hint}")


def difference(prefix: PyTree, tree: PyTree) -> str:
    """Says where `prefix`, which is not a prefix of `tree`, first differs from it."""
    names = [name for name, _ in _trees.named_leaves(prefix)]
    full = [name for name, _ in _trees.named_leaves(tree)]
    for name in names:
        if not any(_is_below(leaf, name) for leaf in full):
            return f"they differ first at {name}"
    for leaf in full:
        if not any(_is_below(leaf, name) for name in names):
            return f"they differ first at {leaf}"
    return f"{type(prefix).__name__} for {type(tree).__name__}"


def _is_below(leaf: str, name: str) -> bool:
    return name in ("(root)", leaf) or leaf.startswith(f"{name}/")


def _hint(reference: PyTree, tree: PyTree) -> str:
    """What may have gone wrong where two trees differ."""
    if isinstance(tree, _trees.find_class("equinox", "Module")):
        return f"Are these weights? {_EQUINOX}."
    if isinstance(tree, _trees.find_class("flax.nnx", "State")):
        return f"Are these weights alone? {_NNX}."
    if _is_flat(reference, tree):
        return (
            "optax.flatten makes one vector of all weights, and its masks are of that "
            "vector, which this function does not support. Put the pruning "
            "transformation outside of optax.flatten."
        )
    if _is_split(reference):
        return (
            "contrib.split_real_and_imaginary makes two arrays of a complex one, and "
            "its masks are of those, which this function does not support. Complex "
            "weights cannot be pruned as such."
        )
    return "Are they of the same model?"


def _is_flat(reference: PyTree, tree: PyTree) -> bool:
    """Whether `reference` may be the vector that `optax.flatten` makes of `tree`."""
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(tree))
    return getattr(reference, "shape", None) == (size,)


def _is_split(reference: PyTree) -> bool:
    def is_pair(node: Any) -> bool:
        return type(node).__name__ == "SplitRealAndImaginaryArrays"

    return any(map(is_pair, jax.tree.leaves(reference, is_leaf=is_pair)))
