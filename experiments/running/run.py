"""A run of an experiment: dense training, iterative pruning, fine-tuning, the test."""

import functools
import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

import sparse_optax
from experiments import data
from experiments.config import Config, ExperimentError, ImageConfig
from experiments.records import Row, RunFolder
from experiments.reporting import figures, terminal
from experiments.running import dense_network, export
from experiments.running.checkpoint import Checkpoints
from experiments.running.dense_network import DenseNetwork
from experiments.running.environment import environment
from experiments.text import corpora
from experiments.text.settings import TextConfig
from experiments.training import loop
from experiments.training.devices import Devices
from experiments.training.image_problem import ImageProblem
from experiments.training.phases import Phases
from experiments.training.problem import Problem
from experiments.training.text_problem import TextProblem


def run(config: Config, command: str) -> None:
    """Makes the run that `config` describes, or what is left of it.

    Args:
      config: a valid configuration.
      command: what the user typed, for messages to repeat.

    Raises:
      ExperimentError: the output folder or the data set cannot be used, or the
        training diverges.
    """
    console = Console(highlight=False)
    folder = RunFolder(config.folder)
    folder.check(config)
    summary = folder.summary()
    if summary is not None:
        console.print(f"{folder.path} holds this run, finished:", soft_wrap=True)
        terminal.print_summary(console, summary)
        return
    devices = Devices.choose(config)
    if config.data_parallel:
        console.print(f"Devices: {devices.number}.")
    problem = load_problem(config, command)
    try:
        summary = Run(config, folder, problem, console).finish()
    except OSError as error:  # a full disk, say
        raise ExperimentError(
            f"{error}; the same command goes on from the last checkpoint."
        ) from error
    terminal.print_summary(console, summary)
    console.print(
        f"Metrics, checkpoints, figures, {export.FILE}: {folder.path}", soft_wrap=True
    )


def load_problem(config: Config, command: str) -> Problem:
    """Returns what a configuration is about, its data read.

    Raises:
      ExperimentError: they cannot be, or do not fit the settings.
    """
    if isinstance(config, TextConfig):
        return TextProblem(config, corpora.load(config, command))
    assert isinstance(config, ImageConfig)
    return ImageProblem(config, data.load(config, command))


