"""Support for explicit meshes, where shardings are part of types."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, auto_axes, get_abstract_mesh


def let_compiler_shard(fn: Callable[..., Any], like: Any) -> Callable[..., Any]:
    """Wraps a function so that the compiler chooses all shardings inside it.

    On explicit axes of a mesh, every reshape would need a sharding. Without explicit
    axes, or without a mesh, this returns the function itself.

    Args:
        fn: a function of trees of arrays.
        like: a tree like its result, with the shardings that the result gets.
    """
    types = [jax.typeof(x).sharding for x in jax.tree.leaves(like)]
    mesh = next((x.mesh for x in types if not x.mesh.empty), get_abstract_mesh())
    if not mesh.explicit_axes:
        return fn
    shardings = jax.tree.map(
        lambda x: NamedSharding(mesh, jax.typeof(x).sharding.spec), like
    )
    return auto_axes(fn, axes=mesh.explicit_axes, out_sharding=shardings)
