"""Transformations that prune: masks in the optimizer state, and zeros that stay zero.

A pruning transformation is the last of a chain. In a pruning step (`_pruning_step`) it
first removes the weights of the lowest scores. It then replaces the update of every
pruned weight by -w, so that `optax.apply_updates` makes the weight exactly zero in any
dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparse_optax import (
    _amount_arguments,
    _arguments,
    _criteria,
    _fit,
    _layers,
    _pruning_step,
    _scores,
    _trees,
)
from sparse_optax._amounts import Kind
from sparse_optax._arguments import ScalarOrSchedule
from sparse_optax._caps import Caps
from sparse_optax._compaction.groups import select_groups
from sparse_optax._criteria import Criterion
from sparse_optax._layers import StructureArgument
from sparse_optax._leaves import Mask
from sparse_optax._prunable import Prunable
from sparse_optax._prune_state import Distribution, PruneState
from sparse_optax._structures import Unstructured


def prune_by(
    criterion: Criterion,
    fraction: ScalarOrSchedule | Mapping[str, ScalarOrSchedule] | None = None,
    *,
    count: int | optax.Schedule | Mapping[str, int] | None = None,
    structure: StructureArgument = Unstructured(),
    distribution: Distribution = "global",
    stacked: Mapping[str, int] | None = None,
    min_kept: Caps | None = None,
    max_sparsity: Caps | None = None,
    mask: Mask | None = "matrices",
) -> optax.GradientTransformationExtraArgs:
    r"""Removes the weights with the lowest scores for good, whenever `prune=True`.

    `update(updates, state, params, prune=True)` ranks the given weights and removes the
    k lowest of the n remaining units,

    .. math:: k = \mathrm{round}(\mathrm{fraction} \cdot n)
        \quad\text{(half to even, exactly)}

    The update then applies to the remaining weights, and every update keeps pruned
    weights exactly zero. It must be the last transformation of a chain: a later one may
    change them (see `check_sparsity`).

    `prune` may be a Python boolean or a traced one. With False, or without it, the
    selection is not compiled, and an update reads one byte of mask per weight.

    Args:
        criterion: `magnitude`, `saliency`, `random(key)`, `relevance(scale)`,
            `per_leaf(criterion)`, or any function `(params, grads) -> scores` from the
            prunable leaves (with `optax.MaskedNode()` elsewhere) to a tree of floating
            scores. The lowest are removed; NaN counts as largest.
        fraction: the fraction of the remaining units to remove, in [0, 1], or an optax
            schedule of the number of pruning steps so far. Used as a `float32`. A dict
            from regular expressions of names to fractions gives each leaf its own (the
            first match wins).
        count: how many units to remove, instead of `fraction`; given in the same ways,
            and rounded if from a schedule. Without either, a pruning step removes all
            that the structure allows (`NM` only); for others, give the amount to
            `sparse_optax.prune`.
        structure: which weights are removed together: `Unstructured()`, `NM(2, 4)`,
            `Block((4, 4))`, `Channel()`; or a dict from regular expressions to these.
        distribution: "global" ranks the units of all leaves together; "uniform" removes
            the amount from each leaf; "erk" removes the same total, and spreads it by
            the Erdos-Renyi kernel density of each leaf. A dict of amounts sets the
            amount of each leaf, instead of a distribution.
        stacked: a dict from regular expressions of names to the axis along which a leaf
            stacks the weights of several layers, as under `nn.scan`. Each layer counts
            as a leaf for structures, distributions and `min_kept`.
        min_kept: the least number of units to keep of each leaf. Smaller leaves are
            left intact. A number for every leaf; a dict from regular expressions to
            numbers, where the first match wins, and a pattern matches the name of a
            leaf (such as `"layer/kernel"`) or of a subtree that contains it; or a tree
            of numbers, or a prefix of one. By default, a leaf may lose all.
        max_sparsity: the highest sparsity of a leaf, in [0, 1]: round(max_sparsity * N)
            of its N units may be removed. Given like `min_kept`. If both are given, the
            one that keeps more units wins.
        mask: which leaves may be pruned. `"matrices"` (see `matrices_only`) leaves out
            biases and norms, whose zeros are often initial values. None selects every
            floating leaf, as in the paper. A dict from regular expressions to booleans
            selects by name: the first match wins, and leaves without a match are left
            out. Or a tree of booleans, a prefix of one, or a function from params to
            one. Only arrays of real floating numbers of 16 bits or more can be pruned:
            other leaves are left out, and naming one raises an error.

    Returns:
        A transformation with the state `PruneState`. `update` needs params, returns the
        updates of prunable leaves in the dtypes of their weights (and others
        unchanged), and takes the extra arguments `prune` and `grad`: the gradients, for
        criteria that need them. `hide_pruned` passes those.

    Raises:
        TypeError: if an argument is of the wrong type, or if `mask` names a leaf that
            cannot be pruned.
        ValueError: if a number, or a schedule after a million steps, is out of range or
            more than `structure` allows; if `mask` or `structure` does not fit or
            selects nothing; from `update`, if it gets no params, if a pruning
            step lacks the amount or gradients that it needs, or if the state belongs to
            other params or arguments.

    Examples:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> tx = optax.chain(
        ...     optax.sgd(0.1), sparse_optax.prune_by(sparse_optax.saliency, 0.5)
        ... )
        >>> params = jnp.array([[0.3, -0.1, 2.0, 0.2]])
        >>> grads = jnp.array([[2.0, 3.0, 0.1, 0.0]])
        >>> updates, state = tx.update(
        ...     grads, tx.init(params), params, prune=True, grad=grads
        ... )
        >>> print(optax.apply_updates(params, updates).round(1))
        [[ 0.1 -0.4  0.   0. ]]
    """
    _layers.check_structure(structure, stacked)
    kind, value = _amount_arguments.the_amount(
        structure, fraction=fraction, count=count
    )
    mask, structure = select_groups(mask, structure)
    prunable = Prunable(
        mask,
        structure,
        distribution,
        stacked,
        min_kept,
        max_sparsity,
        by_magnitude=criterion is _criteria.magnitude,
    )
    _scores.check_criterion(criterion)
    _amount_arguments.check_distribution(distribution, value)
    prunable.check_arguments()

    def init_fn(params) -> Any:
        state = prunable.init(params)
        _amount_arguments.check_amount_fits(kind, value, state)
        return state

    def update_fn(
        updates, state, params: Any = None, *, prune=False, grad=None, **extra_args
    ) -> Any:
        del extra_args
        flag = _arguments.as_flag(prune)
        state = prunable.check(state, params, counts_updates=False)
        _fit.check_masks_fit(state.masks, updates, "updates")
        if flag is not False:
            _amount_arguments.check_amount_is_given(kind, structure)
            amount = _amount_arguments.amount_at(
                kind, value, state.num_pruning_steps, state
            )
            state = _remove_if(flag, state, params, grad, criterion, kind, amount)
        return make_zero(updates, state.masks, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def prune_by_magnitude(
    fraction: ScalarOrSchedule | Mapping[str, ScalarOrSchedule] | None = None,
    *,
    count: int | optax.Schedule | Mapping[str, int] | None = None,
    structure: StructureArgument = Unstructured(),
    distribution: Distribution = "global",
    stacked: Mapping[str, int] | None = None,
    min_kept: Caps | None = None,
    max_sparsity: Caps | None = None,
    mask: Mask | None = "matrices",
) -> optax.GradientTransformationExtraArgs:
    """Removes the smallest weights for good: `prune_by(magnitude, ...)`.

    Args:
        fraction: as in `prune_by`.
        count: as in `prune_by`.
        structure: as in `prune_by`.
        distribution: as in `prune_by`.
        stacked: as in `prune_by`.
        min_kept: as in `prune_by`.
        max_sparsity: as in `prune_by`.
        mask: as in `prune_by`.

    Returns:
        A transformation with the state `PruneState`, like `prune_by`.

    Raises:
        TypeError: as for `prune_by`.
        ValueError: as for `prune_by`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> tx = optax.chain(optax.sgd(0.1), sparse_optax.prune_by_magnitude(0.5))
        >>> kernel = jnp.array([[0.3, -0.1, 2.0, 0.2]])
        >>> params = {"kernel": kernel, "bias": jnp.zeros(4)}
        >>> state, zeros = tx.init(params), optax.tree.zeros_like(params)
        >>> updates, state = tx.update(zeros, state, params, prune=True)
        >>> print(optax.apply_updates(params, updates)["kernel"])
        [[0.3 0.  2.  0. ]]

    References:
        Han et al, `Learning both Weights and Connections for Efficient Neural Networks
        <https://arxiv.org/abs/1506.02626>`_, 2015.
    """
    return prune_by(
        _criteria.magnitude,
        fraction,
        count=count,
        structure=structure,
        distribution=distribution,
        stacked=stacked,
        min_kept=min_kept,
        max_sparsity=max_sparsity,
        mask=mask,
    )


def prune_to_sparsity(
    sparsity: ScalarOrSchedule | Mapping[str, ScalarOrSchedule],
    *,
    every: int = 1,
    criterion: Criterion | None = None,
    structure: StructureArgument = Unstructured(),
    distribution: Distribution = "global",
    stacked: Mapping[str, int] | None = None,
    min_kept: Caps | None = None,
    max_sparsity: Caps | None = None,
    mask: Mask | None = "matrices",
) -> optax.GradientTransformationExtraArgs:
    r"""Removes the lowest weights to reach a sparsity scheduled over updates.

    Like `prune_by`, but driven only by the number of updates: for gradual pruning, and
    for loops that pass no extra arguments, as with linen's `TrainState`. At every
    `every`-th update it prunes until, of the N prunable units,

    .. math:: \mathrm{round}(\mathrm{sparsity}(t) \cdot N)
        \quad\text{(half to even, exactly)}

    are pruned, with t = 1 at the first update. A schedule that ends after T updates
    reaches its last value at update T or, if `every` does not divide T, at the first
    pruning step after it. Weights are never revived: if the schedule falls or stays, or
    `min_kept` allows no more, nothing is removed and no pruning step is counted.

    Args:
        sparsity: in [0, 1], an optax schedule of the number of updates, including this
            one; or a number, for one pruning step at the `every`-th update. A dict from
            regular expressions of names to these gives each leaf its own.
        every: the number of updates between two pruning steps, at least 1.
        criterion: as in `prune_by`; by default `magnitude`.
        structure: as in `prune_by`.
        distribution: as in `prune_by`.
        stacked: as in `prune_by`.
        min_kept: as in `prune_by`.
        max_sparsity: as in `prune_by`.
        mask: as in `prune_by`.

    Returns:
        A transformation with the state `PruneState`. `update` needs params. It ignores
        the extra argument `prune`. In a plain chain, earlier transformations do not
        notice its pruning steps: schedules that restart need `hide_pruned`.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: as for `prune_by`, or if `every` is less than 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> gradual = optax.linear_schedule(0.0, 0.75, transition_steps=3)
        >>> tx = optax.chain(optax.sgd(0.1), sparse_optax.prune_to_sparsity(gradual))
        >>> params = jnp.array([[0.3, -0.1, 2.0, 0.2]])
        >>> state = tx.init(params)
        >>> for _ in range(3):
        ...     updates, state = tx.update(jnp.zeros((1, 4)), state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     print(params)
        [[0.3 0.  2.  0.2]]
        [[0.3 0.  2.  0. ]]
        [[0. 0. 2. 0.]]

    References:
        Zhu and Gupta, `To prune, or not to prune <https://arxiv.org/abs/1710.01878>`_,
        2017, for gradual pruning, and its schedule `cubic_sparsity`.
    """
    _layers.check_structure(structure, stacked)
    if sparsity is None:
        raise TypeError("sparsity must be a number or a schedule; got None.")
    _amount_arguments.the_amount(structure, sparsity=sparsity)
    if not isinstance(every, jax.Array) or every.ndim:  # from inject_hyperparams
        _arguments.check_integer("every", every, low=1)
    criterion = criterion or _criteria.magnitude
    _scores.check_criterion(criterion)
    _amount_arguments.check_distribution(distribution, sparsity)
    mask, structure = select_groups(mask, structure)
    prunable = Prunable(
        mask,
        structure,
        distribution,
        stacked,
        min_kept,
        max_sparsity,
        by_magnitude=criterion is _criteria.magnitude,
    )
    prunable.check_arguments()

    def init_fn(params) -> Any:
        state = prunable.init(params)
        _amount_arguments.check_amount_fits("sparsity", sparsity, state)
        return state._replace(num_updates=jnp.zeros([], jnp.int32))

    def update_fn(
        updates, state, params: Any = None, *, grad=None, **extra_args
    ) -> Any:
        del extra_args
        state = prunable.check(state, params, counts_updates=True)
        _fit.check_masks_fit(state.masks, updates, "updates")
        before = cast(jax.Array, state.num_updates)
        num_updates = jnp.asarray(optax.safe_increment(before))
        state = state._replace(num_updates=num_updates)
        amount = _amount_arguments.amount_at("sparsity", sparsity, num_updates, state)
        is_due = num_updates % every == 0
        state = _remove_if(
            is_due, state, params, grad, criterion, "sparsity", amount, if_needed=True
        )
        return make_zero(updates, state.masks, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _remove_if(
    flag: bool | jax.Array,
    state: PruneState,
    params: optax.Params,
    grads: optax.Updates | None,
    criterion: Criterion,
    kind: Kind | None,
    amount: Any,
    if_needed: bool = False,
) -> PruneState:
    """The state after a pruning step, if the flag is true."""
    if criterion is _criteria.magnitude:
        grads = None
    if grads is not None:
        _fit.check_masks_fit(state.masks, grads, "grad")
        grads = _scores.only_prunable(state.masks, grads)
    boxed, state = state, _trees.unbox(state)
    params = _scores.only_prunable(state.masks, params)
    options = {"criterion": criterion, "kind": kind, "if_needed": if_needed}
    state = _remove_if_jitted(flag, state, params, grads, amount, **options)
    return _trees.rebox(state, like=boxed)


@functools.partial(jax.jit, static_argnames=("criterion", "kind", "if_needed"))
def _remove_if_jitted(flag, state, params, grads, amount, criterion, kind, if_needed):
    def remove():
        scores = _scores.scores_of(criterion, state.masks, params, grads)
        return _pruning_step.remove_units(state, params, scores, kind, amount)

    def remove_if_needed():
        needed, shortfall = _pruning_step.is_needed(state, kind, amount)
        unchanged = state._replace(shortfall=shortfall)
        return lax.cond(needed, remove, lambda: unchanged)

    return lax.cond(flag, remove_if_needed if if_needed else remove, lambda: state)


def make_zero(updates: Any, masks: optax.Params, params: optax.Params) -> Any:
    """The updates in the dtypes of their weights, -w where a weight is pruned."""
    boxed, updates = updates, _trees.unbox(updates)
    masks, params = _trees.unbox(masks), _trees.unbox(params)

    # Use `where`, not a product: NaN and infinite updates must not pass.
    updates = _trees.map_masks(
        lambda m, u, p: jnp.where(m, jnp.asarray(u, jnp.result_type(p)), -p),
        masks,
        updates,
        params,
    )
    return _trees.rebox(updates, like=boxed)
