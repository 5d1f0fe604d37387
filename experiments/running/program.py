"""Many runs at once: `vmap` of a whole run, compiled as one program."""

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import sparse_optax
from experiments.config import ImageConfig
from experiments.data.images import Dataset, Split
from experiments.networks.functional import Variables
from experiments.records import Row
from experiments.running.environment import environment
from experiments.training import loop
from experiments.training.image_problem import ImageProblem
from experiments.training.phases import Phases

NO_TEST: Any = None  # no part of a program reads the test set


class Numbers(NamedTuple):
    """Settings that may differ in one program: scalars, or `[R]` for R runs."""

    seed: jax.Array
    strength: jax.Array
    scale: jax.Array
    fraction: jax.Array
    bound: jax.Array
    target_sparsity: jax.Array


class Outcome(NamedTuple):
    finite: jax.Array  # whether all weights were finite after each phase
    dense: Variables
    best: loop.TrainState
    bound: jax.Array
    dense_correct: jax.Array  # number in the validation split
    best_correct: jax.Array


def whole_run(
    config: ImageConfig, numbers: Numbers, train: Split, validation: Split, white: int
) -> Outcome:
    """Makes a whole run, with `numbers` in place of those of `config`; traceable."""
    config = dataclasses.replace(config, **numbers._asdict())
    problem = ImageProblem(config, Dataset(train, validation, NO_TEST, white))
    phases = Phases(config, problem)

    def repeat(step, state, number):
        return jax.lax.scan(lambda x, _: (step(x), None), state, length=number)[0]

    def rounds(train_fn, prune, state, number):
        loop = sparse_optax.pruning_loop(
            train_fn,
            lambda state: problem.metric(state.variables),
            prune,
            bound=bound,
            patience=config.patience if prune else None,
        )
        return repeat(loop.step, state, number)

    num_rounds = phases.num_rounds
    dense = repeat(phases.train_dense, phases.start_dense(), num_rounds.dense)
    bound = phases.bound(dense.variables)
    start = phases.start_pruning(dense)
    pruned = rounds(phases.train_sparse, phases.prune, start, num_rounds.pruning)
    start = pruned.start_finetuning(phases.start_finetuning)
    state = rounds(phases.finetune, None, start, num_rounds.finetuning)
    ends = dense.params, pruned.current.params, state.current.params
    return Outcome(
        finite=jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(ends)]).all(),
        dense=dense.variables,
        best=state.best,
        bound=bound,
        dense_correct=problem.count_correct(dense.variables),
        best_correct=problem.count_correct(state.best.variables),
    )


# Compiled once for all runs that differ only in `Numbers`.
@functools.partial(jax.jit, static_argnames=("config", "white"))
def runs_at_once(
    config: ImageConfig, numbers: Numbers, train: Split, validation: Split, white: int
) -> Outcome:
    """Makes R runs; `numbers` and all results have a leading axis R."""
    return jax.vmap(
        lambda numbers: whole_run(config, numbers, train, validation, white)
    )(numbers)


def without_numbers(config: ImageConfig) -> ImageConfig:
    """Returns the settings that all runs of one program share."""
    return dataclasses.replace(config, **dict.fromkeys(Numbers._fields, 0))


def make(configs: list[ImageConfig], dataset: Dataset, test: bool) -> list[Row]:
    """Makes runs that differ only in `Numbers`; returns their summaries."""
    start, where = time.monotonic(), environment()
    values = ([getattr(config, name) for config in configs] for name in Numbers._fields)
    numbers, common = Numbers(*map(jnp.asarray, values)), without_numbers(configs[0])
    outcomes = runs_at_once(common, numbers, *dataset[:2], dataset.white)
    jax.block_until_ready(outcomes)
    where["at_once"] = len(configs)
    where["wall_seconds"] = (time.monotonic() - start) / len(configs)
    rows = []
    for index, config in enumerate(configs):
        outcome = jax.tree.map(lambda x, index=index: x[index], outcomes)
        row = summarize(config, outcome, len(dataset.validation.labels))
        rows.append(row | where)
    if test:  # read once for all of them
        data = dataset.read_test()
        correct = ImageProblem(configs[0], dataset).make_count_correct(data)
        networks = {"dense_": outcomes.dense, "": outcomes.best.variables}
        for prefix, variables in networks.items():
            counts = jax.vmap(correct)(variables)
            for row, count in zip(rows, counts, strict=True):
                row[f"{prefix}test_accuracy"] = int(count) / len(data.labels)
    return rows


def summarize(config: ImageConfig, outcome: Outcome, num_validation: int) -> Row:
    """Returns the settings and results of a run, as JSON data.

    A run with weights that are not finite has "diverged", and a sparsity of 0.
    """
    total = sum(leaf.size for leaf in jax.tree.leaves(outcome.best.params))
    sizes = {"diverged": True, "sparsity": 0.0, "kept": total, "total": total}
    return {
        **config.to_dict(),
        "config_id": config.config_id,
        "dense_validation_accuracy": int(outcome.dense_correct) / num_validation,
        "validation_accuracy": int(outcome.best_correct) / num_validation,
        "validation_bound": float(outcome.bound),
        **(loop.sizes(outcome.best) if outcome.finite else sizes),
    }
