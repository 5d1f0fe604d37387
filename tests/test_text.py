"""Corpora, encodings, batches and scores."""

import dataclasses
import gzip
import json
import sys

import jax
import numpy as np
import pytest
import sacrebleu
import tensorflow_datasets as tfds
from short_runs import folder_of

from experiments.data import corpora, parallel, taskmaster, toy, wmt14
from experiments.data.batches import (
    LENGTHS,
    Batches,
    Sequences,
    merged,
    reading_batches,
)
from experiments.data.corpus import Pairs
from experiments.data.scores import score
from experiments.data.tokenizer import learn
from experiments.metrics import BLEU, EXACT_MATCH
from experiments.settings import ExperimentError
from experiments.tasks import transformer_multi30k, transformer_taskmaster
from experiments.training.text_problem import sparsity_by_frequency

pytestmark = pytest.mark.quickly_compiled

TEXTS = [
    "A man in a blue shirt.",
    "Ein Mann im blauen Hemd, natürlich!",
    "Two men are in the blue house.",
] * 5


def splits_of(corpus):
    return corpus.train, corpus.validation, corpus.read_test()


def sizes(corpus):
    return [len(split.sources) for split in splits_of(corpus)]


def test_toy_words_are_in_one_split_and_reversed():
    corpus = toy.load()
    assert sizes(corpus) == [20_000, 1_000, 1_000]
    words = [word for split in splits_of(corpus) for word in split.sources]
    assert len(set(words)) == 22_000
    few = corpus.reduced(100)
    assert len(few.train.sources) == 100 and few.validation == corpus.validation
    for sources, targets in (*splits_of(corpus), few.train):
        assert all(a == b[::-1] for a, b in zip(sources, targets, strict=True))
    assert corpus == toy.load()._replace(read_test=corpus.read_test)
    assert few.train == corpus.reduced(100).train
    with pytest.raises(ExperimentError, match="--num-train must be 20000 or less"):
        corpus.reduced(20_001)


def write_lines(folder, name, lines):
    content = "".join(f"{line}\n" for line in lines).encode()
    folder.mkdir(exist_ok=True)
    if name.endswith(".gz"):
        content = gzip.compress(content)
    (folder / name).write_bytes(content)


def parallel_files(folder):
    for split, ending in (("train", ""), ("val", ".gz"), ("test", "")):
        write_lines(folder, f"{split}.en{ending}", [f"one {split}", "two"])
        write_lines(folder, f"{split}.de", [f"eins {split}", "zweiß"])


def test_parallel_files_are_read_line_by_line(tmp_path):
    parallel_files(tmp_path)
    corpus = parallel.load(tmp_path, ("train", "val", "test"), "x")
    assert corpus.train == Pairs(["one train", "two"], ["eins train", "zweiß"])
    assert corpus.validation == Pairs(["one val", "two"], ["eins val", "zweiß"])
    assert corpus.read_test().sources == ["one test", "two"]


def test_parallel_files_that_do_not_match_are_named(tmp_path):
    parallel_files(tmp_path)

    def error():
        with pytest.raises(ExperimentError) as info:
            parallel.load(tmp_path, ("train", "val", "test"), "they are at home.")
        assert "\n" not in str(info.value)
        return str(info.value)

    broken = bytearray(gzip.compress(b"eins\nzwei\n"))
    broken[14] ^= 0xFF
    for name, content, message in (
        ("val.de", b"\n \n", "contains no texts."),
        ("val.de", b"eins\n", "has 2 sources, but 1 targets"),
        ("val.de", b"\xff\xff\n\n", f"cannot read {tmp_path / 'val.de'}"),
        ("val.de.gz", gzip.compress(b"eins\nzwei\n")[:-9], "cannot read"),
        ("val.de.gz", broken, f"cannot read {tmp_path / 'val.de.gz'}"),
    ):
        (tmp_path / "val.de").unlink(missing_ok=True)
        (tmp_path / name).write_bytes(content)
        assert message in error(), content
    (tmp_path / "val.de.gz").unlink()
    assert error() == f"no val.de or val.de.gz in {tmp_path}; they are at home."
    write_lines(tmp_path, "val.de", ["eins", "zwei"])
    (tmp_path / "test.en").unlink()  # noticed now, and not when training is over
    assert "no test.en" in error()


DIALOGUE = [
    {"speaker": speaker, "text": text}
    for speaker, text in (
        *(("USER", "Hi,\n a latte "), ("USER", "please."), ("ASSISTANT", "Okay.")),
        *(("ASSISTANT", "Anything else?"), ("USER", "No"), ("ASSISTANT", "Goodbye.")),
    )
]


