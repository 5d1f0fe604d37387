"""The iterative algorithm, followed against scripted metrics and against itself."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparse_optax

SIZE = 16


class Script:
    """A training state whose metrics are written down beforehand.

    The state counts its training steps; the n-th evaluation finds the n-th metric. The
    weights are numbered by size, and `marks` says which training made the network.
    """

    def __init__(self, metrics, fraction=0.25):
        self.metrics = jnp.array(metrics, jnp.float32)
        self.tx = sparse_optax.prune_by_magnitude(fraction, mask=None)
        self.fraction = fraction

    def start(self):
        params = {"w": jnp.arange(1.0, SIZE + 1)}
        counts = {"steps": jnp.int32(0), "finetuned": jnp.int32(0)}
        return {"params": params, "opt_state": self.tx.init(params), **counts}

    def train(self, state):
        return {**state, "steps": state["steps"] + 1}

    def finetune(self, state):
        return {**self.train(state), "finetuned": state["finetuned"] + 1}

    def evaluate(self, state):
        return self.metrics[state["steps"] - 1]

    def prune(self, state):
        params, opt_state = sparse_optax.prune(
            state["params"], state["opt_state"], self.fraction
        )
        return {**state, "params": params, "opt_state": opt_state}

    def run(self, state=None, **options):
        options = {"bound": 0.5, "max_rounds": len(self.metrics), **options}
        return sparse_optax.iterative_pruning(
            self.start() if state is None else state,
            *(self.train, self.evaluate, self.prune),
            **options,
        )


def kept(train_state):
    return int(train_state["opt_state"].masks["w"].sum())


def sparsity_after(num_pruning_steps):
    """16 weights, a quarter of the remaining ones at each pruning step."""
    left = SIZE
    for _ in range(num_pruning_steps):
        left -= round(left * 0.25)
    return 1 - left / SIZE


TABLE = {
    # metrics; decisions to prune; the round that made the best network, or None
    "always above": ([0.9, 0.8, 0.7], [1, 1, 1], 2),
    "never above": ([0.1, 0.2, 0.3], [0, 0, 0], None),
    "strictly above": ([0.5, 0.50001, 0.5], [0, 1, 0], 1),
    "recovers": ([0.9, 0.4, 0.45, 0.6, 0.2], [1, 0, 0, 1, 0], 3),
    "the sparser wins, not the better": ([0.9, 0.6, 0.1, 0.1], [1, 1, 0, 0], 1),
    "a NaN is not above": ([0.9, np.nan, 0.9, np.nan], [1, 0, 1, 0], 2),
    "infinity is": ([np.inf, -np.inf, 0.6], [1, 0, 1], 2),
    "only the first": ([0.9, 0.1, 0.1], [1, 0, 0], 0),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_algorithm_follows_the_metric(case):
    metrics, decisions, best = TABLE[case]
    script = Script(metrics)
    rounds = list(script.run())
    assert [r.index for r in rounds] == list(range(len(metrics)))
    assert {r.phase for r in rounds} == {"prune"}
    np.testing.assert_array_equal([r.metric for r in rounds], np.float32(metrics))
    assert [r.pruned for r in rounds] == [bool(d) for d in decisions]
    assert [r.num_pruning_steps for r in rounds] == list(
        itertools.accumulate(decisions)
    )
    # The sparsity of a round is that of the network that was evaluated.
    before = [0, *itertools.accumulate(decisions)][:-1]
    np.testing.assert_allclose(
        [r.sparsity for r in rounds], [sparsity_after(n) for n in before], rtol=1e-6
    )
    last = rounds[-1].state
    assert int(last.num_rounds) == len(metrics)
    if best is None:
        assert rounds[-1].best_metric == -np.inf
        chex.assert_trees_all_equal(last.best, script.start())
        return
    # The best is the network as it was evaluated, before it was pruned.
    assert rounds[-1].best_metric == np.float32(metrics[best])
    assert int(last.best["steps"]) == best + 1
    assert rounds[-1].best_sparsity == rounds[best].sparsity
    assert kept(last.best) == round(SIZE * (1 - sparsity_after(before[best])))
    assert int((last.best["params"]["w"] != 0).sum()) == kept(last.best)
    assert kept(last.current) == round(SIZE * (1 - sparsity_after(sum(decisions))))


def test_rounds_hold_python_numbers_and_do_not_change_later():
    rounds = list(Script([0.9, 0.9, 0.1]).run())
    kinds = {name: type(value) for name, value in vars(rounds[0]).items()}
    assert kinds.pop("state") == sparse_optax.IterativePruningState
    assert set(kinds.values()) == {int, str, float, bool}
    assert [kept(r.state.current) for r in rounds] == [12, 9, 9]
    assert [kept(r.state.best) for r in rounds] == [16, 12, 12]


@pytest.mark.parametrize(
    ("metrics", "patience", "num_rounds"),
    [
        ([0.9, 0.1, 0.1, 0.1, 0.9], 2, 3),
        ([0.9, 0.1, 0.1, 0.1, 0.9], 4, 5),
        ([0.9, 0.1, 0.9, 0.1, 0.1, 0.9], 2, 5),
        ([0.1, 0.9], 1, 1),
        ([0.9, 0.9, 0.9], 1, 3),
        ([0.1] * 6, None, 6),
    ],
)
def test_patience_counts_rounds_without_a_pruning_step(metrics, patience, num_rounds):
    assert len(list(Script(metrics).run(patience=patience))) == num_rounds


FULL = Script([0.9, 0.6, 0.1, 0.1, 0.55, 0.7, 0.52])
FULL_OPTIONS = {"patience": 2, "finetune": FULL.finetune, "finetune_rounds": 3}


def test_fine_tuning_starts_at_the_best_and_keeps_its_masks():
    # The state counts training steps: fine-tuning goes on from the best, at step 2.
    rounds = list(FULL.run(**FULL_OPTIONS))
    assert [r.phase for r in rounds] == ["prune"] * 4 + ["finetune"] * 3
    assert [r.index for r in rounds] == list(range(7))
    np.testing.assert_allclose(
        [r.metric for r in rounds], [0.9, 0.6, 0.1, 0.1, 0.1, 0.1, 0.55], rtol=1e-6
    )
    assert [r.pruned for r in rounds] == [True, True] + [False] * 5
    for r in rounds[4:]:
        assert kept(r.state.current) == kept(rounds[1].state.best) == 12
        assert r.num_pruning_steps == 1
        assert bool(r.state.finetuning)
    assert int(rounds[-1].state.current["finetuned"]) == 3
    assert int(rounds[-1].state.current["steps"]) == 5
    # 0.55 is above the bound, but below the metric of the network it was made from.
    assert rounds[-1].best_metric == np.float32(0.6)
    assert int(rounds[-1].state.best["finetuned"]) == 0


def test_iterative_pruning_resumes_from_any_round():
    rounds = list(FULL.run(**FULL_OPTIONS))
    assert len(rounds) == 7
    for after in range(7):
        # A state that went through a checkpoint.
        state = jax.tree.map(lambda x: jnp.asarray(np.array(x)), rounds[after].state)
        resumed = list(FULL.run(state, **FULL_OPTIONS))
        assert [r.index for r in resumed] == list(range(after + 1, 7))
        for one, other in zip(resumed, rounds[after + 1 :], strict=True):
            chex.assert_trees_all_equal(one.state, other.state)
            assert (one.phase, one.pruned) == (other.phase, other.pruned)


def test_a_finished_run_yields_nothing():
    script = Script([0.9, 0.1, 0.1, 0.1])
    for options in ({"patience": 2}, {"max_rounds": 2}):
        last = list(script.run(**options))[-1].state
        assert list(script.run(last, **options)) == []
    # A larger budget is more rounds.
    assert [r.index for r in script.run(last, max_rounds=4)] == [2, 3]


def test_a_pruning_step_that_removes_nothing_is_not_counted():
    script = Script([0.9] * 30, fraction=0.5)
    rounds = list(script.run(patience=3))
    # 16, 8, 4, 2, 1 weights, and half of one is none.
    assert [r.pruned for r in rounds] == [True] * 4 + [False] * 3
    assert kept(rounds[-1].state.best) == 1


# One program in which a network is trained, evaluated and pruned.

TARGET = np.linspace(-1.0, 1.0, SIZE, dtype=np.float32)
TX = sparse_optax.relevance_pruning(
    optax.adam(0.05), optax.linear_schedule(0.02, 0.0, 10), 0.1, 0.2, mask=None
)


def loss(params):
    return jnp.mean((params - TARGET) ** 2)


def train(state):
    def step(state, _):
        params, opt_state = state
        updates, opt_state = TX.update(jax.grad(loss)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, state, length=20)[0]


def evaluate(state):
    return -loss(state[0])


def prune(state):
    return sparse_optax.prune(*state, 0.2)


def start(seed=0):
    params = jax.random.normal(jax.random.key(seed), (SIZE,))
    return params, TX.init(params)


NUM_ROUNDS = 10


def scanned(state, bound, **options):
    loop = sparse_optax.pruning_loop(train, evaluate, prune, bound=bound, **options)

    def body(state, _):
        state = loop.step(state)
        return state, (state.metric, state.sparsity, state.pruned)

    return jax.lax.scan(body, loop.init(state), length=NUM_ROUNDS)


in_one_program = jax.jit(scanned)


def test_all_rounds_in_one_program_are_those_of_the_generator():
    state, (metric, sparsity, pruned) = in_one_program(start(), np.float32(-0.05))
    rounds = list(
        sparse_optax.iterative_pruning(
            start(),
            *(jax.jit(train), jax.jit(evaluate), prune),
            bound=-0.05,
            max_rounds=NUM_ROUNDS,
        )
    )
    assert 2 < sum(r.pruned for r in rounds) < NUM_ROUNDS
    np.testing.assert_array_equal(pruned, [r.pruned for r in rounds])
    np.testing.assert_array_equal(sparsity, np.float32([r.sparsity for r in rounds]))
    np.testing.assert_allclose(metric, [r.metric for r in rounds], rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(state, rounds[-1].state, rtol=1e-4, atol=1e-5)


def test_rounds_may_be_vmapped_over_bounds_and_seeds():
    bounds, seeds = np.float32([-0.2, -0.05, -0.01, 10.0]), [0, 1, 2, 3]
    starts = [start(seed) for seed in seeds]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *starts)
    states, (_, sparsity, pruned) = jax.jit(jax.vmap(scanned))(stacked, bounds)
    for i, bound in enumerate(bounds):
        expected, (_, *numbers) = in_one_program(starts[i], bound)
        chex.assert_trees_all_equal([sparsity[i], pruned[i]], numbers)
        state = jax.tree.map(lambda x, i=i: x[i], states)
        chex.assert_trees_all_close(state, expected, rtol=1e-4, atol=1e-5)
    assert not pruned[3].any()
    assert pruned[0].sum() > pruned[2].sum()


def test_patience_stops_the_pure_loop():
    frozen, (metric, _, _) = jax.jit(lambda s: scanned(s, 10.0, patience=2))(start())
    assert int(frozen.num_rounds) == int(frozen.rounds_since_prune) == 2
    assert len(np.unique(metric[1:])) == 1


def test_rounds_that_never_prune():
    loop = sparse_optax.pruning_loop(train, evaluate, None, bound=-1e9)
    state = loop.step(loop.init(start()))
    assert not state.pruned
    assert float(state.sparsity) == 0
    assert int(state.best[1].pruning.num_pruning_steps) == 0
    assert float(state.best_metric) == float(state.metric) > -np.inf


# Errors.


def test_invalid_arguments_raise_at_construction():
    script = Script([0.9, 0.9])
    for changes, error, message in (
        ({"finetune": lambda s: s}, ValueError, "finetune_rounds"),
        ({"finetune_rounds": 3}, ValueError, "finetune_rounds"),
        ({"bound": lambda t: 0.5}, TypeError, "bound must be a number"),
        ({"state": {"params": jnp.ones(3)}}, ValueError, "no masks"),
        ({"state": optax.adam(0.1).init(jnp.ones(3))}, ValueError, "no masks"),
        ({"state": next(script.run())}, TypeError, "of a PruningRound, not the round"),
    ):
        with pytest.raises(error, match=message):
            script.run(**changes)
