"""WMT14 English-German: plain text files, or the set as TFDS prepares it."""

from pathlib import Path

from experiments import data
from experiments.text import files
from experiments.text.corpus import Corpus, Pairs, check_pairs

NAME = "wmt14_translate/de-en"


def load(data_dir: Path | None, folder: Path, command: str) -> Corpus:
    """Returns the corpus, of the files {train, val, test}.{en, de} if there are any.

    Args:
      data_dir: folder of the TFDS sets, or None for that of TFDS itself.
      folder: where the files may be, gzipped or not: newstest2013 is what validates,
        newstest2014 the test set.
      command: what the user ran, for an error message to repeat.

    Raises:
      ExperimentError: there are neither, or they are damaged.
    """
    if folder.is_dir():
        origin = f"without {folder}, TFDS would be asked for {NAME}."
        return files.load(folder, ("train", "val", "test"), origin)
    # Without this, TFDS does not know of it.
    import tensorflow_datasets.translate  # noqa: F401

    builder = data.prepared_builder(NAME, data_dir, command)

    def read_split(split: str) -> Pairs:
        sources, targets = [], []
        for pair in data.read_examples(builder, split):
            sources.append(as_text(pair["en"]))
            targets.append(as_text(pair["de"]))
        return check_pairs(Pairs(sources, targets), f"{NAME}, {split},")

    return Corpus(
        read_split("train"), read_split("validation"), lambda: read_split("test")
    )


def as_text(value: bytes | str) -> str:
    """Returns a text that TFDS gives in UTF-8."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
