"""What a run of an experiment depends on, and its identity."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments.forms import Form
from experiments.metrics import ACCURACY, Metric

# They say where a run computes, finds and leaves things, and change nothing in its
# results but, where many devices add up parts of a sum, their rounding.
PLACES = ("out", "data_dir", "dense_from", "checkpoint_every", "data_parallel")

# Settings that the dense network does not depend on.
AFTER_DENSE = (
    *("regularizer", "strength", "scale", "strength_decay_epochs", "form", "decoupled"),
    *("prune", "target_sparsity", "fraction", "scope", "bound", "relative_bound"),
    *("epochs", "patience", "optimizer", "learning_rate", "schedule"),
    *("finetune_epochs", "finetune_learning_rate", "finetune_schedule", "beam"),
    "adjust_dropout",
)

Regularizer = Literal["relevance", "l2", "l1", "lobster", "none"]
Prune = Literal["gated", "gradual", "snip", "random"]
AT_INIT: tuple[Prune, ...] = ("snip", "random")  # before any training


# Settings that play a part only with some choices of another one.
_SHRINKING: tuple[Regularizer, ...] = ("relevance", "l2", "l1", "lobster")
PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "strength": ("regularizer", _SHRINKING),
    "strength_decay_epochs": ("regularizer", _SHRINKING),
    "scale": ("regularizer", ("relevance",)),
    "decoupled": ("regularizer", ("relevance", "l2", "l1")),
    "target_sparsity": ("prune", ("gradual", *AT_INIT)),
    "fraction": ("prune", ("gated",)),
    "bound": ("prune", ("gated",)),
    "relative_bound": ("prune", ("gated",)),
    "patience": ("prune", ("gated",)),
}


class ExperimentError(Exception):
    """A mistake of the user's, told in one line in place of a traceback."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of one run, whatever it is of: the experiment fixes the first three.

    The docstring of each field is its help on the command line.
    """

    experiment: tyro.conf.Fixed[str]
    """Name of the experiment."""
    dataset: tyro.conf.Fixed[str]
    """Name of the data set."""
    network: tyro.conf.Fixed[str]
    """Name of the network."""

    seed: int = 0
    """Determines the initial weights and the order of the batches."""
    out: Path | None = None
    """Folder of the run; by default runs/EXPERIMENT-REGULARIZER[-PRUNE]-seedSEED, with
    PRUNE where it is not gated. A run that was interrupted goes on from what it finds
    there."""
    data_dir: Path | None = None
    """Folder of the data sets; by default that of TFDS, ~/tensorflow_datasets. What
    comes along, such as the digits, needs none."""
    dense_from: Path | None = None
    """Folder of a run, finished or being pruned, whose dense network is taken instead
    of training the same again. Whatever that depends on has to be equal. The time that
    it took is not counted again."""
    checkpoint_every: int = 25
    """Rounds of training between two checkpoints."""
    data_parallel: bool = False
    """Whether to use all devices there are, dividing every batch among them, and not
    one of them alone."""

    regularizer: Regularizer = "relevance"
    """What drives weights to zero between the prunes: the method's penalty on
    irrelevant weights, 2*strength*irrelevance*w; the same on all weights (l2,
    2*strength*w); strength*sign(w) (l1); strength*max(0, 1-|g|)*w, taken from the
    finished update and not scaled by the learning rate (lobster); or nothing."""
    strength: float = 1e-4
    """Coefficient of the regularizer right after a prune (gamma)."""
    scale: float = 1.0
    """A gradient this large makes a weight's irrelevance exp(-1) (alpha)."""
    strength_decay_epochs: float = 0.0
    """Epochs since the last prune in which the strength falls linearly to zero;
    0 keeps it constant."""
    form: tyro.conf.OmitArgPrefixes[Form] = dataclasses.field(default_factory=Form)
    """Form of the relevance; the paper's by default."""
    decoupled: bool = False
    """Whether the regularizer acts beside the preconditioning by the optimizer, as in
    AdamW, and not through it. The learning rate scales it in either case."""

    prune: Prune = "gated"
    """When weights go: whenever the validation metric allows it (gated); to a given
    sparsity, along a cubic schedule of the updates (gradual); or all at once before the
    training, those of least |g*w| for one batch (snip) or any (random)."""
    target_sparsity: float = 0.9
    """Share of the weights that gradual, snip and random remove."""
    fraction: float = 0.04
    """Share of the remaining weights that one gated prune drops."""
    scope: Literal["global", "leaf"] = "global"
    """Whether a prune ranks weights over the whole network or tensor by tensor."""
    bound: float = 0.98
    """Prune whenever the validation metric is above this: an accuracy, or BLEU of 100.
    With --relative-bound, how far below that of the dense network it may fall."""
    relative_bound: bool = False
    """Whether the bound counts from the dense network's validation metric."""
    interval: int = 250
    """Updates between two evaluations, and so at least between two prunes."""
    epochs: int = 75
    """Epochs of iterative pruning at the most."""
    patience: int | None = None
    """Stop pruning after this many evaluations in a row without a prune."""

    batch_size: int = 100
    """Examples in a batch."""
    num_train: int | None = None
    """How many of the training examples to train on, the same for every seed; by
    default all of them."""
    bfloat16: bool = False
    """Whether the network computes in bfloat16, with params in float32."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """What trains during pruning and fine-tuning; sgd has momentum 0.9."""
    dense_optimizer: Literal["adam", "sgd"] = "adam"
    """What trains the dense network."""
    b1: float = 0.9
    """Adam's memory of the mean of the gradients."""
    b2: float = 0.999
    """Adam's memory of the mean of their squares."""
    dense_strength: float = 0.0
    """Coefficient of the l2 on the dense network in its training."""
    dense_epochs: int = 20
    """Epochs of dense training before the pruning, its learning rate falling to zero
    along a cosine."""
    dense_learning_rate: float = 1e-3
    """The initial learning rate in dense training."""
    warmup_steps: int = 0
    """Updates before that, in which it rises from zero along a line."""
    learning_rate: float = 1e-3
    """The (initial) learning rate during pruning."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate over the epochs of pruning."""
    finetune_epochs: int = 0
    """Epochs of training after the pruning, from the sparsest network that met the
    bound, without regularizer and with nothing pruned."""
    finetune_learning_rate: float = 3e-4
    """The (initial) learning rate in that."""
    finetune_schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate over the epochs of fine-tuning."""

    @property
    def metric(self) -> Metric:
        """What is measured of a network, on the validation split and the test set."""
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
        """Returns everything that the run's results depend on, as JSON data."""
        fields = dataclasses.asdict(self)
        return {name: fields[name] for name in fields if name not in PLACES}

    @property
    def config_id(self) -> str:
        """Short hash that runs share when they differ in nothing but the seed.

        It is made of what differs from the defaults, so that a setting that is new, and
        left alone, leaves the names of earlier runs as they were.
        """
        fields = beyond_defaults(self)
        for name in (*PLACES, "seed"):
            fields.pop(name, None)
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def validate(self) -> None:
        """Raises `ExperimentError` for the first value that makes no sense."""
        at_least: dict[str, int] = {
            "seed": 0,
            "checkpoint_every": 1,
            "strength": 0,
            "dense_strength": 0,
            "strength_decay_epochs": 0,
            "interval": 1,
            "epochs": 1,
            "batch_size": 1,
            "dense_epochs": 1,
            "warmup_steps": 0,
            "finetune_epochs": 0,
        }
        above_zero = (
            "scale",
            "dense_learning_rate",
            "learning_rate",
            "finetune_learning_rate",
        )
        fields: dict[str, Any] = dataclasses.asdict(self)
        for name, value in fields.items():
            if name in at_least:
                low = at_least[name]
                check(name, value, low <= value < math.inf, f"{low} or more")
            elif name in above_zero:
                check(name, value, 0 < value < math.inf, "above 0")
        patience = self.patience
        check("patience", patience, patience is None or patience >= 1, "1 or more")
        number = self.num_train
        check("num_train", number, number is None or number >= 1, "1 or more")
        for name, value in (
            ("memory", self.form.memory),
            ("b1", self.b1),
            ("b2", self.b2),
        ):
            check(name, value, 0 <= value < 1, "in [0, 1)")
        if self.form.unit == "quantile":
            check("scale", self.scale, self.scale < 1, "below 1, being a share")
        if self.regularizer != "relevance" and self.form != Form():
            raise ExperimentError(
                f"--regularizer {self.regularizer} has no form; got {self.form}."
            )
        check("seed", self.seed, self.seed < 2**31, "below 2**31")
        check("fraction", self.fraction, 0 < self.fraction < 1, "between 0 and 1")
        target = self.target_sparsity
        check("target_sparsity", target, 0 <= target < 1, "in [0, 1)")
        if self.prune != "gated" and self.form.acts_on != "decay":
            raise ExperimentError(
                f"--acts-on {self.form.acts_on} is about the ranking by gated prunes, "
                f"not by --prune {self.prune}."
            )
        if self.prune == "gradual" and self.strength_decay_epochs:
            raise ExperimentError(
                f"--strength-decay-epochs counts from the last prune, of which --prune "
                f"gradual tells nothing; got {self.strength_decay_epochs}."
            )
        largest = self.metric.largest
        check("bound", self.bound, 0 <= self.bound < largest, f"in [0, {largest})")

    def check_parts(self, default: "Config") -> None:
        """Raises `ExperimentError` for a setting that was given, and plays no part.

        Args:
          default: the settings before any was given.
        """
        for name, (choice, _) in PARTS.items():
            value = getattr(self, name)
            if value != getattr(default, name) and not plays_part(name, vars(self)):
                raise ExperimentError(
                    f"{flag(name)} plays no part with {flag(choice)} "
                    f"{getattr(self, choice)}; got {value!r}."
                )


