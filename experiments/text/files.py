"""Parallel texts: files of two languages, whose n-th lines belong together."""

import gzip
import zlib
from pathlib import Path

from experiments.config import ExperimentError
from experiments.text.corpus import Corpus, Pairs, check_pairs


def load(folder: Path, splits: tuple[str, str, str], origin: str) -> Corpus:
    """Returns the English-German corpus in the files SPLIT.en, SPLIT.de of a folder.

    Each may be gzipped, and then ends in .gz.

    Args:
      folder: where they are.
      splits: names of those to train on, to validate and to test.
      origin: where they can be had, for an error message to tell.

    Raises:
      ExperimentError: one is missing or damaged, or two do not belong together.
    """
    train, validation, test = splits
    for split in splits:  # also those that are read only at the end
        for language in ("en", "de"):
            find(folder, f"{split}.{language}", origin)

    def read_split(split: str) -> Pairs:
        english, german = (
            read_lines(find(folder, f"{split}.{language}", origin))
            for language in ("en", "de")
        )
        return check_pairs(Pairs(english, german), f"{folder}, {split},")

    return Corpus(read_split(train), read_split(validation), lambda: read_split(test))


def find(folder: Path, name: str, origin: str) -> Path:
    """Returns the path of a file that may be gzipped.

    Args:
      folder: where it is.
      name: of the file, as it is not gzipped.
      origin: where it can be had, for an error message to tell.

    Raises:
      ExperimentError: it is not there.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise ExperimentError(f"no {name} or {name}.gz in {folder}; {origin}")


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text in UTF-8.

    Raises:
      ExperimentError: it cannot be read.
    """
    lines = read_text(path).removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines] if lines != [""] else []


def read_text(path: Path) -> str:
    """Returns a text in UTF-8, which may be gzipped.

    Raises:
      ExperimentError: it cannot be read.
    """
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ExperimentError(f"cannot read {path}: {error}") from error
