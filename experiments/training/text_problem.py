"""Texts to be written from others: translations, or answers."""

import functools
import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_optax
from experiments.config import ExperimentError, check
from experiments.networks.encoder_decoder import Shape
from experiments.networks.functional import Variables
from experiments.networks.seq2seq import init_seq2seq
from experiments.records import Row, write_whole
from experiments.text import frequency
from experiments.text.batches import Batches, Sequences, reading_batches
from experiments.text.corpus import Corpus, Pairs
from experiments.text.scores import Score, score
from experiments.text.settings import TextConfig
from experiments.text.tokenizer import FIRST, LAST, Tokenizer, learn
from experiments.training import text_loop
from experiments.training.devices import Devices
from experiments.training.masks_at_init import FOLD, sensitivity
from experiments.training.problem import Train

NUM_TEXTS = 20  # of the test set, to be shown beside each other


class Vocabularies(NamedTuple):
    """The encodings of both sides, which may be one."""

    source: Tokenizer
    target: Tokenizer

    @classmethod
    def learn(cls, config: TextConfig, corpus: Corpus) -> "Vocabularies":
        """Learns them from the training texts."""
        sources, targets = corpus.train
        size, tags = config.vocabulary_size, corpus.tags
        if config.joint_vocabulary:
            return cls(*[learn([*sources, *targets], size, tags)] * 2)
        return cls(learn(sources, size, tags), learn(targets, size, tags))

    @property
    def files(self) -> dict[str, bytes]:
        """The files to keep of them, by name."""
        if self.source is self.target:
            return {"vocabulary.model": self.source.model}
        return {
            "source-vocabulary.model": self.source.model,
            "target-vocabulary.model": self.target.model,
        }


