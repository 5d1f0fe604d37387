"""The corpora, by name."""

from pathlib import Path

from experiments.config import DialogueConfig, TextConfig
from experiments.data import parallel, taskmaster, toy, wmt14
from experiments.data.corpus import Corpus

MULTI30K = "train", "val", "test_2016_flickr"
MULTI30K_ORIGIN = "it is in data/task1/raw of https://github.com/multi30k/dataset."


def load(config: TextConfig) -> Corpus:
    folder = config.data_dir or Path("~/tensorflow_datasets").expanduser()
    folder = folder / config.dataset
    if config.dataset == "toy":
        corpus = toy.load()
    elif config.dataset == "wmt14":
        corpus = wmt14.load(config.data_dir, folder)
    elif isinstance(config, DialogueConfig):
        corpus = taskmaster.load(folder / config.edition, config.edition)
    else:
        corpus = parallel.load(folder, MULTI30K, MULTI30K_ORIGIN)
    return corpus.reduced(config.num_train)
