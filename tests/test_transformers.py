"""Runs of the transformers: from data to a summary, in small."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from short_runs import (
    assert_same_run,
    draw_run,
    error_line,
    quickly,  # noqa: F401
    read_rows,
    read_summary,
    stop,
    toy,
)

import sparse_optax
from experiments.__main__ import main
from experiments.data import toy as toy_data
from experiments.running import figures
from experiments.tasks.transformer_toy import CONFIG
from experiments.training import text_loop
from experiments.training.phases import Phases
from experiments.training.text_problem import TextProblem

pytestmark = pytest.mark.quickly_compiled


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_run", draw_run)
        main(toy(out))
    return out


def problem(keeps_end=False, **changes):
    small = {"num_train": 640, "batch_size": 32, "interval": 10, "features": 16}
    small |= {"hidden": 16, "heads": 2, "dense_epochs": 2, "warmup_steps": 5}
    config = dataclasses.replace(CONFIG, **(small | changes))
    corpus = toy_data.load().reduced(config.num_train)
    return TextProblem(config, corpus._replace(keeps_end=keeps_end))


# ------------------------------------------------------------------------ whole runs


def test_a_run_leaves_summary_texts_and_files(finished, capsys):
    summary, rows = read_summary(finished), read_rows(finished)
    assert [row["phase"] for row in rows] == ["dense"] * 4 + ["prune"] * 4 + [
        "finetune"
    ] * 2
    assert [row["step"] for row in rows[:8]] == [10 * n for n in range(1, 9)]
    assert summary["metric"] == "exact_match" and summary["sparsity"] > 0.2
    for name in ("dense_test", "test", "dense_validation", "validation"):
        assert 0 <= summary[f"{name}_exact_match"] <= 1
    assert len(summary["texts"]) == 20
    for text in summary["texts"]:
        assert text["reference"] == text["source"][::-1]
        assert text.keys() == {"source", "reference", "dense", "sparse"}
    network = sparse_optax.load_sparse(finished / "network.safetensors")
    kept = sum(int(jnp.count_nonzero(w)) for w in jax.tree.leaves(network))
    assert kept == summary["kept"]
    embedding = summary["layers"]["embedding/embedding"]
    shares = np.average(summary["sparsity_by_frequency"], weights=[4, 4, 4, 3])
    np.testing.assert_allclose(shares, 1 - embedding["kept"] / embedding["size"])
    for name in ("run.png", "vocabulary.model"):
        assert (finished / name).stat().st_size > 0
    main(toy(finished))
    shown = capsys.readouterr().out
    assert "finished" in shown and "exact match" in shown
    assert "decoder attention" in shown and "encoder position" in shown


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(finished, tmp_path):
    """With dropout, and a vocabulary that is learnt again."""
    out = tmp_path / "run"
    stop(toy(out), 7)
    main(toy(out))
    assert_same_run(out, finished)
    name = "vocabulary.model"
    assert (out / name).read_bytes() == (finished / name).read_bytes()


def test_a_network_is_written_again_and_pruned_further(finished, tmp_path):
    name = "network.safetensors"
    copy = shutil.copytree(finished, tmp_path / "copy")
    main(["export", str(copy)])
    assert (copy / name).read_bytes() == (finished / name).read_bytes()
    shutil.rmtree(copy / "checkpoints")  # the sparse file is enough
    more = "--dense-from", str(finished), "--pruned-from", str(copy)
    main(toy(tmp_path / "more", *more))
    start = read_summary(tmp_path / "more")["start_sparsity"]
    assert start == pytest.approx(read_summary(finished)["sparsity"])


def test_resuming_on_changed_texts_raises(finished, tmp_path, monkeypatch):
    """The settings are the same, but the data have changed."""
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "summary.json").unlink()
    monkeypatch.setattr(toy_data, "LETTERS", "abcdefghik")
    assert "the texts have changed since" in error_line(toy(copy))
    assert "it was trained on other texts" in error_line(
        toy(tmp_path / "run", "--dense-from", str(finished))
    )


@pytest.mark.slow
def test_a_run_with_accumulation_takes_a_dense_network(tmp_path):
    """On a schedule to exactly its target, with adjusted dropout."""
    flags = "--accumulation", "2", "--regularizer", "l1", "--prune", "gradual"
    flags = (*flags, "--target-sparsity", "0.6", "--bound", str(CONFIG.bound))
    flags = (*flags, "--adjust-dropout", "--no-joint-vocabulary")
    main(toy(tmp_path / "whole", *flags))
    summary = read_summary(tmp_path / "whole")
    assert summary["kept"] == summary["total"] - round(0.6 * summary["total"])
    assert "source_embedding/embedding" in summary["layers"]
    files = {path.name for path in (tmp_path / "whole").glob("*.model")}
    assert files == {"source-vocabulary.model", "target-vocabulary.model"}
    taken = (*flags, "--dense-from", str(tmp_path / "whole"))
    main(toy(tmp_path / "taken", *taken))
    assert_same_run(tmp_path / "taken", tmp_path / "whole")


@pytest.mark.slow
def test_wmt14_runs_on_other_texts(tmp_path):
    """With all of its own settings except sizes, on all devices."""
    folder, corpus = tmp_path / "wmt14", toy_data.load().reduced(320)
    folder.mkdir()
    splits = {"train": corpus.train, "val": corpus.validation}
    for split, pairs in (splits | {"test": corpus.read_test()}).items():
        for language, texts in zip(("en", "de"), pairs, strict=True):
            text = "\n".join(texts[:320]) + "\n"
            (folder / f"{split}.{language}").write_text(text)
    out = tmp_path / "run"
    sizes = "--features 16 --hidden 16 --heads 2 --num-layers 1 --vocabulary-size 15"
    flags = "--batch-size 16 --interval 3 --warmup-steps 2 --dense-epochs 1 --epochs 1"
    flags = f"{sizes} {flags} --finetune-epochs 1 --prune gradual --target-sparsity 0.5"
    where = "--data-dir", str(tmp_path), "--out", str(out)
    main(["transformer-wmt14", *where, *flags.split()])
    summary = read_summary(out)
    assert summary["devices"] == 8 and summary["accumulation"] == 3
    assert summary["metric"] == "bleu" and "tok:13a" in summary["signature"]
    assert summary["kept"] == summary["total"] - round(0.5 * summary["total"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--vocabulary-size 9", "--vocabulary-size 9 does not suit these texts"),
        ("--heads 3", "--heads must be a divisor of 16; got 3"),
        ("--batch-size 641", "--batch-size must be 640 or less"),
        ("--accumulation 21", "--accumulation must be 20 or less"),
        ("--max-source 3", "no training pair has --max-source 3 and"),
        ("--num-layers 100", "--num-layers must be in [1, 100); got 100"),
        ("--dropout 0 --adjust-dropout", "--adjust-dropout has no effect with"),
        ("--measure per-example", "per-example is for images only"),
        ("--num-train 20001", "--num-train must be 20000 or less"),
    ],
)
def test_invalid_values_raise(flags, message, tmp_path):
    assert message in error_line(toy(tmp_path / "run", *flags.split()))
    assert not (tmp_path / "run").exists()


def test_missing_texts_are_named(tmp_path):
    for task in ("multi30k", "taskmaster"):
        line = error_line([f"transformer-{task}", "--data-dir", tmp_path])
        assert f"in {tmp_path / task}" in line and "https://github.com/" in line
    line = error_line(["transformer-wmt14", "--data-dir", tmp_path])
    assert "no data set wmt14_translate/de-en in" in line


# --------------------------------------------------------------------- piece by piece


def test_accumulated_gradients_make_the_update_of_one_large_batch():
    """An optimizer that wants the gradient receives that of the mean."""
    grads = [{"w": jnp.asarray(g)} for g in ([3.0, -1.0], [-1.0, 1.0], [1.0, -3.0])]
    mean = jax.tree.map(lambda *g: sum(g) / 3, *grads)
    params = {"w": jnp.asarray([1.0, 2.0])}

    def update_fn(updates, state, params=None, *, grad, **extra_args):
        return jax.tree.map(lambda g, a: -g - abs(a), updates, grad), state

    inner = optax.GradientTransformationExtraArgs(lambda _: (), update_fn)
    one, three = (text_loop.accumulated(inner, number) for number in (1, 3))
    expected, _ = one.update(mean, one.init(params), params)
    state = three.init(params)
    for index, g in enumerate(grads):
        updates, state = three.update(g, state, params)
        assert index == 2 or not updates["w"].any()
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-6)


def test_a_round_leaves_its_argument_and_compiles_once_for_each_shape():
    made = problem(max_target=12, dropout=0.1, adjust_dropout=True)
    phases = Phases(made.config, made)
    start = phases.start_dense()
    before = jax.tree.map(np.array, start)
    once, again = phases.train_dense(start), phases.train_dense(start)
    jax.tree.map(np.testing.assert_array_equal, before, start)
    jax.tree.map(np.testing.assert_array_equal, once, again)
    assert int(once.step) == 10
    trained = phases.train_sparse(phases.start_pruning(once).current)
    phases.finetune(phases.remove(trained, fraction=0.5))
    assert made.gradients._cache_size() == len(made.batches.shapes) == 2


def test_dropout_is_adjusted_to_the_share_of_weights_kept():
    """By its square root, if that is asked for; all gradients of a round have it."""
    made = problem(dropout=0.4, adjust_dropout=True)
    phases = Phases(made.config, made)
    dense = phases.start_dense()
    start = phases.start_pruning(dense).current
    for whole in (dense, start):
        assert made.dropout(whole.opt_state) == jnp.float32(0.4)
    pruned = phases.remove(start, fraction=0.75)
    half = float(made.dropout(pruned.opt_state))
    assert half == pytest.approx(0.2, rel=1e-3)
    assert problem(dropout=0.4).dropout(pruned.opt_state) == jnp.float32(0.4)
    assert problem(adjust_dropout=True).dropout(pruned.opt_state) is None
    rates = []

    def gradients(params, batch, number, rate):
        rates.append(float(rate))
        return jnp.float32(0), jax.tree.map(jnp.zeros_like, params)

    made.gradients = gradients
    Phases(made.config, made).train_sparse(pruned)
    assert rates == [half] * (made.config.interval + 1)


@pytest.mark.slow
def test_the_gradients_of_many_devices_are_those_of_one():
    alone, together = (problem(data_parallel=flag) for flag in (False, True))
    assert (alone.devices.number, together.devices.number) == (1, 8)
    variables = alone.variables
    copies = together.devices.replicate(variables)
    batch, step = alone.batches.at(0), jnp.int32(0)
    loss, grads = alone.gradients(variables.params, batch, step, None)
    same_loss, same_grads = together.gradients(copies.params, batch, step, None)
    np.testing.assert_allclose(loss, same_loss, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (grads, same_grads)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    lowered = together.gradients.lower(copies.params, batch, step, None)
    assert "s32[4," in lowered.compile().as_text()  # 32 pairs on 8 devices
    texts = alone.corpus.validation.sources[:50]
    assert alone.write(variables, texts, 2) == together.write(copies, texts, 2)


@pytest.mark.parametrize("keeps_end", [False, True])
def test_long_sources_are_cut(keeps_end):
    """Texts at the end, dialogues at the beginning."""
    made, read = problem(keeps_end), []

    def record(params, source, *, beam):
        read.append(source)
        return np.full((len(source), made.longest_text), 2)

    made.__dict__["_written"] = record
    text = "abcdefghij" * 3
    assert made.write(made.variables, [text, "ab"], beam=1) == ["", ""]
    (source,) = read  # of one batch, shortest first
    encoded = made.source_tokenizer.encode([text])[0]
    length = made.longest_source
    assert len(encoded) > length
    kept = encoded[-length:] if keeps_end else encoded[:length]
    np.testing.assert_array_equal(source[1], kept)
    # Those of training are cut as well, or left out.
    few = problem(keeps_end, max_source=5, batch_size=8)
    assert few.longest_source == 5 and (few.num_pairs == 640) == keeps_end