class TextProblem:
    """The network of a configuration, to learn a corpus.

    Args:
      config: says which.
      corpus: what it is to learn.

    Raises:
      ExperimentError: the vocabulary does not suit the corpus, too few pairs are short
        enough for a batch, or that cannot be divided among the devices.
    """

    def __init__(self, config: TextConfig, corpus: Corpus):
        self.config = config
        self.devices = Devices.choose(config)
        self.vocabularies = Vocabularies.learn(config, corpus)
        sources, targets = self.training_pairs(corpus)
        self.num_pairs, self.num_whole = len(sources), corpus.num_whole
        # The rest of it is large, and no longer needed.
        self.corpus = corpus._replace(train=Pairs([], []))
        if not sources:
            raise ExperimentError(
                f"no training pair has --max-source {config.max_source} and "
                f"--max-target {config.max_target} pieces or less."
            )
        for name, batches in (("batch_size", 1), ("accumulation", config.batch_size)):
            most, value = self.num_pairs // batches, getattr(config, name)
            why = f"{most} or less, for {self.num_pairs} training pairs"
            check(name, value, value <= most, why)
        sides = Sequences.of(sources), Sequences.of(targets)
        # What is longer than all that is learnt from is cut: there would be places in
        # the network that nothing has trained.
        self.longest_source, longest_target = (int(x.lengths.max()) for x in sides)
        self.longest_text = longest_target - 1  # with one of the ends
        self.batches = Batches(*sides, config.batch_size, config.seed)
        embedded = sides if config.joint_vocabulary else sides[1:]
        self.counts = frequency.counts(
            [side.tokens[:-1] for side in embedded], self.vocabularies.target.size
        )
        self.digest: str | None = digest(
            self.vocabularies, [*sides[0], *sides[1]], corpus.validation
        )
        self.updates_per_epoch = self.batches.per_epoch // config.accumulation
        self.network, params = init_seq2seq(
            self.shape(),
            config.label_smoothing,
            config.seed,
            jnp.bfloat16 if config.bfloat16 else jnp.float32,
        )
        self.variables = Variables(params, {})
        self._gradients = text_loop.make_gradients(
            self.network, config.seed, self.devices
        )

    def shape(self) -> Shape:
        """Returns the sizes of the network."""
        config = self.config
        return Shape(
            source_vocabulary=self.vocabularies.source.size,
            target_vocabulary=self.vocabularies.target.size,
            shared=config.joint_vocabulary,
            layers=config.num_layers,
            features=config.features,
            hidden=config.hidden,
            heads=config.heads,
            source_positions=self.longest_source,
            target_positions=self.longest_text,
        )

    def training_pairs(
        self, corpus: Corpus
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Returns the tokens of the training pairs, the targets' with both ends."""
        sources = self.vocabularies.source.encode(corpus.train.sources)
        targets = self.vocabularies.target.encode(corpus.train.targets)
        longest = self.config.max_source
        if corpus.keeps_end:
            sources = [source[-longest:] for source in sources]
        pairs = [
            (
                source,
                np.concatenate([[FIRST], target, [LAST]], dtype=np.int32),
            )
            for source, target in zip(sources, targets, strict=True)
            if 0 < len(source) <= longest and len(target) < self.config.max_target
        ]
        return [source for source, _ in pairs], [target for _, target in pairs]

    def adapt(
        self, optimizer: optax.GradientTransformationExtraArgs
    ) -> optax.GradientTransformationExtraArgs:
        """Returns an optimizer that is called for every batch."""
        return text_loop.accumulated(optimizer, self.config.accumulation)

    def make_train(
        self, optimizer: optax.GradientTransformationExtraArgs, *, per_example: bool
    ) -> Train:
        """Returns the function that makes the updates of a round, batch by batch."""
        assert not per_example  # which the settings do not allow
        return text_loop.make_train(
            self._gradients,
            optimizer,
            self.batches,
            num_steps=self.config.interval,
            accumulation=self.config.accumulation,
            scale=self.config.scale,
            dropout=self.dropout,
        )

    def dropout(self, opt_state: optax.OptState) -> jax.Array | None:
        """Returns the rate of dropout that suits the masks, or None for none.

        If it is to be adjusted it is d sqrt(kept / total), where d is that of a dense
        one (Han et al., `Learning both Weights and Connections
        <https://arxiv.org/abs/1506.02626>`_, 2015, who do so layer by layer).
        """
        rate = self.config.dropout
        if not rate:
            return None
        # Not the zeros, of which biases have some from the first; dense training has no
        # masks.
        masks = optax.tree.get(opt_state, "masks")
        if self.config.adjust_dropout and masks is not None:
            rate *= math.sqrt(1 - float(sparse_optax.sparsity(masks)))
        return jnp.float32(rate)

    def saliency(self, variables: Variables) -> Any:
        """Returns |g * w| for the loss of one batch, norms infinite."""
        # Without dropout, whose choice of features would be part of the ranking.
        grads = jax.jit(jax.grad(self.network.loss))(
            variables.params, self.batches.sample(FOLD)
        )
        return sensitivity(grads, variables.params)

    def metric(self, variables: Variables) -> float:
        """Returns the validation metric."""
        beam = self.config.validation_beam
        return self.measure(variables, self.corpus.validation, beam)[0].value

    def measure(
        self, variables: Variables, pairs: Pairs, beam: int
    ) -> tuple[Score, list[str]]:
        """Returns how good what a network writes is, and what that is.

        Args:
          variables: the network.
          pairs: what it reads, and what it should write.
          beam: how many beginnings its search keeps; 1 is greedy.
        """
        written = self.write(variables, pairs.sources, beam)
        return score(self.config.metric, written, pairs.targets), written

    def write(self, variables: Variables, texts: list[str], beam: int) -> list[str]:
        """Returns what a network writes of texts.

        Args:
          variables: the network.
          texts: what it reads. Of those that are too long it is the beginning, or of
            dialogues the end.
          beam: how many beginnings its search keeps; 1 is greedy.
        """
        longest = self.longest_source
        kept = slice(-longest, None) if self.corpus.keeps_end else slice(longest)
        encoded = [row[kept] for row in self.vocabularies.source.encode(texts)]
        sources = Sequences.of(encoded)
        rows = np.zeros((len(texts), self.longest_text), np.int32)
        for index, batch in reading_batches(sources, self.config.batch_size):
            rows[index] = self._written(variables.params, batch, beam)
        return self.vocabularies.target.decode(rows)

    @functools.cached_property
    def _written(self):
        """The compiled function from params, sources and a beam to what is written."""
        network, length = self.network, self.longest_text
        penalty = self.config.length_penalty

        def written(params, source, beam):
            source = self.devices.split(source)
            if beam == 1:
                return network.greedy(params, source, length)
            return network.beam_search(
                params, source, length, beam=beam, length_penalty=penalty
            )

        return jax.jit(written, static_argnames="beam")

    def save(self, folder: Path) -> None:
        """Writes the vocabularies, whole or not at all, into a folder."""
        for name, model in self.vocabularies.files.items():
            write_whole(folder / name, model)

    def test(self, dense: Variables, sparse: Variables) -> Row:
        """Returns both networks' scores, and some of what they write."""
        pairs, beam = self.corpus.read_test(), self.config.beam
        key = self.config.metric.key
        networks = {"dense_": dense, "": sparse}
        measured = {
            prefix: self.measure(network, pairs, beam)
            for prefix, network in networks.items()
        }
        texts = (pairs.sources, pairs.targets, *(text for _, text in measured.values()))
        return {
            "metric": key,
            "signature": measured[""][0].signature,
            **{
                f"{prefix}test_{key}": found.value
                for prefix, (found, _) in measured.items()
            },
            **{
                f"{prefix}validation_{key}": self.metric(network)
                for prefix, network in networks.items()
            },
            "pairs": self.num_pairs,
            "whole": self.num_whole,
            "shapes": [list(shape) for shape in self.batches.shapes],
            "sparsity_by_frequency": frequency.sparsity(
                np.asarray(sparse.params["embedding"]["embedding"]), self.counts
            ),
            "texts": [
                dict(zip(("source", "reference", "dense", "sparse"), row, strict=True))
                for row in list(zip(*texts, strict=True))[:NUM_TEXTS]
            ],
        }


def digest(
    vocabularies: Vocabularies, arrays: list[np.ndarray], validation: Pairs
) -> str:
    """Returns the SHA-256 of what is learnt from, and of what validates."""
    found = hashlib.sha256()
    texts = json.dumps(validation).encode()
    for content in [*vocabularies.files.values(), *arrays, texts]:
        found.update(content)
    return found.hexdigest()
