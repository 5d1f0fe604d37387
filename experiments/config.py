"""The settings of a run of each kind, and its identity."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments.metrics import ACCURACY, BLEU, EXACT_MATCH, Metric
from experiments.settings import (
    ExperimentError,
    after_dense,
    check,
    check_intervals,
    flag,
    has_effect,
    names,
    place,
    setting,
)

Regularizer = Literal["relevance", "l2", "l1", "lobster", "none"]
Prune = Literal["gated", "gradual", "snip", "rigl", "set", "static"]
Criterion = Literal["magnitude", "saliency", "random", "relevance"]
Distribution = Literal["global", "uniform", "erk"]
Control = Literal["none", "permuted", "mean"]

DECAYS = "relevance", "l2", "l1", "lobster"
SPARSE = "rigl", "set", "static"  # trained from random masks on
AT_INIT = "snip", *SPARSE  # before any training
STRUCTURE = (
    r"unstructured|units|channel|block[1-9]\d*x[1-9]\d*|(?P<n>[1-9]\d*):(?P<m>[1-9]\d*)"
)
# What has an effect where relevance decays weights, or ranks them.
OF_RELEVANCE = {"regularizer": ("relevance",)}, {"criterion": ("relevance",)}


@dataclasses.dataclass(frozen=True)
class Form:
    """How the irrelevance I of a weight is computed."""

    measure: Literal["gradient", "saliency", "per-example"] = "gradient"
    """The size of the gradient, |g|; |g * w|; or the mean of |g| over the examples of a
    batch."""
    memory: float = setting(0.0, "[0, 1)")
    """Decay of the running mean of the measure; 0 uses the latest value."""
    unit: Literal["absolute", "leaf", "network", "quantile"] = "absolute"
    """What --scale is relative to: nothing, or the running root mean square of the
    measure over the leaf or the network. With quantile, --scale is the share of each
    leaf that is spared, and all other weights decay in full."""
    control: Control = "none"
    """What replaces I: I permuted at random within each leaf at every update, or the
    mean of I over the leaf."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of one run. The task fixes the first three.

    The docstring of each field is its help on the command line.
    """

    experiment: tyro.conf.Fixed[str]
    """Name of the task."""
    dataset: tyro.conf.Fixed[str]
    """Name of the data set."""
    network: tyro.conf.Fixed[str]
    """Name of the network."""

    seed: int = setting(0, f"[0, {2**31})")
    """Determines the initial weights and the order of the batches."""
    out: Path | None = place(None)
    """Folder of the run; by default runs/TASK-REGULARIZER[-PRUNE]-seedSEED, with PRUNE
    if it is not gated. An interrupted run resumes from its last checkpoint there."""
    data_dir: Path | None = place(None)
    """Folder of the data sets; by default ~/tensorflow_datasets. Bundled data sets,
    such as digits, need none."""
    dense_from: Path | None = place(None)
    """Folder of a run whose dense network is used instead of training it again. All
    settings that it depends on must be equal. Its training time is not counted."""
    checkpoint_every: int = place(25, "[1, inf)")
    """Rounds of training between checkpoints."""
    data_parallel: bool = place(False)
    """Divide every batch among all devices."""

    regularizer: Regularizer = after_dense("relevance")
    """The penalty between pruning steps: 2*strength*I*w with the irrelevance I
    (relevance), 2*strength*w (l2), strength*sign(w) (l1), strength*max(0, 1-|g|)*w,
    subtracted from the finished update (lobster), or none."""
    strength: float = after_dense(1e-4, "[0, inf)", only={"regularizer": DECAYS})
    """Coefficient of the regularizer right after a pruning step (gamma)."""
    scale: float = after_dense(1.0, "(0, inf)", only=OF_RELEVANCE)
    """A gradient this large makes the irrelevance of a weight exp(-1) (alpha)."""
    strength_decay_epochs: float = after_dense(
        0.0, "[0, inf)", only={"regularizer": DECAYS}
    )
    """Epochs after a pruning step in which the strength decays linearly to zero; 0
    keeps it constant."""
    form: tyro.conf.OmitArgPrefixes[Form] = after_dense(Form(), only=OF_RELEVANCE)
    """Form of the relevance; by default that of the paper."""
    decoupled: bool = after_dense(
        False, only={"regularizer": ("relevance", "l2", "l1")}
    )
    """Add the regularizer to the update, as AdamW does, and not to the gradient. The
    learning rate scales it either way."""

    prune: Prune = after_dense("gated")
    """When to prune: whenever the validation metric exceeds the bound (gated), to a
    target sparsity along a cubic schedule (gradual), or before any training: weights of
    least |g*w| on one batch (snip), or random ones. At every interval some of those are
    exchanged for weights of large gradients (rigl), for random ones (set), or none are
    (static)."""
    target_sparsity: float = after_dense(
        0.9, "[0, 1)", only={"prune": ("gradual", *AT_INIT)}
    )
    """Fraction of the weights that is removed in the end, if pruning is not gated."""
    fraction: float = after_dense(0.04, "(0, 1)", only={"prune": ("gated",)})
    """Fraction of the remaining weights that one gated pruning step removes."""
    pruned_from: str | None = after_dense(None, only={"prune": ("gated",)})
    """Folder of a finished run whose sparse network is pruned further: what is zero in
    it stays zero."""
    criterion: Criterion = after_dense(
        "magnitude", only={"prune": ("gated", "gradual")}
    )
    """What ranks weights: |w| (magnitude), |g*w| on one batch (saliency), an order that
    never changes (random), or |w| * (1 - I) with the irrelevance I (relevance)."""
    structure: str = after_dense(
        "unstructured", only={"prune": ("gated", "gradual", "snip")}
    )
    """What is removed as a whole, of kernels alone: N:M for all but N of M inputs in a
    row, such as 2:4; blockHxW, such as block4x4; channel for all weights of an output;
    or each weight of any leaf (unstructured). With units, all weights that write or
    read a hidden feature or channel, of any leaves: what is left is a smaller network;
    relevance and l1 then shrink whole units."""
    distribution: Distribution = after_dense("global")
    """How what is removed is spread over leaves: as one ranking of all (global), as the
    same share of each (uniform), or by Erdos-Renyi kernel densities (erk)."""
    bound: float = after_dense(0.98, "[0, inf)", only={"prune": ("gated",)})
    """Prune whenever the validation metric exceeds this: an accuracy, or a BLEU of up
    to 100. With --relative-bound, the accepted loss against the dense network."""
    relative_bound: bool = after_dense(False, only={"prune": ("gated",)})
    """Subtract the bound from the validation metric of the dense network."""
    interval: int = setting(250, "[1, inf)")
    """Updates between evaluations, and so at least between pruning steps."""
    epochs: int = after_dense(75, "[1, inf)")
    """Maximum number of epochs of iterative pruning."""
    patience: int | None = after_dense(None, "[1, inf)", only={"prune": ("gated",)})
    """Stop pruning after this many consecutive evaluations without a pruning step."""

    batch_size: int = setting(100, "[1, inf)")
    """Examples per batch."""
    num_train: int | None = setting(None, "[1, inf)")
    """Number of training examples to use, the same for every seed; by default all."""
    bfloat16: bool = False
    """Compute in bfloat16, with params in float32."""
    optimizer: Literal["adam", "sgd"] = after_dense("adam")
    """Optimizer of pruning and fine-tuning; sgd has momentum 0.9."""
    dense_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer of dense training."""
    b1: float = setting(0.9, "[0, 1)")
    """Adam beta1."""
    b2: float = setting(0.999, "[0, 1)")
    """Adam beta2."""
    dense_strength: float = setting(0.0, "[0, inf)")
    """Coefficient of the l2 penalty in dense training."""
    dense_epochs: int = setting(20, "[1, inf)")
    """Epochs of dense training, with a cosine decay of the learning rate to zero."""
    dense_learning_rate: float = setting(1e-3, "(0, inf)")
    """Initial learning rate of dense training."""
    warmup_steps: int = setting(0, "[0, inf)")
    """Updates of linear warmup before dense training."""
    learning_rate: float = after_dense(1e-3, "(0, inf)")
    """Initial learning rate of pruning."""
    schedule: Literal["constant", "cosine"] = after_dense("constant")
    """Learning rate schedule of pruning."""
    finetune_epochs: int = after_dense(0, "[0, inf)")
    """Epochs of training after pruning: the sparsest network that met the bound,
    without regularizer and pruning steps."""
    finetune_learning_rate: float = after_dense(3e-4, "(0, inf)")
    """Initial learning rate of fine-tuning."""
    finetune_schedule: Literal["constant", "cosine"] = after_dense("constant")
    """Learning rate schedule of fine-tuning."""

    @property
    def metric(self) -> Metric:
        """The validation metric."""
        return ACCURACY

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        if self.out is not None:
            return self.out
        prune = "" if self.prune == "gated" else f"-{self.prune}"
        name = f"{self.experiment}-{self.regularizer}{prune}-seed{self.seed}"
        return Path("runs") / name

    def to_dict(self) -> dict[str, Any]:
        """Returns everything that the results of the run depend on, as JSON data."""
        places = names(self, place=True)
        fields = dataclasses.asdict(self)
        return {name: fields[name] for name in fields if name not in places}

    @property
    def config_id(self) -> str:
        """Short hash that runs share when they differ in nothing but the seed.

        It is made of what differs from the defaults, so that a new setting leaves the
        names of earlier runs as they were.
        """
        hidden = {"seed", *names(self, place=True)}
        fields = {k: x for k, x in beyond_defaults(self).items() if k not in hidden}
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def run_id(self) -> str:
        """Names the run in its checkpoints, and in a sweep."""
        return f"{self.config_id}-seed{self.seed}"

    def validate(self) -> None:
        check_intervals(self)
        largest = self.metric.largest
        check("bound", self.bound, self.bound < largest, f"in [0, {largest})")
        if self.form.unit == "quantile":
            check("scale", self.scale, self.scale < 1, "below 1, being a share")
        ranked = self.criterion == "relevance" and self.prune == "gradual"
        if ranked and self.form != Form():
            raise ExperimentError(
                "--criterion relevance with --prune gradual has the form of the paper."
            )
        if self.structure == "units" and self.regularizer == "relevance":
            name = "decoupled" if self.decoupled else "form"
            usual = self.form == Form() and not self.decoupled
            wanted = "the default with --structure units, whose relevance has one form"
            check(name, getattr(self, name), usual, wanted)
        found = re.fullmatch(STRUCTURE, self.structure)
        wanted = "unstructured, units, N:M, blockHxW or channel"
        check("structure", self.structure, found is not None, wanted)
        if found and found["n"]:
            highest = 1 - int(found["n"]) / int(found["m"])
            amount = "fraction" if self.prune == "gated" else "target_sparsity"
            value, wanted = getattr(self, amount), f"at most {highest:g}"
            check(amount, value, value <= highest, f"{wanted} of {self.structure}")

    def check_effects(self, default: "Config") -> None:
        """Raises an error for a setting that is not the default and has no effect."""
        for name in self.without_effect():
            value = getattr(self, name)
            if value != getattr(default, name):
                raise ExperimentError(
                    f"{flag(name)} has no effect with --regularizer "
                    f"{self.regularizer} and --prune {self.prune}; got {value!r}."
                )

    def without_effect(self) -> list[str]:
        """Returns the names of the settings that do not change this run."""
        values = vars(self)
        return [name for name in values if not has_effect(type(self), name, values)]