class Run:
    """The course of a run, from the last checkpoint in its folder on.

    Every round of updates, of whatever phase, is one row of the metrics; the number of
    rows so far is the number of a checkpoint. A checkpoint holds the state of dense
    training, or afterwards the dense network and the state of the iterative algorithm.
    """

    def __init__(
        self, config: Config, folder: RunFolder, problem: Problem, console: Console
    ):
        self.config = config
        self.folder = folder
        self.problem = problem
        self.console = console
        self.started = time.monotonic()
        self.environment = environment()  # now: the code may change while this runs
        self.earlier_commits: list[str | None] = []
        self.phases = Phases(config, problem)
        self.taken: DenseNetwork | None = None
        tell = functools.partial(console.print, soft_wrap=True)
        self.checkpoints = Checkpoints(
            folder.checkpoints, f"{config.config_id}-seed{config.seed}"
        )
        self.saved = self.checkpoints.latest(tell, folder.digest)
        if config.dense_from is not None and self.saved is None:
            rounds = self.phases.num_rounds.dense
            self.taken = dense_network.take(config.dense_from, config, problem, rounds)
        # Not before the data and the settings have proved to fit each other: a run
        # that could not start must not keep its folder from the next.
        folder.claim(config)

        # Either `dense` or both `dense_variables` and `pruning` are in use at a time.
        self.dense = self.phases.start_dense()
        self.dense_variables: Any = None
        self.pruning: Any = None
        self.seconds_before = 0.0

    def finish(self) -> Row:
        """Goes through all that is left to do; writes and returns the summary."""
        self.resume()
        self.problem.save(self.folder.path)
        self.take_dense()
        with terminal.progress_bar(
            self.console,
            self.config.metric,
            len(self.folder.rows),
            sum(self.phases.num_rounds),
        ) as show:
            if self.pruning is None:
                self.train_dense(show)
            self.train_sparse(show)
        summary = self.test()
        figures.draw(self.folder.rows, summary, self.folder.path)
        summary["wall_seconds"] = self.seconds()
        self.folder.finish(summary)
        return summary

    def take_dense(self) -> None:
        """Starts with what another run has trained, if that is to be taken."""
        if self.taken is None:
            return
        for row in self.taken.rows:
            self.folder.append(row)
        params, statistics = self.problem.devices.replicate(self.taken.variables)
        step = jnp.asarray(self.taken.rows[-1]["step"], jnp.int32)
        self.dense = self.dense._replace(
            params=params, statistics=statistics, step=step
        )
        now = self.environment["commit"]
        self.earlier_commits = [x for x in self.taken.commits if x != now]
        self.console.print(f"The dense network is that of {self.config.dense_from}.")

    def train_dense(self, show: terminal.Show) -> None:
        """Trains the dense network to the end."""
        for index in range(len(self.folder.rows), self.phases.num_rounds.dense):
            self.dense = self.phases.train_dense(self.dense)
            metric = float(self.problem.metric(self.dense.variables))
            self.record(
                {"phase": "dense", "round": index, "metric": metric},
                {"sparsity": 0.0, "pruned": False},
                self.dense,
            )
            show("dense", 0.0, metric)
            self.save({"dense": self.dense}, "dense", only_if_due=True)
        # Other runs take the network only with a checkpoint that vouches for it.
        self.save({"dense": self.dense}, "dense")
        self.dense_variables = self.dense.variables
        dense_network.write(self.folder.path, self.dense_variables)
        self.pruning = self.phases.start_pruning(self.dense)

    def train_sparse(self, show: terminal.Show) -> None:
        """Prunes and fine-tunes to the end."""
        if self.bound < 0 and self.config.prune == "gated":
            self.console.print(
                f"warning: --bound {self.config.bound:g} is more than the dense "
                "network's validation metric: every prune is allowed.",
                style="yellow",
                soft_wrap=True,
            )
        # What is left of each tensor is a figure of the run, and a note in its table.
        warnings.filterwarnings("ignore", "round .* removed all weights of")
        for done in self.sparse_rounds():
            self.pruning = done.state
            self.record(
                {"phase": done.phase, "round": done.index, "metric": done.metric},
                {"sparsity": done.sparsity, "pruned": done.pruned},
                done.state.current,
            )
            show(done.phase, done.sparsity, done.metric)
            self.save(self.sparse_tree(), "sparse", only_if_due=True)
        self.save(self.sparse_tree(), "sparse")

    def sparse_rounds(self) -> Iterator[sparse_optax.PruningRound]:
        """Makes the rounds of pruning, then those of fine-tuning."""
        phases = self.phases
        settings: dict[str, Any] = dict(
            train=phases.train_sparse,
            evaluate=lambda state: self.problem.metric(state.variables),
            prune=phases.prune,
            bound=self.bound,
            max_rounds=phases.num_rounds.pruning,
            patience=self.config.patience,
        )
        yield from sparse_optax.iterative_pruning(self.pruning, **settings)
        if not phases.num_rounds.finetuning:
            return
        if not self.pruning.finetuning:
            self.pruning = phases.start_finetuning(self.pruning)
        yield from sparse_optax.iterative_pruning(
            self.pruning,
            **settings,
            finetune=phases.finetune,
            finetune_rounds=phases.num_rounds.finetuning,
        )

    @functools.cached_property  # it takes an evaluation of the dense network
    def bound(self) -> float:
        """The validation metric that a pruned network must be above."""
        return float(self.phases.bound(self.dense_variables))

    def test(self) -> Row:
        """Measures both networks on the test set, and sums the run up."""
        best = self.pruning.best
        return {
            **self.config.to_dict(),
            "config_id": self.config.config_id,
            **self.problem.test(self.dense_variables, best.variables),
            "validation_bound": self.bound,
            **loop.sizes(best),
            "bytes": export.write(self.folder.path, best.variables),
            "magnitudes": loop.magnitudes(self.dense_variables.params, best.params),
            "devices": self.problem.devices.number,  # of them that `hardware` lists
            **self.environment,
            "earlier_commits": self.earlier_commits,
        }

    def record(self, what: Row, outcome: Row, state: loop.TrainState) -> None:
        """Adds a row to the metrics."""
        progress = state.progress
        loss = float(progress.loss)
        if not math.isfinite(loss):
            raise ExperimentError(
                f"the training diverged: at update {int(state.step)} the loss is "
                f"{loss}; a lower learning rate may help."
            )
        by_leaf = {
            jax.tree_util.keystr(path, simple=True, separator="/"): number(share)
            for path, share in jax.tree.leaves_with_path(progress.relevant_by_leaf)
        }
        kept = jax.device_get(jax.tree.leaves(loop.num_kept(state.params)))
        self.folder.append(
            {
                **what,
                **outcome,
                "step": int(state.step),
                "loss": loss,
                "relevant": number(progress.relevant),
                "relevant_by_leaf": by_leaf,
                "kept_by_leaf": dict(zip(by_leaf, map(int, kept), strict=True)),
            }
        )

    def resume(self) -> None:
        """Takes the run up where its last sound checkpoint left it."""
        self.folder.rewind(self.saved or 0)
        if self.saved is None:
            return
        notes = self.checkpoints.notes(self.saved)
        if notes.get("problem") != self.problem.digest:
            raise ExperimentError(
                f"{self.folder.path} holds a run on other texts than are there now; "
                "choose another --out."
            )
        self.seconds_before = notes["seconds"]
        now, earlier = self.environment["commit"], notes.get("commits", ["unknown"])
        self.earlier_commits = [commit for commit in earlier if commit != now]
        if notes["phase"] == "dense":
            target = {"dense": self.dense}
            self.dense = self.checkpoints.restore(self.saved, target)["dense"]
        else:
            target = {
                "dense": self.dense.variables,
                "pruning": self.phases.start_pruning(self.dense),
            }
            restored = self.checkpoints.restore(self.saved, target)
            self.dense_variables, self.pruning = restored["dense"], restored["pruning"]
        self.console.print(f"Going on after {self.saved} rounds.")
        if self.earlier_commits:
            self.console.print("They were made by other code, or by code unknown.")

    def sparse_tree(self) -> dict[str, Any]:
        """Returns what there is to save once the dense training is done."""
        return {"dense": self.dense_variables, "pruning": self.pruning}

    def save(
        self, tree: dict[str, Any], phase: str, *, only_if_due: bool = False
    ) -> None:
        """Saves a checkpoint, unless this round has one."""
        count = len(self.folder.rows)
        if only_if_due and count % self.config.checkpoint_every:
            return
        if count != self.saved:
            notes = {
                **{"phase": phase, "seconds": self.seconds()},
                "commits": [*self.earlier_commits, self.environment["commit"]],
                "metrics": self.folder.digest(count),
                "problem": self.problem.digest,
            }
            self.checkpoints.save(count, tree, notes)
            self.saved = count

    def seconds(self) -> float:
        """Returns the time the run has taken, interruptions left out."""
        return self.seconds_before + time.monotonic() - self.started


def number(value: jax.Array) -> float | None:
    """Returns a scalar as JSON knows it, which is without NaN."""
    return float(value) if jnp.isfinite(value) else None
