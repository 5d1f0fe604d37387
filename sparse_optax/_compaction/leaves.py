"""Finds the leaves of other trees that correspond to params, and resizes them."""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType

from sparse_optax import _trees

Indices = dict[int, np.ndarray]  # the kept indices, by axis
Kept = dict[str, Indices]  # by name of a leaf


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their names."""
    with_path = jax.tree_util.tree_leaves_with_path(_trees.unbox(tree))
    return {_trees.leaf_name(path): leaf for path, leaf in with_path}


def match_params(names: Sequence[str], params: Sequence[str]) -> dict[str, list[str]]:
    """Finds the params that names of leaves end with.

    A leaf `0/mu/dense/kernel` of an optimizer state ends with `dense/kernel`, after the
    prefix `0/mu`. If the tree has only a part of the params, such as `params` of linen
    variables, the leaf ends with `params/dense/kernel` without its first part. If a
    name matches in several ways, matches with the whole name of a param come first, and
    then the way that matches the most leaves.

    Returns:
        One param for each name, or several if they are tied.
    """
    ends: dict[str, list[_Reading]] = {}
    for param in params:
        parts = param.split("/") if param != "(root)" else []
        for i in range(max(len(parts), 1)):
            reading = _Reading("", "/".join(parts[:i]), param)
            ends.setdefault("/".join(parts[i:]), []).append(reading)
    readings: dict[str, list[_Reading]] = {}
    for name in names:
        parts = name.split("/") if name != "(root)" else []
        readings[name] = [
            reading._replace(prefix="/".join(parts[:i]))
            for i in range(len(parts) + 1)
            for reading in ends.get("/".join(parts[i:]), [])
        ]
    num_named = Counter(x[:2] for found in readings.values() for x in found)

    def rank(x: _Reading) -> tuple:
        return not x.left_out, num_named[x[:2]], -x.left_out.count("/")

    owners = {}
    for name, found in readings.items():
        if found:
            best = max(map(rank, found))
            owners[name] = [x.param for x in found if rank(x) == best]
    return owners


class _Reading(NamedTuple):
    """A way to read the name of a leaf: `prefix/x`, where `left_out/x` is a param."""

    prefix: str
    left_out: str
    param: str


def check_shardings(argument: str, tree: Any) -> None:
    """Raises a `ValueError` for arrays sharded over explicit axes of a mesh."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        sharding = jax.typeof(x).sharding
        if AxisType.Explicit in sharding.mesh.axis_types and any(sharding.spec):
            raise ValueError(
                f"{argument} is sharded over explicit axes of a mesh at "
                f"{_trees.leaf_name(path)}; pass `jax.device_get` of it."
            )


def shape_of_kept(shape: tuple, kept: Indices) -> tuple:
    """The shape of a leaf with only the kept indices."""
    sizes = {axis: indices.shape[-1] for axis, indices in kept.items()}
    return tuple(sizes.get(axis, n) for axis, n in enumerate(shape))


def restore_shape(x: Any, shape: tuple, kept: Indices) -> jax.ShapeDtypeStruct:
    """The original shape of a leaf."""
    return jax.ShapeDtypeStruct(shape, x.dtype)


def shrink(x: Any, shape: tuple, kept: Indices) -> Any:
    """Takes the kept indices of a leaf."""
    if not kept:
        return x
    # An array on one device is indexed on the host: compiling a program for each shape
    # would take longer.
    is_concrete = isinstance(x, jax.Array) and not isinstance(x, Tracer)
    is_moved = is_concrete and len(x.devices()) == 1
    small = np.asarray(x) if is_moved else x
    xp = np if isinstance(small, np.ndarray) else jnp
    for axis, indices in kept.items():
        if indices.ndim == 2:  # of each layer
            others = [i for i in range(1, len(shape)) if i != axis]
            small = xp.take_along_axis(
                small, np.expand_dims(indices, others), axis=axis
            )
        else:
            small = xp.take(small, indices, axis=axis)
    return jax.device_put(small, x.sharding) if is_moved else small


def expand(x: Any, shape: tuple, kept: Indices) -> Any:
    """Puts zeros where a leaf was shrunk."""
    for axis, indices in kept.items():
        put = functools.partial(_put, axis=axis, size=shape[axis])
        if indices.ndim == 2:
            put = jax.vmap(functools.partial(put, axis=axis - 1))
        x = put(x, indices)
    return x


def _put(x: Any, indices: Any, *, axis: int, size: int) -> jax.Array:
    """Zeros along an axis, with `x` at the indices."""
    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    where = (slice(None),) * axis + (indices,)
    return jnp.zeros(shape, x.dtype).at[where].set(x)
