"""The iterative algorithm as a pure function of a state: train, evaluate, prune.

It depends on no model, data or framework, only on a training state: any tree that
contains the state of an optimizer with a pruning transformation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer

from sparse_optax import _arguments, _counts, _fit, _trees
from sparse_optax._counts import Count
from sparse_optax._find_states import masks_of_networks, num_pruning_steps

TrainState = TypeVar("TrainState")  # a tree of arrays

NO_METRIC = float(jnp.finfo(jnp.float32).min)  # finite, for `jax.debug_infs`


class IterativePruningState(NamedTuple, Generic[TrainState]):
    """All that `iterative_pruning` needs to resume: a tree to checkpoint.

    Until a network meets the bound, `best` is the initial network, and `best_metric` is
    the lowest finite `float32`. Sparsities and counts are over the prunable weights.

    Attributes:
        current: the network in training.
        best: the sparsest network that met the bound, as it was evaluated.
        metric: the metric at the last evaluation.
        sparsity: the sparsity at the last evaluation.
        kept: weights kept at the last evaluation.
        best_metric: the metric of `best`.
        best_sparsity: the sparsity of `best`.
        best_kept: weights kept in `best`.
        pruned: whether the last round pruned.
        num_rounds: the number of rounds so far.
        rounds_since_prune: rounds since the last pruning step, or since fine-tuning
            began.
        finetuning: whether the rounds fine-tune.
    """

    current: TrainState
    best: TrainState
    metric: jax.Array  # shape=(), dtype=float32.
    sparsity: jax.Array  # shape=(), dtype=float32.
    kept: Count  # two words of uint32.
    best_metric: jax.Array  # shape=(), dtype=float32.
    best_sparsity: jax.Array  # shape=(), dtype=float32.
    best_kept: Count  # two words of uint32.
    pruned: jax.Array  # shape=(), dtype=bool.
    num_rounds: jax.Array  # shape=(), dtype=int32.
    rounds_since_prune: jax.Array  # shape=(), dtype=int32.
    finetuning: jax.Array  # shape=(), dtype=bool.

    @classmethod
    def start(cls, train_state: TrainState) -> IterativePruningState[TrainState]:
        """The state before the first round, also the `init` of `pruning_loop`.

        Raises:
            TypeError: if `train_state` has leaves that are not arrays.
            ValueError: if `train_state` has no masks.
        """
        _fit.check_arrays(train_state, "state")
        kept, sparsity = count_kept(train_state)
        return cls(
            current=train_state,
            best=_copy(train_state),
            metric=jnp.full([], NO_METRIC, jnp.float32),
            sparsity=sparsity,
            kept=kept,
            best_metric=jnp.full([], NO_METRIC, jnp.float32),
            best_sparsity=jnp.copy(sparsity),
            best_kept=_copy(kept),
            pruned=jnp.zeros([], bool),
            num_rounds=jnp.zeros([], jnp.int32),
            rounds_since_prune=jnp.zeros([], jnp.int32),
            finetuning=jnp.zeros([], bool),
        )

    def start_finetuning(
        self, change: Callable[[TrainState], TrainState] | None = None
    ) -> IterativePruningState[TrainState]:
        """The state for fine-tuning the best network, in rounds without `prune`.

        Args:
            change: changes it, like `start_finetuning` of `iterative_pruning`.
        """
        current = _copy(self.best)
        if change is not None:
            current = _call("start_finetuning", change, current)
        return self._replace(
            current=current,
            rounds_since_prune=jnp.zeros([], jnp.int32),
            finetuning=jnp.ones([], bool),
        )


class PruningLoop(NamedTuple, Generic[TrainState]):
    """The pair of pure functions returned by `pruning_loop`.

    Attributes:
        init: maps a training state to the state before the first round.
        step: maps one state to the next.
    """

    init: Callable[[TrainState], IterativePruningState[TrainState]]
    step: Callable[
        [IterativePruningState[TrainState]], IterativePruningState[TrainState]
    ]


def pruning_loop(
    train: Callable[[TrainState], TrainState],
    evaluate: Callable[[TrainState], jax.typing.ArrayLike],
    prune: Callable[[TrainState], TrainState] | None,
    *,
    bound: float | jax.Array,
    patience: int | None = None,
) -> PruningLoop[TrainState]:
    """The iterative algorithm as two pure functions over one state.

    `step` runs one round: it trains and evaluates. If the metric is above the bound, it
    stores the network as the best if it is sparser or better, and prunes it. `step` is
    as pure as `train` and `evaluate`: with pure ones it can be scanned, vmapped and
    jitted. Masks of one tree are assumed to belong to one network: where several
    transformations prune a leaf, a weight counts once.

    Args:
        train: runs some training steps.
        evaluate: returns a validation metric, a scalar; larger is better. Any changes
            to the state that it is given are discarded.
        prune: removes weights for good, as `sparse_optax.prune` does; or None, to never
            prune. It is traced if `step` is.
        bound: the metric must be above it. May be traced. A best network from an
            earlier, lower bound that does not meet this one is replaced by the first
            that does.
        patience: after this many rounds without a pruning step, `step` changes nothing:
            training still runs, but its result is discarded, and it must not donate.

    Returns:
        `PruningLoop(init, step)`: `init` maps a training state to an
        `IterativePruningState`, and `step` maps such a state to the next.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a number is out of range; from `init`, if the training state has
            no masks; from `step`, if `evaluate` does not return a scalar, or if `train`
            or `prune` returns another tree, or arrays of other shapes or dtypes.

    Examples:
        As for `iterative_pruning`, but with all rounds in one program, not a loop::

            def step(state, _):
                state = loop.step(state)
                return state, (state.metric, state.sparsity)

            state, history = jax.lax.scan(
                step, loop.init(train_state), length=max_rounds
            )
    """
    _arguments.check_callable("train", train)
    _arguments.check_callable("evaluate", evaluate)
    if prune is not None:
        _arguments.check_callable("prune", prune)
    _arguments.check_number("bound", bound, low=-jnp.inf, schedule=False)
    if patience is not None:
        _arguments.check_integer("patience", patience, low=1)
    bound = jnp.asarray(bound, jnp.float32)

    def step_fn(state):
        if not isinstance(state, IterativePruningState):
            raise TypeError(
                "step takes the IterativePruningState that init and step return; got "
                f"a {type(state).__name__}."
            )
        trained = _call("train", train, state.current)
        metric = _as_metric(evaluate(_rebuild(trained)))
        kept, sparsity = count_kept(trained)
        num_before = num_pruning_steps(trained)
        best = (state.best, state.best_metric, state.best_sparsity, state.best_kept)
        best = _judge((trained, metric, sparsity, kept), best, bound)
        current = trained
        if prune is not None:
            current = _prune_if(metric > bound, prune, trained)  # and may donate it
        # Read back, not assumed: a wrapper may have discarded the pruning step, or too
        # few weights may be left to remove even one.
        counted = num_pruning_steps(current) > num_before
        pruned = counted & _counts.less(count_kept(current)[0], kept)
        since = jnp.asarray(optax.safe_increment(state.rounds_since_prune))
        following = IterativePruningState(
            current,
            best[0],
            metric,
            sparsity,
            kept,
            *best[1:],
            pruned=pruned,
            num_rounds=jnp.asarray(optax.safe_increment(state.num_rounds)),
            rounds_since_prune=jnp.where(pruned, 0, since),
            finetuning=state.finetuning,
        )
        if patience is None:
            return following
        return _choose(state.rounds_since_prune < patience, following, state)

    return PruningLoop(IterativePruningState.start, step_fn)


def _as_metric(returned):
    """What `evaluate` returned, as a `float32` scalar."""
    if not _trees.is_array(returned) or jnp.shape(returned):
        raise ValueError(
            f"evaluate must return a scalar; got {_trees.describe(returned)}."
        )
    if jnp.issubdtype(jnp.result_type(returned), jnp.complexfloating):
        raise ValueError(f"evaluate must return a real number; got {returned}.")
    return jnp.asarray(returned, jnp.float32)


def _judge(candidate, best, bound):
    """The better of two networks, given with metric, sparsity and number of weights."""
    network, best_metric, *size = best
    best_metric = jnp.where(best_metric > bound, best_metric, NO_METRIC)
    sparser = _counts.less(candidate[3], best[3])
    is_best = (candidate[1] > bound) & (sparser | (candidate[1] > best_metric))
    return _choose(is_best, candidate, (network, best_metric, *size))


def _prune_if(met, prune, train_state):
    """The pruned state if the bound is met."""
    if isinstance(met, Tracer):
        call = functools.partial(_call, "prune", prune)
        return lax.cond(met, call, lambda s: s, train_state)
    return _call("prune", prune, train_state) if met else train_state


def _call(name, fn, train_state):
    """The state that a user's function returns; raises if it has another structure.

    The function may change its argument in place, as that is not `train_state` itself.
    """
    returned = fn(_rebuild(train_state))
    _fit.check_arrays(returned, f"what {name} returned")
    if jax.tree.structure(train_state) != jax.tree.structure(returned):
        raise ValueError(
            f"{name} must return a state with the tree of its argument: "
            f"{_fit.difference(train_state, returned)}."
        )

    def check(path, before, after):
        types = [f"{jnp.result_type(x)}{list(jnp.shape(x))}" for x in (before, after)]
        if types[0] != types[1]:
            raise ValueError(
                f"{name} must return arrays of the same shapes and dtypes; at "
                f"{_trees.leaf_name(path)} it turned {types[0]} into {types[1]}."
            )

    jax.tree_util.tree_map_with_path(check, train_state, returned)
    return returned


def _rebuild(train_state):
    """The same arrays in new containers."""
    return jax.tree.map(lambda x: x, train_state)


def _copy(train_state):
    """New arrays, so that `train` may donate what it is given."""
    return jax.tree.map(jnp.copy, train_state)


def _choose(condition, a, b):
    # Compiled for arrays alone: a state may contain functions that are new in each run.
    leaves = _choose_leaves(condition, jax.tree.leaves(a), jax.tree.leaves(b))
    return jax.tree.unflatten(jax.tree.structure(a), leaves)


@jax.jit
def _choose_leaves(condition, a, b):
    return lax.cond(condition, lambda a, b: a, lambda a, b: b, a, b)


def count_kept(train_state: Any) -> tuple[Count, jax.Array]:
    """How many of the prunable weights are kept, and their sparsity."""
    return _count_kept(jax.tree.leaves(masks_of_networks(train_state)))


@jax.jit
def _count_kept(masks):
    total = sum(mask.size for mask in masks)
    with _counts.exact_numbers():
        kept = _counts.count_true_in(masks)
        return _counts.to_words(kept), _counts.ratio(total - kept, total)
