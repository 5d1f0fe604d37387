"""Runs of images: what they do, what they leave, and what they refuse."""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest
from PIL import Image
from short_runs import (
    Small,
    assert_same_run,
    digits,
    draw_run,
    error_line,
    folder_of,
    quickly,  # noqa: F401
    read_rows,
    read_state,
    read_summary,
    stop,
)

from experiments import networks
from experiments.__main__ import main
from experiments.data import images
from experiments.running import environment, figures
from experiments.tasks import IMAGE_TASKS
from experiments.tasks.digits import CONFIG

pytestmark = pytest.mark.quickly_compiled

HEAVY = "--fraction", "0.6"  # soon more than the bound allows


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the digits: its folder, and when it read the test set."""
    out = tmp_path_factory.mktemp("digits") / "run"
    reads, dataset = [], images.load(CONFIG)

    def read_test():
        reads.append(len(read_rows(out)))
        return dataset.read_test()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "load", lambda _: dataset._replace(read_test=read_test))
        patch.setattr(figures, "draw_run", draw_run)
        main(digits(out, *HEAVY))
    return out, reads


def test_a_run_leaves_summary_metrics_checkpoint_and_figures(finished):
    """It reads the test set once, after all rounds."""
    out, reads = finished
    assert reads == [len(read_rows(out))]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["total"] == 50_610
    assert summary["sparsity"] == pytest.approx(1 - summary["kept"] / 50_610)
    layers = summary["layers"]
    assert sum(layer["kept"] for layer in layers.values()) == summary["kept"]
    assert sum(summary["magnitudes"]["sparse"]) == summary["kept"]
    for split in ("test", "validation"):
        assert 0.5 < summary[f"dense_{split}_accuracy"] <= 1
        assert 0.5 < summary[f"{split}_accuracy"] <= 1
    assert summary["hardware"] and summary["versions"] and summary["date"]
    assert summary["xla_flags"] == os.environ.get("XLA_FLAGS", "")
    masks = [
        x for name, x in read_state(out).items() if "best" in name and "masks" in name
    ]
    assert sum(mask.sum() for mask in masks) == summary["kept"]
    row = read_rows(out)[-1]
    assert row["relevant_by_leaf"].keys() == row["kept_by_leaf"].keys() == layers.keys()
    with Image.open(out / "run.png") as image:
        assert image.width > 1000
    assert (out / "run.pdf").read_bytes().startswith(b"%PDF")


def test_rounds_follow_the_algorithm(finished):
    """A round prunes the fraction of what is left if its metric exceeds the bound.

    The result is the last network that was measured above the bound.
    """
    out, _ = finished
    summary, rows = read_summary(out), read_rows(out)
    assert [row["phase"] for row in rows] == (
        ["dense"] * 3 + ["prune"] * 8 + ["finetune"] * 2
    )
    assert [row["step"] for row in rows[:11]] == [16 * n for n in range(1, 12)]
    total = kept = best = summary["total"]
    bound, fraction = summary["validation_bound"], float(np.float32(0.6))
    assert bound == pytest.approx(rows[2]["metric"] - CONFIG.bound)
    for row in rows[3:11]:
        assert row["sparsity"] == pytest.approx(1 - kept / total, abs=1e-6)
        assert row["pruned"] == (row["metric"] > bound)
        if row["pruned"]:
            best = kept
            kept -= round(fraction * kept)
        assert sum(row["kept_by_leaf"].values()) == pytest.approx(kept, abs=5)
    assert {row["pruned"] for row in rows[3:]} == {True, False}
    for row in rows[11:]:
        assert not row["pruned"]
        assert sum(row["kept_by_leaf"].values()) == pytest.approx(best, abs=5)
    assert summary["kept"] == best < total


def test_a_finished_run_is_shown_again_or_refused(finished, capsys, monkeypatch):
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr(images, "load", None)
    main(digits(out, *HEAVY))
    shown = capsys.readouterr().out
    assert "finished" in shown and "hidden1/kernel" in shown
    message = error_line(digits(out, "--fraction", "0.2"))
    assert "fraction 0.6 there, 0.2 here" in message and "strength" not in message
    assert "seed 0 there, 1 here" in error_line(digits(out, *HEAVY, "--seed", "1"))
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_patience_ends_pruning_and_uniform_prunes_leaf_by_leaf(tmp_path):
    flags = "--patience", "1", "--distribution", "uniform", "--fraction", "0.75"
    main(digits(tmp_path, *flags))
    rows = read_rows(tmp_path, "prune")
    pruned = [row["pruned"] for row in rows]
    assert pruned.index(False) == len(rows) - 1 < 7
    steps = len(rows) - 2  # the last one went too far, and is not in the result
    assert steps > 0
    for layer in read_summary(tmp_path)["layers"].values():
        assert layer["kept"] == pytest.approx(layer["size"] / 4**steps, abs=1), layer


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    """With all that has a state: statistics, momentum, augmentation, schedules."""
    monkeypatch.setitem(networks.NETWORKS, "lenet300", Small)
    flags = ["--prune", "gradual", "--mirror", "--optimizer", "sgd"]
    flags += ["--schedule", "cosine", "--finetune-schedule", "cosine"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    main(digits(whole, *flags))
    stop(digits(stopped, *flags), 7)
    main(digits(stopped, *flags))
    assert_same_run(stopped, whole)


@pytest.mark.parametrize("way", ["lobster", "gradual", "snip", "rigl", "set", "static"])
@pytest.mark.slow
def test_every_way_to_prune_reaches_its_sparsity(way, tmp_path, monkeypatch):
    if way == "static":  # without a bound, or a pruning step
        monkeypatch.setattr(figures, "draw_run", draw_run)
    flags = ["--regularizer", "none", "--prune", way]
    if way == "lobster":
        flags = ["--regularizer", way, "--strength", "1e-5"]
    main(digits(tmp_path, *flags))
    summary, rows = read_summary(tmp_path), read_rows(tmp_path, "prune")
    sparsities = [row["sparsity"] for row in rows]
    assert sparsities == sorted(sparsities)
    if way == "lobster":
        assert 0 < summary["sparsity"] < 1
        return
    total = summary["total"]
    assert summary["kept"] == total - round(float(np.float32(0.9)) * total)
    assert summary["validation_bound"] == -1
    assert not any(row["pruned"] for row in rows)
    assert (sparsities[0] == sparsities[-1]) == (way != "gradual")


@pytest.mark.parametrize("name", [name for name in IMAGE_TASKS if name != "digits"])
@pytest.mark.slow
def test_every_image_task_runs_on_its_data(name, tmp_path, monkeypatch):
    config, load = IMAGE_TASKS[name], images.load

    def short_load(config):
        dataset = load(config)
        sizes = len(dataset.train.labels), len(dataset.validation.labels)
        assert sizes == (45_000 if "cifar10" in name else 55_000, 5_000)
        return dataset._replace(
            train=images.take(dataset.train, np.arange(300)),
            validation=images.take(dataset.validation, np.arange(100)),
        )

    monkeypatch.setattr(images, "load", short_load)
    if name != "lenet5-mnist":  # which trains with its own network
        monkeypatch.setitem(networks.NETWORKS, config.network, Small)
    data = folder_of("SPARSE_OPTAX_DATA_DIR")
    flags = "--dense-epochs 1 --epochs 2 --finetune-epochs 1 --interval 3 --bound 0.01"
    flags = [*flags.split(), "--batch-size", "100", "--no-relative-bound"]
    main([name, "--out", str(tmp_path), "--data-dir", str(data), *flags])
    summary = read_summary(tmp_path)
    total, fraction = summary["total"], float(np.float32(config.fraction))
    assert summary["kept"] == total - round(fraction * total)  # of the one step
    # 10,000 test images, and no other set, give accuracies in such steps.
    right = summary["test_accuracy"] * 10_000
    assert right == pytest.approx(round(right))


def test_commits_are_those_that_made_the_rounds(tmp_path, monkeypatch, capsys):
    """The code may change while a run is made, and before it is resumed."""
    command = digits(tmp_path, "--epochs", "1", "--finetune-epochs", "0")
    commits = iter(["first", "second"])  # each is read once, when a run starts
    monkeypatch.setattr(environment, "commit", lambda: next(commits))
    stop(command, 3)
    main(command)
    assert "produced by a different commit" in capsys.readouterr().out
    summary = read_summary(tmp_path)
    assert summary["commit"] == "second" and summary["earlier_commits"] == ["first"]


def test_a_commit_is_dirty_if_code_changed(tmp_path, monkeypatch):
    code, text = tmp_path / "code.py", tmp_path / "README.md"
    monkeypatch.setattr(environment, "__file__", str(code))
    commit = environment.commit.__wrapped__
    assert commit() is None
    code.write_text("one")
    text.write_text("one")
    identity = "-c", "user.name=Test", "-c", "user.email=test@example.com"
    for arguments in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "x")):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    clean = commit()
    assert clean is not None and len(clean) == 40
    text.write_text("two")
    assert commit() == clean
    for changed in (code, tmp_path / "more.py"):
        changed.write_text("two")
        assert commit() == clean + "-dirty"
        code.write_text("one")


def test_training_that_diverges_is_an_error(tmp_path):
    message = error_line(digits(tmp_path, "--dense-learning-rate", "1e30"))
    assert "the training diverged: at update" in message
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--fraction nan", r"--fraction must be in \(0, 1\); got nan"),
        ("--bound 1", r"--bound must be in \[0, 1\); got 1.0"),
        ("--strength -0.1", "--strength must be .*; got -0.1"),
        ("--learning-rate inf", "--learning-rate must be .*; got inf"),
        ("--interval 0", "--interval must be .*; got 0"),
        ("--batch-size 2000", "--batch-size must be 1078 or less"),
        ("--num-train 5000", "--num-train must be 1078 or less.*; got 5000"),
        ("--memory 1.0", r"--memory must be in \[0, 1\); got 1.0"),
        ("--unit quantile --scale 1.5", "--scale must be below 1.*; got 1.5"),
        ("--warmup-steps 48", "--warmup-steps must be less than 48"),
        ("--prune gradual --patience 3", "--patience .* gradual; got 3"),
        ("--regularizer l2 --scale 5", "--scale has no effect .* l2; got 5"),
        (
            "--regularizer l2 --control mean",
            "--control has no effect .* l2; got 'mean'",
        ),
        ("--regularizer lobster --decoupled", "--decoupled .* lobster"),
        ("--prune snip --criterion random", "--criterion .* snip; got 'random'"),
        (
            "--structure 2x4",
            "--structure must be unstructured, units, N:M,.*; got '2x4'",
        ),
        ("--structure 4:2", "--structure must be N:M with 0 < N <= M; got '4:2'"),
        ("--target-sparsity 0.95", "--target-sparsity .* with --prune gated; got 0.95"),
        ("--regularizer none --scale 0.1", "--scale .* with --regularizer none; got"),
        ("--structure units --control mean", "--control must be .* --structure units"),
        (
            "--criterion relevance --prune gradual --unit leaf",
            "--unit must be the default with --criterion relevance .* got 'leaf'",
        ),
        ("--structure units --decoupled", "--decoupled must be .* --structure units"),
        ("--proximal --decoupled", "--decoupled must be off with --proximal"),
        ("--proximal --structure units", "--structure must be .* --proximal"),
        ("--structure units --distribution erk", "does not fit the network: .*"),
        ("--structure block4x4", "--structure block4x4 does not fit .* output/kernel"),
        (
            "--prune gradual --structure 2:4",
            "--target-sparsity must be at most 0.5 of 2:4; got 0.9",
        ),
    ],
)
def test_invalid_values_raise(flags, message, tmp_path):
    assert re.search(message, error_line(digits(tmp_path / "run", *flags.split())))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot write" in error_line(digits(tmp_path / "file" / "run"))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "run")
    assert "cannot write" in error_line(digits(tmp_path / "link"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").touch()
    assert f"cannot write to {run / 'checkpoints'}: " in error_line(digits(run))
    assert not (run / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "exists without config.json"),
        ("config.json", b"null", r"config\.json is damaged: 'null' has no names"),
        ("config.json", b"\xff", r"cannot read .*config\.json: .*utf-8"),
        ("config.json", b"{}", r"another configuration \(.*there, .* here"),
        ("summary.json", b"", r"summary\.json is damaged: "),
        ("summary.json", b"{}", r"summary\.json is damaged: it has no 'layers'"),
        ("summary.json", b"[" * 99_999, r"summary\.json is damaged: maximum rec"),
        ("metrics.jsonl", b"\xff\n", r"cannot read .*metrics\.jsonl"),
        ("metrics.jsonl", b"3\n", r"metrics\.jsonl does not match any"),
        ("metrics.jsonl", None, r"metrics\.jsonl does not match any"),
    ],
)
def test_damaged_files_of_a_run_are_named(finished, name, content, message, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    if name == "metrics.jsonl":  # which a finished run does not read
        (folder / "summary.json").unlink()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert re.search(message, error_line(digits(folder, *HEAVY)))


def test_a_missing_data_set_names_the_command_that_prepares_it(tmp_path, monkeypatch):
    importlib.import_module("tensorflow_datasets")  # which looks for modules, too
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    arguments = ["lenet300-mnist", "--out", tmp_path / "run", "--data-dir", tmp_path]
    message = error_line(arguments)
    assert f"no data set mnist in {tmp_path}" in message
    assert "pip install -e '.[prepare]'" in message


@pytest.mark.slow
def test_a_damaged_data_set_is_named(tmp_path):
    data = folder_of("SPARSE_OPTAX_DATA_DIR")
    arguments = ["lenet300-mnist", "--out", tmp_path / "run", "--data-dir", tmp_path]
    for pattern in ("mnist-train*", "dataset_info.json"):
        for share in (0, 0.5):
            shutil.rmtree(tmp_path / "mnist", ignore_errors=True)
            shutil.copytree(data / "mnist", tmp_path / "mnist")
            (broken,) = tmp_path.rglob(pattern)
            content = broken.read_bytes()
            broken.unlink()
            if share:
                broken.write_bytes(content[: int(share * len(content))])
            message = error_line(arguments)
            assert str(tmp_path) in message and "mnist" in message


def test_reduced_and_noisy_training_sets_leave_the_rest():
    whole = images.load(CONFIG)
    assert [len(x.labels) for x in (*whole[:2], whole.read_test())] == [1078, 359, 360]
    few = images.load(dataclasses.replace(CONFIG, num_train=100))
    assert len(few.train.labels) == 100
    jax.tree.map(np.testing.assert_array_equal, whole.validation, few.validation)
    noisy = images.load(dataclasses.replace(CONFIG, label_noise=0.5))
    np.testing.assert_array_equal(noisy.train.images, whole.train.images)
    np.testing.assert_array_equal(noisy.validation.labels, whole.validation.labels)
    changed = np.mean(noisy.train.labels != whole.train.labels)
    assert abs(changed - 0.5 * 0.9) < 0.05
    again = images.load(dataclasses.replace(CONFIG, label_noise=0.5, seed=3))
    np.testing.assert_array_equal(noisy.train.labels, again.train.labels)
