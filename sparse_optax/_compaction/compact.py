"""`compact`: a smaller dense network with the same outputs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_optax import _arguments, _fit, _trees
from sparse_optax._compaction.analysis import Analysis, analyse
from sparse_optax._compaction.evaluate import Evaluation
from sparse_optax._compaction.groups import find_groups
from sparse_optax._compaction.liveness import Unread, unread
from sparse_optax._compaction.sizes import Size, Sizes, layer_sizes, total
from sparse_optax._compaction.stacks import unread_by_layer

Kept = dict[str, dict[int, np.ndarray]]


class Declined(NamedTuple):
    """Slices that are zero and could not be removed.

    Attributes:
        leaf: the name of the leaf.
        axis: of it.
        num_slices: how many.
        reason: why.
    """

    leaf: str
    axis: int
    num_slices: int
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Compacted:
    """A network without the units that nothing reads: what `compact` returns.

    Attributes:
        params: the same tree as before, with smaller arrays.
        kept: by name of a leaf that has become smaller, and by axis, the indices that
            are kept; of leaves that a scan has stacked, those of each layer,
            `[layers, kept]`.
        declined: which zero slices stay, and why.
        folded: how many constant units became part of a bias, by its name. Training
            from here differs from training of the masked network in these.
        layers: the sizes of each layer, before and after; `str` shows them as a table.
        fn: the function.
        shapes: of the leaves before, by name.
    """

    params: Any
    kept: Kept
    declined: tuple[Declined, ...]
    folded: dict[str, int]
    layers: Sizes
    fn: Callable
    shapes: dict[str, tuple[int, ...]]

    def apply(self, params: Any, *inputs: Any) -> Any:
        """What `fn` returns, of params with the smaller shapes.

        `fn` is traced with the shapes that its params had, and its equations are
        evaluated on the smaller arrays: so no module ever sees these. Works under
        `jit`, `grad`, `vmap` and `jax.export`, and with inputs of other sizes.

        Args:
            params: a tree like the attribute `params`.
            *inputs: arrays, or trees of them, as `fn` takes them.

        Raises:
            ValueError: if params have other names or shapes, or if for these inputs
                `fn` reads units that have been removed.
        """
        return self._apply(params, inputs)

    @functools.cached_property
    def _apply(self) -> Callable:
        return jax.jit(self._evaluate)

    def _evaluate(self, params: Any, inputs: tuple) -> Any:
        with_path = jax.tree_util.tree_leaves_with_path(_trees.unbox(params))
        leaves = {_trees.leaf_name(path): leaf for path, leaf in with_path}
        if leaves.keys() != self.shapes.keys():
            names = sorted(leaves.keys() ^ self.shapes.keys())
            raise ValueError(
                f"params differs from that which was compacted in {names}."
            )
        whole = self._map("params", params, _whole)
        analysis = analyse(self.fn, whole, inputs, freeze_results=False)
        evaluation = Evaluation(analysis.table, self._removed(analysis))
        self._check(analysis, evaluation)
        args = jax.tree.leaves(params)
        args += [
            evaluation.shrink(value, x)
            for value, x in zip(
                analysis.program.ins[len(args) :], jax.tree.leaves(inputs), strict=True
            )
        ]
        outs = evaluation.run(analysis.program, args)
        return jax.tree.unflatten(jax.tree.structure(analysis.returns), outs)

    def _removed(self, analysis: Analysis) -> np.ndarray:
        """Which units of a new analysis are removed: those without a position left."""
        table = analysis.table
        seen, alive = np.zeros((2, table.size), bool)
        for name, value in zip(analysis.names, analysis.program.ins, strict=False):
            for axis, units in enumerate(value.axes):
                if units is not None:
                    units = table.resolve(units)
                    seen[units] = True
                    alive[units[self._kept_of(name, axis)]] = True
        return seen & ~alive

    def _kept_of(self, name: str, axis: int) -> Any:
        """The kept indices of an axis, in the first layer where they are stacked."""
        indices = self.kept.get(name, {}).get(axis)
        if indices is None:
            return slice(None)
        return indices[0] if indices.ndim == 2 else indices

    def _check(self, analysis: Analysis, evaluation: Evaluation) -> None:
        """Raises if a new analysis does not have units as those that were removed."""
        for name, value in zip(analysis.names, analysis.program.ins, strict=False):
            for axis, mask in enumerate(evaluation.masks(value)):
                n = self.shapes[name][axis]
                expected = np.arange(n)[self._kept_of(name, axis)]
                found = np.arange(n) if mask is None else np.flatnonzero(mask)
                if not np.array_equal(found, expected):
                    reasons = analysis.table.why_frozen(value.axes[axis])
                    raise ValueError(
                        f"{n - len(expected)} of {n} slices of {name}, axis {axis}, "
                        "were removed, but this function, with these inputs, needs "
                        f"others: {', '.join(reasons) or 'it couples other units'}."
                    )

    def shrink(self, tree: Any) -> Any:
        """Takes out of any tree with leaves like those of the params what was removed.

        Args:
            tree: params, masks, gradients, an optimizer state or a training state:
                leaves are recognised by their names, such as `0/mu/dense/kernel`.

        Raises:
            ValueError: if a leaf of such a name has another shape, or if there is none.
        """
        return self._map("tree", tree, _shrink)

    def expand(self, tree: Any) -> Any:
        """Puts zeros where `shrink` takes something out.

        `fn(expand(params), x)` equals `apply(params, x)`.

        Args:
            tree: as for `shrink`, with the smaller shapes.

        Raises:
            ValueError: if a leaf of such a name has another shape, or if there is none.
        """
        return self._map("tree", tree, _expand)

    def convert(self, fn: Callable) -> "Compacted":
        """The same for another function of these params, such as the training mode.

        What `apply` returns may have smaller shapes too, such as the new statistics of
        a BatchNorm.

        Args:
            fn: a function of the same params.
        """
        return dataclasses.replace(self, fn=fn)

    def state(self) -> dict[str, Any]:
        """All but the function, as a tree of arrays for `save_sparse` or Orbax."""
        return {
            "params": self.params,
            "kept": {
                name: {str(axis): indices for axis, indices in by_axis.items()}
                for name, by_axis in self.kept.items()
            },
            "shapes": {n: np.array(shape, int) for n, shape in self.shapes.items()},
        }

    @classmethod
    def restore(cls, fn: Callable, state: dict[str, Any]) -> "Compacted":
        """The network of a function and of what `state` returned.

        It has no table: `layers`, `declined` and `folded` are empty.

        Args:
            fn: the function that was compacted.
            state: as `load_sparse` or Orbax returns it.
        """
        kept = {
            name: {int(axis): np.asarray(x) for axis, x in by_axis.items()}
            for name, by_axis in state["kept"].items()
        }
        shapes = {n: tuple(np.asarray(x).tolist()) for n, x in state["shapes"].items()}
        return cls(state["params"], kept, (), {}, {}, fn, shapes)

    def _map(self, argument: str, tree: Any, f: Callable) -> Any:
        """`f(x, shape, kept)` of each leaf named as one of params is, at its end."""
        names = sorted(self.shapes, key=len, reverse=True)
        found = set()

        def apply(path, x):
            name = _trees.leaf_name(path)
            for own in names:
                if name == own or name.endswith(f"/{own}") or own == "(root)":
                    found.add(own)
                    if np.ndim(x) == 0:
                        return x  # a number for each leaf
                    try:
                        return f(x, self.shapes[own], self.kept.get(own, {}))
                    except _OtherShape as error:
                        raise ValueError(
                            f"{argument} has shape {np.shape(x)} at {name}; it must "
                            f"be {error.args[0]}."
                        ) from None
            return x

        mapped = jax.tree_util.tree_map_with_path(apply, _trees.unbox(tree))
        if self.kept and not found:
            raise ValueError(
                f"{argument} has no leaf named as one of the params that were "
                f"compacted: {list(self.shapes)}."
            )
        return _trees.rebox(mapped, like=tree)

    @property
    def total(self) -> tuple[Size, Size]:
        """The sizes of the network, before and after."""
        return total(self.layers)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("", "weights", "", "bytes", "", "multiplications", "", "fewer")
        ]
        for layer, (before, after) in [*self.layers.items(), ("total", self.total)]:
            numbers = [
                f"{getattr(size, field.name):,}"
                for field in dataclasses.fields(Size)
                for size in (before, after)
            ]
            ratio = ""
            if after.multiplications:
                ratio = f"{before.multiplications / after.multiplications:.1f}x"
            rows.append((layer, *numbers, ratio))
        first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = [
            name.ljust(first)
            + "".join(f"  {x:>{w}}" for x, w in zip(row, others, strict=True))
            for name, *row in rows
        ]
        lines += [
            f"folded: {num} constant units into {name}"
            for name, num in self.folded.items()
        ]
        lines += [
            f"kept: {d.num_slices} zero slices of {d.leaf}, axis {d.axis}: {d.reason}"
            for d in self.declined
        ]
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__


class _OtherShape(Exception):
    """The shape that a leaf must have."""


def _small_shape(shape: tuple, kept: dict[int, np.ndarray]) -> tuple:
    sizes = {axis: indices.shape[-1] for axis, indices in kept.items()}
    return tuple(sizes.get(axis, n) for axis, n in enumerate(shape))


def _whole(x: Any, shape: tuple, kept: dict[int, np.ndarray]) -> Any:
    if np.shape(x) != _small_shape(shape, kept):
        raise _OtherShape(_small_shape(shape, kept))
    return jax.ShapeDtypeStruct(shape, x.dtype)


def _shrink(x: Any, shape: tuple, kept: dict[int, np.ndarray]) -> Any:
    if np.shape(x) != shape:
        raise _OtherShape(shape)
    for axis, indices in kept.items():
        if indices.ndim == 2:
            x = jax.vmap(functools.partial(jnp.take, axis=axis - 1))(x, indices)
        else:
            x = jnp.take(x, indices, axis=axis)
    return x


def _expand(x: Any, shape: tuple, kept: dict[int, np.ndarray]) -> Any:
    if np.shape(x) != _small_shape(shape, kept):
        raise _OtherShape(_small_shape(shape, kept))
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


def compact(
    fn: Callable, params: Any, *inputs: Any, check: bool = True, round_to: int = 1
) -> Compacted:
    r"""Removes every unit whose removal cannot be seen: smaller, with the same outputs.

    A unit is a slice of every leaf that one hidden feature, channel, head or dimension
    of a head has (see `channel_groups`). It is removed if, wherever the function sums
    over it, its term is zero, because of pruned weights on either side:

    .. math:: y_j = \sum_i x_i W_{ij}: \quad x_i = 0 \;\text{or}\; W_{i\cdot} = 0
        \;\text{for all}\; j \;\text{that are left}

    A unit that has the same value for every input becomes part of the biases of its
    readers, where each has one. All this is repeated until nothing more is found. At
    least one unit of each kind stays. The result is dense, so it is smaller and faster
    on any hardware. Outputs and the shapes of inputs and outputs stay as they are.

    Args:
        fn: `fn(params, *inputs)` returns arrays, of any framework.
        params: a tree of arrays, the pruned weights with all that belongs to units of
            theirs, such as the statistics of a BatchNorm.
        inputs: a sample of what else `fn` takes: arrays, or shapes with `check=False`.
            Their batch size does not matter.
        check: whether to compare the outputs for the sample, before and after.
        round_to: numbers of units are multiples of this, as far as there are as many:
            units that could be removed stay, the first by index.

    Returns:
        A `Compacted`, with `params`, `apply`, `kept`, `shrink`, `expand`, `convert`.

    Raises:
        TypeError: if `fn` is not a function, if params has other leaves than arrays, or
            if it is traced.
        ValueError: if `round_to` is below 1, or if inputs are shapes and `check` is
            True.
        RuntimeError: if outputs for the sample differ (beyond rounding).

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
        modules of PyTorch. Here units and zeros are found in the traced equations.
    """
    _arguments.check_integer("round_to", round_to, low=1)
    _fit.check_concrete(params, "compact", "Compact before it, and apply inside.")
    is_shape = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(inputs))
    if check and is_shape:
        raise ValueError("check=True needs arrays as inputs; got shapes.")
    analysis = analyse(fn, params, inputs, freeze_results=True)
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
        tuple(_declined(analysis, found, evaluation)),
        {analysis.names[i]: num for i, num in found.folded.items()},
        layer_sizes(analysis.program, analysis.names, evaluation),
        fn,
        {n: np.shape(x) for n, x in zip(analysis.names, leaves, strict=True)},
    )
    folded = jax.tree.unflatten(jax.tree.structure(params), found.leaves)
    compacted = dataclasses.replace(compacted, params=compacted.shrink(folded))
    if check:
        _check_same(compacted, params, inputs)
    return compacted


def _round(analysis: Analysis, removed: np.ndarray, multiple: int) -> None:
    """Keeps so many of the units of each group that their number is a multiple."""
    for group, units in find_groups(analysis)[0]:
        is_removed = removed[units]
        num_kept = group.size - int(is_removed.sum())
        removed[units[is_removed][: -num_kept % multiple]] = False


def _declined(
    analysis: Analysis, found: Unread, evaluation: Evaluation
) -> list[Declined]:
    """The zero slices that are kept, by leaf and axis."""
    declined, table = [], analysis.table
    for name, value, fact in zip(
        analysis.names, analysis.program.ins, found.facts, strict=False
    ):
        if np.prod(value.shape) == max(value.shape, default=1):
            continue  # a vector: its zeros are no slices
        for axis, mask in enumerate(evaluation.masks(value)):
            stays = fact.zero(axis) & (True if mask is None else mask)
            if not stays.any():
                continue
            units = value.axes[axis]
            units = table.resolve(units) if units is not None else np.zeros((0, 0), int)
            reasons = table.why_frozen(value.axes[axis]) if not units.size else []
            if units.size:
                readers = np.unique(found.liveness.readers[units[stays]])
                reasons = [f"read by {found.liveness.names[i]}" for i in readers if i]
            reason = ", ".join(reasons) or "one of each kind stays"
            declined.append(Declined(name, axis, int(stays.sum()), reason))
    return declined


def _check_same(compacted: Compacted, params: Any, inputs: tuple) -> None:
    """Raises if outputs differ by more than rounding."""
    before = jax.jit(compacted.fn)(params, *inputs)
    after = compacted.apply(compacted.params, *inputs)
    after = jax.tree.leaves(after)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(before), after, strict=True
    ):
        if not jnp.issubdtype(a.dtype, jnp.floating):
            continue
        tolerance = min(1000 * float(jnp.finfo(a.dtype).eps), 0.05)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = np.max(np.abs(a), initial=0, where=np.isfinite(a)) or 1
        if not np.allclose(a / scale, b / scale, 0, tolerance, equal_nan=True):
            raise RuntimeError(
                f"outputs at {_trees.leaf_name(path)} differ by "
                f"{np.nanmax(np.abs(a - b)):.2g}, where the largest is {scale:.2g}: "
                "a bug of compact. Please report it, with the function."
            )