@dataclasses.dataclass(frozen=True)
class ImageConfig(Config):
    """The settings of a run on images."""

    label_noise: float = 0.0
    """Share of the training images that get a class drawn at random, the same for every
    seed."""
    shift: int = 0
    """Augmentation: training images are moved at random by up to so many pixels."""
    mirror: bool = False
    """Augmentation: training images are mirrored at random, left to right."""

    def validate(self) -> None:
        """Raises `ExperimentError` for the first value that makes no sense."""
        super().validate()
        noise = self.label_noise
        check("label_noise", noise, 0 <= noise <= 1, "in [0, 1]")
        check("shift", self.shift, self.shift >= 0, "0 or more")


def beyond_defaults(settings: Any) -> dict[str, Any]:
    """Returns what of a dataclass, and of those in it, is not the default."""
    fields = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            if value := beyond_defaults(value):
                fields[field.name] = value
        elif value != field.default:
            fields[field.name] = value
    return fields


def plays_part(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a setting, such as "scale", changes a run with these settings.

    Those of a run that is older than a choice lack it: it had the default.
    """
    choice, having = PARTS[name]
    return settings.get(choice, getattr(Config, choice)) in having


def check(name: str, value: object, condition: bool, wanted: str) -> None:
    """Raises `ExperimentError` naming the flag unless `condition` holds."""
    if not condition:
        raise ExperimentError(f"{flag(name)} must be {wanted}; got {value!r}.")


def flag(name: str) -> str:
    """Returns what sets a setting on the command line."""
    return "--" + name.replace("_", "-")
