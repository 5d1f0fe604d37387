"""Leaves like those of the params, in other trees: which they are, and resizing."""

import functools
from collections.abc import Sequence
from typing import Any

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

    A leaf `0/mu/dense/kernel` of an optimizer state is named as `dense/kernel`. In a
    tree for a part of the params, such as the linen variables `params`, no leaf is
    named as `params/dense/kernel`: then the first part of all these is left out.
    """
    ends = {param.replace("(root)", ""): [param] for param in params}
    while ends:
        found = {}
        for name in names:
            end = next((x for x in _ends(name) if x in ends), None)
            if end is not None:
                found[name] = ends[end]
        if found:
            return found
        shorter: dict[str, list[str]] = {}
        for end, owners in ends.items():
            _, slash, rest = end.partition("/")
            if slash:
                shorter.setdefault(rest, []).extend(owners)
        ends = shorter
    return {}


def _ends(name: str) -> list[str]:
    """The name without its first parts, the longest first."""
    parts = name.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts) + 1)]


def check_shardings(argument: str, tree: Any) -> None:
    """Raises a `ValueError` for arrays whose sharding is a part of their type."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        sharding = jax.typeof(x).sharding
        if AxisType.Explicit in sharding.mesh.axis_types and any(sharding.spec):
            raise ValueError(
                f"{argument} is sharded over explicit axes of a mesh at "
                f"{_trees.leaf_name(path)}; pass `jax.device_get` of it."
            )


def small_shape(shape: tuple, kept: Indices) -> tuple:
    """The shape of a leaf without what is not kept."""
    sizes = {axis: indices.shape[-1] for axis, indices in kept.items()}
    return tuple(sizes.get(axis, n) for axis, n in enumerate(shape))


def _check_shape(x: Any, shape: tuple) -> None:
    if np.shape(x) != shape:
        raise OtherShape(shape)


def restore_shape(x: Any, shape: tuple, kept: Indices) -> jax.ShapeDtypeStruct:
    """The shape that a leaf had before."""
    _check_shape(x, small_shape(shape, kept))
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
    _check_shape(x, small_shape(shape, kept))
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
