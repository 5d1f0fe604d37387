"""The phases of a run: dense training, iterative pruning and fine-tuning.

`Phases` has their parts, for any problem. `running.run` calls them round by round, with
checkpoints between; `running.program` compiles a whole run into one program.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import sparse_optax
from experiments.config import AT_INIT, Config
from experiments.networks.functional import Variables
from experiments.settings import check
from experiments.training import forms, loop, optimizers
from experiments.training.masks_at_init import random_scores
from experiments.training.problem import Problem

NO_BOUND = -1.0  # below every metric


class NumRounds(NamedTuple):
    """Number of rounds of `interval` updates in each phase."""

    dense: int
    pruning: int
    finetuning: int


class Phases:
    """The parts of the run that a configuration describes.

    Seed, strength, scale, fraction, bound and target sparsity may be traced.
    """

    def __init__(self, config: Config, problem: Problem):
        self.config = config
        self.problem = problem
        updates = problem.updates_per_epoch
        # At least one round, if there are any epochs.
        epochs = config.dense_epochs, config.epochs, config.finetune_epochs
        self.num_rounds = NumRounds(
            *(max(n * updates // config.interval, min(n, 1)) for n in epochs)
        )
        dense, pruning, finetuning = (n * config.interval for n in self.num_rounds)
        warmup = config.warmup_steps
        wanted = f"less than {dense}, the updates of dense training"
        check("warmup_steps", warmup, warmup < dense, wanted)
        self.dense_optimizer = problem.adapt(optimizers.dense_optimizer(config, dense))
        self.pruning_optimizer = problem.adapt(
            optimizers.pruning_optimizer(config, pruning, updates)
        )
        finetuning_optimizer = problem.adapt(
            optimizers.finetuning_optimizer(config, finetuning, pruning)
        )
        single = config.form.measure == "per-example"
        self.train_dense = problem.make_train(self.dense_optimizer, per_example=False)
        self.train_sparse = problem.make_train(
            self.pruning_optimizer, per_example=single
        )
        self.finetune = problem.make_train(finetuning_optimizer, per_example=single)

    def start_dense(self) -> loop.TrainState:
        state = loop.init_state(self.problem.variables, self.dense_optimizer)
        return self.problem.devices.replicate(state)

    def start_pruning(
        self, dense: loop.TrainState
    ) -> sparse_optax.IterativePruningState:
        config, variables = self.config, dense.variables
        if config.prune in AT_INIT:  # the untrained network
            variables = self.problem.variables
        state = loop.init_state(variables, self.pruning_optimizer, dense.step)
        if config.prune in AT_INIT:
            if config.prune == "snip":
                scores = self.problem.saliency(variables)
            else:
                scores = random_scores(variables.params, config.seed)
            state = self.drop(state, scores, config.target_sparsity)
        return self.problem.devices.replicate(
            sparse_optax.IterativePruningState.start(state)
        )

    def start_finetuning(
        self, state: sparse_optax.IterativePruningState
    ) -> sparse_optax.IterativePruningState:
        state = state.start_finetuning()
        opt_state = optimizers.restart_schedule(state.current.opt_state)
        return state._replace(current=state.current._replace(opt_state=opt_state))

    def bound(self, dense: Variables) -> jax.Array:
        """Returns the validation metric that a network must exceed to be the result."""
        bound = jnp.asarray(self.config.bound, jnp.float32)
        if self.config.prune != "gated":
            return jnp.full_like(bound, NO_BOUND)
        if self.config.relative_bound:
            return self.problem.metric(dense) - bound
        return bound

    def prune(self, state: loop.TrainState) -> loop.TrainState:
        """Makes a pruning step, if pruning is gated."""
        if self.config.prune != "gated":
            return state
        scores = state.params
        if self.config.form.acts_on != "decay":
            scores = forms.ranking_scores(state.params, state.opt_state)
        return self.drop(state, scores, self.config.fraction)

    def drop(
        self, state: loop.TrainState, scores: Any, fraction: float | jax.Array
    ) -> loop.TrainState:
        # `prune` needs zeros where weights are pruned.
        masks = sparse_optax.get_masks(state.opt_state)
        scores = sparse_optax.apply_masks(scores, masks)
        _, opt_state = sparse_optax.prune(
            scores, state.opt_state, fraction, scope=self.config.scope
        )
        masks = sparse_optax.get_masks(opt_state)
        params = sparse_optax.apply_masks(state.params, masks)
        return state._replace(params=params, opt_state=opt_state)
