"""The links that prune: masks in the optimizer state, and zeros that stay zero.

A pruning link is the last of a chain. It turns the update of every pruned weight into
-w, so that `optax.apply_updates` makes it exactly zero in any dtype, and now and then
it drops more weights. How many is said here, as an `Amount`; which, in `_selection`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparse_optax import _arguments, _counts, _floors, _selection, _trees
from sparse_optax._arguments import ScalarOrSchedule, Scope
from sparse_optax._counts import Count
from sparse_optax._floors import Floors
from sparse_optax._trees import Mask

# How many weights to drop, from how many are left and how many there are in all.
Amount = Callable[[Count, Count], Count]


class PruneState(NamedTuple):
    """State of `prune_by_magnitude` and of `prune_to_sparsity`.

    Attributes:
        masks: booleans shaped and sharded like the params, True for the weights that
            are kept; `optax.MaskedNode()` for leaves that are never pruned.
        num_prunes: how many times weights were pruned.
        num_updates: how many updates were made. Only `prune_to_sparsity` is driven by
            them, and counts them.
        min_kept: how many weights of each prunable leaf are kept at the least, in the
            order of the leaves of `masks`; None where a link has no floors.
        shortfall: how many weights more should have gone the last time that a prune was
            due, but for floors; 2^32 - 1 for all numbers above.
    """

    masks: optax.Params  # bool
    num_prunes: jax.Array  # shape=(), dtype=int32.
    num_updates: jax.Array | None = None  # shape=(), dtype=int32.
    min_kept: jax.Array | None = None  # shape=(L,), dtype=uint32.
    shortfall: jax.Array | None = None  # shape=(), dtype=uint32.


def prune_by_magnitude(
    fraction: ScalarOrSchedule,
    *,
    scope: Scope = "global",
    min_kept: Floors | None = None,
    max_sparsity: Floors | None = None,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Removes the smallest weights for good, whenever it is told to.

    `update(updates, state, params, prune=True)` drops, of the n weights still kept, the
    k of smallest magnitude after this update,

    .. math:: k = \mathrm{round}(\mathrm{fraction} \cdot n)
        \quad\text{(half to even, exactly)}

    and every update, of whatever size, leaves dropped weights exactly zero. It must be
    the last link of a chain: what comes after it may move them again (see
    `check_sparsity`). Only a weight that is itself NaN or infinite when it is dropped,
    when hardly any are left, cannot be made zero by adding to it; `sparse_optax.prune`
    and `apply_masks` do.

    `prune` may be a Python boolean or a traced one. For a traced one, every update is
    written out for the prune that might follow, which on CPU takes some three times as
    long; in steps with `prune=False` (static, for `jit`), or with none and
    `sparse_optax.prune` between them, the link reads a byte of mask for each weight.

    Args:
        fraction: of the remaining weights, in [0, 1], or an optax schedule of the
            number of prunes so far. Used as a `float32`.
        scope: "global" ranks the weights of all leaves together, "leaf" takes the
            fraction of each leaf.
        min_kept: how many weights of a leaf are kept in any case; of a smaller leaf,
            all. A number for every leaf; a dict of numbers by regular expressions, of
            which the first counts that matches the leaf's name (such as
            `"layer/kernel"`) or the beginning of it, up to a slash; or a tree of
            numbers, or a prefix of one. By default a leaf may lose all its weights.
        max_sparsity: in [0, 1], the same as a sparsity: of N weights of a leaf
            round(max_sparsity * N) may go. Given like `min_kept`, and where both are,
            the one counts that keeps more.
        mask: which leaves may be pruned: a tree of booleans, a prefix of one, or a
            function from params to one, such as `matrices_only`. By default every
            floating leaf.

    Returns:
        A transformation with the state `PruneState`. `update` needs params, returns the
        updates of prunable leaves in the dtypes of those (and all others as they are),
        and takes the extra argument `prune`, a boolean. With a
        Python False, or none, nothing of the selection is compiled; a traced one puts
        it under one `lax.cond`.

    Where floors keep a small weight, a larger one of another leaf goes instead: it is
    exactly k that go, and where floors allow less than that, as many as they allow. The
    state's `shortfall` tells how many are missing. Floors are part of the state, and
    `sparse_optax.prune` keeps to them. They cost an update nothing; a prune of many
    small leaves takes up to some three times as long, of large ones hardly longer, and
    it compiles in twice the time.

    Of equal magnitudes the earlier is dropped first (by order of leaves, then row-major
    index); non-finite weights rank largest. The result is the same with and without
    `jit` and however the weights are sharded.

    A wrapper that discards a step, such as `optax.MultiSteps` between two updates or
    `optax.apply_if_finite` at a NaN, discards the prune signalled in it too; one that
    takes no extra arguments, such as `optax.lookahead`, swallows or refuses `prune`.
    The function `sparse_optax.prune` reaches through all wrappers.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if one is out of range, if `mask` does not fit or selects nothing,
            if `update` gets no params, or if the state is that of other params.

    Examples:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> tx = optax.chain(optax.sgd(0.1), sparse_optax.prune_by_magnitude(0.5))
        >>> params = jnp.array([0.3, -0.1, 2.0, 0.2])
        >>> state = tx.init(params)
        >>> updates, state = tx.update(jnp.zeros(4), state, params, prune=True)
        >>> print(optax.apply_updates(params, updates))
        [0.3 0.  2.  0. ]

    References:
        Bonetta et al, `Regularization-based Pruning of Irrelevant Weights
        <https://arxiv.org/abs/2204.04977>`_, 2022.
    """
    _arguments.check_number("fraction", fraction, high=1.0)
    _arguments.check_scope(scope)
    _floors.check_floors(min_kept, max_sparsity)

    def init_fn(params) -> Any:
        return _init(params, mask, min_kept, max_sparsity)

    def update_fn(updates, state, params=None, *, prune=False, **extra_args):
        del extra_args
        flag = _arguments.as_flag(prune)
        amount = fraction_of_remaining(
            _arguments.value_at("fraction", fraction, state.num_prunes)
        )
        return _update(updates, state, params, flag, amount, scope)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def prune_to_sparsity(
    schedule: ScalarOrSchedule,
    *,
    every: int = 1,
    scope: Scope = "global",
    min_kept: Floors | None = None,
    max_sparsity: Floors | None = None,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Removes the smallest weights to reach a sparsity given by the step count.

    The link of `prune_by_magnitude`, driven by the number of updates alone: for loops
    that can pass no extra argument, such as linen's `TrainState`, and for gradual
    pruning. At every `every`-th update it prunes until, of the N prunable weights,

    .. math:: \mathrm{round}(\mathrm{schedule}(t) \cdot N)
        \quad\text{(half to even, exactly)}

    are gone, with t = 0 at the first update. It never revives weights: where the
    schedule falls, or stays, or floors allow no more, nothing is done and no prune is
    counted.

    Every update is written out for the prune that might follow, as by a traced flag of
    `prune_by_magnitude`.

    Args:
        schedule: the sparsity in [0, 1] as a function of the number of updates before
            this one, or a number: then it prunes once, at the `every`-th update.
        every: how many updates lie between two prunes, at least 1.
        scope: "global" or "leaf", as in `prune_by_magnitude`.
        min_kept: floors, as in `prune_by_magnitude`.
        max_sparsity: floors, as in `prune_by_magnitude`.
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
        >>> params = jnp.array([0.3, -0.1, 2.0, 0.2])
        >>> state = tx.init(params)
        >>> for _ in range(4):
        ...     updates, state = tx.update(jnp.zeros(4), state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     print(params)
        [ 0.3 -0.1  2.   0.2]
        [0.3 0.  2.  0.2]
        [0.3 0.  2.  0. ]
        [0. 0. 2. 0.]

    References:
        Zhu and Gupta, `To prune, or not to prune <https://arxiv.org/abs/1710.01878>`_,
        2017, for gradual pruning.
    """
    _arguments.check_number("schedule", schedule, high=1.0)
    if not isinstance(every, jax.Array) or every.ndim:  # from inject_hyperparams
        _arguments.check_integer("every", every, low=1)
    _arguments.check_scope(scope)
    _floors.check_floors(min_kept, max_sparsity)

    def init_fn(params) -> Any:
        state = _init(params, mask, min_kept, max_sparsity)
        return state._replace(num_updates=jnp.zeros([], jnp.int32))

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        num_updates = jnp.asarray(optax.safe_increment(state.num_updates))
        sparsity = _arguments.value_at("schedule", schedule, state.num_updates)
        due, shortfall = _is_due(num_updates % every == 0, state, sparsity, scope)
        state = state._replace(shortfall=shortfall)
        flag, amount = _arguments.as_flag(due), up_to_sparsity(sparsity)
        updates, state = _update(updates, state, params, flag, amount, scope)
        return updates, state._replace(num_updates=num_updates)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _init(
    params: optax.Params,
    mask: Mask | None,
    min_kept: Floors | None,
    max_sparsity: Floors | None,
) -> PruneState:
    """The state before any prune: all kept where weights may be pruned."""
    masks = params
    if jax.tree.leaves(params):
        masks = jax.tree.map(
            lambda s, p: jnp.ones_like(p, dtype=bool) if s else optax.MaskedNode(),
            _trees.select_leaves(mask, params),
            params,
        )
    floors = _floors.floors_of(min_kept, max_sparsity, params, masks)
    return PruneState(
        masks,
        num_prunes=jnp.zeros([], jnp.int32),
        min_kept=floors,
        shortfall=None if floors is None else jnp.zeros([], jnp.uint32),
    )


@functools.partial(jax.jit, static_argnames="scope")
def _is_due(time_has_come, state, sparsity, scope):
    """Whether to prune to `sparsity` now, and there is something to drop; shortfall."""

    def anything_to_drop():
        k, _, shortfall = _how_many(state, up_to_sparsity(sparsity), scope)
        return ~jnp.all(_counts.is_zero(k)), shortfall

    def not_now():
        return jnp.zeros([], bool), state.shortfall

    return lax.cond(time_has_come, anything_to_drop, not_now)


def _update(updates, state, params, prune, amount, scope):
    """One update of a pruning link that drops `amount` weights if `prune` is true."""
    _arguments.check_params(params)
    _trees.check_masks_fit(state.masks, params, "params")
    _trees.check_masks_fit(state.masks, updates, "updates")

    # XLA may compute a sum of the update twice, rounded differently: once for ranking
    # and once for the weights that the caller stores. The barriers make them the same.
    barrier = lax.optimization_barrier if prune is not False else lambda x: x
    updates = _trees.map_masks(
        lambda _, u, p: barrier(jnp.asarray(u, jnp.result_type(p))),
        *(state.masks, updates, params),
    )

    def drop():
        weights = _trees.map_masks(
            lambda _, p, u: barrier(p + u), state.masks, params, updates
        )
        return drop_weights(state, weights, amount, scope)

    if prune is not False:
        # A branch even where it is always taken: the sum is not made outside of it.
        state = lax.cond(barrier(jnp.asarray(prune)), drop, lambda: state)

    # By `where` and not by a product: a NaN or infinite update may not pass.
    updates = _trees.map_masks(
        lambda m, u, p: jnp.where(m, u, -p), state.masks, updates, params
    )
    return updates, state


def fraction_of_remaining(fraction: jax.typing.ArrayLike) -> Amount:
    """Drops that fraction of what is left."""
    return lambda remaining, _: _counts.fraction_of(fraction, remaining)


def up_to_sparsity(sparsity: jax.typing.ArrayLike) -> Amount:
    """Drops what that sparsity of the whole still lacks, if anything."""

    def amount(remaining, total):
        pruned = _counts.subtract(total, remaining)
        return _counts.subtract(_counts.fraction_of(sparsity, total), pruned)

    return amount


def drop_weights(
    state: PruneState, weights: optax.Params, amount: Amount, scope: Scope
) -> PruneState:
    """The state after a prune: with the smallest of the kept weights dropped."""
    masks = jax.tree.leaves(state.masks)
    prunable = jax.tree.leaves(
        jax.tree.map(
            lambda m, w: m if _trees.is_masked(m) else w,
            *(state.masks, weights),
            is_leaf=_trees.is_masked,
        )
    )
    k, most, shortfall = _how_many(state, amount, scope)
    if scope == "global":
        dropped = _selection.drop_smallest(prunable, masks, k, most)
    else:
        dropped = _selection.drop_smallest_of_each(prunable, masks, k)
    return state._replace(
        masks=jax.tree.unflatten(jax.tree.structure(state.masks), dropped),
        num_prunes=optax.safe_increment(state.num_prunes),
        shortfall=shortfall,
    )


def _how_many(
    state: PruneState, amount: Amount, scope: Scope
) -> tuple[Count, Count | None, jax.Array | None]:
    """What a prune drops: how many, how many of each leaf at most, and its shortfall.

    The first is one number for all leaves, or one for each, as the scope says.
    """
    masks = lax.optimization_barrier(jax.tree.leaves(state.masks))
    if not masks:
        return _counts.constant(0), None, state.shortfall
    if scope == "global":
        total = _counts.constant(sum(mask.size for mask in masks))
        k = amount(_counts.count_true_in(masks), total)
    else:
        sizes = _counts.stack([_counts.constant(mask.size) for mask in masks])
        k = jax.vmap(amount)(_counts.count_true_in_each(masks), sizes)
    if state.min_kept is None:
        return k, None, None
    floors = Count(jnp.zeros_like(state.min_kept), state.min_kept)
    most = _counts.subtract(_counts.count_true_in_each(masks), floors)
    if scope == "global":
        allowed = _counts.minimum(k, _counts.total(most))
        missing = _counts.subtract(k, allowed)
    else:
        allowed = _counts.minimum(k, most)
        missing = _counts.total(_counts.subtract(k, allowed))
    shortfall = jnp.where(missing.high > 0, ~jnp.uint32(0), missing.low)
    return allowed, most, shortfall
