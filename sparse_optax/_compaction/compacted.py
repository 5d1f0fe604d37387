"""A smaller dense network with the same outputs: what `compact` returns."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sparse_optax import _arguments, _fit, _trees
from sparse_optax._compaction.analysis import analyse
from sparse_optax._compaction.leaves import (
    Kept,
    by_name,
    check_shardings,
    expand,
    match_params,
    restore_shape,
    shape_of_kept,
    shrink,
)
from sparse_optax._compaction.retrace import fit_removed
from sparse_optax._compaction.sizes import Size, Sizes, add_up

_STATE = {"params", "kept", "shapes"}


class NotRemoved(NamedTuple):
    """Zero slices that could not be removed.

    Attributes:
        leaf: the name of the leaf.
        axis: the axis of the leaf.
        num_slices: the number of slices.
        reason: why they are kept.
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
        kept: `kept[leaf][axis]` has the indices that are kept, for leaves that became
            smaller; for leaves stacked for a scan, it has those of each layer,
            `[layers, kept]`.
        not_removed: the zero slices that are kept, and why.
        folded: how many constant units were folded into each bias, by its name. Because
            of these, further training differs from that of the masked network.
        layers: the sizes of each layer, before and after; `str` shows them as a table.
        fn: the function.
        shapes: the original shapes of the leaves, by name.
    """

    params: Any
    kept: Kept
    not_removed: tuple[NotRemoved, ...]
    folded: dict[str, int]
    layers: Sizes
    fn: Callable
    shapes: dict[str, tuple[int, ...]]

    def apply(self, params: Any, *inputs: Any) -> Any:
        """Calls the function with the smaller params; equals `fn(expand(params), ...)`.

        `fn` is traced with the original shapes of its params, and its equations are
        evaluated on the smaller arrays, so modules never see these. Works under `jit`,
        `grad`, `vmap` and `jax.export`, and with inputs of other sizes. As with `jit`,
        a trace is used again for inputs of the same shapes.

        Args:
            params: a tree like the attribute `params`.
            *inputs: arrays, or trees of them, as `fn` takes them.

        Raises:
            ValueError: if params have different names or shapes, or if `fn` reads
                removed units for these inputs.
        """
        try:
            return self._apply(params, inputs)
        except TypeError:
            _fit.check_tree(params, "params")  # says it better, if it is that
            raise

    @functools.cached_property
    def _apply(self) -> Callable:
        return jax.jit(self._evaluate)

    def _evaluate(self, params: Any, inputs: tuple) -> Any:
        different = by_name(params).keys() ^ self.shapes.keys()
        if different:
            raise ValueError(
                f"params does not match the compacted params at {sorted(different)}."
            )
        whole = self._map("params", params, restore_shape)
        analysis = analyse(self.fn, whole, inputs, freeze_results=False)
        evaluation = fit_removed(analysis, self.kept, self.shapes)
        args = jax.tree.leaves(params)
        args += [
            evaluation.shrink(value, x)
            for value, x in zip(
                analysis.program.ins[len(args) :], jax.tree.leaves(inputs), strict=True
            )
        ]
        outs = evaluation.run(analysis.program, args)
        return jax.tree.unflatten(jax.tree.structure(analysis.returns), outs)

    def shrink(self, tree: Any) -> Any:
        """Removes the same units from another tree, such as an optimizer state.

        Args:
            tree: params, masks, gradients, an optimizer state or a training state, for
                all params or some of them. Leaves are recognised by their names, such
                as `0/mu/dense/kernel`.

        Raises:
            ValueError: if a leaf with such a name has a different shape, as in the
                state of Adafactor, or if there is no such leaf.
        """
        return self._map("tree", tree, shrink)

    def expand(self, tree: Any) -> Any:
        """Restores the original shapes, with zeros where `shrink` removes units.

        `fn(expand(params), x)` equals `apply(params, x)`.

        Args:
            tree: as for `shrink`, with the smaller shapes.

        Raises:
            ValueError: for the same reasons as `shrink`.
        """
        return self._map("tree", tree, expand)

    def convert(self, fn: Callable) -> "Compacted":
        """A `Compacted` for another function of the params, such as one for training.

        Its `apply` may return smaller arrays too, such as new BatchNorm statistics.
        Removed units count as zero, also in penalties on hidden features.

        Args:
            fn: a function of the same params.

        Raises:
            TypeError: if it is not a function.
        """
        _arguments.check_callable("fn", fn)
        return dataclasses.replace(self, fn=fn)

    def state(self) -> dict[str, Any]:
        """Everything but `fn`, as dicts of arrays for `save_sparse` or Orbax.

        The params are in a dict by the names of their leaves.
        """
        return {
            "params": by_name(self.params),
            "kept": {
                name: {str(axis): indices for axis, indices in by_axis.items()}
                for name, by_axis in self.kept.items()
            },
            "shapes": {n: np.array(shape, int) for n, shape in self.shapes.items()},
        }

    @classmethod
    def restore(cls, fn: Callable, params: Any, state: dict[str, Any]) -> "Compacted":
        """Rebuilds a `Compacted` from the function and the saved `state()`.

        The report is not saved: `layers`, `not_removed` and `folded` are empty.

        Args:
            fn: the function that was compacted.
            params: a tree like the original params, such as one of `jax.eval_shape`.
                Only its structure and shapes are used.
            state: as `load_sparse` or Orbax returns it.

        Raises:
            TypeError: if `fn` is not a function.
            ValueError: if `state` is not what `state()` returns, or if `params` has
                other names or shapes than the params that were compacted.
        """
        _arguments.check_callable("fn", fn)
        is_state = isinstance(state, Mapping) and state.keys() == _STATE
        if not is_state or state["params"].keys() != state["shapes"].keys():
            raise ValueError(f"state must be what `state()` returns; got {state!r}.")
        shapes = {n: tuple(np.asarray(x).tolist()) for n, x in state["shapes"].items()}
        found = {name: np.shape(x) for name, x in by_name(params).items()}
        if different := sorted(name for name, _ in found.items() ^ shapes.items()):
            raise ValueError(
                f"params does not have the names and shapes before compaction, at "
                f"{different[0]}: {found.get(different[0], 'missing')} instead of "
                f"{shapes.get(different[0], 'missing')}."
            )
        leaves = [state["params"][name] for name in found]
        structure = jax.tree.structure(_trees.unbox(params))
        restored = jax.tree.unflatten(structure, leaves)
        kept = {
            name: {int(axis): np.asarray(x) for axis, x in by_axis.items()}
            for name, by_axis in state["kept"].items()
        }
        restored = _trees.rebox(restored, like=params)
        return cls(restored, kept, (), {}, {}, fn, shapes)

    def _map(self, argument: str, tree: Any, f: Callable) -> Any:
        """Applies `f(x, shape, kept)` to leaves whose names end with a param's name."""
        _fit.check_arrays(tree, argument)
        unboxed = _trees.unbox(tree)
        check_shardings(argument, unboxed)
        with_path = jax.tree_util.tree_leaves_with_path(unboxed)
        names = [_trees.leaf_name(path) for path, _ in with_path]
        owners = match_params(names, list(self.shapes))
        has_arrays = any(np.ndim(x) > 0 for _, x in with_path)
        if self.kept and has_arrays and not owners:
            raise ValueError(
                f"{argument} has no leaf with the name of a param; the params are "
                f"{list(self.shapes)}."
            )

        def apply(path, x):
            name = _trees.leaf_name(path)
            if name not in owners or np.ndim(x) == 0:  # 0: a scalar per leaf
                return x
            owner, *others = owners[name]
            if others and any(own in self.kept for own in owners[name]):
                raise ValueError(
                    f"{argument} has a leaf {name}, which could belong to any of "
                    f"{owners[name]}."
                )
            shape, kept = self.shapes[owner], self.kept.get(owner, {})
            expected = shape if f is shrink else shape_of_kept(shape, kept)
            if not others and np.shape(x) != expected:
                raise ValueError(
                    f"{argument} has shape {np.shape(x)} at {name}; it must be "
                    f"{expected}."
                )
            return x if others else f(x, shape, kept)

        mapped = jax.tree_util.tree_map_with_path(apply, unboxed)
        return _trees.rebox(mapped, like=tree)

    @property
    def total(self) -> tuple[Size, Size]:
        """The sizes of the network, before and after."""
        before, after = zip((Size(), Size()), *self.layers.values(), strict=True)
        return add_up(*before), add_up(*after)

    def __str__(self) -> str:
        if not self.layers:  # restored
            return f"Compacted, {len(self.kept)} smaller leaves"
        rows: list[tuple[str, ...]] = [
            ("", "weights", "", "bytes", "", "multiplications", "", "fewer")
        ]
        for layer, (before, after) in [*self.layers.items(), ("total", self.total)]:
            numbers = [
                f"{n:,}" for pair in zip(before, after, strict=True) for n in pair
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
        if not self.kept:
            zeros = "" if self.not_removed else ": no unit has only zeros"
            lines.append(f"nothing is removed{zeros}")
        lines += [
            f"folded: {num} constant units into {name}, which changes further training"
            for name, num in self.folded.items()
        ]
        lines += [
            f"kept: {d.num_slices} zero slices of {d.leaf}, axis {d.axis}: {d.reason}"
            for d in self.not_removed
        ]
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__
