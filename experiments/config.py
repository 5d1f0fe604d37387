"""The settings of each kind of run, and the names of runs."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal, get_args

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
    preventing,
    setting,
)

Penalty = Literal["l2", "l1", "root", "log"]
Regularizer = Literal["relevance", Penalty, "lobster", "none"]
Prune = Literal["gated", "gradual", "snip", "rigl", "set", "static"]
Criterion = Literal["magnitude", "saliency", "random", "relevance"]
Distribution = Literal["global", "uniform", "erk"]
Control = Literal["none", "permuted", "mean"]

PENALTIES: tuple[Penalty, ...] = get_args(Penalty)
DECAYS = "relevance", *PENALTIES, "lobster"
SPARSE = "rigl", "set", "static"  # trained with random masks
AT_INIT = "snip", *SPARSE  # pruned before any training
STRUCTURE = (
    r"unstructured|units|channel|block[1-9]\d*x[1-9]\d*|(?P<n>[1-9]\d*):(?P<m>[1-9]\d*)"
)
# Settings that have an effect only if relevance decays weights, or ranks them.
OF_RELEVANCE = {"regularizer": ("relevance",)}, {"criterion": ("relevance",)}


@dataclasses.dataclass(frozen=True)
class Form:
    """How the irrelevance I of a weight is computed."""

    measure: Literal["gradient", "saliency", "per-example"] = "gradient"
    """|g|, with the gradient g (gradient); |g * w| (saliency); or the mean of |g| over
    the single examples of a batch (per-example)."""
    memory: float = setting(0.0, "[0, 1)")
    """Decay of the running mean of the measure; 0 uses the latest value."""
    unit: Literal["absolute", "leaf", "network", "quantile"] = "absolute"
    """What --scale is relative to: nothing (absolute), or the running root mean square
    of the measure over the leaf or the network. With quantile, --scale is the fraction
    of each leaf that does not decay; all other weights decay at full strength."""
    control: Control = "none"
    """What replaces I: a random permutation of I within each leaf at every update
    (permuted), or the mean of I over the leaf (mean)."""


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
    unless it is gated. An interrupted run resumes from its last checkpoint there."""
    data_dir: Path | None = place(None)
    """Folder of the data sets; by default ~/tensorflow_datasets. Bundled data sets,
    such as digits, need none."""
    dense_from: Path | None = place(None)
    """Folder of a run whose dense network is reused instead of trained again. All
    settings that affect it must be equal. Its training time is not counted."""
    checkpoint_every: int = place(25, "[1, inf)")
    """Rounds of training between checkpoints."""
    data_parallel: bool = place(False)
    """Split every batch among all devices."""

    regularizer: Regularizer = after_dense("relevance")
    """The gradient of the penalty between pruning steps: 2*strength*I*w with the
    irrelevance I (relevance), 2*strength*w (l2), strength*sign(w) (l1),
    strength*sign(w)/sqrt(|w|+0.01)/2 (root), strength*sign(w)/(|w|+0.01) (log),
    strength*max(0, 1-|g|)*w, subtracted from the finished update (lobster), or none."""
    strength: float = after_dense(1e-4, "[0, inf)", only={"regularizer": DECAYS})
    """Coefficient of the regularizer right after a pruning step (gamma)."""
    scale: float = after_dense(1.0, "(0, inf)", only=OF_RELEVANCE)
    """Size of the gradient at which irrelevance is exp(-1) (alpha)."""
    strength_decay_epochs: float = after_dense(
        0.0, "[0, inf)", only={"regularizer": DECAYS}
    )
    """Epochs over which the strength decays linearly to zero after a pruning step; 0
    keeps it constant."""
    penalty: Penalty = after_dense("l2", only={"regularizer": ("relevance",)})
    """The penalty that I weighs, under its name as a regularizer."""
    form: tyro.conf.OmitArgPrefixes[Form] = after_dense(Form(), only=OF_RELEVANCE)
    """Form of the relevance; by default the form of the paper."""
    decoupled: bool = after_dense(
        False, only={"regularizer": ("relevance", *PENALTIES)}
    )
    """Add the regularizer to the update, as AdamW does, rather than to the gradient.
    The learning rate scales it either way."""
    proximal: bool = after_dense(False, only={"regularizer": ("relevance", *PENALTIES)})
    """Shrink the weights that the update leads to, never beyond zero, by the learning
    rate times the gradient of the penalty there. For l1, this is the proximal step."""

    prune: Prune = after_dense("gated")
    """When to prune: whenever the validation metric exceeds the bound (gated), along a
    cubic schedule to a target sparsity (gradual), or before any training: the weights
    with the smallest |g*w| on one batch (snip), or random weights. Random masks stay
    fixed (static), or at every interval some weights are pruned and others regrown: the
    ones with the largest gradients (rigl), or random ones (set)."""
    target_sparsity: float = after_dense(
        0.9, "[0, 1)", only={"prune": ("gradual", *AT_INIT)}
    )
    """Fraction of the weights that is pruned in the end, if pruning is not gated."""
    fraction: float = after_dense(0.04, "(0, 1)", only={"prune": ("gated",)})
    """Fraction of the remaining weights that one gated pruning step removes."""
    pruned_from: str | None = after_dense(None, only={"prune": ("gated", "gradual")})
    """Folder of a finished run whose sparse network is pruned further. Its zeros stay
    zero."""
    criterion: Criterion = after_dense(
        "magnitude", only={"prune": ("gated", "gradual")}
    )
    """Score that ranks weights: |w| (magnitude), |g*w| on one batch (saliency), a fixed
    random number (random), or |w| * (1 - I) with the irrelevance I (relevance)."""
    structure: str = after_dense(
        "unstructured", only={"prune": ("gated", "gradual", "snip")}
    )
    """What is removed as a whole: single weights of any leaf (unstructured); in kernels
    only, all but N of M consecutive inputs (N:M, such as 2:4), blocks (blockHxW, such
    as block4x4) or all weights of an output (channel); or, in any leaf, all weights
    that write or read a hidden feature or channel (units), which leaves a smaller
    network. With units, relevance and l1 shrink whole units."""
    distribution: Distribution = after_dense("global")
    """How sparsity is distributed over leaves: by one ranking of all weights (global),
    the same for each leaf (uniform), or by Erdos-Renyi kernel densities (erk)."""
    bound: float = after_dense(0.98, "[0, inf)", only={"prune": ("gated",)})
    """Prune whenever the validation metric exceeds this: an accuracy, or a BLEU score
    of up to 100. With --relative-bound, the accepted drop below the dense network."""
    relative_bound: bool = after_dense(False, only={"prune": ("gated",)})
    """Subtract the bound from the validation metric of the dense network."""
    interval: int = setting(250, "[1, inf)")
    """Updates between evaluations, and the minimum between pruning steps."""
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
    """Optimizer for pruning and fine-tuning; sgd has momentum 0.9."""
    dense_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer for dense training."""
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
    """Updates of linear warmup at the start of dense training."""
    learning_rate: float = after_dense(1e-3, "(0, inf)")
    """Initial learning rate of pruning."""
    schedule: Literal["constant", "cosine"] = after_dense("constant")
    """Learning rate schedule of pruning."""
    finetune_epochs: int = after_dense(0, "[0, inf)")
    """Epochs of fine-tuning the sparsest network that met the bound, without
    regularizer and pruning steps."""
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
        """The folder of the run."""
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
        """Short hash that runs share if they differ only in the seed.

        It covers only settings that differ from the defaults, so that a new setting
        does not rename earlier runs.
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
            check("scale", self.scale, self.scale < 1, "below 1, because it is a share")
        if self.proximal:
            wanted = "off with --proximal"
            check("decoupled", self.decoupled, not self.decoupled, wanted)
            wanted = "anything but units with --proximal"
            check("structure", self.structure, self.structure != "units", wanted)
        if self.pruned_from is not None and self.prune == "gradual":
            wanted = "unstructured with --pruned-from and --prune gradual"
            sound = self.structure == "unstructured"
            check("structure", self.structure, sound, wanted)
        if self.criterion == "relevance" and self.prune == "gradual":
            wanted = "the default with --criterion relevance and --prune gradual"
            for changed, value in beyond_defaults(self.form).items():
                check(changed, value, False, wanted)
        if self.structure == "units" and self.regularizer == "relevance":
            wanted = "the default with --structure units, whose relevance has one form"
            check("decoupled", self.decoupled, not self.decoupled, wanted)
            check("penalty", self.penalty, self.penalty == "l2", wanted)
            for changed, value in beyond_defaults(self.form).items():
                check(changed, value, False, wanted)
        found = re.fullmatch(STRUCTURE, self.structure)
        wanted = "unstructured, units, N:M, blockHxW or channel"
        check("structure", self.structure, found is not None, wanted)
        if found and found["n"]:
            sound = 0 < int(found["n"]) <= int(found["m"])
            check("structure", self.structure, sound, "N:M with 0 < N <= M")
            highest = 1 - int(found["n"]) / int(found["m"])
            amount = "fraction" if self.prune == "gated" else "target_sparsity"
            value, wanted = getattr(self, amount), f"at most {highest:g}"
            check(amount, value, value <= highest, f"{wanted} of {self.structure}")

    def check_effects(self, default: "Config") -> None:
        """Raises an error for a setting that is not the default and has no effect."""
        for name in self.without_effect():
            for changed, value in changes(self, default, name).items():
                others = preventing(type(self), name, vars(self))
                raise ExperimentError(
                    f"{flag(changed)} has no effect with "
                    f"{' and '.join(f'{flag(x)} {vars(self)[x]}' for x in others)}; "
                    f"got {value!r}."
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
    """The settings of a sequence-to-sequence run on texts."""

    vocabulary_size: int = setting(8_000, f"[5, {2**31})")
    """Number of pieces of each byte-pair encoding, learnt from the training texts."""
    joint_vocabulary: bool = True
    """Use one vocabulary, and one embedding, for both languages."""
    max_source: int = setting(64, f"[2, {2**31})")
    """Maximum number of pieces of a source."""
    max_target: int = setting(64, f"[2, {2**31})")
    """Maximum number of pieces of a target, including its end."""

    num_layers: int = setting(2, "[1, 100)")
    """Layers of the encoder, and of the decoder."""
    features: int = setting(256, f"[1, {2**31})")
    """Features of every layer."""
    hidden: int = setting(256, f"[1, {2**31})")
    """Hidden features of the feed-forward layers."""
    heads: int = setting(4, f"[1, {2**31})")
    """Heads of each attention layer."""
    dropout: float = setting(0.2, "[0, 1)")
    """Dropout rate of the dense network."""
    adjust_dropout: bool = after_dense(False)
    """Scale the dropout rate by the square root of the fraction of weights kept."""

    label_smoothing: float = setting(0.1, "[0, 1)")
    """Label smoothing."""
    accumulation: int = setting(1, f"[1, {2**31})")
    """Number of batches whose gradients are accumulated for one update."""
    beam: int = after_dense(4, f"[1, {2**31})")
    """Beam width on the test set; 1 is greedy."""
    validation_beam: int = setting(1, f"[1, {2**31})")
    """Beam width on the validation split."""
    length_penalty: float = setting(1.0, f"[0, {2**31})")
    """Exponent of the length by which the log-probability of a text is divided."""

    @property
    def metric(self) -> Metric:
        """BLEU, or exact matches if there is only one right answer."""
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
    """The settings of a run on dialogues, which learns to answer."""

    edition: Literal["tm1", "tm4"] = "tm4"
    """Edition of Taskmaster: the first (2019) or the fourth (2024)."""


def changes(settings: Any, default: Any, name: str) -> dict[str, Any]:
    """Returns what differs from the default: a setting, or those of a group.

    The keys of the dict are the names of the flags.
    """
    value, usual = getattr(settings, name), getattr(default, name)
    if dataclasses.is_dataclass(value):
        fields = vars(value)
        return {k: x for k, x in fields.items() if x != getattr(usual, k)}
    return {name: value} if value != usual else {}


def beyond_defaults(settings: Any) -> dict[str, Any]:
    """Returns the values of a dataclass that are not defaults, nested ones included."""
    fields = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            if value := beyond_defaults(value):
                fields[field.name] = value
        elif value != field.default:
            fields[field.name] = value
    return fields
