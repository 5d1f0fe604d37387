"""The phases of a run: what is trained, and how, in each of them.

A run is dense training, iterative pruning and fine-tuning. `Phases` has the parts of
all three, and leaves it to others to drive them: `running.run` round by round from
Python, with checkpoints between; `running.program` as one compiled program.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import sparse_optax
from experiments import forms
from experiments.config import AT_INIT, Config, ExperimentError
from experiments.data import Split
from experiments.networks import NETWORKS
from experiments.networks.functional import Variables, init_network
from experiments.training import loop, optimizers
from experiments.training.devices import Devices
from experiments.training.masks_at_init import random_scores, snip_scores


class NumRounds(NamedTuple):
    """How many rounds of `interval` updates each phase has."""

    dense: int
    pruning: int
    finetuning: int


class Phases:
    """The parts of the run that a configuration describes.

    Its states lie on the devices that the run is to use. The data, the seed and the
    strength, scale, fraction, bound and target sparsity may be traced.

    Raises:
      ExperimentError: the batch is larger than the training set, or cannot be divided
        among the devices.
    """

    def __init__(self, config: Config, train: Split, validation: Split, white: int):
        num_train = len(train.labels)
        if config.batch_size > num_train:
            raise ExperimentError(
                f"--batch-size must be {num_train} or less, the size of the training "
                f"set; got {config.batch_size}."
            )
        self.devices = Devices.choose(config)
        self.config = config
        self.train = train
        self.network, self.variables = init_network(
            NETWORKS[config.network],
            train.images.shape[1:],
            white,
            config.seed,
            jnp.bfloat16 if config.bfloat16 else jnp.float32,
        )
        steps_per_epoch = num_train // config.batch_size
        # At least one round of any epochs at all.
        self.num_rounds = NumRounds(
            *(
                max(epochs * steps_per_epoch // config.interval, min(epochs, 1))
                for epochs in (
                    config.dense_epochs,
                    config.epochs,
                    config.finetune_epochs,
                )
            )
        )
        self.dense_optimizer = optimizers.dense_optimizer(
            config, self.num_rounds.dense * config.interval
        )
        self.pruning_optimizer = optimizers.pruning_optimizer(
            config, self.num_rounds.pruning * config.interval, steps_per_epoch
        )

        per_example = config.form.measure == "per-example"

        def make_train(optimizer, per_example):
            return loop.make_train(
                self.network,
                optimizer,
                train,
                batch_size=config.batch_size,
                num_steps=config.interval,
                seed=config.seed,
                scale=config.scale,
                per_example=per_example,
                shift=config.shift,
                mirror=config.mirror,
                devices=self.devices,
            )

        self.train_dense = make_train(self.dense_optimizer, per_example=False)
        self.train_sparse = make_train(self.pruning_optimizer, per_example)
        self.finetune = make_train(
            optimizers.finetuning_optimizer(
                config,
                num_steps=self.num_rounds.finetuning * config.interval,
                num_pruning_steps=self.num_rounds.pruning * config.interval,
            ),
            per_example,
        )
        self.count_correct = self.make_count_correct(validation)
        self.num_validation = len(validation.labels)

    def start_dense(self) -> loop.TrainState:
        """Returns the state before the first update."""
        return self.devices.replicate(
            loop.init_state(
                self.variables, self.dense_optimizer, jnp.zeros([], jnp.int32)
            )
        )

    def start_pruning(
        self, dense: loop.TrainState
    ) -> sparse_optax.IterativePruningState:
        """Returns the state before the first round of the iterative algorithm."""
        config, variables = self.config, dense.variables
        if config.prune in AT_INIT:  # not what dense training has made
            variables = self.variables
        state = loop.init_state(variables, self.pruning_optimizer, dense.step)
        if config.prune == "snip":
            scores = snip_scores(
                self.network, variables, self.train, config.batch_size, config.seed
            )
            state = self.drop(state, scores, config.target_sparsity)
        elif config.prune == "random":
            scores = random_scores(variables.params, config.seed)
            state = self.drop(state, scores, config.target_sparsity)
        return self.devices.replicate(sparse_optax.IterativePruningState.start(state))

    def start_finetuning(
        self, state: sparse_optax.IterativePruningState
    ) -> sparse_optax.IterativePruningState:
        """Returns the state before the first round of fine-tuning the best network."""
        state = state.start_finetuning()
        opt_state = optimizers.restart_schedule(state.current.opt_state)
        return state._replace(current=state.current._replace(opt_state=opt_state))

    def make_count_correct(self, data: Split) -> Callable[[Any], jax.Array]:
        """Returns the function from variables to how many of `data` they get right."""
        return loop.make_count_correct(self.network, data, self.devices)

    def accuracy(self, variables: Variables) -> jax.Array:
        """Returns the validation accuracy, a float32."""
        return self.count_correct(variables) / self.num_validation

    def bound(self, dense: Variables) -> jax.Array:
        """Returns the validation accuracy above which a network may be the result.

        And above which it is pruned, if that is what prunes.
        """
        bound = jnp.asarray(self.config.bound, jnp.float32)
        if self.config.prune != "gated":
            return jnp.zeros_like(bound)
        if self.config.relative_bound:
            return self.accuracy(dense) - bound
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
        _, opt_state = sparse_optax.prune(
            ranked, state.opt_state, fraction, scope=self.config.scope
        )
        params = sparse_optax.apply_masks(
            state.params, sparse_optax.get_masks(opt_state)
        )
        return state._replace(params=params, opt_state=opt_state)
