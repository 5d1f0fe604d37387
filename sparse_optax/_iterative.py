"""The iterative algorithm: train, evaluate, prune whenever the metric allows it.

`pruning_loop` is the algorithm as a pair of pure functions; `iterative_pruning` runs it
and reports.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Generic

import jax
import jax.numpy as jnp
import numpy as np

from sparse_optax import _arguments, _fit, _layers, _trees
from sparse_optax._counts import Count
from sparse_optax._find_states import masks_of_networks, num_pruning_steps, prune_states
from sparse_optax._pruning_loop import (
    NO_METRIC,
    IterativePruningState,
    TrainState,
    pruning_loop,
)


@dataclasses.dataclass(frozen=True)
class PruningRound(Generic[TrainState]):
    """What one round of `iterative_pruning` did, as Python numbers.

    Sparsities are over the prunable weights, from exact counts.

    Attributes:
        index: of the round, from 0, including rounds of fine-tuning.
        phase: "prune" or "finetune".
        metric: the metric of this round's network, before it was pruned.
        sparsity: the sparsity of that network.
        pruned: whether weights were removed after the evaluation.
        num_pruning_steps: pruning steps so far, over all pruning transformations.
        shortfall: pruning budget left unused because of `min_kept`, `max_sparsity` or
            the structure.
        revived: pruned weights that were not zero at the last pruning step.
        best_metric: the metric of the best network; minus infinity until one has met
            the bound.
        best_sparsity: the sparsity of the best network.
        state: the state to checkpoint, or to take `best` from.
    """

    index: int
    phase: str
    metric: float
    sparsity: float
    pruned: bool
    num_pruning_steps: int
    shortfall: int
    revived: int
    best_metric: float
    best_sparsity: float
    state: IterativePruningState[TrainState]


def iterative_pruning(
    state: TrainState | IterativePruningState[TrainState],
    train: Callable[[TrainState], TrainState],
    evaluate: Callable[[TrainState], jax.typing.ArrayLike],
    prune: Callable[[TrainState], TrainState],
    *,
    bound: float | jax.Array,
    max_rounds: int,
    patience: int | None = None,
    start_finetuning: Callable[[TrainState], TrainState] | None = None,
    finetune: Callable[[TrainState], TrainState] | None = None,
    finetune_rounds: int = 0,
) -> Iterator[PruningRound[TrainState]]:
    """Trains, and prunes whenever a validation metric is above a bound.

    Every round trains for some steps and evaluates. If the metric is above the bound,
    the network is the best so far and is pruned. Otherwise it trains on, and may
    recover. At the end the best network may be fine-tuned with fixed masks; from then
    on, the network with the highest metric is the best.

    Args:
        state: a training state to start from, ideally of a trained dense network: any
            tree, such as `(params, opt_state)` or a linen `TrainState`, with the state
            of an optimizer that has a pruning transformation. To resume, the `state` of
            an earlier `PruningRound`, for example from a checkpoint.
        train: runs the training steps of one round. It should be jitted, and may donate
            its argument; it need not be pure, and may read from an iterator.
        evaluate: returns the validation metric, a scalar; larger is better. Any changes
            to the state that it is given, as by `model.eval()`, are discarded.
        prune: removes weights for good, as `sparse_optax.prune` does, or runs one
            training step with `prune=True`.
        bound: the minimum acceptable validation metric, exclusive.
        max_rounds: the most rounds to run, at least 1, not counting fine-tuning.
        patience: stop after this many rounds in a row that removed no weight.
        start_finetuning: changes the best network's state before the first round of
            fine-tuning, for example to restart a learning rate schedule.
        finetune: like `train`, but with a decay of strength 0. Optimizers that differ
            only in the strength have the same state.
        finetune_rounds: the number of fine-tuning rounds.

    Yields:
        A `PruningRound` after each round: to log, plot, checkpoint, or `break`. The
        result is the `state.best` of the last round; a state that has used up its
        rounds yields none. `check_sparsity` finds pruned weights that became nonzero
        after the last pruning step.

    Warns:
        UserWarning: once for each layer that has no weight left.

    Raises:
        TypeError: if an argument is of the wrong type, or if `state` is traced.
        ValueError: if a number is out of range, if `state` has no masks, if only one of
            `finetune` and `finetune_rounds` is given, if the best network of the
            `state` to resume from does not meet `bound`, or as in `pruning_loop`; in a
            round, if the last pruning step was given pruned weights that were not zero,
            naming their leaves.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> target = jnp.array([3.0, -2.0, 0.1, 0.0])
        >>> tx = sparse_optax.relevance_pruning(optax.sgd(0.1), 1e-3, mask=None)
        >>> def loss(params):
        ...     return jnp.sum((params - target) ** 2)
        >>> @jax.jit
        ... def train(state):
        ...     def step(state, _):
        ...         params, opt_state = state
        ...         updates, opt_state = tx.update(
        ...             jax.grad(loss)(params), opt_state, params
        ...         )
        ...         return (optax.apply_updates(params, updates), opt_state), None
        ...     return jax.lax.scan(step, state, length=50)[0]
        >>> params = jnp.ones(4)
        >>> for r in sparse_optax.iterative_pruning(
        ...     (params, tx.init(params)),
        ...     train,
        ...     evaluate=lambda state: -loss(state[0]),
        ...     prune=lambda state: sparse_optax.prune(*state, fraction=0.3),
        ...     bound=-0.5,
        ...     max_rounds=10,
        ...     patience=2,
        ... ):
        ...     print(f"{r.index} {r.metric:6.3f} {r.sparsity:.2f} {r.pruned}")
        0 -0.000 0.00 True
        1 -0.000 0.25 True
        2 -0.010 0.50 True
        3 -4.010 0.75 False
        4 -4.010 0.75 False
        >>> params, opt_state = r.state.best
        >>> print(params.round(1))
        [ 3. -2.  0.  0.]

    References:
        Bonetta et al, `Regularization-based Pruning of Irrelevant Weights
        <https://arxiv.org/abs/2204.04977>`_, 2022, for the pruning algorithm. In the
        paper, the number of rounds without a pruning step cannot stop a run.
    """
    _arguments.check_integer("max_rounds", max_rounds, low=1)
    _arguments.check_integer("finetune_rounds", finetune_rounds, low=0)
    if (finetune is None) != (finetune_rounds == 0):
        raise ValueError(
            "give both finetune and finetune_rounds, or neither; got "
            f"finetune={finetune!r} and finetune_rounds={finetune_rounds!r}."
        )
    _arguments.check_callable("prune", prune)
    if start_finetuning is not None:
        _arguments.check_callable("start_finetuning", start_finetuning)
        if finetune is None:
            raise ValueError("start_finetuning needs finetune, which is None.")
    if finetune is not None:
        _arguments.check_callable("finetune", finetune)
    if patience is not None:
        _arguments.check_integer("patience", patience, low=1)
    _fit.check_concrete(
        (state, bound), "iterative_pruning", "Inside, use pruning_loop."
    )
    pruning = pruning_loop(train, evaluate, prune, bound=bound)
    finetuning = pruning_loop(
        train if finetune is None else finetune, evaluate, None, bound=bound
    )
    if isinstance(state, PruningRound):
        raise TypeError("state must be the state of a PruningRound, not the round.")
    if not isinstance(state, IterativePruningState):
        state = IterativePruningState.start(state)
    elif NO_METRIC < state.best_metric <= bound:
        raise ValueError(
            f"bound={bound} is not met by state.best, which has the metric "
            f"{float(state.best_metric)}. Give state.current, or a denser network, to "
            "start again with this bound."
        )

    def run(state: IterativePruningState) -> Iterator[PruningRound]:
        empty = _empty_layers(state)
        limit = jnp.inf if patience is None else patience
        while not state.finetuning and (
            state.num_rounds < max_rounds and state.rounds_since_prune < limit
        ):
            before = num_pruning_steps(
                state.current
            )  # train may donate what it is given
            state = pruning.step(state)
            if num_pruning_steps(state.current) > before:
                _check_zeros(state)
            empty = _warn_of_empty_layers(state, empty)
            yield _report(state)
        if finetune_rounds and not state.finetuning:
            state = state.start_finetuning(start_finetuning)
        while state.finetuning and state.rounds_since_prune < finetune_rounds:
            state = finetuning.step(state)
            yield _report(state)

    return run(state)


def _report(state: IterativePruningState) -> PruningRound:
    states = prune_states(state.current)
    masks = jax.tree.leaves(masks_of_networks(state.current))
    total = sum(mask.size for mask in masks)

    def sparsity(kept: Count) -> float:
        pruned = total - (int(kept.high) << 32) - int(kept.low)
        return pruned / total if total else 0.0

    best_metric = float(state.best_metric)
    return PruningRound(
        index=int(state.num_rounds) - 1,
        phase="finetune" if state.finetuning else "prune",
        metric=float(state.metric),
        sparsity=sparsity(state.kept),
        pruned=bool(state.pruned),
        num_pruning_steps=int(num_pruning_steps(state.current)),
        shortfall=sum(int(np.sum(s.shortfall)) for s in states),
        revived=sum(count for s in states for count in _revived(s).values()),
        best_metric=best_metric if best_metric > NO_METRIC else -math.inf,
        best_sparsity=sparsity(state.best_kept),
        state=state,
    )


def _revived(state) -> dict[str, int]:
    """How many pruned weights of each leaf were not zero."""
    masks = _trees.named_leaves(state.masks)
    names = [name for name, mask in masks if not _trees.is_masked(mask)]
    # The last axis is over leaves; a vmapped state has other axes before it.
    counts = np.asarray(state.revived).reshape(-1, max(len(names), 1)).sum(axis=0)
    return dict(zip(names, counts.tolist(), strict=False))


def _check_zeros(state: IterativePruningState) -> None:
    """Raises if the last pruning step was given pruned weights that were not zero."""
    found = [
        f"{count} at {name}"
        for prune_state in prune_states(state.current)
        for name, count in _revived(prune_state).items()
        if count
    ]
    if found:
        raise ValueError(
            f"round {int(state.num_rounds) - 1}: pruned weights are not zero: "
            f"{'; '.join(found)}. A transformation after the pruning one, a wrapper "
            "around it, or train changes them: put the pruning transformation last, "
            "and use apply_masks after set_masks. The sparsities of earlier rounds "
            "were those of the masks."
        )


def _empty_layers(state: IterativePruningState) -> set[str]:
    """The names of prunable layers that have no weight left."""
    found: dict[str, jax.Array] = {}
    for prune_state in prune_states(state.current):
        masks = _trees.unbox(prune_state.masks)
        stacked = _layers.stacked_axes(prune_state.rules.stacked.value, masks)
        num_vmapped = prune_state.num_pruning_steps.ndim  # vmapped axes come first
        for name, mask in _trees.named_leaves(masks):
            if _trees.is_masked(mask) or not mask.size:
                continue
            others = set(range(mask.ndim))
            if name in stacked:
                axis = stacked[name]
                others -= {(axis + num_vmapped if axis >= 0 else axis) % mask.ndim}
            found[name] = _any_along(mask, tuple(others))
    empty = set()
    for name, kept in jax.device_get(found).items():
        if kept.ndim:
            empty |= {f"{name}[{i}]" for i in np.flatnonzero(~kept)}
        elif not kept:
            empty.add(name)
    return empty


@functools.partial(jax.jit, static_argnames="axes")
def _any_along(mask, axes):
    return jnp.any(mask, axis=axes)


def _warn_of_empty_layers(state: IterativePruningState, known: set[str]) -> set[str]:
    empty = _empty_layers(state)
    if new := sorted(empty - known):
        warnings.warn(
            f"round {int(state.num_rounds) - 1} removed all weights of "
            f"{', '.join(new)}. Use min_kept or max_sparsity of the pruning "
            "transformation to keep some.",
            stacklevel=3,
        )
    return known | empty
