"""Parallel texts: files of two languages whose n-th lines belong together."""

import gzip
import zlib
from pathlib import Path

from experiments.data.corpus import Corpus, Pairs, check_pairs
from experiments.settings import ExperimentError


def load(folder: Path, splits: tuple[str, str, str], origin: str) -> Corpus:
    """Returns the corpus in the files SPLIT.en[.gz] and SPLIT.de[.gz] of a folder.

    The splits are those for training, validation and test; an error message says the
    `origin` of the files.
    """
    train, validation, test = (
        [find(folder, f"{split}.{end}", origin) for end in ("en", "de")]
        for split in splits
    )

    def read(paths: list[Path]) -> Pairs:
        return check_pairs(
            Pairs(*map(read_lines, paths)), f"{folder}, {paths[0].name},"
        )

    return Corpus(read(train), read(validation), lambda: read(test))


def find(folder: Path, name: str, origin: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise ExperimentError(f"no {name} or {name}.gz in {folder}; {origin}")


def read_lines(path: Path) -> list[str]:
    lines = read_text(path).removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines] if lines != [""] else []


def read_text(path: Path) -> str:
    """Returns a text in UTF-8, which may be gzipped."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ExperimentError(f"cannot read {path}: {error}") from error
