"""A run of a task: dense training, iterative pruning, fine-tuning and testing."""

import functools
import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd
from rich.console import Console

import sparse_optax
from experiments.config import Config, ImageConfig, TextConfig
from experiments.data import corpora, images
from experiments.networks.functional import Variables
from experiments.records import Row, RunFolder, write_whole
from experiments.running import (
    compaction,
    export,
    figures,
    other_networks,
    terminal,
)
from experiments.running.checkpoint import Checkpoints, named_leaves
from experiments.running.environment import environment
from experiments.settings import ExperimentError
from experiments.training import loop
from experiments.training.image_problem import ImageProblem
from experiments.training.phases import Phases
from experiments.training.problem import Problem
from experiments.training.text_problem import TextProblem


def run(config: Config) -> None:
    """Makes or resumes the run that `config` describes."""
    console = Console(highlight=False)
    folder = RunFolder(config.folder)
    folder.check(config)
    summary = folder.summary()
    if summary is not None:
        console.print(f"{folder.path} contains this run, finished:", soft_wrap=True)
        terminal.print_summary(console, summary)
        return
    console.print("Reading data, and compiling ...")
    if isinstance(config, TextConfig):
        problem = TextProblem(config, corpora.load(config))
    else:
        assert isinstance(config, ImageConfig)
        problem = ImageProblem(config, images.load(config))
    if config.data_parallel:
        console.print(f"Devices: {problem.devices.number}.")
    made = Run(config, folder, problem, console)
    try:
        summary = made.finish()
    except KeyboardInterrupt:
        resumes = f"resumes after round {made.saved}" if made.saved else "starts again"
        raise KeyboardInterrupt(f"interrupted; the same command {resumes}") from None
    except OSError as error:  # a full disk, say
        raise ExperimentError(
            f"{error}; the same command resumes from the last checkpoint."
        ) from error
    terminal.print_summary(console, summary)
    console.print(
        f"Metrics, checkpoints, figures, {export.FILE}: {folder.path}", soft_wrap=True
    )


