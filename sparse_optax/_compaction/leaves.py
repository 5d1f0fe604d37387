"""Leaves like those of the params, in other trees: which they are, and resizing."""

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

Indices = dict[int, np.ndarray]  # by axis, those that are kept
Kept = dict[str, Indices]  # by name of a leaf


class OtherShape(Exception):
    """The shape that a leaf must have."""


def find_owners(names: Sequence[str], params: Sequence[str]) -> dict[str, list[str]]:
    """For names of leaves the parameters that they are named as, at their end.

    A leaf `0/mu/dense/kernel` of an optimizer state is named as `dense/kernel`, with
    the prefix `0/mu`. For a part of the params, such as the linen variables `params`,
    it is named as `params/dense/kernel` without its first part. A name that can be read
    in several ways is read whole if it can be, and then in the way that names the most
    leaves.

    Returns:
        One parameter for each name, or several if nothing decides between them.
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
    """Raises a `ValueError` for arrays whose sharding is a part of their type."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        sharding = jax.typeof(x).sharding
        if AxisType.Explicit in sharding.mesh.axis_types and any(sharding.spec):
            raise ValueError(
                f"{argument} is sharded over explicit axes of a mesh at "
                f"{_trees.leaf_name(path)}; pass `jax.device_get` of it."
            )


def shape_of_kept(shape: tuple, kept: Indices) -> tuple:
    """The shape of a leaf without what is not kept."""
    sizes = {axis: indices.shape[-1] for axis, indices in kept.items()}
    return tuple(sizes.get(axis, n) for axis, n in enumerate(shape))


def _check_shape(x: Any, shape: tuple) -> None:
    if np.shape(x) != shape:
        raise OtherShape(shape)


def restore_shape(x: Any, shape: tuple, kept: Indices) -> jax.ShapeDtypeStruct:
    """The shape that a leaf had before."""
    _check_shape(x, shape_of_kept(shape, kept))
    return jax.ShapeDtypeStruct(shape, x.dtype)


def shrink(x: Any, shape: tuple, kept: Indices) -> Any:
    """What is kept of a leaf."""
    _check_shape(x, shape)
    if not kept:
        return x
    # An array of one device is indexed on the host: to compile a program for each shape
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
    """A leaf with zeros where it was shrunk."""
    _check_shape(x, shape_of_kept(shape, kept))
    for axis, indices in kept.items():
        put = functools.partial(_put, axis=axis, size=shape[axis])
        if indices.ndim == 2:
            put = jax.vmap(functools.partial(put, axis=axis - 1))
        x = put(x, indices)
    return x


def _put(x: Any, indices: Any, *, axis: int, size: int) -> jax.Array:
    """An axis of zeros with `x` at the indices."""
    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    where = (slice(None),) * axis + (indices,)
    return jnp.zeros(shape, x.dtype).at[where].set(x)
