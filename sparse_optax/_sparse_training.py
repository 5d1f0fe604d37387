"""Training that is sparse from the start: some weights are dropped, others grow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparse_optax import (
    _arguments,
    _counts,
    _criteria,
    _fit,
    _hide_pruned,
    _prunable,
    _pruning_step,
    _scores,
    _selection,
    _trees,
)
from sparse_optax._arguments import ScalarOrSchedule
from sparse_optax._criteria import Scores
from sparse_optax._hide_pruned import HidePrunedState
from sparse_optax._leaves import Mask
from sparse_optax._prunable import Prunable
from sparse_optax._prune_state import Distribution, PruneState
from sparse_optax._restart import restart
from sparse_optax._sharding import let_compiler_shard
from sparse_optax._structures import Unstructured


def sparse_training(
    optimizer: optax.GradientTransformation,
    sparsity: float,
    *,
    key: jax.Array,
    regrow: Literal["gradient", "random"] | None = "gradient",
    drop_fraction: ScalarOrSchedule | None = None,
    every: int | None = None,
    until: int | None = None,
    distribution: Distribution = "erk",
    stacked: Mapping[str, int] | None = None,
    mask: Mask | None = "matrices",
) -> optax.GradientTransformationExtraArgs:
    r"""Trains a network at constant sparsity: RigL, SET, or a static sparse network.

    The first masks are random. At updates t = `every`, 2 `every`, ... up to `until`,
    each leaf with n of its N weights kept drops the k weights of smallest magnitude,

    .. math:: k = \min(\mathrm{round}(\mathrm{drop\_fraction}(t) \cdot n), N - n)

    and grows k of the weights that are then inactive: those with the largest gradients
    (RigL), or random ones (SET). Weights that were just dropped may grow again, as in
    the paper and in jaxpruner, and keep their values and moments. Others start at 0,
    with the state that the optimizer's `init` gives; state that is not shaped like its
    weight is unchanged (`adafactor`, `sm3`, `galore`, `lbfgs`). Mask updates also train
    weights, unlike in the papers. `optax.adam` no longer corrects its bias then, so the
    first step of a grown weight is 0.1 / sqrt(0.001), about 3.2 learning rates.

    Args:
        optimizer: any optax optimizer, including its learning rate. It never sees
            inactive weights, as in `hide_pruned`, and its `StepsSincePruning` counters
            restart at every mask update.
        sparsity: the sparsity of the prunable weights, in [0, 1].
        key: a key of `jax.random`, for the first masks and for random growth.
        regrow: "gradient" as in RigL, "random" as in SET, or None to keep the masks.
        drop_fraction: the fraction of a leaf's kept weights to drop, in [0, 1], or an
            optax schedule of the number of updates, including this one; by default
            `optax.cosine_decay_schedule(0.3, until)`.
        every: the number of updates between two mask updates, at least 1.
        until: the last update that may be a mask update, at least `every`. RigL ends
            after three quarters of the training.
        distribution: how to spread the sparsity over leaves, as in `prune_by`.
        stacked: leaves that hold the weights of several layers, as in `prune_by`.
        mask: which leaves are sparse, as in `prune_by`.

    Returns:
        A transformation with the state `HidePrunedState`, which `get_masks`,
        `set_masks`, `prune` and others accept. Before the first update, make the
        weights sparse: `params = apply_masks(params, get_masks(state))`. `update` needs
        params, and dense gradients, as they are at masked weights. To grow weights it
        ranks the extra argument `grad` if given, and otherwise the updates; NaN ranks
        lowest. It ignores `prune`, and passes other extra arguments to `optimizer`.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a number is out of range, if `every` or `until` is missing, or if
            one of these or `drop_fraction` is given without `regrow`; from `init`, if
            `optimizer` prunes, or as for `prune_by`; from `update`, as for `prune_by`.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> key = jax.random.key(0)
        >>> tx = sparse_optax.sparse_training(
        ...     optax.adam(0.1), 0.5, key=key, every=2, until=75
        ... )
        >>> params = jnp.arange(1.0, 9).reshape(1, 8)
        >>> state = tx.init(params)
        >>> params = sparse_optax.apply_masks(params, sparse_optax.get_masks(state))
        >>> for _ in range(2):
        ...     updates, state = tx.update(jnp.ones((1, 8)), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(sparse_optax.sparsity(params))
        0.5

    References:
        Evci et al, `Rigging the Lottery: Making All Tickets Winners
        <https://arxiv.org/abs/1911.11134>`_, 2020 (RigL). Mocanu et al, `Scalable
        training of artificial neural networks with adaptive sparse connectivity
        <https://arxiv.org/abs/1707.04780>`_, 2018 (SET).
    """
    _hide_pruned.check_optimizer("optimizer", optimizer)
    _arguments.check_number("sparsity", sparsity, high=1.0, schedule=False)
    _arguments.check_key("key", key)
    _check_regrowth(regrow, drop_fraction, every, until)
    prunable = Prunable(
        mask, Unstructured(), distribution, stacked, None, None, by_magnitude=True
    )
    prunable.check_arguments()
    optimizer = optax.with_extra_args_support(optimizer)
    every, until = every or 1, until or 1  # not used without regrowth
    if drop_fraction is None:
        drop_fraction = optax.cosine_decay_schedule(0.3, until)

    def random_scores(masks, params, step):
        criterion = _criteria.random(jax.random.fold_in(key, step))
        return _scores.scores_of(criterion, masks, params, None)

    @jax.jit  # compile it once, outside of jit too
    def update_masks(state, params, grads):
        step = state.num_updates

        def drop_and_grow():
            if regrow == "gradient":
                scores = _scores.scores_of(_largest, state.masks, params, grads)
            else:
                scores = random_scores(state.masks, params, step)
            fraction = _arguments.value_at("drop_fraction", drop_fraction, step)
            step_fn = let_compiler_shard(_drop_and_grow, like=state)
            return step_fn(state, params, scores, fraction)

        is_due = (step % every == 0) & (step <= until)
        return lax.cond(is_due, drop_and_grow, lambda: state)

    def init_fn(params) -> Any:
        state = prunable.init(params)
        scores = random_scores(state.masks, params, 0)
        amount = jnp.asarray(sparsity, jnp.float32)
        state = _pruning_step.remove_units(state, params, scores, "sparsity", amount)
        state = state._replace(num_updates=jnp.zeros([], jnp.int32))
        inner = optimizer.init(_hide_pruned.hide(params, _trees.unbox(state.masks)))
        if optax.tree.get_all_with_path(inner, "num_pruning_steps"):
            raise ValueError("optimizer must not prune: sparse_training does.")
        return HidePrunedState(inner, state)

    def update_fn(
        updates, state, params: Any = None, *, prune=False, **extra_args
    ) -> Any:
        del prune
        _arguments.check_state(state, HidePrunedState)
        old: Any = prunable.check(state.pruning, params, counts_updates=True)
        _fit.check_masks_fit(old.masks, updates, "updates")
        new = old._replace(num_updates=optax.safe_increment(old.num_updates))
        inner = state.optimizer
        if regrow is not None:
            new = update_masks(new, params, extra_args.get("grad", updates))
            inner = restart(inner, new.num_pruning_steps > old.num_pruning_steps)
            inner = _begin_grown(optimizer, inner, params, old.masks, new.masks)
        updates, inner = _hide_pruned.update_hidden(
            optimizer, updates, inner, params, _trees.unbox(new.masks), **extra_args
        )
        return updates, HidePrunedState(inner, new)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _largest(params, grads):
    """Scores that are lowest for the largest gradients; NaN is highest."""
    del params
    return jax.tree.map(lambda g: -jnp.abs(g), grads)


def _drop_and_grow(
    state: PruneState, params: optax.Params, scores: Scores, fraction: jax.Array
) -> PruneState:
    """The state after a mask update, which grows the weights with the lowest scores."""
    masks = _prunable.prunable_leaves(state.masks, state.masks)
    if not masks:
        return state
    params, scores = lax.stop_gradient((params, scores))
    rules = _prunable.resolve(state.rules, state.masks)
    structure, layers = rules.structure, tuple(rules.num_layers.values())
    weights = _prunable.prunable_leaves(state.masks, params)
    kept = structure.to_units(weights, masks)
    to_grow = structure.to_units(_prunable.prunable_leaves(state.masks, scores), masks)

    def remove(units, most, **options):
        k = jnp.sum(most)
        return _selection.remove_lowest(
            units, most, k, layers=layers, by_layer=True, **options
        ).kept

    with _counts.exact_numbers():
        removed = _pruning_step.count_removed(kept, layers)
        num_kept = rules.sizes - removed
        num = jnp.minimum(_counts.fraction_of(fraction, num_kept), removed)
        new = remove(list(kept.values()), removed + num, by_magnitude=True)
        # Grow weights by removing them from the inactive ones, until as many are active
        # as before: exactly as many, and with the same order among ties.
        inactive = [
            unit._replace(kept=~mask)
            for unit, mask in zip(to_grow.values(), new, strict=True)
        ]
        inactive = remove(inactive, num_kept)
        revived = [
            _pruning_step.count_pruned(m, weights[n])[1] for n, m in masks.items()
        ]
        revived = jnp.stack([_counts.to_uint32(n) for n in revived])
    active = {name: ~mask for name, mask in zip(kept, inactive, strict=True)}
    return state._replace(
        masks=_prunable.with_leaves(state.masks, structure.to_masks(active, masks)),
        num_pruning_steps=optax.safe_increment(state.num_pruning_steps),
        shortfall=jnp.zeros_like(state.shortfall),
        revived=revived,
    )


def _begin_grown(optimizer, opt_state, params, before, after):
    """Resets the optimizer state of grown weights to what `init` gives."""
    # Use `where`, in the pass that updates it: a conditional would copy it every time.
    before, after = _trees.unbox(before), _trees.unbox(after)
    grown = _trees.map_masks(lambda new, old: new & ~old, after, before)
    fresh = _trees.unbox(optimizer.init(_hide_pruned.hide(params, after)))
    boxed, opt_state = opt_state, _trees.unbox(opt_state)
    of_memory = _hide_pruned.memory_masks(opt_state, grown)
    opt_state = _trees.map_masks(
        lambda is_grown, x, new: jnp.where(is_grown, new.astype(x.dtype), x),
        *(of_memory, opt_state, fresh),
    )
    return _trees.rebox(opt_state, like=boxed)


def _check_regrowth(regrow: Any, drop_fraction: Any, every: Any, until: Any) -> None:
    given = {"drop_fraction": drop_fraction, "every": every, "until": until}
    given = {name: value for name, value in given.items() if value is not None}
    if regrow not in ("gradient", "random", None):
        raise ValueError(
            f"regrow must be 'gradient', 'random' or None; got {regrow!r}."
        )
    if regrow is None:
        if given:
            raise ValueError(f"regrow=None has no mask updates; got {given}.")
        return
    for name, value in (("every", every), ("until", until)):
        if value is None:
            raise ValueError(f"regrow={regrow!r} needs {name}; got None.")
    _arguments.check_integer("every", every, low=1)
    _arguments.check_integer("until", until, low=every)
    if drop_fraction is not None:
        _arguments.check_number("drop_fraction", drop_fraction, high=1.0)
