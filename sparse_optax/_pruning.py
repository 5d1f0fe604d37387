"""Transformations that prune: masks in the optimizer state, and zeros that stay zero.

A pruning transformation is the last of a chain. It turns the update of every pruned
weight into -w, so that `optax.apply_updates` makes it exactly zero in any dtype. In a
pruning step (`_pruning_step`) it removes more weights.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparse_optax import _arguments, _fit, _floors, _leaves, _pruning_step, _trees
from sparse_optax._arguments import ScalarOrSchedule, Scope
from sparse_optax._floors import Floors
from sparse_optax._leaves import Mask
from sparse_optax._prunable import PrunableLeaves


def prune_by_magnitude(
    fraction: ScalarOrSchedule = 0.1,
    *,
    scope: Scope = "global",
    min_kept: Floors | None = None,
    max_sparsity: Floors | None = None,
    mask: Mask | None = "matrices",
) -> optax.GradientTransformationExtraArgs:
    r"""Removes the smallest weights for good, whenever you ask for it.

    `update(updates, state, params, prune=True)` removes, of the n weights still kept,
    the k of smallest magnitude after this update,

    .. math:: k = \mathrm{round}(\mathrm{fraction} \cdot n)
        \quad\text{(half to even, exactly)}

    and every update leaves pruned weights exactly zero. It must be the last
    transformation of a chain: a later one may move them again (see `check_sparsity`).

    `prune` may be a Python boolean or a traced one. With a traced one, every update
    takes about three times as long on CPU. With False or none, nothing of the selection
    is compiled, and an update reads one byte of mask for each weight.

    Args:
        fraction: of the remaining weights, in [0, 1], or an optax schedule of the
            number of pruning steps so far. Used as a `float32`.
        scope: "global" ranks the weights of all leaves together, "leaf" removes the
            fraction of each leaf.
        min_kept: the least number of weights to keep of each leaf. Smaller leaves are
            left intact. A number for every leaf; a dict from regular expressions to
            numbers, where the first match wins, and a pattern matches the name of a
            leaf (such as `"layer/kernel"`) or of a part of the tree that it is in; or a
            tree of numbers, or a prefix of one. By default a leaf may lose all weights.
        max_sparsity: in [0, 1], the same as a sparsity: round(max_sparsity * N) of the
            N weights of a leaf may be removed. Given like `min_kept`. Where both are
            given, the one that keeps more counts.
        mask: which leaves may be pruned. `"matrices"` (see `matrices_only`) leaves out
            biases and norms, whose zeros are often initial values. None is every
            floating leaf, as in the paper. A dict from regular expressions to booleans
            selects by name: the first match wins, and leaves without a match are left
            out. Or a tree of booleans, a prefix of one, or a function from params to
            one. Only arrays of real floating numbers of 16 bits or more can be pruned:
            other leaves are left out, and naming one raises.

    Returns:
        A transformation with the state `PruneState`. `update` needs params, returns the
        updates of prunable leaves in the dtypes of their weights (all others as they
        are), and takes the extra argument `prune`.

    Where `min_kept` or `max_sparsity` keeps a small weight, a larger one of another
    leaf is removed instead, so that exactly k are removed. Where they allow less, as
    many as they allow are removed, and `shortfall` in the state counts the rest. They
    are part of the state, and hold in `sparse_optax.prune` too.

    Of equal magnitudes the earlier is removed first (by order of leaves, then row-major
    index). Non-finite weights rank largest; one that is removed nevertheless cannot be
    made zero by an update, but by `sparse_optax.prune` and `apply_masks`. The result is
    the same with and without `jit`, and for every sharding.

    A wrapper that discards a step, such as `optax.MultiSteps` between two updates or
    `optax.apply_if_finite` at a NaN, discards its pruning step too. One that takes no
    extra arguments, such as `optax.lookahead`, drops or rejects `prune`. The function
    `sparse_optax.prune` reaches through all wrappers.

    Raises:
        TypeError: if an argument is of the wrong type, or if `mask` names a leaf that
            cannot be pruned.
        ValueError: if one is out of range, if `mask` does not fit or selects nothing,
            if `update` gets no params, or if the state is that of other params, or of
            a transformation with another `mask`, or lacks this one's `min_kept`.

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
        Bonetta et al, `Regularization-based Pruning of Irrelevant Weights
        <https://arxiv.org/abs/2204.04977>`_, 2022.
    """
    _arguments.check_number("fraction", fraction, high=1.0)
    _arguments.check_scope(scope)
    _leaves.check_mask(mask)
    _floors.check_floors(min_kept, max_sparsity)
    leaves = PrunableLeaves(mask, min_kept, max_sparsity)

    def init_fn(params) -> Any:
        return leaves.init(params)

    def update_fn(updates, state, params=None, *, prune=False, **extra_args):
        del extra_args
        flag = _arguments.as_flag(prune)
        state = leaves.check(state, params, counts_updates=False)
        share = _arguments.value_at("fraction", fraction, state.num_prunes)
        return _update(updates, state, params, flag, share, "remaining", scope)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def prune_to_sparsity(
    sparsity: ScalarOrSchedule,
    *,
    every: int = 1,
    scope: Scope = "global",
    min_kept: Floors | None = None,
    max_sparsity: Floors | None = None,
    mask: Mask | None = "matrices",
) -> optax.GradientTransformationExtraArgs:
    r"""Removes the smallest weights to reach a sparsity given by the step count.

    As `prune_by_magnitude`, but driven by the number of updates alone: for gradual
    pruning, and for loops that pass no extra argument, such as linen's `TrainState`. At
    every `every`-th update it prunes until, of the N prunable weights,

    .. math:: \mathrm{round}(\mathrm{sparsity}(t) \cdot N)
        \quad\text{(half to even, exactly)}

    are pruned, with t = 1 at the first update. A schedule that ends after T updates has
    its last value at update T; where `every` does not divide T, at the first pruning
    step after it. Weights are never revived: where the schedule falls or stays, or
    `min_kept` allows no more, nothing is done and no pruning step is counted.

    Updates take as long as those of `prune_by_magnitude` with a traced `prune`.

    Args:
        sparsity: in [0, 1], an optax schedule of the number of updates, including this
            one; or a number, for one pruning step at the `every`-th update.
        every: the number of updates between two pruning steps, at least 1.
        scope: "global" or "leaf", as in `prune_by_magnitude`.
        min_kept: as in `prune_by_magnitude`.
        max_sparsity: as in `prune_by_magnitude`.
        mask: which leaves may be pruned, as in `prune_by_magnitude`.

    Returns:
        A transformation with the state `PruneState`. `update` needs params. It ignores
        the extra argument `prune`: the decay of `add_relevance_decay` restarts only
        where the caller passes `prune=True` as well.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: as for `prune_by_magnitude`, or if `every` is less than 1.

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
        2017, for gradual pruning.
    """
    _arguments.check_number("sparsity", sparsity, high=1.0)
    if not isinstance(every, jax.Array) or every.ndim:  # from inject_hyperparams
        _arguments.check_integer("every", every, low=1)
    _arguments.check_scope(scope)
    _leaves.check_mask(mask)
    _floors.check_floors(min_kept, max_sparsity)
    leaves = PrunableLeaves(mask, min_kept, max_sparsity)

    def init_fn(params) -> Any:
        return leaves.init(params)._replace(num_updates=jnp.zeros([], jnp.int32))

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        state = leaves.check(state, params, counts_updates=True)
        before = cast(jax.Array, state.num_updates)
        num_updates = jnp.asarray(optax.safe_increment(before))
        target = _arguments.value_at("sparsity", sparsity, num_updates)
        due, shortfall = _pruning_step.is_due(
            num_updates % every == 0, state, target, scope
        )
        state = state._replace(num_updates=num_updates, shortfall=shortfall)
        return _update(updates, state, params, due, target, "all", scope)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _update(updates, state, params, prune, share, of, scope):
    """One update that also drops weights if `prune` is true."""
    _fit.check_masks_fit(state.masks, updates, "updates")
    boxed_updates, boxed_masks = updates, state.masks
    updates, params = _trees.unbox(updates), _trees.unbox(params)
    state = state._replace(masks=_trees.unbox(state.masks))
    if prune is False:
        updates = _in_dtypes_of(params, updates, state.masks)
    else:
        updates, state = _drop_after(
            updates, state, params, jnp.asarray(prune), share, of, scope
        )

    # By `where` and not by a product: a NaN or infinite update may not pass.
    updates = _trees.map_masks(
        lambda m, u, p: jnp.where(m, u, -p), state.masks, updates, params
    )
    state = state._replace(masks=_trees.rebox(state.masks, like=boxed_masks))
    return _trees.rebox(updates, like=boxed_updates), state


@functools.partial(jax.jit, static_argnames=("of", "scope"))  # once, also eagerly
def _drop_after(updates, state, params, prune, share, of, scope):
    """The updates, and the state in which they have been made and weights dropped."""
    # XLA may compute a sum of the update twice, rounded differently: once for ranking
    # and once for the weights that the caller stores. The barriers make them the same.
    updates = lax.optimization_barrier(_in_dtypes_of(params, updates, state.masks))

    def drop():
        weights = _trees.map_masks(
            lambda _, p, u: lax.optimization_barrier(p + u),
            state.masks,
            params,
            updates,
        )
        return _pruning_step.drop_weights(state, weights, params, share, of, scope)

    # A branch even where it is always taken: the sum is not made outside of it.
    return updates, lax.cond(lax.optimization_barrier(prune), drop, lambda: state)


def _in_dtypes_of(params, updates, masks):
    """Updates of prunable leaves in the dtypes of their weights."""
    return _trees.map_masks(
        lambda _, u, p: jnp.asarray(u, jnp.result_type(p)), masks, updates, params
    )
