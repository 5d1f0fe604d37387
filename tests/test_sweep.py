"""Sweeps: which runs they make, and that each is made once."""

import dataclasses
import json

import pytest
from short_runs import Small, error_line, quickly  # noqa: F401

from experiments import networks
from experiments.__main__ import main
from experiments.data import images
from experiments.records import write_json
from experiments.running import environment, program, sweep
from experiments.running.sweep import Sweep
from experiments.tasks.digits import CONFIG

pytestmark = pytest.mark.quickly_compiled

FLAGS = (
    *("--dense-epochs", "2", "--epochs", "4", "--finetune-epochs", "0"),
    *("--interval", "16", "--batch-size", "64"),
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "lenet300", Small)


@pytest.mark.slow
def test_runs_at_once_are_what_they_are_alone(monkeypatch):
    changes = {"seed": 1}, {"strength": 1.0}, {"scale": 1e-5}, {"fraction": 0.6}
    strong = dataclasses.replace(
        CONFIG,
        **{"dense_epochs": 2, "epochs": 6, "finetune_epochs": 0, "interval": 16},
        **{"batch_size": 64, "fraction": 0.3, "strength": 0.1},
    )
    configs = [strong, *(dataclasses.replace(strong, **x) for x in changes)]
    commits = iter(["first", "later"])
    monkeypatch.setattr(environment, "commit", lambda: next(commits))
    dataset = images.load_digits()
    together = program.make(configs, dataset, test=False)
    assert {run["commit"] for run in together} == {"first"}  # that of the start
    (alone,) = program.make(configs[4:], dataset, test=True)
    for name in ("config_id", "kept"):
        assert together[4][name] == alone[name]
    assert 0 <= alone["test_accuracy"] <= 1 and "test_accuracy" not in together[4]
    # Each of the numbers has an effect.
    courses = {json.dumps([run["layers"], run["validation_bound"]]) for run in together}
    assert len(courses) == len(configs)


def test_a_sweep_has_every_run_once():
    base = dataclasses.replace(CONFIG, strength=0.5, scale=0.25)
    grid = Sweep(
        base,
        regularizers=("relevance", "l2", "none"),
        **{"seeds": (0, 1), "strengths": (1e-3, 1e-4), "scales": (1.0, 1e-2, 1e-4)},
    )
    runs = grid.runs()
    assert len(runs) == len(set(runs)) == 2 * (2 * 3 + 2 + 1)
    # What has no effect is the default, as in a single run.
    none = {(run.strength, run.scale) for run in runs if run.regularizer == "none"}
    assert none == {(CONFIG.strength, CONFIG.scale)}
    assert {run.scale for run in runs if run.regularizer == "l2"} == {CONFIG.scale}
    assert Sweep(base).runs() == [base]
    controls = ("none", "permuted", "mean")
    grid = Sweep(CONFIG, regularizers=("relevance", "l2"), controls=controls)
    assert sorted((run.regularizer, run.form.control) for run in grid.runs()) == [
        ("l2", "none"),
        *(("relevance", name) for name in sorted(controls)),
    ]


def test_batches_are_even_and_of_one_program():
    for number, sizes in ((10, [5, 5]), (17, [5, 6, 6])):
        grid = Sweep(CONFIG, ("relevance", "l2"), seeds=tuple(range(number)))
        batches = list(sweep.batches(grid.runs(), 8))
        assert [len(batch) for batch in batches] == 2 * sizes
        assert [run for batch in batches for run in batch] == grid.runs()
        assert all(len({run.regularizer for run in batch}) == 1 for batch in batches)


