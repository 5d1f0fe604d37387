"""The corpora, by name."""

from pathlib import Path

from experiments.text import files, taskmaster, toy, wmt14
from experiments.text.corpus import Corpus
from experiments.text.settings import DialogueConfig, TextConfig

MULTI30K = "train", "val", "test_2016_flickr"
MULTI30K_ORIGIN = "it is in data/task1/raw of https://github.com/multi30k/dataset."


def load(config: TextConfig, command: str) -> Corpus:
    """Returns the corpus of a run, with as much to train on as the run is to have.

    Args:
      config: names it, and the folder that has a folder of its name.
      command: what the user ran, for an error message to repeat.

    Raises:
      ExperimentError: it is not there, or damaged, or has not as many pairs.
    """
    return load_whole(config, command).reduced(config.num_train)


def load_whole(config: TextConfig, command: str) -> Corpus:
    """Returns the corpus of a run with all that it has; for the rest see `load`."""
    if config.dataset == "toy":
        return toy.load()
    folder = config.data_dir or Path("~/tensorflow_datasets").expanduser()
    folder = folder / config.dataset
    if config.dataset == "wmt14":
        return wmt14.load(config.data_dir, folder, command)
    if isinstance(config, DialogueConfig):
        return taskmaster.load(folder / config.edition, config.edition)
    return files.load(folder, MULTI30K, MULTI30K_ORIGIN)