def test_answers_follow_the_whole_dialogue_before_them():
    (first, second), answers = taskmaster.answers([{"utterances": DIALOGUE}])
    assert first == "<user> Hi, a latte please."
    assert second == (
        "<user> Hi, a latte please. <agent> Okay. Anything else? <user> No"
    )
    assert answers == ["Okay. Anything else?", "Goodbye."]


def test_editions_of_taskmaster_are_split(tmp_path):
    names = [f"dlg-{number}" for number in range(60)]
    dialogues = [{"conversation_id": name, "utterances": DIALOGUE} for name in names]
    write_lines(tmp_path / "tm1", "self-dialogs.json", [json.dumps(dialogues)])
    for split, part in (("train", names[:6]), ("dev", names[6:8]), ("test", names[9:])):
        write_lines(tmp_path / "tm1", f"{split}.csv", [f"{name}," for name in part])
    first = taskmaster.load(tmp_path / "tm1", "tm1")
    assert sizes(first) == [12, 4, 102]
    assert first.tags == ("<user>", "<agent>") and first.keeps_end

    for number, part in enumerate((dialogues[:30], dialogues[30:])):
        write_lines(tmp_path / "tm4", f"data_0{number}.json.gz", [json.dumps(part)])
    fourth = taskmaster.load(tmp_path / "tm4", "tm4")
    assert sum(sizes(fourth)) == 120 and sizes(fourth)[0] > 80
    # Dialogues stay in their split: a later version would train on test data.
    found = [taskmaster.hashed_split(name) for name in names]
    assert [place for place in range(14) if found[place] == "test"] == [5, 8, 9]
    assert found.index("dev") == 40


def test_files_without_dialogues_are_named(tmp_path):
    for content in (
        *("{", "[3]", '[{"conversation_id": "a"}]', '{"a": 1}', "[" * 99_999),
        '[{"conversation_id": "a", "utterances": [{"text": "\\ud83d"}]}]',
    ):
        (tmp_path / "data_00.json").write_text(content)
        with pytest.raises(ExperimentError, match=r"data_00\.json has no dialogues"):
            taskmaster.load(tmp_path, "tm4")
    (tmp_path / "data_00.json").unlink()
    for edition in ("tm4", "tm1"):
        with pytest.raises(ExperimentError, match=r"no \S+\.\S+ .*in .*github"):
            taskmaster.load(tmp_path, edition)


def test_wmt14_of_tfds_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda self: True)
    with tfds.testing.mock_data(num_examples=5):
        corpus = wmt14.load(None, tmp_path / "wmt14")
        splits = splits_of(corpus)
    for split in splits:
        assert [len(texts) for texts in split] == [5, 5]
        assert all(isinstance(text, str) for texts in split for text in texts)
    assert splits[0].sources != splits[0].targets
    assert "tensorflow" not in sys.modules


def test_encoding_gives_texts_back():
    learnt = learn(TEXTS, 60, ["<user>"])
    assert learnt.size == 60
    encoded = learnt.encode([*TEXTS, "<user> A man"])
    assert all(len(x) < len(text) for x, text in zip(encoded, TEXTS, strict=False))
    assert all(row.min() > 2 and row.max() < 60 for row in encoded)
    assert len(learnt.encode(["<user>"])[0]) == 2  # the space before it, and the tag
    rows = [np.append(row, [2, 2, 7, 0]) for row in encoded]
    assert learnt.decode(rows) == [*TEXTS, "<user> A man"]
    assert learnt.decode(encoded) == [*TEXTS, "<user> A man"]
    # Of what was never seen there is no piece, and nothing is made up.
    assert learnt.decode(learnt.encode(["A 漢 man"])) in (["A  man"], ["A man"])
    # It is learnt from long texts, too.
    learnt = learn([*TEXTS, "A man is " * 500 + "漢字"], 60, [])
    assert learnt.decode(learnt.encode(["漢字"])) == ["漢字"]


def test_vocabularies_of_impossible_sizes_are_refused():
    for size in (10, 5_000):
        message = f"^--vocabulary-size {size} does not suit.*$"
        with pytest.raises(ExperimentError, match=message):
            learn(TEXTS, size, [])


