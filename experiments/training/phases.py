"""The phases of a run: what is trained, and how, in each of them.

A run is dense training, iterative pruning and fine-tuning. `Phases` has the parts of
all three, for whatever problem, and leaves it to others to drive them: `running.run`
round by round from Python, with checkpoints between; `running.program` as one compiled
program.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import sparse_optax
from experiments import forms
from experiments.config import AT_INIT, Config, check
from experiments.networks.functional import Variables
from experiments.training import loop, optimizers
from experiments.training.masks_at_init import random_scores
from experiments.training.problem import Problem

NO_BOUND = -1.0  # which every metric is above


class NumRounds(NamedTuple):
    """How many rounds of `interval` updates each phase has."""

    dense: int
    pruning: int
    finetuning: int


class Phases:
    """The parts of the run that a configuration describes.

    Its states lie on the devices that the run is to use. The seed and the strength,
    scale, fraction, bound and target sparsity may be traced.
    """

    def __init__(self, config: Config, problem: Problem):
        self.config = config
        self.problem = problem
        updates = problem.updates_per_epoch
        # At least one round of any epochs at all.
        self.num_rounds = NumRounds(
            *(
                max(epochs * updates // config.interval, min(epochs, 1))
                for epochs in (
                    config.dense_epochs,
                    config.epochs,
                    config.finetune_epochs,
                )
            )
        )
        dense, pruning, finetuning = (
            rounds * config.interval for rounds in self.num_rounds
        )
        warmup = config.warmup_steps
        wanted = f"less than {dense}, the updates of dense training"
        check("warmup_steps", warmup, warmup < dense, wanted)
        self.dense_optimizer = problem.adapt(
            optimizers.dense_optimizer(config, num_steps=dense)
        )
        self.pruning_optimizer = problem.adapt(
            optimizers.pruning_optimizer(config, pruning, updates)
        )
        finetuning_optimizer = optimizers.finetuning_optimizer(
            config, num_steps=finetuning, num_pruning_steps=pruning
        )
        per_example = config.form.measure == "per-example"
        make_train = problem.make_train
        self.train_dense = make_train(self.dense_optimizer, per_example=False)
        self.train_sparse = make_train(self.pruning_optimizer, per_example=per_example)
        self.finetune = make_train(
            problem.adapt(finetuning_optimizer), per_example=per_example
        )

    def start_dense(self) -> loop.TrainState:
        """Returns the state before the first update."""
        return self.problem.devices.replicate(
            loop.init_state(
                self.problem.variables, self.dense_optimizer, jnp.zeros([], jnp.int32)
            )
        )

    def start_pruning(
        self, dense: loop.TrainState
    ) -> sparse_optax.IterativePruningState:
        """Returns the state before the first round of the iterative algorithm."""
        config, variables = self.config, dense.variables
        if config.prune in AT_INIT:  # not what dense training has made
            variables = self.problem.variables
        state = loop.init_state(variables, self.pruning_optimizer, dense.step)
        if config.prune == "snip":
            scores = self.problem.saliency(variables)
            state = self.drop(state, scores, config.target_sparsity)
        elif config.prune == "random":
            scores = random_scores(variables.params, config.seed)
            state = self.drop(state, scores, config.target_sparsity)
        return self.problem.devices.replicate(
            sparse_optax.IterativePruningState.start(state)
        )

    def start_finetuning(
        self, state: sparse_optax.IterativePruningState
    ) -> sparse_optax.IterativePruningState:
        """Returns the state before the first round of fine-tuning the best network."""
        state = state.start_finetuning()
        opt_state = optimizers.restart_schedule(state.current.opt_state)
        return state._replace(current=state.current._replace(opt_state=opt_state))

    def bound(self, dense: Variables) -> jax.Array:
        """Returns the validation metric above which a network may be the result.

        And above which it is pruned, if that is what prunes.
        """
        bound = jnp.asarray(self.config.bound, jnp.float32)
        if self.config.prune != "gated":
            return jnp.full_like(bound, NO_BOUND)
        if self.config.relative_bound:
            return self.problem.metric(dense) - bound
        return bound

    def prune(self, state: loop.TrainState) -> loop.TrainState:
        """Drops a share of the remaining weights, between two rounds of training."""
        if self.config.prune != "gated":
            return state
        ranked = state.params
        if self.config.form.acts_on != "decay":
            ranked = forms.ranking_scores(state.params, state.opt_state)
        return self.drop(state, ranked, self.config.fraction)

    def drop(
        self, state: loop.TrainState, ranked: Any, fraction: float | jax.Array
    ) -> loop.TrainState:
        """Drops the share of the remaining weights that is smallest by `ranked`."""
        # A pruning step is given zeros where weights are pruned already.
        ranked = sparse_optax.apply_masks(
            ranked, sparse_optax.get_masks(state.opt_state)
        )
        _, opt_state = sparse_optax.prune(
            ranked, state.opt_state, fraction, scope=self.config.scope
        )
        params = sparse_optax.apply_masks(
            state.params, sparse_optax.get_masks(opt_state)
        )
        return state._replace(params=params, opt_state=opt_state)
