"""The experiments: run for a few steps, killed and resumed, and piece by piece."""

import ast
import dataclasses
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from runs import (
    assert_same_run,
    digits,
    error_line,
    read_rows,
    read_state,
    read_summary,
)
from shallow import Shallow

import sparse_optax
from experiments import data, networks
from experiments.__main__ import main, parse
from experiments.config import Config, ImageConfig
from experiments.forms import Form
from experiments.networks import convolution, lenets
from experiments.networks.functional import Variables, init_network
from experiments.records import RunFolder, differences
from experiments.reporting import results
from experiments.reporting.results import README, STORE
from experiments.reporting.text_results import compares_controls
from experiments.running import environment
from experiments.tasks import (
    IMAGE_TASKS,
    TASKS,
    lenet300_mnist,
    resnet32_cifar10,
    transformer_multi30k,
    transformer_taskmaster,
    transformer_wmt14,
)
from experiments.tasks.digits import CONFIG
from experiments.training import loop, optimizers, regularizers

ROOT = Path(__file__).parent.parent
DATA_DIR = Path(os.environ.get("SPARSE_OPTAX_DATA_DIR", "SPARSE_OPTAX_DATA_DIR"))
needs_data = pytest.mark.skipif(
    not DATA_DIR.is_dir(),
    reason="SPARSE_OPTAX_DATA_DIR names no TFDS folder with mnist and fashion_mnist",
)


class Stopped(Exception):
    """A kill, as far as this process is concerned."""


