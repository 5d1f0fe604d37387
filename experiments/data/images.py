"""The image sets: read once, kept as uint8 arrays, always split in the same way.

The test set is a function, so that nothing but the end of a run reads it.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.config import ImageConfig
from experiments.settings import ExperimentError, check

NUM_CLASSES = 10  # of every set
NUM_VALIDATION = 5_000  # training images held out to decide about pruning steps
READ_AT_ONCE = 1_000


class Format(NamedTuple):
    shape: tuple[int, int, int]  # of an image, [H, W, C]
    white: int  # value of a white pixel; images are divided by it


FORMATS = {
    "digits": Format((8, 8, 1), 16),
    "mnist": Format((28, 28, 1), 255),
    "fashion_mnist": Format((28, 28, 1), 255),
    "cifar10": Format((32, 32, 3), 255),
}


class Split(NamedTuple):
    """Images `[N, H, W, C]` as uint8 and their labels `[N]` as int32."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    train: Split
    validation: Split  # held out of the training set
    read_test: Callable[[], Split]
    white: int  # value of a white pixel


def load(config: ImageConfig) -> Dataset:
    """Returns the data set of a run, reduced and with noisy labels if it is to be."""
    dataset = load_whole(config.dataset, config.data_dir)
    train, number, rng = dataset.train, config.num_train, np.random.default_rng(0)
    if number is not None:
        size = len(train.labels)
        check("num_train", number, number <= size, f"{size} or less")
        train = take(train, np.sort(rng.permutation(size)[:number]))
    noisy = rng.random(len(train.labels)) < config.label_noise
    random_labels = rng.choice(np.unique(train.labels), len(train.labels))
    labels = np.where(noisy, random_labels, train.labels).astype(np.int32)
    return dataset._replace(train=Split(train.images, labels))


def load_whole(name: str, data_dir: Path | None) -> Dataset:
    """Returns "digits", or a set of images in the TFDS folder `data_dir`."""
    if name == "digits":
        return load_digits()
    builder = prepared_builder(name, data_dir)
    train = read(builder, "train")
    # The order is fixed: the seed of a run must not change what it is measured on.
    order = np.random.default_rng(0).permutation(len(train.labels))
    return Dataset(
        train=take(train, np.sort(order[NUM_VALIDATION:])),
        validation=take(train, np.sort(order[:NUM_VALIDATION])),
        read_test=lambda: read(builder, "test"),
        white=FORMATS[name].white,
    )


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
        white=FORMATS["digits"].white,
    )


def take(split: Split, index: np.ndarray) -> Split:
    return Split(split.images[index], split.labels[index])


def prepared_builder(name: str, data_dir: Path | None) -> Any:
    """Returns the TFDS builder of a set, which it prepares if TensorFlow is there."""
    import tensorflow_datasets as tfds

    # It logs an error for every file whose records are compressed in groups.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        missing = not builder.is_prepared()
        has_tensorflow = importlib.util.find_spec("tensorflow") is not None
        if missing and has_tensorflow:
            builder.download_and_prepare()
    except Exception as error:  # of any kind
        raise ExperimentError(
            f"TFDS cannot read or prepare {name} in {data_dir or 'its own folder'}: "
            f"{first_line(error)}"
        ) from error
    if missing and not has_tensorflow:
        raise ExperimentError(
            f"no data set {name} in {builder.data_path}; if it is prepared elsewhere, "
            f"pass the folder that contains {name} as --data-dir; to download and "
            "prepare it: pip install -e '.[prepare]', then run this command again."
        )
    return builder


def read(builder: Any, split: str) -> Split:
    """Decodes a whole split: sets as small as these stay on the device."""
    batches = list(read_examples(builder, split, batch_size=READ_AT_ONCE))
    return Split(
        np.concatenate([batch["image"] for batch in batches]),
        np.concatenate([batch["label"] for batch in batches]).astype(np.int32),
    )


def read_examples(
    builder: Any, split: str, batch_size: int | None = None
) -> Iterator[Any]:
    import grain

    try:
        source = grain.MapDataset.source(builder.as_data_source(split=split))
        if batch_size is not None:
            source = source.batch(batch_size)
        yield from source.to_iter_dataset()
    except Exception as error:  # of TFDS, the record reader or a decoder
        raise ExperimentError(
            f"cannot read {builder.name} in {builder.data_path}, which is damaged or "
            f"incomplete (delete it to prepare it again): {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    message = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {message}"
