"""Runs of the transformers: from data to a summary, in small."""

import dataclasses
import json
import shutil
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from runs import assert_same_run, error_line, read_rows, read_summary

import sparse_optax
from experiments.__main__ import main
from experiments.forms import Form
from experiments.running.checkpoint import Checkpoints
from experiments.tasks.transformer_toy import CONFIG
from experiments.text import toy
from experiments.training import masks_at_init, text_loop
from experiments.training.phases import Phases
from experiments.training.text_problem import TextProblem

# Two rounds of a hundred updates an epoch: enough to get some words right.
TINY = (
    *("--num-train", "6400", "--batch-size", "32", "--interval", "100"),
    *("--dense-epochs", "2", "--epochs", "2", "--finetune-epochs", "1"),
    *("--checkpoint-every", "3", "--dropout", "0.05", "--features", "32"),
    *("--hidden", "32", "--heads", "2", "--learning-rate", "1e-3"),
    *("--warmup-steps", "20", "--bound", "0.15"),
)


def toy_run(out, *flags):
    return ["transformer-toy", "--out", str(out), *TINY, *flags]


def tiny(**changes):
    small = {"num_train": 640, "batch_size": 32, "interval": 10, "features": 16}
    small |= {"hidden": 16, "heads": 2, "dense_epochs": 2, "warmup_steps": 5}
    config = dataclasses.replace(CONFIG, **small)
    return dataclasses.replace(config, **changes)


def problem(**changes):
    config = tiny(**changes)
    return TextProblem(config, toy.load().reduced(config.num_train))


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """Keeps compiled programs: many of these runs consist of the same ones."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(
        names, (str(tmp_path_factory.mktemp("xla")), 0), strict=True
    ):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    main(toy_run(out))
    return out


def test_run_says_what_it_came_to(finished, capsys):
    summary = read_summary(finished)
    rows = read_rows(finished)
    assert [row["phase"] for row in rows] == ["dense"] * 4 + ["prune"] * 4 + [
        "finetune"
    ] * 2
    assert [row["step"] for row in rows] == [100 * n for n in range(1, 11)]
    assert summary["metric"] == "exact_match" and summary["sparsity"] > 0.2
    for name in ("dense_test", "test", "dense_validation", "validation"):
        assert 0 <= summary[f"{name}_exact_match"] <= 1
    texts = toy.load().read_test().sources[:20]
    assert [text["source"] for text in summary["texts"]] == texts
    for text in summary["texts"]:
        assert text["reference"] == text["source"][::-1]
        assert text.keys() == {"source", "reference", "dense", "sparse"}
    network = sparse_optax.load_sparse(finished / "network.safetensors")
    kept = sum(int(jnp.count_nonzero(w)) for w in jax.tree.leaves(network))
    assert kept == summary["kept"]
    embedding = summary["layers"]["embedding/embedding"]
    shares = summary["sparsity_by_frequency"]
    np.testing.assert_allclose(
        np.average(shares, weights=[4, 4, 4, 3]),
        1 - embedding["kept"] / embedding["size"],
    )
    for name in ("exact_match", "kinds", "course", "magnitudes"):
        assert (finished / f"{name}.png").stat().st_size > 5_000
    main(toy_run(finished))
    printed = capsys.readouterr().out
    assert "finished" in printed and "exact match" in printed
    for text in summary["texts"]:
        assert text["source"] in printed
    assert "decoder attention" in printed and "encoder position" in printed
    assert f"Batches had {len(summary['shapes'])} shapes" in printed
    assert "to the rarest: " + ", ".join(f"{100 * x:.2f} %" for x in shares) in printed


@pytest.mark.parametrize("last", [3, 4, 6, 9])
def test_run_goes_on_with_the_same_bits(finished, tmp_path, last, monkeypatch):
    """From a checkpoint in each phase, or at the end of the dense training.

    With dropout, and a vocabulary learnt again.
    """
    out = tmp_path / "run"
    save = Checkpoints.save

    def die(self, count, *args):
        save(self, count, *args)
        if count == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", die)
    monkeypatch.setattr("os._exit", sys.exit)
    with pytest.raises(SystemExit):
        main(toy_run(out))
    monkeypatch.setattr(Checkpoints, "save", save)
    assert not (out / "summary.json").exists()
    main(toy_run(out))
    assert_same_run(out, finished)
    name = "vocabulary.model"
    assert (out / name).read_bytes() == (finished / name).read_bytes()


def test_run_from_a_dense_network_is_the_run_that_trains_it(finished, tmp_path):
    flags = "--regularizer", "l2", "--adjust-dropout"
    main(toy_run(tmp_path / "l2", *flags))
    main(toy_run(tmp_path / "taken", *flags, "--dense-from", str(finished)))
    assert_same_run(tmp_path / "l2", tmp_path / "taken")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "1"], "its dense training was another (seed 0 there, 1 here)"),
        (["--dropout", "0.2"], "its dense training was another (dropout 0.05 there"),
    ],
)
def test_dense_network_of_another_run(finished, tmp_path, capsys, flags, message):
    out = tmp_path / "run"
    line = error_line(capsys, toy_run(out, *flags, "--dense-from", str(finished)))
    assert message in line and not out.exists()


def test_dense_network_that_cannot_be_taken(finished, tmp_path, capsys):
    def error(folder):
        flags = ("--dense-from", str(folder))
        return error_line(capsys, toy_run(tmp_path / "run", *flags))

    assert "no run whose dense training is finished" in error(tmp_path / "none")
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    file = copy / "dense.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert f"--dense-from {copy}: " in error(copy) and "safetensors" in error(copy)
    (copy / "metrics.jsonl").write_text("{}\n" * 10)
    assert "its metrics are damaged" in error(copy)
    shutil.rmtree(copy / "checkpoints")
    assert "it has no sound checkpoint" in error(copy)


def test_run_on_other_texts_is_refused(finished, tmp_path, capsys, monkeypatch):
    """The same settings, but what they name has changed in the meantime."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "summary.json").unlink()
    monkeypatch.setattr(toy, "LETTERS", "abcdefghik")
    line = error_line(capsys, toy_run(copy))
    assert "holds a run on other texts" in line
    name = "vocabulary.model"
    assert (copy / name).read_bytes() == (finished / name).read_bytes()


