"""The corpora, by name."""

from pathlib import Path

from experiments.text import files, toy
from experiments.text.corpus import Corpus
from experiments.text.settings import TextConfig


def load(config: TextConfig, command: str) -> Corpus:
    """Returns the corpus of a run.

    Args:
      config: names it, and the folder where it is.
      command: what the user ran, for an error message to repeat.

    Raises:
      ExperimentError: it is not there, or damaged.
    """
    del command
    folder = config.data_dir or Path("~/tensorflow_datasets").expanduser()
    if config.dataset == "toy":
        return toy.load()
    return files.load(
        folder / "multi30k",
        ("train", "val", "test_2016_flickr"),
        "they are in data/task1/raw of https://github.com/multi30k/dataset.",
    )
