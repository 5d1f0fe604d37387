"""The image sets: read once, kept as uint8 arrays, split for good.

The test set is a function, not an array, so that nothing but the end of a run reads it.
"""

import importlib.util
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.config import ExperimentError, ImageConfig, check

NUM_CLASSES = 10  # of every set
# How many of the training images decide about prunes instead of being trained on.
NUM_VALIDATION = 5_000
READ_AT_ONCE = 1_000


class Split(NamedTuple):
    """Images `[N, H, W, C]` as uint8 and their labels `[N]` as int32."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A data set as the experiments use it.

    Attributes:
      train: what the networks are trained on.
      validation: what decides about prunes, held out of the training set.
      read_test: reads the test set.
      white: value of a white pixel; images are divided by it.
    """

    train: Split
    validation: Split
    read_test: Callable[[], Split]
    white: int


def load(config: ImageConfig, command: str) -> Dataset:
    """Returns the data set of a run: all of it, or as much as the run is to have.

    Args:
      config: names the set, its folder, and what of the training set is to be spoilt.
      command: what the user ran, for an error message to repeat.

    Raises:
      ExperimentError: the set is neither there nor can be prepared, or has not as many
        training images as wanted.
    """
    dataset = load_whole(config.dataset, config.data_dir, command)
    return dataset._replace(
        train=spoil(dataset.train, config.num_train, config.label_noise)
    )


def spoil(train: Split, num_train: int | None, label_noise: float) -> Split:
    """Returns `num_train` of the examples, some with a label drawn at random."""
    rng = np.random.default_rng(0)
    if num_train is not None:
        size = len(train.labels)
        check("num_train", num_train, num_train <= size, f"{size} or less")
        train = take(train, np.sort(rng.permutation(size)[:num_train]))
    noisy = rng.random(len(train.labels)) < label_noise
    random_labels = rng.choice(np.unique(train.labels), len(train.labels))
    labels = np.where(noisy, random_labels, train.labels).astype(np.int32)
    return Split(train.images, labels)


def load_whole(name: str, data_dir: Path | None, command: str) -> Dataset:
    """Returns the data set called `name`.

    Args:
      name: "digits", or a set of images in TFDS.
      data_dir: folder of the TFDS sets, or None for that of TFDS itself.
      command: what the user ran, for an error message to repeat.

    Raises:
      ExperimentError: the set is neither there nor can be prepared.
    """
    if name == "digits":
        return load_digits()
    builder = prepared_builder(name, data_dir, command)
    train = read(builder, "train")
    # The order is fixed: the seed of a run must not change what it is measured on.
    order = np.random.default_rng(0).permutation(len(train.labels))
    return Dataset(
        train=take(train, np.sort(order[NUM_VALIDATION:])),
        validation=take(train, np.sort(order[:NUM_VALIDATION])),
        read_test=lambda: read(builder, "test"),
        white=255,
    )


def check_there(names: Iterable[str], data_dir: Path | None, command: str) -> None:
    """Raises `ExperimentError` for the first set that is missing.

    Those that can be prepared, are. What is there is not read: it may be damaged.
    """
    for name in dict.fromkeys(names):
        if name != "digits":
            prepared_builder(name, data_dir, command)


def load_digits() -> Dataset:
    """Returns scikit-learn's 1,797 scanned digits: 60 % train, 20 % each the rest."""
    from sklearn import datasets, model_selection

    bunch: Any = datasets.load_digits()
    digits = Split(
        bunch.images[..., None].astype(np.uint8), bunch.target.astype(np.int32)
    )

    # Not the split on which most settings were chosen: its test set was in view then.
    def divide(index: np.ndarray, share: float) -> Any:
        return model_selection.train_test_split(
            index, test_size=share, stratify=digits.labels[index], random_state=1
        )

    train, rest = divide(np.arange(len(digits.labels)), 0.4)
    validation, test = divide(rest, 0.5)
    return Dataset(
        train=take(digits, train),
        validation=take(digits, validation),
        read_test=lambda: take(digits, test),
        white=16,
    )


def take(split: Split, index: np.ndarray) -> Split:
    """Returns the chosen examples."""
    return Split(split.images[index], split.labels[index])


def prepared_builder(name: str, data_dir: Path | None, command: str) -> Any:
    """Returns the TFDS builder of a set that is on the disk, preparing it if it can."""
    import tensorflow_datasets as tfds
    from absl import logging

    # It logs an error for every file whose records are compressed in groups.
    logging.set_verbosity(logging.FATAL)
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except Exception as error:  # again, what it trips over are the files
        raise ExperimentError(
            f"TFDS cannot read what {data_dir or 'its own folder'} holds of {name}: "
            f"{first_line(error)}"
        ) from error
    if not builder.is_prepared():
        if not has_tensorflow():
            raise ExperimentError(
                f"no data set {name} in {builder.data_path}; to download and prepare "
                f"it there: {shlex.quote(sys.executable)} -m pip install -e "
                f"'.[prepare]' && {command}"
            )
        try:
            builder.download_and_prepare()
        except Exception as error:
            raise ExperimentError(
                f"TFDS could not prepare {name} in {builder.data_path}: "
                f"{first_line(error)}"
            ) from error
    return builder


def has_tensorflow() -> bool:
    """Whether TensorFlow, which TFDS prepares a set with, is installed."""
    return importlib.util.find_spec("tensorflow") is not None


def read(builder: Any, split: str) -> Split:
    """Decodes a whole split of a prepared set.

    Grain only reads it: sets as small as these stay on the device, where training also
    shuffles and augments them, and nothing is copied there for a batch.
    """
    import grain

    try:
        source = grain.MapDataset.source(builder.as_data_source(split=split))
        batches = list(source.batch(READ_AT_ONCE).to_iter_dataset())
        return Split(
            np.concatenate([batch["image"] for batch in batches]),
            np.concatenate([batch["label"] for batch in batches]).astype(np.int32),
        )
    except Exception as error:
        raise damaged(builder, error) from error


def read_examples(builder: Any, split: str) -> Iterator[Any]:
    """Yields the examples of a prepared set, one by one."""
    import grain

    try:
        source = grain.MapDataset.source(builder.as_data_source(split=split))
        yield from source.to_iter_dataset()
    except Exception as error:
        raise damaged(builder, error) from error


def damaged(builder: Any, error: Exception) -> ExperimentError:
    """Returns what to tell of a set that cannot be read.

    Whatever TFDS, the record reader or a decoder trips over, it is the files: nothing
    in the calls depends on us.
    """
    return ExperimentError(
        f"cannot read {builder.name} in {builder.data_path}, which is damaged or "
        f"incomplete (delete it to prepare it anew): {first_line(error)}"
    )


def first_line(error: Exception) -> str:
    """Returns the type and the first line of an exception's message."""
    message = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {message}"
