"""Trees as JSON: what holds the arrays of a tree, and of what kind it is.

A tree is told by nested `{kind: content}`, without pickle: of a file only the kinds
below can come. Those of flax are looked up where they are met, as it may not be there.
What variables of nnx have in common, type and metadata, is told once for all of them.
"""

import collections
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import optax

from sparse_optax import _trees
from sparse_optax._trees import KeyPath, PyTree

Json = Any

_LEAF = "array"


def to_json(tree: PyTree, leaf_to_json: Callable[[KeyPath, Any], Json]) -> Json:
    """The tree as JSON data, its arrays as the function given tells them.

    Raises:
        TypeError: if there is something in the tree that a file cannot hold.
    """
    # What there is of nnx's variables but for their values, as texts, and its place.
    variables: dict[str, int] = {}

    def pairs(node, path, store):
        for key in node:
            if not isinstance(key, str | int):
                raise TypeError(
                    f"{_place(path)} has a key that is no string or integer: {key!r}."
                )
        keys = {key: (*path, jax.tree_util.DictKey(key)) for key in node}
        return [[key, convert(node[key], keys[key], store)] for key in node]

    def items(node, path, store):
        keys = [(*path, jax.tree_util.SequenceKey(i)) for i in range(len(node))]
        return [convert(x, key, store) for x, key in zip(node, keys, strict=True)]

    def convert(node, path, store):
        kind = type(node)
        if node is None or kind in (bool, int, float, str):
            return node
        if _trees.is_masked(node):
            return {"MaskedNode": None}
        if kind in (list, tuple):
            return {kind.__name__: items(node, path, store)}
        if kind in (dict, collections.OrderedDict):
            return {kind.__name__: pairs(node, path, store)}
        if _is(node, "flax.core", "FrozenDict"):
            return {"FrozenDict": pairs(node, path, store)}
        if _is(node, "flax.nnx", "State"):
            return {"State": pairs(node.raw_mapping, path, store)}
        if _is(node, "flax.nnx", "Variable"):
            below = (*path, jax.tree_util.DictKey("(metadata)"))
            metadata = convert(node.get_metadata(), below, _refuse)
            variable = json.dumps([*_variable_name(kind, path), metadata])
            index = variables.setdefault(variable, len(variables))
            return {"Variable": [index, convert(node.get_raw_value(), path, store)]}
        if kind is jax.sharding.PartitionSpec:  # among the metadata
            return {"PartitionSpec": items(tuple(node), path, store)}
        if not jax.tree_util.all_leaves([node]):
            raise TypeError(
                f"{_place(path)} is a {kind.__name__}; a file can hold dict, "
                "OrderedDict, list, tuple, None, optax's MaskedNode, FrozenDict and "
                "nnx's State and Variable, of which it has to be made first."
            )
        return {_LEAF: store(path, node)}

    root = convert(tree, (), leaf_to_json)
    return {"variables": [json.loads(text) for text in variables], "root": root}


def from_json(data: Json, leaf_from_json: Callable[[Json], Any]) -> PyTree:
    """The tree of which `data` are, its arrays as the function given returns them.

    Raises:
        ValueError: if the data are not those of a tree.
        ImportError: if there is a container of flax in it, and no flax.
    """

    def pairs(content):
        return {key: convert(child) for key, child in content}

    def convert(node) -> Any:
        if not isinstance(node, dict):
            return node
        ((kind, content),) = node.items()
        if kind == _LEAF:
            return leaf_from_json(content)
        if kind == "Variable":
            index, value = content
            is_of_nnx, name, metadata = data["variables"][index]
            variable = _variable_type(is_of_nnx, name)
            return variable.from_metadata(convert(value), convert(metadata))
        if kind == "MaskedNode":
            return optax.MaskedNode()
        if kind == "PartitionSpec":
            return jax.sharding.PartitionSpec(*map(convert, content))
        if kind == "State":
            from flax import nnx

            return nnx.State(pairs(content))
        if kind == "FrozenDict":
            from flax.core import FrozenDict

            return FrozenDict(pairs(content))
        if kind == "dict":
            return pairs(content)
        if kind == "OrderedDict":
            return collections.OrderedDict(pairs(content))
        if kind in ("list", "tuple"):
            children = map(convert, content)
            return list(children) if kind == "list" else tuple(children)
        raise ValueError(f"there is no container {kind!r}")

    return convert(data["root"])


def _refuse(path: KeyPath, leaf: Any) -> None:
    raise TypeError(f"{_place(path)} is {leaf!r}, which a file cannot hold.")


def _is(node: Any, module: str, name: str) -> bool:
    """Whether `node` is of a class that may never have been imported."""
    found = sys.modules.get(module)
    return found is not None and isinstance(node, getattr(found, name))


def _variable_name(kind: type, path: KeyPath) -> tuple[bool, str]:
    """Whether nnx itself has a type of variables, and the name by which it finds it."""
    from flax import nnx

    if getattr(nnx, kind.__name__, None) is kind:
        return True, kind.__name__
    try:
        return False, nnx.variable_name_from_type(kind)
    except ValueError:
        raise TypeError(
            f"{_place(path)} is a variable of the type {kind.__name__}; nnx finds it "
            "by its name only after `flax.nnx.register_variable_name`."
        ) from None


def _variable_type(is_of_nnx: bool, name: str) -> Any:
    """The type that `_variable_name` names."""
    from flax import nnx

    found = getattr(nnx, name) if is_of_nnx else nnx.variable_type_from_name(name)
    if not (isinstance(found, type) and issubclass(found, nnx.Variable)):
        raise ValueError(f"there is no type of variables {name!r}")
    return found


def _place(path: KeyPath) -> str:
    return f"params at {_trees.leaf_name(path)}"