KEYS = {
    *("dataset", "network", "regularizer", "seed", "config_id", "wall_seconds"),
    *("dense_test_accuracy", "test_accuracy", "validation_accuracy", "sparsity"),
    *("kept", "total", "compression", "versions", "hardware", "commit", "date"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the digits: its folder, and how often it read the test set."""
    out = tmp_path_factory.mktemp("digits") / "run"
    reads = []
    load = data.load

    def counting_load(*arguments):
        dataset = load(*arguments)

        def read_test():
            # All rounds are over when the test set is first looked at.
            reads.append(len(read_rows(out)))
            return dataset.read_test()

        return dataset._replace(read_test=read_test)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", counting_load)
        main(digits(out))
    return out, reads


# ------------------------------------------------------------------------ whole runs


def test_digits_writes_everything(finished):
    out, _ = finished
    summary = json.loads((out / "summary.json").read_text())
    assert summary.keys() >= KEYS
    assert summary["dataset"] == "digits" and summary["network"] == "lenet300"
    assert summary["total"] == 50_610
    assert summary["sparsity"] == pytest.approx(1 - summary["kept"] / 50_610)
    assert (
        sum(layer["kept"] for layer in summary["layers"].values()) == (summary["kept"])
    )
    state = read_state(out)
    masks = [leaf for path, leaf in state.items() if "best" in path and "masks" in path]
    assert sum(mask.sum() for mask in masks) == summary["kept"]
    rows = read_rows(out)
    assert [row["phase"] for row in rows] == (
        ["dense"] * 3 + ["prune"] * 8 + ["finetune"] * 2
    )
    assert any(row["pruned"] for row in rows)
    assert rows[-1]["relevant_by_leaf"].keys() == summary["layers"].keys()
    assert rows[-1]["kept_by_leaf"].keys() == summary["layers"].keys()
    pruning = [row for row in rows if row["phase"] == "prune"]
    for row, following in itertools.pairwise(pruning):
        # A round evaluates what it trains, and then prunes it.
        kept = sum(row["kept_by_leaf"].values())
        sparsity = 1 - kept / summary["total"]
        assert sparsity == pytest.approx(following["sparsity"], abs=1e-6)
    magnitudes = summary["magnitudes"]
    assert sum(magnitudes["sparse"]) == summary["kept"]
    assert 0.99 * summary["total"] < sum(magnitudes["dense"]) <= summary["total"]
    for name in ("accuracy", "layers", "relevance", "course", "magnitudes"):
        assert (out / f"{name}.pdf").stat().st_size > 5_000
        with Image.open(out / f"{name}.png") as image:
            assert image.width >= 1_500
            assert len(image.getcolors(1 << 24) or ()) > 10


def test_test_set_is_read_once_at_the_end(finished):
    out, reads = finished
    assert reads == [len(read_rows(out))]


def test_finished_run_says_so(finished, capsys, monkeypatch):
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr(data, "load", None)
    main(digits(out))
    assert "finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_patience_and_scope(tmp_path):
    flags = "--patience", "1", "--scope", "leaf", "--fraction", "0.75"
    arguments = digits(tmp_path, *flags)
    arguments[arguments.index("--bound") + 1] = "0.05"  # below the dense network
    main(arguments)
    rows = [row for row in read_rows(tmp_path) if row["phase"] == "prune"]
    first_without = [row["pruned"] for row in rows].index(False)
    assert first_without == len(rows) - 1 < 8  # there would have been eight of them
    prunes = first_without - 1  # the last went too far, and is not in the result
    assert prunes > 0
    for layer in read_summary(tmp_path)["layers"].values():
        # A quarter of each leaf is left by each.
        assert layer["kept"] == pytest.approx(layer["size"] / 4**prunes, abs=1), layer


def test_other_configuration_is_an_error(finished, capsys):
    out, _ = finished
    message = error_line(capsys, digits(out, "--fraction", "0.2"))
    assert "fraction 0.1 there, 0.2 here" in message and "strength" not in message
    assert "seed 0 there, 1 here" in error_line(capsys, digits(out, "--seed", "1"))


def test_row_19_with_everything_that_goes_on_from_somewhere(tmp_path, monkeypatch):
    """Running statistics, momentum, augmentation, learning rates, a cubic schedule."""
    monkeypatch.setitem(networks.NETWORKS, "lenet300", Shallow)
    flags = ["--prune", "gradual", "--bound", str(CONFIG.bound)]
    flags += ["--shift", "1", "--mirror", "--optimizer", "sgd"]
    flags += ["--schedule", "cosine", "--finetune-schedule", "cosine"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    main(digits(whole, *flags))
    append = RunFolder.append

    def stop(self, row):
        if len(self.rows) == stop.at:
            raise Stopped
        append(self, row)

    monkeypatch.setattr(RunFolder, "append", stop)
    for stop.at in (7, 12):  # in pruning and in fine-tuning
        with pytest.raises(Stopped):
            main(digits(stopped, *flags))
        stop.at = None
    main(digits(stopped, *flags))
    assert_same_run(stopped, whole)


def test_row_29_nothing_is_unpickled():
    for path in (*ROOT.glob("sparse_optax/*.py"), *ROOT.glob("experiments/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = getattr(node, "names", []) if isinstance(node, ast.Import) else []
            modules = [alias.name for alias in names]
            if isinstance(node, ast.ImportFrom):
                modules.append(node.module)
            assert not {"pickle", "cloudpickle", "dill", "joblib"} & set(modules), path


@needs_data
@pytest.mark.parametrize("module", IMAGE_TASKS[1:], ids=lambda m: m.CONFIG.experiment)
def test_image_sets_for_a_few_steps(module, tmp_path, monkeypatch):
    load = data.load

    def short_load(*arguments):
        dataset = load(*arguments)
        sizes = len(dataset.train.labels), len(dataset.validation.labels)
        number = 45_000 if module is resnet32_cifar10 else 55_000
        assert sizes == (number, 5_000)
        return dataset._replace(
            train=data.take(dataset.train, np.arange(300)),
            validation=data.take(dataset.validation, np.arange(100)),
        )

    monkeypatch.setattr(data, "load", short_load)
    monkeypatch.setitem(networks.NETWORKS, "resnet32", Shallow)
    config = module.CONFIG
    main(
        [
            *(config.experiment, "--out", str(tmp_path), "--data-dir", str(DATA_DIR)),
            *("--dense-epochs", "1", "--epochs", "2", "--interval", "3"),
            *("--bound", "0.01", "--batch-size", "100", "--finetune-epochs", "1"),
            "--no-relative-bound",
        ]
    )
    summary = read_summary(tmp_path)
    assert summary["dataset"] == config.dataset
    assert summary["devices"] == 1
    assert summary["network"] == config.network
    total, fraction = summary["total"], float(np.float32(config.fraction))
    assert summary["kept"] == total - round(fraction * total)  # of the one prune
    # 10,000 test images, and no other set, give accuracies in such steps.
    assert summary["test_accuracy"] * 10_000 == pytest.approx(
        round(summary["test_accuracy"] * 10_000)
    )


# ------------------------------------------------------------- mistakes of the user's


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--fraction", "1.5"),
        ("--fraction", "nan"),
        ("--bound", "1"),
        ("--strength", "-0.1"),
        ("--scale", "0"),
        ("--interval", "0"),
        ("--seed", "-1"),
        ("--patience", "0"),
        ("--learning-rate", "inf"),
        ("--batch-size", "2000"),
        ("--num-train", "0"),
        ("--num-train", "5000"),
        ("--label-noise", "1.5"),
        ("--memory", "1.0"),
    ],
)
def test_bad_values_are_named(flag, value, capsys, tmp_path):
    message = error_line(capsys, digits(tmp_path, flag, value))
    assert flag in message and value.lstrip("-")[:3] in message
    assert not (tmp_path / "config.json").exists()


def test_values_that_do_not_go_together(capsys, tmp_path):
    flags = "--unit", "quantile", "--scale", "1.5"
    message = error_line(capsys, digits(tmp_path, *flags))
    assert "--scale" in message and "1.5" in message
    flags = "--regularizer", "l2", "--control", "mean"
    assert "l2 has no form" in error_line(capsys, digits(tmp_path, *flags))


def test_folder_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot read" in error_line(capsys, digits(tmp_path / "file" / "run"))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "run")
    assert "cannot write" in error_line(capsys, digits(tmp_path / "link"))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", None, "no config.json to say of which run"),
        ("config.json", b"null", r"config\.json is damaged: 'null' has no names"),
        ("config.json", b"\xff", r"config\.json is damaged: .*utf-8"),
        ("config.json", b"{}", r"another configuration \(.*dataset None there"),
        ("summary.json", b"{}", r"summary\.json is damaged: it has no 'experiment'"),
        ("summary.json", b"", r"summary\.json is damaged: "),
    ],
)
def test_damaged_files_of_a_run(finished, name, content, told, capsys, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert re.search(told, error_line(capsys, digits(folder)))


@pytest.mark.parametrize("content", [b"\xff\n", b"3\n", b"", None])
def test_damaged_metrics_of_a_run(finished, content, capsys, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    (folder / "summary.json").unlink()
    (folder / "metrics.jsonl").unlink()
    if content is not None:
        (folder / "metrics.jsonl").write_bytes(content)
    assert "metrics.jsonl" in error_line(capsys, digits(folder))


@pytest.mark.parametrize("experiment", ["lenet300-mnist", "lenet5-fashion"])
def test_row_30_missing_data_set(experiment, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "has_tensorflow", lambda: False)
    arguments = [experiment, "--out", str(tmp_path / "run")]
    arguments += ["--data-dir", str(tmp_path / "data")]
    message = error_line(capsys, arguments)
    assert str(tmp_path / "data") in message
    assert "[prepare]" in message
    assert shlex.join([sys.executable, "-m", "experiments", *arguments]) in message


@needs_data
@pytest.mark.parametrize(
    "damage", ["no shard", "half a shard", "no metadata", "half the metadata"]
)
def test_row_30_damaged_data_set(damage, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "has_tensorflow", lambda: False)
    shutil.copytree(DATA_DIR / "mnist", tmp_path / "mnist")
    if "metadata" in damage:
        (broken,) = tmp_path.rglob("dataset_info.json")
    else:
        (broken,) = tmp_path.rglob("mnist-train*")
    content = broken.read_bytes()
    broken.unlink()
    if "half" in damage:
        broken.write_bytes(content[: len(content) // 2])
    arguments = ["lenet300-mnist", "--out", str(tmp_path / "run")]
    message = error_line(capsys, [*arguments, "--data-dir", str(tmp_path)])
    assert str(tmp_path) in message and "mnist" in message


def test_commits_are_those_that_made_the_rounds(tmp_path, monkeypatch, capsys):
    """Code may change while a run goes on, and before it is taken up again."""
    append = RunFolder.append

    def change(self, row):
        if len(self.rows) == 2:
            monkeypatch.setattr(environment, "commit", lambda: "later")
        if len(self.rows) == change.end:
            raise Stopped
        append(self, row)

    monkeypatch.setattr(RunFolder, "append", change)
    monkeypatch.setattr(environment, "commit", lambda: "first")
    change.end = 7
    with pytest.raises(Stopped):
        main(digits(tmp_path))
    monkeypatch.setattr(environment, "commit", lambda: "second")
    change.end = None
    main(digits(tmp_path))
    assert "They were made by other code" in capsys.readouterr().out
    summary = read_summary(tmp_path)
    assert summary["commit"] == "second"
    assert summary["earlier_commits"] == ["first"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--bound", "0", "--relative-bound", "--learning-rate", "1.0"),
        ("--bound", "0.5", "--epochs", "1"),  # whose only prune is not measured
    ],
    ids=["bound", "one-round"],
)
def test_a_run_that_pruned_nothing_says_so(tmp_path, capsys, flags):
    main(digits(tmp_path, "--dense-epochs", "8", *flags))
    summary = read_summary(tmp_path)
    assert summary["sparsity"] == 0
    bound = f"{100 * summary['validation_bound']:.2f} %"
    found = " ".join(capsys.readouterr().out.split())
    assert f"measured to have a validation accuracy above {bound}: of this" in found


def test_training_that_diverges_is_an_error(capsys, tmp_path):
    message = error_line(capsys, digits(tmp_path, "--dense-learning-rate", "1e30"))
    assert "the training diverged: at update" in message
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.CONFIG.experiment)
def test_help_documents_every_setting(task, capsys):
    with pytest.raises(SystemExit) as info:
        main([task.CONFIG.experiment, "--help"])
    assert not info.value.code
    text = capsys.readouterr().out
    fixed = ("experiment", "dataset", "network")
    names = task.CONFIG.__dataclass_fields__.keys() - {"form"}
    names |= Form.__dataclass_fields__.keys()
    for name in names:
        assert ("--" + name.replace("_", "-") in text) == (name not in fixed)


NOT_RUN = {
    config.config_id
    for config in (
        resnet32_cifar10.CONFIG,
        dataclasses.replace(
            transformer_taskmaster.CONFIG, edition="tm1", vocabulary_size=32_000
        ),
        transformer_wmt14.CONFIG,
    )
}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.CONFIG.experiment)
def test_commands_in_the_docstrings_of_tasks_are_understood(task):
    paragraphs = (task.__doc__ or "").split("\n\n")
    commands = [text for text in paragraphs if text.startswith("python -m experiments")]
    assert commands
    for command in commands:
        command = command.strip().replace("\\\n", "")
        assert "\n" not in command  # where a shell would end it
        config = parse(command.split()[3:])
        assert isinstance(config, Config)
        assert config.experiment == task.CONFIG.experiment
        config.validate()
        config.check_parts(task.CONFIG)
        # Of whatever is told of a command there are the runs, but for those that wait
        # for a GPU, or for data.
        stored = list(STORE.glob(f"{config.experiment}-*-{config.config_id}-seed*"))
        assert stored or config.config_id in NOT_RUN


def test_commands_of_the_study_on_text_are_those_of_its_runs():
    blocks = re.findall(r"^```sh\n(.*?)^```$", README.read_text(), re.M | re.S)
    (script,) = [block for block in blocks if "$small" in block]
    script = script.replace(".venv/bin/python -m experiments", "echo")
    printed = subprocess.run(
        ["bash", "-ec", script], capture_output=True, text=True, check=True
    ).stdout
    configs = [parse(line.split()) for line in printed.splitlines()]
    for config in configs:
        config.validate()
        config.check_parts(transformer_multi30k.CONFIG)
    stored = [run for run in results.stored() if compares_controls(run)]
    assert {(config.config_id, config.seed) for config in configs} == {
        (run["config_id"], run["seed"]) for run in stored
    }


def test_default_folders_tell_what_prunes():
    folders = [
        parse(["digits", "--regularizer", "none", *flags]).folder
        for flags in ((), ("--prune", "snip"), ("--prune", "snip", "--out", "there"))
    ]
    assert [str(folder) for folder in folders] == [
        *("runs/digits-none-seed0", "runs/digits-none-snip-seed0", "there")
    ]


def test_settings_newer_than_a_run_had_their_defaults():
    config = dataclasses.replace(
        lenet300_mnist.CONFIG, form=Form(measure="per-example")
    )
    found = config.to_dict()
    del found["mirror"], found["form"]["memory"]
    assert not differences(found, config)
    assert not differences(lenet300_mnist.CONFIG.to_dict(), lenet300_mnist.CONFIG)
    del found["form"]
    (line,) = differences(found, config)
    assert "per-example" in line and "MISSING" not in line
    assert len(differences({**found, "form": 3}, config)) == 1
    assert len(differences({**config.to_dict(), "mirror": True}, config)) == 1


def test_config_id_depends_on_hyperparameters_alone():
    def identity(**changes):
        fields = {**lenet300_mnist.CONFIG.__dict__, **changes}
        return ImageConfig(**fields).config_id

    assert identity() == identity(seed=3) == identity(out=Path("elsewhere"))
    assert identity() != identity(strength=3e-4)
    assert identity() != identity(regularizer="l1")


# ------------------------------------------------------------------- piece by piece


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("lenet300", (28, 28, 1), 266_610),
        ("lenet300", (8, 8, 1), 50_610),
        ("lenet5", (28, 28, 1), 431_080),
        ("pixel-transformer", (8, 8, 1), 43_690),
        ("resnet32", (32, 32, 3), 464_154),
    ],
)
def test_parameter_counts(name, shape, count):
    network, variables = init_network(networks.NETWORKS[name], shape, 255, 0)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables.params)) == count
    images = jnp.zeros((2, *shape), jnp.uint8)
    assert network.logits(variables, images).shape == (2, 10)


@pytest.mark.parametrize(("strides", "shape"), [(1, (5, 6)), (2, (3, 3))])
def test_conv_is_the_convolution(strides, shape):
    keys = jax.random.split(jax.random.key(0))
    images = jax.random.normal(keys[0], (3, 9, 8, 2))

    def outcome(conv):
        layer = nnx.Conv(
            *(2, 4, (5, 3), strides),
            padding="VALID",
            rngs=nnx.Rngs(1),
            conv_general_dilated=conv,
        )

        def loss(layer, images):
            return jnp.sum(jnp.sin(layer(images)))

        return layer(images), nnx.grad(loss, argnums=(0, 1))(layer, images)

    ours = outcome(convolution.conv)
    theirs = outcome(jax.lax.conv_general_dilated)
    assert ours[0].shape == (3, *shape, 4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        *(ours, theirs),
    )


def test_conv_refuses_what_it_does_not_know():
    arguments = jnp.zeros((1, 5, 5, 1)), jnp.zeros((3, 3, 1, 1))
    with pytest.raises(ValueError, match="SAME"):
        convolution.conv(*arguments, (1, 1), "SAME")


def test_max_pool():
    images = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    expected = nnx.max_pool(images, (2, 2), strides=(2, 2))
    np.testing.assert_array_equal(lenets.max_pool(images), expected)


@pytest.mark.parametrize("name", ["relevance", "l2", "l1", "none"])
def test_regularizers_by_hand(name):
    strength, scale, steps = 0.3, 0.5, 4
    w = np.array([1.5, -2.0, 0.0, 0.25], np.float32)
    g = np.array([0.1, -0.7, 0.3, 0.0], np.float32)
    penalty = {
        "relevance": 2 * strength * np.exp(-np.abs(g) / scale) * w,
        "l2": 2 * strength * w,
        "l1": strength * np.sign(w),
        "none": 0 * w,
    }[name]
    params, grads = {"w": jnp.asarray(w)}, {"w": jnp.asarray(g)}
    config = dataclasses.replace(CONFIG, regularizer=name, scale=scale)
    tx = optax.chain(
        regularizers.make_regularizer(config, strength, steps),
        sparse_optax.prune_by_magnitude(0.5, mask=None),
    )

    def check(state, factor):
        abs_grads = jax.tree.map(jnp.abs, grads)
        updates, state = tx.update(grads, state, params, abs_grads=abs_grads)
        np.testing.assert_allclose(updates["w"], g + factor * penalty, rtol=1e-5)
        return state

    state = tx.init(params)
    for factor in (1, 0.75, 0.5):
        state = check(state, factor)
    # A prune restarts the schedule. Of nothing, it leaves the weights as they are.
    _, state = sparse_optax.prune(params, state, fraction=0.0)
    for factor in (1, 0.75, 0.5, 0.25, 0, 0):
        state = check(state, factor)


def test_constant_strength():
    config = dataclasses.replace(CONFIG, regularizer="l1")
    tx = regularizers.make_regularizer(config, 0.3, decay_steps=0)
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    for _ in range(3):
        grads = {"w": jnp.zeros(2)}
        updates, state = tx.update(grads, state, params, abs_grads=grads)
    np.testing.assert_allclose(updates["w"], [0.3, 0.3])
    assert state.steps_since_prune == 3


def test_state_says_where_in_the_data_training_stands():
    """Rounds of any length make the same updates, through several epochs."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 17, (50, 4, 4, 1), np.uint8)
    split = data.Split(images, rng.integers(0, 10, 50, np.int32))
    network, variables = init_network(networks.LeNet300, (4, 4, 1), 16, 0)
    optimizer = optimizers.pruning_optimizer(lenet300_mnist.CONFIG, 40, 7)
    zero = jnp.zeros([], jnp.int32)

    def train(num_steps, num_rounds, seed=0):
        state = loop.init_state(variables, optimizer, zero)
        round_of = loop.make_train(
            *(network, optimizer, split),
            batch_size=7,
            num_steps=num_steps,
            seed=seed,
            scale=1.0,
        )
        for _ in range(num_rounds):
            state = round_of(state)
        return state

    long, short = train(20, 1), train(5, 4)
    jax.tree.map(np.testing.assert_array_equal, long[:3], short[:3])
    other = train(20, 1, seed=1)
    assert jnp.any(other.params["output"]["kernel"] != long.params["output"]["kernel"])


def test_every_epoch_goes_once_through_the_data():
    # Image i is all i, so that the mean of the weight's gradients tells who was there.
    split = data.Split(
        np.arange(12, dtype=np.uint8)[:, None, None, None], np.zeros(12, np.int32)
    )

    class Spy:
        def loss(self, params, statistics, images, labels):
            seen = jnp.zeros(12).at[images.ravel()].add(1.0)
            return jnp.vdot(params, seen), statistics

    optimizer = optax.sgd(1.0)
    train = loop.make_train(
        *(Spy(), optimizer, split), batch_size=4, num_steps=1, seed=0, scale=1.0
    )
    variables = Variables(jnp.zeros(12), {})
    state = loop.init_state(variables, optimizer, jnp.zeros([], jnp.int32))
    seen = []
    for _ in range(6):
        before, state = state, train(state)
        seen.append(np.flatnonzero(before.params - state.params))
    for epoch in (seen[:3], seen[3:]):
        assert sorted(np.concatenate(epoch)) == list(range(12))
    assert not all(np.array_equal(*pair) for pair in zip(seen, seen[3:], strict=False))


def test_relevant_shares():
    params = {"a": jnp.array([1.0, 0.0, 2.0, 3.0]), "b": jnp.zeros(2)}
    irrelevance = {"a": jnp.array([0.0, 0.0, 1.0, 0.49]), "b": jnp.zeros(2)}
    total, by_leaf = loop.relevant_shares(params, irrelevance)
    assert total == by_leaf["a"] == pytest.approx(2 / 3)
    assert jnp.isnan(by_leaf["b"])
