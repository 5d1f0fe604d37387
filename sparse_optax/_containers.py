"""Writes the containers of a tree as JSON, and rebuilds them from it.

A node is `[kind, about, children]`, an array `{}`, and anything else itself. Only the
classes below and nnx's variable types can be rebuilt; other nodes are only named.
"""

import importlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import PartitionSpec

from sparse_optax import _trees
from sparse_optax._trees import PyTree

Json = Any

SCALARS = (bool, int, float, str)
_MODULES = {
    "dict": "builtins",
    "list": "builtins",
    "tuple": "builtins",
    "OrderedDict": "collections",
    "FrozenDict": "flax.core",
    "State": "flax.nnx",
    "MaskedNode": "optax",
    "PartitionSpec": "jax.sharding",
}


def to_json(node: PyTree, has_arrays: bool = True) -> Json:
    """The tree as JSON; without `has_arrays`, arrays cannot be rebuilt."""
    kind, name = type(node), type(node).__name__
    unknown = [f"{kind.__module__}.{name}", None, []]
    if node is None or kind in SCALARS:
        return node
    if kind is PartitionSpec:  # a leaf for JAX, in the metadata of variables
        return ["PartitionSpec", None, [to_json(x, False) for x in node]]
    if jax.tree_util.all_leaves([node]):
        return {} if has_arrays and not callable(node) else unknown
    below = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x: x is not node)
    children = [to_json(child, has_arrays) for _, child in below]
    if isinstance(node, _trees.find_class("flax.nnx", "Variable")):
        names = [name for name, known in _variable_types().items() if known is kind]
        metadata = to_json(node.get_metadata(), has_arrays=False)
        return [names[0], metadata, children] if names else unknown
    if kind not in _trees.find_class(_MODULES.get(name, ""), name):
        return unknown
    if not hasattr(node, "keys"):
        return [name, None, children]
    keys = [key.key for (key,), _ in below]
    return [name, keys, children] if {*map(type, keys)} <= {int, str} else unknown


def from_json(data: Json, arrays: Iterator[Any]) -> PyTree:
    """Rebuilds the tree, with the arrays in their order.

    Raises:
        ValueError: if a node cannot be rebuilt.
        ImportError: if the tree has flax containers and flax is not installed.
    """
    if not isinstance(data, list):
        return next(arrays) if data == {} else data
    kind, about, children = data
    children = [from_json(child, arrays) for child in children]
    if kind.startswith("nnx.") and kind in (known := _variable_types()):
        return known[kind].from_metadata(*children, from_json(about, arrays))
    if kind not in _MODULES:
        raise ValueError(
            f"the file contains {kind}: pass `like`, a tree of the same structure."
        )
    container = getattr(importlib.import_module(_MODULES[kind]), kind)
    if about is not None:
        return container(zip(about, children, strict=True))
    return container(children) if kind in ("list", "tuple") else container(*children)


def _variable_types() -> dict[str, Any]:
    """nnx's own variable types, and those registered with it under a name."""
    from flax import nnx

    registered = nnx.variablelib.VariableTypeCache.items()
    types = {f"nnx.{name}": x for name, x in vars(nnx).items() if isinstance(x, type)}
    types |= {f"nnx.{name!r}": x for name, x in registered}
    return {name: x for name, x in types.items() if issubclass(x, nnx.Variable)}