def sequences(number, longest, seed=0):
    """Returns sequences that are mostly short, and a few as long as possible."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(0.1, number), longest)
    return [rng.integers(3, 99, length).astype(np.int32) for length in lengths]


def pairs_of(batch):
    for source, target in zip(*map(np.asarray, batch), strict=True):
        yield tuple(source[source != 0]), tuple(target[target != 0])


def test_an_epoch_has_every_pair_once_except_a_remainder():
    sources, targets = sequences(205, 70), sequences(205, 30, seed=1)
    sides = Sequences.of(sources), Sequences.of(targets)
    made, again, other = (Batches(*sides, 16, seed) for seed in (0, 0, 1))
    assert made.per_epoch == 12
    everything = set(zip(*(map(tuple, x) for x in (sources, targets)), strict=True))
    left_out = []
    for epoch in range(3):
        seen = [pair for i in range(12) for pair in pairs_of(made.at(12 * epoch + i))]
        assert len(seen) == len(set(seen)) == 192 and set(seen) <= everything
        left_out.append(everything - set(seen))
    assert left_out[0] != left_out[1] != left_out[2]
    # A batch depends on the seed and its step alone.
    for step in (30, 12, 11, 0):
        jax.tree.map(np.testing.assert_array_equal, made.at(step), again.at(step))
    assert not np.array_equal(made.at(0).source, other.at(0).source)


def test_batches_have_the_announced_shapes_and_no_others():
    sources, targets = sequences(2_000, 90), sequences(2_000, 90, seed=1)
    made = Batches(Sequences.of(sources), Sequences.of(targets), 64, seed=0)
    longest = max(map(len, sources)), max(map(len, targets))
    assert tuple(made.shapes[-1]) == longest and 3 <= len(made.shapes) <= 8
    assert made.shapes == sorted(made.shapes)
    seen = {
        tuple(side.shape[1] for side in made.at(step))
        for step in range(20 * made.per_epoch)
    }
    assert seen == set(map(tuple, made.shapes))


def test_buckets_of_few_pairs_are_merged():
    numbers = np.array([0] * 10 + [1] * 2 + [3] * 9 + [5] * 3)
    assert merged(numbers, 8).tolist() == [0] * 10 + [1] * 14
    assert merged(numbers, 99).tolist() == [0] * 24
    assert merged(numbers, 1).tolist() == [0] * 10 + [1] * 2 + [2] * 9 + [3] * 3


def test_texts_to_read_are_each_in_a_batch():
    rows = sequences(103, 50)
    seen = {}
    for index, tokens in reading_batches(Sequences.of(rows), 16):
        assert tokens.shape[0] == 16 and tokens.shape[1] in {*LENGTHS.tolist(), 50}
        for place, row in zip(index.tolist(), tokens, strict=True):
            seen[place] = row[row != 0]
    assert seen.keys() == set(range(103))
    for place, row in seen.items():
        np.testing.assert_array_equal(row, rows[place])


def test_sparsity_of_embeddings_by_frequency_of_tokens():
    # Of six tokens the first two quarters have two, and the others one each.
    embedding = np.array([[0, 1], [1, 1], [1, 0], [0, 0], [0, 0], [2, 0]])
    counts = np.array([1, 1, 3, 0, 2, 0])
    assert sparsity_by_frequency(embedding, counts) == [0.75, 0.25, 1.0, 0.5]


def test_scores_by_sacrebleu_and_by_hand():
    references = ["The cat sat on the mat.", "A dog (brown) runs fast, very fast!"]
    written = ["The cat sat on a mat.", "A dog (brown) runs very fast!"]
    value, signature = score(BLEU, written, references)
    assert 10 < value < 90
    assert value == sacrebleu.corpus_bleu(written, [references]).score
    for part in ("case:mixed", "tok:13a", "smooth:exp", "nrefs:1"):
        assert part in signature
    lower, _ = score(BLEU, [text.lower() for text in written], references)
    assert lower < value
    assert score(EXACT_MATCH, ["a", "b", "c"], ["a", "b", "d"])[0] == 2 / 3


@pytest.mark.slow
def test_real_corpora():
    data = folder_of("SPARSE_OPTAX_TEXT_DIR")
    for task, numbers in (
        (transformer_multi30k, [29_000, 1_014, 1_000]),
        (transformer_taskmaster, [5_539, 677, 704]),
    ):
        config = dataclasses.replace(task.CONFIG, data_dir=data)
        corpus = corpora.load(config)
        assert sizes(corpus) == numbers
        texts = [*corpus.train.sources, *corpus.train.targets]
        learnt = learn(texts, config.vocabulary_size, corpus.tags)
        texts = corpus.validation.targets
        written = learnt.decode(learnt.encode(texts))
        assert [x.split() for x in written] == [x.split() for x in texts]