def test_mistakes_are_told_in_one_line(tmp_path, capsys):
    def error(*flags):
        return error_line(capsys, toy_run(tmp_path / "run", *flags))

    for flags, message in (
        (
            ("--vocabulary-size", "9"),
            "--vocabulary-size 9 does not suit these texts: Vocabulary size",
        ),
        (
            ("--vocabulary-size", "99999"),
            "--vocabulary-size 99999 does not suit these texts: Vocabulary size",
        ),
        (("--heads", "3"), "--heads must be a divisor of 32; got 3"),
        (("--batch-size", "6401"), "--batch-size must be 6400 or less"),
        (("--accumulation", "201"), "--accumulation must be 200 or less"),
        (("--max-source", "3"), "no training pair has --max-source 3 and"),
        (("--warmup-steps", "400"), "--warmup-steps must be less than 400"),
        (("--num-layers", "100"), "--num-layers must be below 100"),
        (("--dropout", "1"), "--dropout must be in [0, 1)"),
        (("--dropout", "0", "--adjust-dropout"), "--adjust-dropout plays no part with"),
        (("--beam", "0"), "--beam must be 1 or more"),
        (("--bound", "1.5"), "--bound must be in [0, 1)"),
        (("--measure", "per-example"), "--measure per-example is for images only"),
        (("--num-train", "20001"), "--num-train must be 20000 or less"),
    ):
        assert message in error(*flags), flags
    for task in ("multi30k", "taskmaster"):
        line = error_line(capsys, [f"transformer-{task}", "--data-dir", str(tmp_path)])
        assert f"in {tmp_path / task}" in line and "https://github.com/" in line
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------ the loop