class Run:
    """A run, which resumes from the last checkpoint in its folder.

    Every round of updates, in any phase, is one row of the metrics, and checkpoints are
    numbered by the rows so far. A checkpoint has the state of dense training or, later,
    the dense network and the state of iterative pruning.
    """

    def __init__(
        self, config: Config, folder: RunFolder, problem: Problem, console: Console
    ):
        self.config = config
        self.folder = folder
        self.problem = problem
        self.console = console
        self.print = functools.partial(console.print, soft_wrap=True)
        self.started = time.monotonic()
        self.seconds_before = 0.0
        self.environment = environment()  # now: the code may change while this runs
        self.earlier_commits: list[str | None] = []
        pruned = other_networks.pruned(config, problem)
        self.phases = Phases(config, problem, pruned)
        self.checkpoints = Checkpoints(folder.checkpoints, config.run_id)
        self.saved = self.checkpoints.latest(self.print, folder.digest)
        taken = None
        if config.dense_from is not None and self.saved is None:
            rounds = self.phases.num_rounds.dense
            taken = other_networks.dense(config, problem, rounds)
        # Only now: a run that cannot start must not claim its folder.
        folder.claim(config)
        folder.rewind(self.saved or 0)

        # `dense` is used first, then both `dense_variables` and `pruning`.
        self.dense = self.phases.start_dense()
        self.dense_variables: Any = None
        self.pruning: Any = None
        if self.saved is not None:
            self.resume(self.saved)
        elif taken is not None:
            self.start_from(*taken)

    def finish(self) -> Row:
        """Makes the remaining rounds; writes and returns the summary."""
        for name, content in self.problem.files.items():
            write_whole(self.folder.path / name, content)
        done, total = len(self.folder.rows), sum(self.phases.num_rounds)
        metric = self.config.metric
        with terminal.progress_bar(self.console, metric, done, total) as self.show:
            if self.pruning is None:
                self.train_dense()
            self.train_sparse()
        summary = self.test()
        rounds = pd.DataFrame(self.folder.rows)
        figures.draw_run(rounds, summary, self.folder.path / "run")
        summary["wall_seconds"] = self.seconds()
        self.folder.finish(summary)
        return summary

    def train_dense(self) -> None:
        for index in range(len(self.folder.rows), self.phases.num_rounds.dense):
            self.dense = self.phases.train_dense(self.dense)
            metric = float(self.problem.metric(self.dense.variables))
            outcome = {"metric": metric, "sparsity": 0.0, "pruned": False}
            self.record(self.dense, phase="dense", round=index, **outcome)
        self.save()  # for --dense-from
        self.dense_variables = self.dense.variables
        self.pruning = self.phases.start_pruning(self.dense)

    def train_sparse(self) -> None:
        if self.bound < 0 and self.config.prune == "gated":
            self.print(
                f"warning: --bound {self.config.bound:g} is more than the validation "
                "metric of the dense network, so every pruning step is allowed.",
                style="yellow",
            )
        # Not needed: the summary shows empty leaves.
        warnings.filterwarnings("ignore", "round .* removed all weights of")
        for done in self.sparse_rounds():
            self.pruning = done.state
            outcome = {x: getattr(done, x) for x in ("metric", "sparsity", "pruned")}
            self.record(
                done.state.current, phase=done.phase, round=done.index, **outcome
            )
        self.save()

    def sparse_rounds(self) -> Iterator[sparse_optax.PruningRound]:
        phases, number = self.phases, self.phases.num_rounds.finetuning
        yield from sparse_optax.iterative_pruning(
            self.pruning,
            train=phases.train_sparse,
            evaluate=lambda state: self.problem.metric(state.variables),
            prune=phases.prune,
            bound=self.bound,
            max_rounds=phases.num_rounds.pruning,
            patience=self.config.patience,
            start_finetuning=phases.start_finetuning if number else None,
            finetune=phases.finetune if number else None,
            finetune_rounds=number,
        )

    @functools.cached_property  # it may evaluate the dense network
    def bound(self) -> float:
        """The validation metric that a pruned network must exceed."""
        return float(self.phases.bound(self.dense_variables))

    def test(self) -> Row:
        best = self.pruning.best
        compacted = self.problem.compact(best.variables)
        examples = self.problem.examples(compaction.TIMED_BATCH)
        return {
            **self.config.to_dict(),
            "config_id": self.config.config_id,
            **self.problem.test(self.dense_variables, best.variables),
            "validation_bound": self.bound,
            "start_sparsity": self.phases.start,
            **loop.sizes(best),
            "bytes": export.write(self.folder.path, best.variables),
            "compacted": compaction.sizes(compacted),
            "compacted_time": compaction.time_ratio(
                self.problem.logits, best.variables, compacted, examples
            ),
            "magnitudes": loop.magnitudes(self.dense_variables.params, best.params),
            "devices": self.problem.devices.number,  # of those in `hardware`
            **self.environment,
            "earlier_commits": self.earlier_commits,
        }

    def record(self, state: loop.TrainState, **outcome: Any) -> None:
        """Adds a row to the metrics, and saves a checkpoint if one is due."""
        step, loss = int(state.step), float(state.progress.loss)
        if not math.isfinite(loss):
            raise ExperimentError(
                f"the training diverged: at update {step} the loss is {loss}; a lower "
                "learning rate may help."
            )
        relevant = named_leaves(state.progress.relevant_by_leaf)
        kept = jax.device_get(named_leaves(loop.num_kept(state.params)))
        self.folder.append(
            {
                **outcome,
                "step": step,
                "loss": loss,
                "relevant": number(state.progress.relevant),
                "relevant_by_leaf": {k: number(share) for k, share in relevant.items()},
                "kept_by_leaf": {k: int(count) for k, count in kept.items()},
            }
        )
        self.show(outcome["phase"], outcome["sparsity"], outcome["metric"])
        if len(self.folder.rows) % self.config.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Saves a checkpoint, unless this round has one."""
        count = len(self.folder.rows)
        if count == self.saved:
            return
        tree = {"dense": self.dense}
        if self.pruning is not None:
            tree = {"dense": self.dense_variables, "pruning": self.pruning}
        notes = {
            "phase": "dense" if self.pruning is None else "sparse",
            "seconds": self.seconds(),
            "commits": [*self.earlier_commits, self.environment["commit"]],
            "metrics": self.folder.digest(count),
            "problem": self.problem.digest,
            "start": self.phases.start,
        }
        self.checkpoints.save(count, tree, notes)
        self.saved = count

    def resume(self, count: int) -> None:
        notes, _ = self.checkpoints.read(count)
        if notes["problem"] != self.problem.digest:
            raise ExperimentError(
                f"the texts have changed since the run in {self.folder.path} began; "
                "choose another --out."
            )
        if notes["start"] != self.phases.start:
            raise ExperimentError(
                f"--pruned-from {self.config.pruned_from}: it has changed since the "
                f"run in {self.folder.path} began; choose another --out."
            )
        self.seconds_before = notes["seconds"]
        self.note_commits(notes["commits"])
        if notes["phase"] == "dense":
            target = {"dense": self.dense}
            self.dense = self.checkpoints.restore(count, target)["dense"]
        else:
            pruning = self.phases.start_pruning(self.dense)
            target = {"dense": self.dense.variables, "pruning": pruning}
            restored = self.checkpoints.restore(count, target)
            self.dense_variables, self.pruning = restored["dense"], restored["pruning"]
        self.print(f"Resuming after round {count}.")
        if self.earlier_commits:
            self.print("Earlier rounds were produced by a different commit.")

    def start_from(
        self, network: Variables, rows: list[Row], commits: list[str | None]
    ) -> None:
        for row in rows:
            self.folder.append(row)
        network = self.problem.devices.replicate(network)
        step = jnp.asarray(rows[-1]["step"], jnp.int32)
        self.dense = self.dense._replace(**network._asdict(), step=step)
        self.note_commits(commits)
        self.print(f"Using the dense network of {self.config.dense_from}.")

    def note_commits(self, commits: list[str | None]) -> None:
        now = self.environment["commit"]
        self.earlier_commits = [commit for commit in commits if commit != now]

    def seconds(self) -> float:
        """Returns how long the run has taken, without interruptions."""
        return self.seconds_before + time.monotonic() - self.started


def number(value: jax.Array) -> float | None:
    """Converts a scalar for JSON, which has no NaN."""
    return float(value) if jnp.isfinite(value) else None
