"""Smaller networks with the same outputs: `compact`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sparse_optax import _arguments, _fit, _trees
from sparse_optax._compaction.analysis import Analysis, analyse
from sparse_optax._compaction.compacted import Compacted, NotRemoved
from sparse_optax._compaction.evaluate import Evaluation
from sparse_optax._compaction.find_groups import find_groups
from sparse_optax._compaction.leaves import Kept, check_shardings
from sparse_optax._compaction.liveness import Unread, unread
from sparse_optax._compaction.sizes import layer_sizes
from sparse_optax._compaction.stacks import unread_by_layer


def compact(
    fn: Callable, params: Any, *inputs: Any, check: bool = True, round_to: int = 1
) -> Compacted:
    r"""Removes all units that do not affect the outputs, and returns smaller arrays.

    A unit is a hidden feature, a channel, a head or a dimension of a head, with its
    slice of every leaf (see `channel_groups`). It is removed if its term is zero
    wherever the function sums over it, because of pruned weights before or after it:

    .. math:: y_j = \sum_i x_i W_{ij}: \quad x_i = 0 \;\text{or}\; W_{i\cdot} = 0
        \;\text{for all}\; j \;\text{that are left}

    A unit with the same value for every input is folded into the biases of the layers
    that read it, if all of them have one. This repeats until no more units are found.
    At least one unit of each group is kept. The result is dense, so it is smaller and
    faster on any hardware. Outputs and all input and output shapes are unchanged.

    Args:
        fn: a function `fn(params, *inputs)` that returns arrays, from any framework.
        params: the pruned params, and any other arrays with an entry for each unit,
            such as BatchNorm statistics.
        inputs: sample values of the other arguments of `fn`: arrays, or shapes with
            `check=False`. The batch size does not matter.
        check: whether to compare the outputs for the sample before and after.
        round_to: keep a multiple of this many units in each group that is large enough,
            by keeping the first of the units that could be removed.

    Returns:
        A `Compacted`, with `params`, `apply`, `kept`, `shrink`, `expand`, `convert`.

    Raises:
        TypeError: if `fn` is not a function, if params has leaves that are not arrays,
            if params are traced, or if inputs are traced and `check` is True.
        ValueError: if `round_to` is below 1, if inputs are shapes and `check` is True,
            or if params are sharded over explicit axes of a mesh.
        RuntimeError: if the outputs for the sample differ by more than rounding.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> def fn(params, x):
        ...     return jax.nn.relu(x @ params["in"]["w"]) @ params["out"]["w"]
        >>> params = {
        ...     "in": {"w": jnp.array([[1.0, 2.0, 0.0], [3.0, 1.0, 0.0]])},
        ...     "out": {"w": jnp.array([[1.0], [0.0], [5.0]])},
        ... }
        >>> x = jnp.ones((4, 2))
        >>> compacted = sparse_optax.compact(fn, params, x)
        >>> print(compacted)
               weights     bytes      multiplications      fewer
        in           6  2     24   8               24   8   3.0x
        out          3  1     12   4               12   4   3.0x
        total        9  3     36  12               36  12   3.0x
        >>> compacted.kept
        {'in/w': {1: array([0])}, 'out/w': {0: array([0])}}
        >>> compacted.apply(compacted.params, x).shape
        (4, 1)

    References:
        Bragagnolo and Barbano, `Simplify
        <https://doi.org/10.1016/j.softx.2021.100907>`_, 2022, remove zero channels from
        PyTorch modules. Here, units and zeros are found in the traced equations.
    """
    _fit.check_function("fn", fn, inputs)
    if not isinstance(check, bool):
        raise TypeError(f"check must be a boolean; got {check!r}.")
    _arguments.check_integer("round_to", round_to, low=1)
    _fit.check_concrete(params, "compact", "Call it outside, and `apply` inside.")
    if check and any(isinstance(x, Tracer) for x in jax.tree.leaves(inputs)):
        raise TypeError(
            "check=True needs concrete inputs; got traced ones: give check=False."
        )
    is_shape = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(inputs))
    if check and is_shape:
        raise ValueError(
            "check=True needs arrays as inputs; got shapes: give check=False."
        )
    analysis = analyse(fn, params, inputs, freeze_results=True)
    check_shardings("params", _trees.unbox(params))
    leaves = jax.tree.leaves(params)
    found = unread(analysis.program, leaves, analysis.table)
    if round_to > 1:
        _round(analysis, found.removed, round_to)
    by_layer = unread_by_layer(analysis, found, round_to)
    evaluation = Evaluation(analysis.table, found.removed)
    kept: Kept = {}
    for name, value in zip(analysis.names, analysis.program.ins, strict=False):
        masks = enumerate(evaluation.masks(value))
        indices = {axis: np.flatnonzero(m) for axis, m in masks if m is not None}
        indices |= {axis: x for (own, axis), x in by_layer.items() if own == name}
        if indices:
            kept[name] = indices
    compacted = Compacted(
        params,
        kept,
        tuple(_not_removed(analysis, found, evaluation)),
        {analysis.names[i]: num for i, num in found.folded.items()},
        layer_sizes(analysis.program, analysis.names, evaluation),
        fn,
        {n: np.shape(x) for n, x in zip(analysis.names, leaves, strict=True)},
    )
    folded = jax.tree.unflatten(
        jax.tree.structure(params), map(_put_like, found.leaves, leaves)
    )
    compacted = dataclasses.replace(compacted, params=compacted.shrink(folded))
    if check:
        _check_same(compacted, params, inputs)
    return compacted


def _round(analysis: Analysis, removed: np.ndarray, multiple: int) -> None:
    """Keeps more units of each group, up to the next multiple."""
    for group, units in find_groups(analysis)[0]:
        is_removed = removed[units]
        num_kept = group.size - int(is_removed.sum())
        removed[units[is_removed][: -num_kept % multiple]] = False


def _not_removed(
    analysis: Analysis, found: Unread, evaluation: Evaluation
) -> list[NotRemoved]:
    """The zero slices that are kept, by leaf and axis."""
    not_removed, table = [], analysis.table
    for name, value, fact in zip(
        analysis.names, analysis.program.ins, found.facts, strict=False
    ):
        if np.prod(value.shape) == max(value.shape, default=1):
            continue  # a vector has no slices
        for axis, mask in enumerate(evaluation.masks(value)):
            stays = fact[axis].spread(value.shape[axis]).zero & (
                True if mask is None else mask
            )
            if not stays.any():
                continue
            units = value.axes[axis]
            units = table.resolve(units) if units is not None else np.zeros((0, 0), int)
            reasons = table.why_frozen(value.axes[axis]) if not units.size else []
            if units.size:
                readers = np.unique(found.liveness.readers[units[stays]])
                reasons = [f"read by {found.liveness.names[i]}" for i in readers if i]
            reason = (
                ", ".join(reasons) or "the last unit of its group; its output is zero"
            )
            not_removed.append(NotRemoved(name, axis, int(stays.sum()), reason))
    return not_removed


def _put_like(new: Any, old: Any) -> Any:
    """Puts a leaf on the device of the old one, if it was changed on the host."""
    is_changed = new is not old and isinstance(old, jax.Array)
    return jax.device_put(new, old.sharding) if is_changed else new


def _check_same(compacted: Compacted, params: Any, inputs: tuple) -> None:
    """Raises an error if outputs differ by more than rounding.

    Up to 1 % of the outputs that are not floats may differ, because they may depend on
    rounded floats.
    """
    # A new function, because jit would use an earlier trace of fn again.
    outputs = jax.jit(lambda *args: compacted.fn(*args))(params, *inputs)
    before = jax.tree_util.tree_leaves_with_path(outputs)
    after = jax.tree.leaves(compacted.apply(compacted.params, *inputs))
    for (path, a), b in zip(before, after, strict=True):
        where = f"outputs at {_trees.leaf_name(path)}"
        report = "a bug in compact, unless fn is random. Please report it, with fn."
        if a.dtype != b.dtype:
            raise RuntimeError(f"{where} change from {a.dtype} to {b.dtype}: {report}")
        if jnp.issubdtype(a.dtype, jax.dtypes.extended):
            continue
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            if np.mean(np.asarray(a != b)) > 0.01:
                raise RuntimeError(f"{where} differ: {report}")
            continue
        tolerance = min(1000 * float(jnp.finfo(a.dtype).eps), 0.05)
        is_complex = jnp.issubdtype(a.dtype, jnp.complexfloating)
        a, b = (np.asarray(x, complex if is_complex else np.float64) for x in (a, b))
        scale = np.max(np.abs(a), initial=0, where=np.isfinite(a)) or 1
        if not np.allclose(a / scale, b / scale, 0, tolerance, equal_nan=True):
            if not np.isfinite(a).all():
                raise RuntimeError(
                    f"{where} contain {a[~np.isfinite(a)][0]} before compaction."
                )
            raise RuntimeError(
                f"{where} differ by {np.nanmax(np.abs(a - b)):.2g}, where the largest "
                f"is {scale:.2g}: {report}"
            )
