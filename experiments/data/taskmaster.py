"""Taskmaster: dialogues of people ordering things; the assistant's turns are targets.

The source of an answer is the whole dialogue before it, every turn after a tag of its
speaker. Consecutive utterances of one speaker are one turn.

Source: Byrne et al., `Taskmaster-1: Toward a Realistic and Diverse Dialog Dataset
<https://arxiv.org/abs/1909.05358>`_, 2019, and later releases of the same repository.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.data.corpus import Corpus, Pairs, check_pairs
from experiments.data.parallel import find, read_text
from experiments.settings import ExperimentError

TAGS = {"user": "<user>", "assistant": "<agent>"}
ORIGIN = "it is in https://github.com/google-research-datasets/Taskmaster."
SPLITS = "train", "dev", "test"


def load(folder: Path, edition: str) -> Corpus:
    """Returns the answers in an edition of Taskmaster, "tm1" or "tm4".

    The folder has the official JSON files, gzipped or not: of the first edition
    self-dialogs.json and the lists of its official split, {train, dev, test}.csv; of
    the fourth, which has no official split, all data_NN.json.
    """
    if edition == "tm1":
        names = ["self-dialogs.json"]
        lists = {split: read_ids(folder, split) for split in SPLITS}
        split_of = {name: split for split in SPLITS for name in lists[split]}.get
    else:
        paths = *folder.glob("data_*.json"), *folder.glob("data_*.json.gz")
        names = sorted({path.name.removesuffix(".gz") for path in paths})
        names = names or ["data_01.json"]  # which is missing then
        split_of = hashed_split
    dialogues: dict[str | None, list[Any]] = {split: [] for split in (*SPLITS, None)}
    for name in names:
        for dialogue in read_dialogues(find(folder, name, ORIGIN)):
            # Some are in no list.
            dialogues[split_of(dialogue["conversation_id"])].append(dialogue)
    train, validation, test = (
        check_pairs(answers(dialogues[split]), f"{folder}, {split},")
        for split in SPLITS
    )
    tags = tuple(TAGS.values())
    return Corpus(train, validation, lambda: test, tags, keeps_end=True)


def answers(dialogues: Iterable[Any]) -> Pairs:
    """Returns the assistant's turns in dialogues, and what was said before each."""
    sources, targets = [], []
    for dialogue in dialogues:
        context = []
        for speaker, utterances in itertools.groupby(
            dialogue["utterances"], lambda utterance: utterance["speaker"].lower()
        ):
            words = " ".join(" ".join(u["text"] for u in utterances).split())
            if speaker == "assistant" and context and words:
                sources.append(" ".join(context))
                targets.append(words)
            context.append(f"{TAGS[speaker]} {words}")
    return Pairs(sources, targets)


def hashed_split(name: str) -> str:
    """Returns the split of a dialogue: a tenth each for validation and test."""
    place = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10
    return {8: "dev", 9: "test"}.get(place, "train")


def read_ids(folder: Path, split: str) -> list[str]:
    """Returns the ids of a split of the first edition, one a line, before a comma."""
    lines = read_text(find(folder, f"{split}.csv", ORIGIN)).split()
    return [line.split(",")[0] for line in lines]


def read_dialogues(path: Path) -> list[Any]:
    try:
        dialogues = json.loads(read_text(path))
        for dialogue in dialogues:
            dialogue["conversation_id"].encode()
            for utterance in dialogue["utterances"]:
                utterance["text"].encode()
                TAGS[utterance["speaker"].lower()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ExperimentError(
            f"{path} has no dialogues of Taskmaster: {type(error).__name__} {error}"
        ) from error
    return dialogues
