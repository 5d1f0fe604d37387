"""The iterative algorithm: train, evaluate, prune whenever the metric allows it.

It knows nothing of models, data or frameworks, only of a training state: any tree that
holds an optimizer state with a pruning link. `pruning_rounds` is the algorithm, a pure
pair of functions; `iterative_pruning` runs it and reports.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparse_optax import _arguments, _counts
from sparse_optax._states import prune_states

TrainState = Any  # a tree of arrays


class IterativePruningState(NamedTuple):
    """All that a run of `iterative_pruning` needs to go on: a tree to checkpoint.

    Until a network has met the bound, `best` is the one that was given and
    `best_metric` is minus infinity. Sparsities are those of the prunable weights.
    """

    current: TrainState  # the network in training
    best: TrainState  # the sparsest network that met the bound, as it was evaluated
    metric: jax.Array  # shape=(), dtype=float32; of the last evaluation.
    sparsity: jax.Array  # shape=(), dtype=float32; at the last evaluation.
    best_metric: jax.Array  # shape=(), dtype=float32.
    best_sparsity: jax.Array  # shape=(), dtype=float32.
    pruned: jax.Array  # shape=(), dtype=bool; whether the last round pruned.
    num_rounds: jax.Array  # shape=(), dtype=int32.
    rounds_since_prune: jax.Array  # shape=(), dtype=int32; or since fine-tuning began.
    finetuning: jax.Array  # shape=(), dtype=bool.

    @classmethod
    def start(cls, train_state: TrainState) -> "IterativePruningState":
        """The state before the first round, which is `init` of `pruning_rounds`.

        Raises:
            ValueError: if there are no masks in `train_state`.
        """
        sparsity, minus_infinity = _sparsity(train_state), jnp.float32(-jnp.inf)
        return cls(
            current=train_state,
            best=_copy(train_state),
            metric=minus_infinity,
            sparsity=sparsity,
            best_metric=jnp.copy(minus_infinity),
            best_sparsity=jnp.copy(sparsity),
            pruned=jnp.zeros([], bool),
            num_rounds=jnp.zeros([], jnp.int32),
            rounds_since_prune=jnp.zeros([], jnp.int32),
            finetuning=jnp.zeros([], bool),
        )

    def start_finetuning(self) -> "IterativePruningState":
        """The state from which rounds without `prune` fine-tune the best network."""
        return self._replace(
            current=_copy(self.best),
            rounds_since_prune=jnp.zeros([], jnp.int32),
            finetuning=jnp.ones([], bool),
        )


@dataclasses.dataclass(frozen=True)
class PruningRound:
    """What one round of `iterative_pruning` did, as Python numbers."""

    index: int  # from 0, fine-tuning included
    phase: str  # "prune" or "finetune"
    metric: float  # of this round's network, before it was pruned
    sparsity: float  # of the same
    pruned: bool  # whether weights were removed after the evaluation
    num_prunes: int  # so far, over all pruning links
    shortfall: int  # how many weights more should have gone last time, but for floors
    best_metric: float
    best_sparsity: float
    state: IterativePruningState  # to checkpoint, or to take `best` from


class PruningRounds(NamedTuple):
    """The pair of pure functions returned by `pruning_rounds`."""

    init: Callable[[TrainState], IterativePruningState]
    round: Callable[[IterativePruningState], IterativePruningState]


def pruning_rounds(
    train: Callable[[TrainState], TrainState],
    evaluate: Callable[[TrainState], jax.typing.ArrayLike],
    prune: Callable[[TrainState], TrainState] | None,
    *,
    bound: float | jax.Array,
    patience: int | None = None,
) -> PruningRounds:
    """The iterative algorithm as two pure functions over one state.

    `round` trains, evaluates, and if the metric is above the bound keeps the network as
    the best, where it is sparser than that or better, and prunes it. It is as pure as
    `train` and `evaluate` are: with pure ones it can be scanned, vmapped and jitted.
    What it does itself is compiled in any case.

    Args:
        train: makes some training steps.
        evaluate: measures a validation metric, a scalar, larger is better.
        prune: removes weights for good, traceable; or None, never to prune.
        bound: the metric must be above it. May be traced.
        patience: after so many rounds without a prune, `round` changes nothing any more
            (though it still trains in vain, and may not donate). By default never.

    Returns:
        `PruningRounds(init, round)`, functions from a training state to an
        `IterativePruningState`, and from such a state to the next.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a number is out of range; by `init`, if there are no masks in the
            training state; by `round`, if `evaluate` returns no scalar, or `train` or
            `prune` a state of another tree.

    Examples:
        As `iterative_pruning`; but in place of its loop, all rounds in one program::

            def step(state, _):
                state = rounds.round(state)
                return state, (state.metric, state.sparsity)

            state, history = jax.lax.scan(
                step, rounds.init(train_state), length=max_rounds
            )
    """
    _arguments.check_callable("train", train)
    _arguments.check_callable("evaluate", evaluate)
    if prune is not None:
        _arguments.check_callable("prune", prune)
    _arguments.check_number("bound", bound, low=-jnp.inf, schedule=False)
    if patience is not None:
        _arguments.check_integer("patience", patience, low=1)

    @jax.jit
    def gate(state, metric):
        trained = state.current
        met = metric > bound
        sparser = _counts.less(_kept(trained), _kept(state.best))
        is_best = met & (sparser | (metric > state.best_metric))
        best, best_metric, best_sparsity = _choose(
            is_best,
            (trained, metric, _sparsity(trained)),
            (state.best, state.best_metric, state.best_sparsity),
        )
        current = trained
        if prune is not None:
            current = lax.cond(met, _same_tree("prune", prune), lambda s: s, trained)
        # Read back and not taken for granted: a wrapper may have discarded the prune,
        # or there was too little left to remove a single weight.
        counted = _num_prunes(current) > _num_prunes(trained)
        pruned = counted & _counts.less(_kept(current), _kept(trained))
        since = optax.safe_increment(state.rounds_since_prune)
        return state._replace(
            current=current,
            best=best,
            metric=metric,
            sparsity=_sparsity(trained),
            best_metric=best_metric,
            best_sparsity=best_sparsity,
            pruned=pruned,
            num_rounds=optax.safe_increment(state.num_rounds),
            rounds_since_prune=jnp.where(pruned, 0, since),
        )

    def round_fn(state):
        trained = _same_tree("train", train)(state.current)
        metric = jnp.asarray(evaluate(trained), jnp.float32)
        if metric.shape:
            raise ValueError(
                f"evaluate must return a scalar; got shape {metric.shape}."
            )
        following = gate(state._replace(current=trained), metric)
        if patience is None:
            return following
        return _choose(state.rounds_since_prune < patience, following, state)

    return PruningRounds(IterativePruningState.start, round_fn)


def iterative_pruning(
    state: TrainState | IterativePruningState,
    train: Callable[[TrainState], TrainState],
    evaluate: Callable[[TrainState], jax.typing.ArrayLike],
    prune: Callable[[TrainState], TrainState],
    *,
    bound: float | jax.Array,
    max_rounds: int,
    patience: int | None = None,
    finetune: Callable[[TrainState], TrainState] | None = None,
    finetune_rounds: int = 0,
) -> Iterator[PruningRound]:
    """Trains, and prunes whenever a validation metric is above a bound.

    Every round trains some steps and evaluates. If the metric is above the bound, the
    network is the best so far, and is pruned; if not, it goes on training, and recovers
    or does not. Afterwards the best network may be fine-tuned with its masks as they
    are: then the best is the one of highest metric.

    Args:
        state: where to start: a training state, best that of a trained dense network.
            It may be any tree, such as `(params, opt_state)` or a linen `TrainState`,
            that holds an optimizer state with a pruning link. Or where to go on: the
            `state` of an earlier `PruningRound`, from a checkpoint perhaps.
        train: makes the training steps of one round. It should be jitted, and may
            donate its argument; it need not be pure, and may read from an iterator.
        evaluate: measures the validation metric, a scalar, larger is better.
        prune: removes weights for good, as `sparse_optax.prune` does; or makes one
            training step with `prune=True`. It is traced.
        bound: the metric that the user is ready to accept; it must be above.
        max_rounds: the budget, at least 1, fine-tuning not included.
        patience: stop after so many rounds in which no weight was removed.
        finetune: like `train`, with the strength of the decay 0. The state is the same
            for an optimizer that differs in strength alone.
        finetune_rounds: how many rounds of it.

    Yields:
        A `PruningRound` after each round: to log, plot, checkpoint, or `break`. The
        result is the `state.best` of the last one; a state that has had all its rounds
        yields none.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a number is out of range, if there are no masks in `state`, if
            only one of `finetune` and `finetune_rounds` is given, or as in
            `pruning_rounds`.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import sparse_optax
        >>> target = jnp.array([3.0, -2.0, 0.1, 0.0])
        >>> tx = sparse_optax.relevance_pruning(optax.sgd(0.1), strength=1e-3)
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
        <https://arxiv.org/abs/2204.04977>`_, 2022, the pruning algorithm. There the
        number of rounds without a prune could not stop a run.
    """
    _arguments.check_integer("max_rounds", max_rounds, low=1)
    _arguments.check_integer("finetune_rounds", finetune_rounds, low=0)
    if (finetune is None) != (finetune_rounds == 0):
        raise ValueError(
            "finetune and finetune_rounds go together; got "
            f"finetune={finetune!r} and finetune_rounds={finetune_rounds!r}."
        )
    _arguments.check_callable("prune", prune)
    if finetune is not None:
        _arguments.check_callable("finetune", finetune)
    if patience is not None:
        _arguments.check_integer("patience", patience, low=1)
    pruning = pruning_rounds(train, evaluate, prune, bound=bound)
    finetuning = pruning_rounds(
        train if finetune is None else finetune, evaluate, None, bound=bound
    )
    if isinstance(state, PruningRound):
        raise TypeError("state must be the state of a PruningRound, not the round.")
    if not isinstance(state, IterativePruningState):
        state = IterativePruningState.start(state)

    def run(state: IterativePruningState) -> Iterator[PruningRound]:
        limit = jnp.inf if patience is None else patience
        while not state.finetuning and (
            state.num_rounds < max_rounds and state.rounds_since_prune < limit
        ):
            state = pruning.round(state)
            yield _report(state)
        if finetune_rounds and not state.finetuning:
            state = state.start_finetuning()
        while state.finetuning and state.rounds_since_prune < finetune_rounds:
            state = finetuning.round(state)
            yield _report(state)

    return run(state)


def _same_tree(name, fn):
    """The function, with an error where what it returns is no state like its own."""

    def checked(train_state):
        returned = fn(train_state)
        trees = jax.tree.structure(train_state), jax.tree.structure(returned)
        if trees[0] != trees[1]:
            raise ValueError(
                f"{name} must return a state of the tree {trees[0]}; got {trees[1]}."
            )
        return returned

    return checked


def _report(state: IterativePruningState) -> PruningRound:
    return PruningRound(
        index=int(state.num_rounds) - 1,
        phase="finetune" if state.finetuning else "prune",
        metric=float(state.metric),
        sparsity=float(state.sparsity),
        pruned=bool(state.pruned),
        num_prunes=int(_num_prunes(state.current)),
        shortfall=_shortfall(state.current),
        best_metric=float(state.best_metric),
        best_sparsity=float(state.best_sparsity),
        state=state,
    )


def _copy(train_state):
    """New arrays, so that `train` may donate what it is given."""
    return jax.tree.map(jnp.copy, train_state)


def _choose(condition, a, b):
    return lax.cond(condition, lambda a, b: a, lambda a, b: b, a, b)


def _mask_leaves(train_state):
    return jax.tree.leaves([state.masks for state in prune_states(train_state)])


def _kept(train_state):
    return _counts.count_true_in(_mask_leaves(train_state))


def _sparsity(train_state):
    total = sum(mask.size for mask in _mask_leaves(train_state))
    pruned = _counts.subtract(_counts.constant(total), _kept(train_state))
    return _counts.as_float(pruned) / max(total, 1)


def _num_prunes(train_state):
    return sum(state.num_prunes for state in prune_states(train_state))


def _shortfall(train_state):
    found = [state.shortfall for state in prune_states(train_state)]
    return sum(int(shortfall) for shortfall in found if shortfall is not None)