@dataclasses.dataclass(frozen=True)
class ImageConfig(Config):
    """The settings of a run on images."""

    label_noise: float = setting(0.0, "[0, 1]")
    """Fraction of the training images with a random label, the same for every seed."""
    shift: int = setting(0, "[0, inf)")
    """Augmentation: shift training images at random by up to this many pixels."""
    mirror: bool = False
    """Augmentation: mirror training images at random, left to right."""


@dataclasses.dataclass(frozen=True)
class TextConfig(Config):
    """The settings of a run that learns to write one text from another."""

    vocabulary_size: int = setting(8_000, f"[5, {2**31})")
    """Pieces of each byte-pair encoding, which is learnt from the training texts."""
    joint_vocabulary: bool = True
    """Use one vocabulary, and one embedding, for both languages."""
    max_source: int = setting(64, f"[2, {2**31})")
    """Maximum number of pieces of a source."""
    max_target: int = setting(64, f"[2, {2**31})")
    """Maximum number of pieces of a target, its end included."""

    num_layers: int = setting(2, "[1, 100)")
    """Layers of the encoder, and of the decoder."""
    features: int = setting(256, f"[1, {2**31})")
    """Features of every layer."""
    hidden: int = setting(256, f"[1, {2**31})")
    """Hidden features of the feed-forward layers."""
    heads: int = setting(4, f"[1, {2**31})")
    """Heads of each attention."""
    dropout: float = setting(0.2, "[0, 1)")
    """Dropout rate of the dense network."""
    adjust_dropout: bool = after_dense(False)
    """Scale the dropout rate by the square root of the fraction of weights kept."""

    label_smoothing: float = setting(0.1, "[0, 1)")
    """Label smoothing."""
    accumulation: int = setting(1, f"[1, {2**31})")
    """Batches whose gradients make one update."""
    beam: int = after_dense(4, f"[1, {2**31})")
    """Beam width on the test set; 1 is greedy."""
    validation_beam: int = setting(1, f"[1, {2**31})")
    """Beam width on the validation split."""
    length_penalty: float = setting(1.0, f"[0, {2**31})")
    """Power of the length that divides the log-probability of a text."""

    @property
    def metric(self) -> Metric:
        """BLEU, or exact matches where there is one right answer."""
        return EXACT_MATCH if self.dataset == "toy" else BLEU

    def validate(self) -> None:
        super().validate()
        divides = self.features % self.heads == 0
        check("heads", self.heads, divides, f"a divisor of {self.features}")
        if self.adjust_dropout and not self.dropout:
            raise ExperimentError("--adjust-dropout has no effect with --dropout 0.")
        if self.form.measure == "per-example":
            raise ExperimentError("--measure per-example is for images only.")


@dataclasses.dataclass(frozen=True)
class DialogueConfig(TextConfig):
    """The settings of a run that learns to answer."""

    edition: Literal["tm1", "tm4"] = "tm4"
    """Which Taskmaster: the first, of 2019, or the fourth, of 2024."""


def beyond_defaults(settings: Any) -> dict[str, Any]:
    """Returns the values of a dataclass, and of those in it, that are not defaults."""
    fields = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            if value := beyond_defaults(value):
                fields[field.name] = value
        elif value != field.default:
            fields[field.name] = value
    return fields
