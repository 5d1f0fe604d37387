"""Sequence-to-sequence problems: translations, or answers in dialogues."""

import functools
import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_optax
from experiments.config import TextConfig
from experiments.data.batches import Batches, Sequences, reading_batches
from experiments.data.corpus import Corpus, Pairs
from experiments.data.scores import score
from experiments.data.tokenizer import FIRST, LAST, learn
from experiments.networks.encoder_decoder import Shape
from experiments.networks.functional import Variables
from experiments.networks.seq2seq import init_seq2seq
from experiments.records import Row
from experiments.settings import ExperimentError, check
from experiments.training import Optimizer, text_loop
from experiments.training.devices import Devices
from experiments.training.problem import Problem, Train

NUM_TEXTS = 20  # of the test set, shown in the summary


class TextProblem(Problem):
    def __init__(self, config: TextConfig, corpus: Corpus):
        self.config = config
        self.devices = Devices.choose(config)
        size, tags = config.vocabulary_size, corpus.tags
        if config.joint_vocabulary:
            both = learn([*corpus.train.sources, *corpus.train.targets], size, tags)
            self.source_tokenizer = self.target_tokenizer = both
            self.files = {"vocabulary.model": both.model}
        else:
            self.source_tokenizer = learn(corpus.train.sources, size, tags)
            self.target_tokenizer = learn(corpus.train.targets, size, tags)
            self.files = {
                "source-vocabulary.model": self.source_tokenizer.model,
                "target-vocabulary.model": self.target_tokenizer.model,
            }
        sources, targets = self.training_pairs(corpus)
        self.num_pairs = len(sources)
        self.num_whole = len(corpus.train.sources) + corpus.num_left_out
        self.corpus = corpus._replace(train=Pairs([], []))  # to free memory
        if not sources:
            raise ExperimentError(
                f"no training pair has --max-source {config.max_source} and "
                f"--max-target {config.max_target} pieces or less."
            )
        for name, batches in (("batch_size", 1), ("accumulation", config.batch_size)):
            most, value = self.num_pairs // batches, getattr(config, name)
            wanted = f"{most} or less, for {self.num_pairs} training pairs"
            check(name, value, value <= most, wanted)
        sides = Sequences.of(sources), Sequences.of(targets)
        # Longer texts are cut, because the positions beyond are untrained.
        self.longest_source, longest_target = (int(x.lengths.max()) for x in sides)
        self.longest_text = longest_target - 1  # without FIRST
        self.batches = Batches(*sides, config.batch_size, config.seed)
        embedded = sides if config.joint_vocabulary else sides[1:]
        tokens = np.concatenate([side.tokens[:-1] for side in embedded])
        self.counts = np.bincount(tokens, minlength=self.target_tokenizer.size)
        found = hashlib.sha256()
        texts = json.dumps(corpus.validation).encode()
        arrays = [array.tobytes() for side in sides for array in side]
        for content in (*self.files.values(), *arrays, texts):
            found.update(content)
        self.digest = found.hexdigest()
        self.updates_per_epoch = self.batches.per_epoch // config.accumulation
        shape = Shape(
            source_vocabulary=self.source_tokenizer.size,
            target_vocabulary=self.target_tokenizer.size,
            shared=config.joint_vocabulary,
            layers=config.num_layers,
            features=config.features,
            hidden=config.hidden,
            heads=config.heads,
            source_positions=self.longest_source,
            target_positions=self.longest_text,
        )
        dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32
        smoothing, seed = config.label_smoothing, config.seed
        self.network, params = init_seq2seq(shape, smoothing, seed, dtype)
        self.variables = Variables(params, {})
        self.gradients = text_loop.make_gradients(self.network, seed, self.devices)

    def training_pairs(
        self, corpus: Corpus
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Returns the tokens of the training pairs, targets with `FIRST` and `LAST`."""
        longest = self.config.max_source
        sources = self.source_tokenizer.encode(corpus.train.sources)
        targets = self.target_tokenizer.encode(corpus.train.targets)
        if corpus.keeps_end:
            sources = [source[-longest:] for source in sources]
        kept = [
            index
            for index, (source, target) in enumerate(zip(sources, targets, strict=True))
            if 0 < len(source) <= longest and len(target) < self.config.max_target
        ]
        return [sources[i] for i in kept], [
            np.concatenate([[FIRST], targets[i], [LAST]], dtype=np.int32) for i in kept
        ]

    def adapt(self, optimizer: Optimizer) -> Optimizer:
        return text_loop.accumulated(optimizer, self.config.accumulation)

    def make_train(self, optimizer: Optimizer, *, per_example: bool) -> Train:
        assert not per_example  # the settings do not allow it
        return text_loop.make_train(
            self.config, self.gradients, optimizer, self.batches, self.dropout
        )

    def gradients_at(self, variables: Variables, step: jax.Array) -> Any:
        number = int(step) * self.config.accumulation
        batch = self.batches.at(number)
        return self.gradients(variables.params, batch, jnp.int32(number), None)[1]

    def dropout(self, opt_state: optax.OptState) -> jax.Array | None:
        """Returns the dropout rate, or None for none.

        An adjusted rate is d sqrt(kept / total), with the rate d of the dense network
        (Han et al., `Learning both Weights and Connections
        <https://arxiv.org/abs/1506.02626>`_, 2015, who adjust it layer by layer).
        """
        rate = self.config.dropout
        if not rate:
            return None
        masks = optax.tree.get(opt_state, "masks")  # None in dense training
        if self.config.adjust_dropout and masks is not None:
            rate *= math.sqrt(1 - float(sparse_optax.sparsity(masks)))
        return jnp.float32(rate)

    def metric(self, variables: Variables) -> float:
        beam = self.config.validation_beam
        pairs = self.corpus.validation
        written = self.write(variables, pairs.sources, beam)
        return score(self.config.metric, written, pairs.targets)[0]

    def write(self, variables: Variables, texts: list[str], beam: int) -> list[str]:
        """Returns what a network writes for texts; a `beam` of 1 is greedy."""
        longest = self.longest_source
        kept = slice(-longest, None) if self.corpus.keeps_end else slice(longest)
        encoded = [row[kept] for row in self.source_tokenizer.encode(texts)]
        sources = Sequences.of(encoded)
        rows = np.zeros((len(texts), self.longest_text), np.int32)
        for index, batch in reading_batches(sources, self.config.batch_size):
            rows[index] = self._written(variables.params, batch, beam=beam)
        return self.target_tokenizer.decode(rows)

    @functools.cached_property
    def _written(self):
        """The compiled function from params, sources and a beam to tokens."""
        length, penalty = self.longest_text, self.config.length_penalty

        def written(params, source, beam):
            source = self.devices.split(source)
            return self.network.write(params, source, length, beam, penalty)

        return jax.jit(written, static_argnames="beam")

    def logits(self, variables: Variables, *inputs: jax.Array) -> jax.Array:
        source, target = inputs
        return self.network.logits(variables.params, source, target)

    def examples(self, number: int) -> tuple[jax.Array, ...]:
        source, target = self.batches.at(0)
        return jnp.asarray(source[:number]), jnp.asarray(target[:number, :-1])

    def test(self, dense: Variables, sparse: Variables) -> Row:
        pairs, key = self.corpus.read_test(), self.config.metric.key
        found: Row = {"metric": key}
        texts = {"source": pairs.sources, "reference": pairs.targets}
        for name, network in (("dense", dense), ("sparse", sparse)):
            prefix = "dense_" if name == "dense" else ""
            texts[name] = self.write(network, pairs.sources, self.config.beam)
            value, signature = score(self.config.metric, texts[name], pairs.targets)
            found["signature"] = signature
            found[f"{prefix}test_{key}"] = value
            found[f"{prefix}validation_{key}"] = self.metric(network)
        rows = zip(*(column[:NUM_TEXTS] for column in texts.values()), strict=True)
        embedding = np.asarray(sparse.params["embedding"]["embedding"])
        return found | {
            "pairs": self.num_pairs,
            "whole": self.num_whole,
            "shapes": self.batches.shapes,
            "sparsity_by_frequency": sparsity_by_frequency(embedding, self.counts),
            "texts": [dict(zip(texts, row, strict=True)) for row in rows],
        }


def sparsity_by_frequency(embedding: np.ndarray, counts: np.ndarray) -> list[float]:
    """Returns the sparsity of each quarter of the rows of an embedding, `[V, F]`.

    The first quarter has the most frequent tokens, according to `counts`, `[V]`.
    """
    order = np.argsort(-counts, kind="stable")
    quarters = np.array_split(embedding[order], 4)
    return [float((rows == 0).mean()) for rows in quarters]
