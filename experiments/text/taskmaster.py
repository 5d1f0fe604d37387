"""Taskmaster: dialogues of people ordering things, each turn of the assistant to write.

The source of an answer is the whole dialogue before it, every turn behind a tag that
says whose it is. Utterances of one speaker in a row are one turn.

Source: Byrne et al., `Taskmaster-1: Toward a Realistic and Diverse Dialog Dataset
<https://arxiv.org/abs/1909.05358>`_, 2019, and later releases of the same repository.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.config import ExperimentError
from experiments.text.corpus import Corpus, Pairs, check_pairs
from experiments.text.files import find, read_text

TAGS = {"user": "<user>", "assistant": "<agent>"}
ORIGIN = "it is in https://github.com/google-research-datasets/Taskmaster."
SPLITS = "train", "dev", "test"


def load(folder: Path, edition: str) -> Corpus:
    """Returns the answers in an edition of Taskmaster.

    Args:
      folder: where its official JSON files are, gzipped or not. Of the first edition
        these are self-dialogs.json and the lists of its official split, {train, dev,
        test}.csv; of the fourth all data_NN.json.
      edition: "tm1" or "tm4". The latter has no official split: which split a dialogue
        is in depends on the SHA-1 of its id.

    Raises:
      ExperimentError: files are missing or damaged.
    """
    if edition == "tm1":
        paths = [find(folder, "self-dialogs.json", ORIGIN)]
        lists = {split: read_ids(folder, split) for split in SPLITS}
        split_of = {name: split for split in SPLITS for name in lists[split]}
    else:
        names = {path.name.removesuffix(".gz") for path in folder.glob("data_*.json*")}
        names = sorted(name for name in names if name.endswith(".json"))
        if not names:
            raise ExperimentError(f"no data_*.json in {folder}; {ORIGIN}")
        paths = [find(folder, name, ORIGIN) for name in names]
        split_of = None
    dialogues: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for path in paths:
        for dialogue in read_dialogues(path):
            name = dialogue["conversation_id"]
            split = hashed_split(name) if split_of is None else split_of.get(name)
            if split is not None:  # some are in no list
                dialogues[split].append(dialogue)
    pairs = {
        split: check_pairs(answers(dialogues[split]), f"{folder}, {split},")
        for split in SPLITS
    }
    return Corpus(
        train=pairs["train"],
        validation=pairs["dev"],
        read_test=lambda: pairs["test"],
        tags=tuple(TAGS.values()),
        keeps_end=True,
    )


def answers(dialogues: Iterable[Any]) -> Pairs:
    """Returns what assistants say, and what was said before.

    Args:
      dialogues: as `read_dialogues` returns them.
    """
    sources, targets = [], []
    for dialogue in dialogues:
        context = []
        for speaker, utterances in itertools.groupby(
            dialogue["utterances"], lambda utterance: utterance["speaker"].lower()
        ):
            words = " ".join(
                word for utterance in utterances for word in utterance["text"].split()
            )
            if speaker == "assistant" and context and words:
                sources.append(" ".join(context))
                targets.append(words)
            context.append(f"{TAGS[speaker]} {words}")
    return Pairs(sources, targets)


def hashed_split(name: str) -> str:
    """Returns the split of a dialogue: a tenth each to validate and to test."""
    place = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10
    return {8: "dev", 9: "test"}.get(place, "train")


def read_ids(folder: Path, split: str) -> list[str]:
    """Returns the ids of a split of the first edition, one a line, before a comma.

    Raises:
      ExperimentError: its file is missing or damaged.
    """
    lines = read_text(find(folder, f"{split}.csv", ORIGIN)).split()
    return [line.split(",")[0] for line in lines]


def read_dialogues(path: Path) -> list[Any]:
    """Returns the dialogues in a file of the official JSON.

    Raises:
      ExperimentError: it is damaged, or has something else.
    """
    try:
        dialogues = json.loads(read_text(path))
        for dialogue in dialogues:
            dialogue["conversation_id"].encode()
            for utterance in dialogue["utterances"]:
                utterance["text"].encode()
                TAGS[utterance["speaker"].lower()]
    except (
        *(ValueError, KeyError, TypeError, AttributeError),
        RecursionError,
    ) as error:
        raise ExperimentError(
            f"{path} holds no dialogues of Taskmaster: {type(error).__name__} {error}"
        ) from error
    return dialogues
