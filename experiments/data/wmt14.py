"""WMT14 English-German: plain text files, or the set as TFDS prepares it."""

from pathlib import Path

from experiments.data import images, parallel
from experiments.data.corpus import Corpus, Pairs, check_pairs

NAME = "wmt14_translate/de-en"


def load(data_dir: Path | None, folder: Path) -> Corpus:
    """Returns the corpus in the files {train, val, test}.{en, de} of a folder.

    Validation is newstest2013, test newstest2014. Without the folder it is that of TFDS
    in `data_dir`.
    """
    if folder.is_dir():
        origin = f"without {folder}, TFDS would be asked for {NAME}."
        return parallel.load(folder, ("train", "val", "test"), origin)
    # Without this, TFDS does not know of it.
    import tensorflow_datasets.translate  # noqa: F401

    builder = images.prepared_builder(NAME, data_dir)

    def read_split(split: str) -> Pairs:
        pairs = list(images.read_examples(builder, split))
        sources, targets = ([as_text(pair[x]) for pair in pairs] for x in ("en", "de"))
        return check_pairs(Pairs(sources, targets), f"{NAME}, {split},")

    train, validation = read_split("train"), read_split("validation")
    return Corpus(train, validation, lambda: read_split("test"))


def as_text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
