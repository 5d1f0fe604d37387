"""The phases of a run: dense training, iterative pruning and fine-tuning.

`Phases` has their parts, for any problem. `running.run` calls them round by round and
saves checkpoints; `running.program` compiles a whole run into one program.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import sparse_optax
from experiments.config import AT_INIT, SPARSE, Config, Form
from experiments.networks.functional import Variables
from experiments.settings import ExperimentError, check
from experiments.training import forms, loop, optimizers
from experiments.training.problem import Problem

NO_BOUND = -1.0  # below every metric


class NumRounds(NamedTuple):
    """Number of rounds of `interval` updates in each phase."""

    dense: int
    pruning: int
    finetuning: int


class Phases:
    """The parts of a run with the given configuration.

    Seed, strength, scale, fraction, bound and target sparsity may be traced.
    """

    def __init__(
        self, config: Config, problem: Problem, pruned: Variables | None = None
    ):
        """Prunes the dense network, or one that is `pruned`; its zeros stay zero."""
        self.config = config
        self.problem = problem
        self.pruned = pruned
        self.start = start = 0.0 if pruned is None else loop.sparsity(pruned.params)
        if start and config.prune == "gradual":
            wanted = f"at least {start:.4g}, the sparsity of --pruned-from"
            reached = config.target_sparsity >= start
            check("target_sparsity", config.target_sparsity, reached, wanted)
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
        units = problem.units() if config.structure == "units" else None
        self.pruning_optimizer = problem.adapt(
            optimizers.pruning_optimizer(config, pruning, updates, units, start)
        )
        try:
            jax.eval_shape(self.pruning_optimizer.init, problem.variables.params)
        except ValueError as error:
            text = f"--structure {config.structure} does not fit the network: {error}"
            raise ExperimentError(text) from error
        finetuning_optimizer = problem.adapt(
            optimizers.finetuning_optimizer(config, finetuning, pruning, units, start)
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
        config, variables = self.config, self.pruned or dense.variables
        if config.prune in AT_INIT:  # the untrained network
            variables = self.problem.variables
        state = loop.init_state(variables, self.pruning_optimizer)
        if self.pruned is not None:
            opt_state = sparse_optax.masks_from_zeros(
                state.params, state.opt_state, mask=None
            )
            state = state._replace(opt_state=opt_state)
        if config.prune == "snip":
            state = self.remove(state, sparsity=config.target_sparsity)
        if config.prune in SPARSE:
            masks = sparse_optax.get_masks(state.opt_state)
            params = sparse_optax.apply_masks(state.params, masks)
            state = state._replace(params=params)
        state = state._replace(step=dense.step)
        return self.problem.devices.replicate(
            sparse_optax.IterativePruningState.start(state)
        )

    def start_finetuning(self, state: loop.TrainState) -> loop.TrainState:
        """Starts the learning rate schedule of fine-tuning."""
        return state._replace(opt_state=optimizers.restart_schedule(state.opt_state))

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
        return self.remove(state, fraction=self.config.fraction)

    def remove(self, state: loop.TrainState, **amount: Any) -> loop.TrainState:
        """Prunes by the criterion of the run."""
        params, opt_state = sparse_optax.prune(
            state.params, state.opt_state, **amount, scores=self.scores(state)
        )
        return state._replace(params=params, opt_state=opt_state)

    def scores(self, state: loop.TrainState) -> Any:
        """Returns the scores that rank the weights, or None for magnitudes."""
        criterion = optimizers.criterion(self.config)
        if criterion is sparse_optax.magnitude:
            return None
        if self.config.criterion == "relevance" and self.config.form != Form():
            return forms.ranking_scores(state.params, state.opt_state)
        grads = self.problem.gradients_at(state.variables, state.step)
        return criterion(state.params, grads)