def test_accumulated_gradients_make_the_update_of_one_large_batch():
    """And a link that wants |g| is told that of the mean."""
    grads = [{"w": jnp.asarray(g)} for g in ([3.0, -1.0], [-1.0, 1.0], [1.0, -3.0])]
    mean = jax.tree.map(lambda *g: sum(g) / 3, *grads)
    params = {"w": jnp.asarray([1.0, 2.0])}

    def update_fn(updates, state, params=None, *, abs_grads, **extra_args):
        return jax.tree.map(lambda g, a: -g - a, updates, abs_grads), state

    link = optax.GradientTransformationExtraArgs(lambda _: (), update_fn)
    one, three = (text_loop.accumulated(link, number) for number in (1, 3))
    expected, _ = one.update(mean, one.init(params), params)
    state = three.init(params)
    for index, g in enumerate(grads):
        updates, state = three.update(g, state, params)
        if index < 2:
            assert not updates["w"].any()
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-6)


def test_run_with_accumulation_prunes_between_updates(tmp_path):
    """On a schedule to exactly its target; and it goes on with the same bits."""
    flags = "--accumulation", "2", "--regularizer", "l1", "--prune", "gradual"
    flags = (*flags, "--target-sparsity", "0.6", "--bound", str(CONFIG.bound))
    main(toy_run(tmp_path / "whole", *flags))
    rows, summary = read_rows(tmp_path / "whole"), read_summary(tmp_path / "whole")
    assert [row["step"] for row in rows] == [100 * n for n in range(1, len(rows) + 1)]
    total = summary["total"]
    assert summary["kept"] == total - round(0.6 * total)
    stopped = tmp_path / "stopped"
    shutil.copytree(tmp_path / "whole", stopped)
    (stopped / "summary.json").unlink()
    last = max((stopped / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(last)
    main(toy_run(stopped, *flags))
    assert_same_run(stopped, tmp_path / "whole")


def test_bound_that_allows_everything_is_told(finished, tmp_path, capsys):
    flags = "--dense-from", str(finished), "--epochs", "1", "--finetune-epochs", "0"
    main(toy_run(tmp_path / "run", *flags, "--bound", "0.99"))
    printed = " ".join(capsys.readouterr().out.split())
    assert "warning: --bound 0.99 is more than the dense network's" in printed


def test_export_makes_the_same_file_again(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "network.safetensors").unlink()
    main(["export", str(copy)])
    name = "network.safetensors"
    assert (copy / name).read_bytes() == (finished / name).read_bytes()


def test_tokens_of_both_sides_count_where_they_have_one_vocabulary():
    pairs = toy.load().reduced(640).train
    # A token for each letter and one before the first; what is written has both ends.
    sources, targets = (sum(len(text) + 1 for text in side) for side in pairs)
    assert problem().counts.sum() == sources + targets + 2 * 640
    apart = problem(joint_vocabulary=False)
    assert apart.counts.sum() == targets + 2 * 640


def test_relevance_is_told_in_the_unit_of_its_form():
    """A scale of 0.3 is above all gradients here, but below many in a tensor's unit."""
    told = {}
    for unit in ("absolute", "leaf"):
        made = problem(form=Form(unit=unit), scale=0.3)
        phases = Phases(made.config, made)
        pruning = phases.start_pruning(phases.start_dense())
        told[unit] = float(phases.train_sparse(pruning.current).progress.relevant)
    assert told["absolute"] < 0.01 < 0.1 < told["leaf"]


def test_snip_spares_norms_and_scores_by_gradient_times_weight():
    made = problem(dropout=0.3)
    scores = made.saliency(made.variables)
    params = made.variables.params
    sample = made.batches.sample(masks_at_init.FOLD)
    assert (sample.source.shape[1], sample.target.shape[1]) == made.batches.shapes[-1]
    assert len(set(np.count_nonzero(sample.source, axis=1))) > 3  # not of like length
    other = problem(seed=1).batches.sample(masks_at_init.FOLD)
    assert not np.array_equal(sample.source, other.source)
    grads = jax.grad(made.network.loss)(params, sample)  # no dropout
    for (path, score), g, w in zip(
        jax.tree.leaves_with_path(scores),
        *map(jax.tree.leaves, (grads, params)),
        strict=True,
    ):
        if "norm" in jax.tree_util.keystr(path):
            assert np.isinf(score).all()
        else:
            np.testing.assert_allclose(score, np.abs(g * w), rtol=1e-4, atol=1e-8)


def test_a_round_leaves_the_state_that_it_was_given():
    made = problem()
    phases = Phases(made.config, made)
    start = phases.start_dense()
    before = jax.tree.map(np.array, start)
    once = phases.train_dense(start)
    for a, b in zip(*map(jax.tree.leaves, (before, start)), strict=True):
        np.testing.assert_array_equal(a, b)
    again = phases.train_dense(start)
    for a, b in zip(*map(jax.tree.leaves, (once, again)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(once.step) == 10


def test_gradients_are_compiled_for_each_shape_once():
    """Whatever phase: the number of compilations is that of the shapes."""
    made = problem(max_target=12, dropout=0.1, adjust_dropout=True)
    phases = Phases(made.config, made)
    state = phases.train_dense(phases.start_dense())
    pruning = phases.start_pruning(state)
    trained = phases.train_sparse(pruning.current)
    phases.finetune(phases.drop(trained, trained.params, 0.5))
    assert made._gradients._cache_size() == len(made.batches.shapes) == 2


def test_dropout_falls_with_the_square_root_of_the_share_of_weights_kept():
    """If that is asked for; and the gradients of a round are those of its rate."""
    made = problem(dropout=0.4, adjust_dropout=True)
    phases = Phases(made.config, made)
    dense = phases.start_dense()
    start = phases.start_pruning(dense).current
    assert not all(w.all() for w in jax.tree.leaves(start.params))
    for whole in (dense, start):  # whose zeros are not pruned
        assert made.dropout(whole.opt_state) == jnp.float32(0.4)
    pruned = phases.drop(start, start.params, 0.75)
    half = float(made.dropout(pruned.opt_state))
    assert half == pytest.approx(0.2, rel=1e-3)
    assert problem(dropout=0.4).dropout(pruned.opt_state) == jnp.float32(0.4)
    assert problem(adjust_dropout=True).dropout(pruned.opt_state) is None

    rates = []

    def gradients(params, batch, number, rate):
        rates.append(float(rate))
        return jnp.float32(0), jax.tree.map(jnp.zeros_like, params)

    made._gradients = gradients
    Phases(made.config, made).train_sparse(pruned)
    assert rates == [half] * (made.config.interval + 1)


def test_every_device_learns_from_a_part_of_the_batch():
    """The gradients are those of one device but for the rounding of sums."""
    alone, together = (problem(data_parallel=flag) for flag in (False, True))
    assert (alone.devices.number, together.devices.number) == (1, 8)
    variables = alone.variables
    copies = together.devices.replicate(variables)
    batch, step = alone.batches.at(0), jnp.int32(0)
    loss, grads = alone._gradients(variables.params, batch, step, None)
    same_loss, same_grads = together._gradients(copies.params, batch, step, None)
    np.testing.assert_allclose(loss, same_loss, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (grads, same_grads)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    lowered = together._gradients.lower(copies.params, batch, step, None)
    program = lowered.compile().as_text()
    assert "all-reduce" in program and "s32[4," in program  # 32 pairs on 8 devices
    texts = alone.corpus.validation.sources[:50]
    for beam in (1, 3):
        written = alone.write(variables, texts, beam)
        assert written == together.write(copies, texts, beam)


def test_networks_of_two_vocabularies_write(tmp_path):
    out = tmp_path / "run"
    main(toy_run(out, "--no-joint-vocabulary", "--validation-beam", "2"))
    assert "source_embedding/embedding" in read_summary(out)["layers"]
    files = {path.name for path in out.glob("*.model")}
    assert files == {"source-vocabulary.model", "target-vocabulary.model"}


def test_texts_are_written_by_the_search_that_is_asked_for(monkeypatch):
    made = problem(validation_beam=2, beam=3, length_penalty=0.7)
    asked = []

    def beam_search(params, source, length, *, beam, length_penalty):
        del params
        asked.append((beam, length_penalty))
        return jnp.full((len(source), length), 2)

    made.network = SimpleNamespace(beam_search=beam_search)
    made.write(made.variables, ["ab"], beam=2)
    assert asked == [(2, 0.7)]

    written = []

    def write(self, variables, texts, beam):
        written.append((texts, beam))
        return texts

    monkeypatch.setattr(TextProblem, "write", write)
    validation, test = made.corpus.validation.sources, made.corpus.read_test().sources
    made.metric(made.variables)
    assert written == [(validation, 2)]
    written.clear()
    made.test(made.variables, made.variables)
    assert written == [(test, 3)] * 2 + [(validation, 2)] * 2


def test_network_learns_by_its_settings():
    """Labels are smoothed as much as is asked for; dropout is new in each update."""
    made = problem(dropout=0.3, label_smoothing=0.2)
    assert made.network.label_smoothing == 0.2
    batch, rate = made.batches.at(0), jnp.float32(0.3)
    losses = [
        float(made._gradients(made.variables.params, batch, jnp.int32(step), rate)[0])
        for step in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("keeps_end", [False, True])
def test_what_is_too_long_is_cut_where_it_matters_least(keeps_end):
    """Of texts the end, of dialogues the beginning."""
    corpus = toy.load().reduced(640)._replace(keeps_end=keeps_end)
    made = TextProblem(tiny(), corpus)
    read = []

    def record(params, source, beam):
        del params, beam
        read.append(source)
        return np.full((len(source), made.longest_text), 2)

    made.__dict__["_written"] = record
    text = "abcdefghij" * 3
    assert made.write(made.variables, [text, "ab"], beam=1) == ["", ""]
    (source,) = read  # of one batch, shortest first
    encoded = made.vocabularies.source.encode([text])[0]
    length = made.longest_source
    assert len(encoded) > length
    kept = encoded[-length:] if keeps_end else encoded[:length]
    np.testing.assert_array_equal(source[1], kept)
    # What it learns from is cut as well, or left out.
    few = TextProblem(tiny(max_source=5, batch_size=8), corpus)
    sources, _ = few.training_pairs(corpus)
    assert max(map(len, sources)) == 5
    assert (len(sources) == 640) == keeps_end


def test_wmt14_from_start_to_end_on_other_texts(tmp_path):
    """With all of its own settings but for sizes, on all devices."""
    folder = tmp_path / "wmt14"
    folder.mkdir()
    corpus = toy.load().reduced(320)
    for split, pairs in (
        ("train", corpus.train),
        ("val", corpus.validation),
        ("test", corpus.read_test()),
    ):
        for language, texts in zip(("en", "de"), pairs, strict=True):
            text = "\n".join(texts[:320]) + "\n"
            (folder / f"{split}.{language}").write_text(text)
    out = tmp_path / "run"
    sizes = ("--features", "16", "--hidden", "16", "--heads", "2", "--num-layers", "1")
    main(
        [
            *("transformer-wmt14", "--data-dir", str(tmp_path), "--out", str(out)),
            *(
                *sizes,
                "--vocabulary-size",
                "15",
                "--batch-size",
                "16",
                "--interval",
                "3",
            ),
            *("--dense-epochs", "1", "--epochs", "1", "--finetune-epochs", "1"),
            *("--warmup-steps", "2", "--prune", "gradual", "--target-sparsity", "0.5"),
        ]
    )
    summary = json.loads((out / "summary.json").read_text())
    assert summary["devices"] == 8 and summary["accumulation"] == 3
    assert summary["metric"] == "bleu" and "tok:13a" in summary["signature"]
    assert summary["kept"] == summary["total"] - round(0.5 * summary["total"])


def test_missing_wmt14(tmp_path, capsys):
    line = error_line(capsys, ["transformer-wmt14", "--data-dir", str(tmp_path)])
    assert "no data set wmt14_translate/de-en in" in line


def test_toy_is_pruned_to_four_fifths_without_a_mistake_in_a_hundred(tmp_path):
    """With the defaults, which are for two or three minutes."""
    main(["transformer-toy", "--out", str(tmp_path / "run")])
    summary = read_summary(tmp_path / "run")
    assert summary["sparsity"] >= 0.8 and summary["test_exact_match"] >= 0.99