def test_the_command_makes_what_is_missing(tmp_path, capsys):
    out = tmp_path / "sweep"
    command = ["sweep", "digits", "--out", str(out), *FLAGS, "--seeds", "0", "1"]

    def missing(*more):
        main([*command, *more])
        return capsys.readouterr().out

    assert "Runs: 2, missing: 2." in missing()
    files = sorted(out.glob("*.json"))
    assert len(files) == 2 and (out / "sweep.png").exists()
    first = [json.loads(path.read_text()) for path in files]
    # As after a kill: one run is stored, the other is not.
    files[1].unlink()
    kept = files[0].stat().st_mtime_ns
    assert "Runs: 2, missing: 1." in missing()
    assert files[0].stat().st_mtime_ns == kept
    again = json.loads(files[1].read_text())
    assert (again["seed"], again["kept"]) == (first[1]["seed"], first[1]["kept"])
    # As if a default had changed: the id is made of what differs from defaults.
    write_json(files[1], {**again, "dense_strength": 0.5})
    assert "Runs: 2, missing: 1." in missing()
    assert json.loads(files[1].read_text())["dense_strength"] == 0
    shown = missing()
    assert "Runs: 2, missing: 0." in shown and "test accuracy" not in shown
    shown = missing("--test")  # those without are made again
    assert "Runs: 2, missing: 2." in shown and "test accuracy" in shown
    assert 0 <= json.loads(files[0].read_text())["test_accuracy"] <= 1


@pytest.mark.slow
def test_a_run_that_diverges_costs_no_other_run(tmp_path, capsys):
    flags = ["--out", str(tmp_path), "--epochs", "1", "--optimizer", "sgd"]
    flags += ["--regularizer", "l2", "--strengths", "1e-5", "1e37"]
    for missing in (2, 0):
        message = error_line(["sweep", "digits", *FLAGS, *flags])
        assert "diverged: l2 at strength 1e+37, " in message
        shown = capsys.readouterr().out
        assert f"missing: {missing}." in shown and "│ l2 " in shown
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert [run.get("diverged", False) for run in runs].count(True) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--at-once 0", "--at-once must be in [1, inf); got 0"),
        ("--strengths 1e-3 -1", "--strength must be in [0, inf); got -1.0"),
        ("--seeds -1", "--seed must be in [0, 2147483648); got -1"),
        ("--batch-size 5000", "--batch-size must be 1078 or less"),
        ("--strength 1 --strengths 2 3", "--strength has no effect with --strengths"),
        ("--control mean --controls none", "--control has no effect with --controls"),
        ("--regularizers l2 --controls mean", "--control has no effect in any"),
        ("--regularizers l2 none --scale 0.3", "--scale has no effect in any"),
        ("--regularizers l2 --scales 0.3 0.1", "--scale has no effect in any"),
        ("--regularizers none lobster --decoupled", "--decoupled has no effect in any"),
        ("--prune snip --fractions 0.1 0.2", "--fraction has no effect in any"),
        ("--dense-from other", "--dense-from has no effect in any"),
    ],
)
def test_invalid_values_raise(flags, message, tmp_path):
    arguments = ["sweep", "digits", "--out", tmp_path / "x", *flags.split()]
    assert message in error_line(arguments)
    assert not list(tmp_path.glob("x/*.json"))


def test_groups_are_named_by_the_settings_that_differ():
    def run(place, name, strength, scale, control="none"):
        return {
            **{"fraction": 0.1, "form": {"control": control}, "regularizer": name},
            **{"strength": strength, "scale": scale, "prune": "gated"},
            **{"config_id": str(place), "sparsity": 1 - place / 10},
        }

    runs = [run(0, "relevance", 0.1, 1.0), run(1, "relevance", 0.1, 2.0)]
    runs += [run(2, "l2", 0.2, 5.0), run(3, "none", 0.3, 6.0)]
    groups = sweep.by_settings(runs[::-1])
    assert list(groups) == [  # the sparsest first
        *("relevance, strength 0.1, scale 1", "relevance, strength 0.1, scale 2"),
        *("l2, strength 0.2", "none"),
    ]
    # One scale among those that have any, one strength among all.
    assert list(sweep.by_settings(runs[1:2] + runs[3:])) == ["relevance", "none"]
    controls = [runs[0], run(1, "relevance", 0.1, 1.0, "mean")]
    names = ["relevance", "relevance, control mean"]
    assert list(sweep.by_settings(controls)) == names
