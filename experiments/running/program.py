"""Many runs at once: the whole of each is one compiled program, and vmap makes many."""

import dataclasses
import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

import sparse_optax
from experiments import data
from experiments.config import ImageConfig
from experiments.data import Split
from experiments.networks.functional import Variables
from experiments.records import Row
from experiments.running.environment import environment
from experiments.training import loop
from experiments.training.image_problem import ImageProblem
from experiments.training.phases import Phases


def no_test() -> Split:
    """Stands for the test set, which no part of a program reads."""
    raise NotImplementedError


class Numbers(NamedTuple):
    """What may differ between runs of one program: scalars, or `[R]` for R runs."""

    seed: jax.Array
    strength: jax.Array
    scale: jax.Array
    fraction: jax.Array
    bound: jax.Array
    target_sparsity: jax.Array


class History(NamedTuple):
    """What the rounds of a phase came to: each `[N]` for N rounds."""

    metric: jax.Array
    sparsity: jax.Array
    pruned: jax.Array


class Outcome(NamedTuple):
    """What a run leaves."""

    finite: jax.Array  # whether all weights were, wherever a phase ended
    dense: Variables
    best: loop.TrainState
    bound: jax.Array
    dense_correct: jax.Array  # of the validation split
    best_correct: jax.Array
    pruning: History
    finetuning: History


def whole_run(
    config: ImageConfig, numbers: Numbers, train: Split, validation: Split, white: int
) -> Outcome:
    """Makes a whole run, with no return to Python between its rounds: traceable.

    Args:
      config: the run, but for what `numbers` says.
      numbers: scalars.
      train: what is trained on.
      validation: what decides about prunes.
      white: value of a white pixel.
    """
    config = dataclasses.replace(config, **numbers._asdict())
    problem = ImageProblem(config, data.Dataset(train, validation, no_test, white))
    phases = Phases(config, problem)

    def rounds_of(state, train_fn, prune, length):
        _, next_round = sparse_optax.pruning_loop(
            train_fn,
            lambda state: problem.metric(state.variables),
            prune,
            bound=bound,
            patience=config.patience if prune else None,
        )

        def step(state, _):
            state = next_round(state)
            return state, History(state.metric, state.sparsity, state.pruned)

        return jax.lax.scan(step, state, length=length)

    dense, _ = jax.lax.scan(
        lambda state, _: (phases.train_dense(state), None),
        phases.start_dense(),
        length=phases.num_rounds.dense,
    )
    bound = phases.bound(dense.variables)
    pruned, pruning = rounds_of(
        phases.start_pruning(dense),
        phases.train_sparse,
        phases.prune,
        phases.num_rounds.pruning,
    )
    state, finetuning = rounds_of(
        phases.start_finetuning(pruned),
        phases.finetune,
        None,
        phases.num_rounds.finetuning,
    )
    ends = dense.params, pruned.current.params, state.current.params
    return Outcome(
        finite=jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(ends)]).all(),
        dense=dense.variables,
        best=state.best,
        bound=bound,
        dense_correct=problem.count_correct(dense.variables),
        best_correct=problem.count_correct(state.best.variables),
        pruning=pruning,
        finetuning=finetuning,
    )


# Compiled once for all runs that differ in `Numbers` alone.
@functools.partial(jax.jit, static_argnames=("config", "white"))
def runs_at_once(
    config: ImageConfig, numbers: Numbers, train: Split, validation: Split, white: int
) -> Outcome:
    """Makes R runs, whose `numbers` are `[R]`; so is all that it returns."""
    return jax.vmap(
        lambda numbers: whole_run(config, numbers, train, validation, white)
    )(numbers)


def without_numbers(config: ImageConfig) -> ImageConfig:
    """Returns what runs that can be made at once have in common."""
    return dataclasses.replace(config, **dict.fromkeys(Numbers._fields, 0))


def make(configs: list[ImageConfig], dataset: data.Dataset, test: bool) -> list[Row]:
    """Makes runs that differ in `Numbers` alone; returns a summary of each."""
    start, where = time.monotonic(), environment()
    numbers = Numbers(
        *(
            jnp.asarray([getattr(config, name) for config in configs])
            for name in Numbers._fields
        )
    )
    outcomes = runs_at_once(
        without_numbers(configs[0]),
        numbers,
        dataset.train,
        dataset.validation,
        dataset.white,
    )
    jax.block_until_ready(outcomes)
    seconds = (time.monotonic() - start) / len(configs)
    tested = test_accuracies(configs[0], outcomes, dataset) if test else {}
    summaries = []
    for index, config in enumerate(configs):
        outcome = jax.tree.map(lambda x, index=index: x[index], outcomes)
        summaries.append(
            {
                **summarize(config, outcome, len(dataset.validation.labels)),
                **{name: values[index] for name, values in tested.items()},
                **where,
                "at_once": len(configs),
                "wall_seconds": seconds,
            }
        )
    return summaries


def summarize(config: ImageConfig, outcome: Outcome, num_validation: int) -> Row:
    """Returns a run as JSON data: settings, outcome and what all rounds came to.

    Of a run whose weights are no longer finite, it says that it diverged, and that none
    of them is gone: they need not be zero.
    """
    if outcome.finite:
        sizes = loop.sizes(outcome.best)
    else:
        total = sum(leaf.size for leaf in jax.tree.leaves(outcome.best.params))
        sizes = {"diverged": True, "sparsity": 0.0, "kept": total, "total": total}
    return {
        **config.to_dict(),
        "config_id": config.config_id,
        "dense_validation_accuracy": int(outcome.dense_correct) / num_validation,
        "validation_accuracy": int(outcome.best_correct) / num_validation,
        "validation_bound": float(outcome.bound),
        **sizes,
        **{
            phase: {name: row.tolist() for name, row in history._asdict().items()}
            for phase, history in (
                ("pruning", outcome.pruning),
                ("finetuning", outcome.finetuning),
            )
        },
    }


def test_accuracies(
    config: ImageConfig, outcomes: Outcome, dataset: data.Dataset
) -> dict[str, list[float]]:
    """Measures both networks of R runs on the test set, read once for all of them."""
    test = dataset.read_test()
    problem = ImageProblem(config, dataset)
    correct = jax.vmap(problem.make_count_correct(test))
    return {
        name: [int(count) / len(test.labels) for count in correct(variables)]
        for name, variables in (
            ("dense_test_accuracy", outcomes.dense),
            ("test_accuracy", outcomes.best.variables),
        )
    }
