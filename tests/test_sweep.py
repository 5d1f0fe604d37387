"""Many runs at once: as one program what they are one by one, and each stored once."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparse_optax
from experiments import data
from experiments.__main__ import main, parse
from experiments.config import ExperimentError
from experiments.records import write_json
from experiments.reporting import figures
from experiments.running import environment, grid, program, sweep
from experiments.running.grid import Sweep
from experiments.tasks.digits import CONFIG
from experiments.training.image_problem import ImageProblem
from experiments.training.phases import Phases

TINY = dataclasses.replace(
    CONFIG,
    **{"dense_epochs": 4, "epochs": 12, "finetune_epochs": 4, "interval": 16},
    **{"batch_size": 64, "bound": 0.0, "relative_bound": False, "fraction": 0.3},
)
FLAGS = (
    *("--dense-epochs", "2", "--epochs", "4", "--finetune-epochs", "2"),
    *("--interval", "16", "--batch-size", "64", "--bound", "0.9"),
)


@pytest.fixture(scope="module")
def dataset():
    return data.load(CONFIG, "")


def of(config):
    """Returns what runs of one program may differ in."""
    return [getattr(config, name) for name in program.Numbers._fields]


@pytest.mark.filterwarnings("ignore:round .* removed all weights")
@pytest.mark.parametrize("prune", ["gated", "gradual", "snip", "random"])
def test_one_program_does_what_rounds_one_by_one_do(dataset, prune):
    """Scanned or driven from Python: the same masks and, but for rounding, weights."""
    config = dataclasses.replace(TINY, bound=0.85, prune=prune, target_sparsity=0.7)
    whole = jax.jit(program.whole_run, static_argnums=(0, 4))(
        config, program.Numbers(*of(config)), *dataset[:2], dataset.white
    )
    phases = Phases(config, ImageProblem(config, dataset))
    dense = phases.start_dense()
    for _ in range(phases.num_rounds.dense):
        dense = phases.train_dense(dense)
    rows = []
    for done in sparse_optax.iterative_pruning(
        phases.start_pruning(dense),
        phases.train_sparse,
        lambda state: phases.problem.metric(state.variables),
        phases.prune,
        bound=phases.bound(dense.variables),
        max_rounds=phases.num_rounds.pruning,
        finetune=phases.finetune,
        finetune_rounds=phases.num_rounds.finetuning,
    ):
        rows.append(done)

    history = jax.tree.map(
        lambda *parts: np.concatenate(parts), whole.pruning, whole.finetuning
    )
    assert [row.pruned for row in rows] == history.pruned.tolist()
    assert {row.pruned for row in rows} == {prune == "gated", False}
    sparsities = np.float32([row.sparsity for row in rows])
    np.testing.assert_array_equal(sparsities, history.sparsity)
    np.testing.assert_allclose([row.metric for row in rows], history.metric, atol=0.01)
    best = rows[-1].state.best
    masks, others = (
        sparse_optax.get_masks(state.opt_state) for state in (best, whole.best)
    )
    differing = sum(
        int(jnp.sum(a != b))
        for a, b in zip(jax.tree.leaves(masks), jax.tree.leaves(others), strict=True)
    )
    assert differing <= 2  # of 50,610; rounding may swap neighbours in size


def test_runs_at_once_are_what_they_are_alone(dataset):
    configs = [
        dataclasses.replace(TINY, seed=seed, strength=strength, scale=scale, fraction=f)
        for seed, strength, scale, f in (
            (0, 1e-3, 1e-2, 0.3),
            (1, 1e-3, 1e-2, 0.3),
            (0, 3e-2, 1e-2, 0.3),
            (0, 3e-2, 1e-5, 0.3),
            (0, 1e-3, 1e-2, 0.5),
        )
    ]
    together = program.make(configs, dataset, test=False)
    for config, run in zip(configs, together, strict=True):
        (alone,) = program.make([config], dataset, test=False)
        assert run["config_id"] == alone["config_id"] == config.config_id
        assert run["kept"] == alone["kept"]
        assert run["pruning"]["sparsity"] == alone["pruning"]["sparsity"]
        np.testing.assert_allclose(
            run["pruning"]["metric"], alone["pruning"]["metric"], atol=0.02
        )
    # Each of the numbers arrives: none of the runs is another's double.
    courses = {json.dumps([run["pruning"], run["layers"]]) for run in together}
    assert len(courses) == len(configs)


def test_the_commit_is_that_of_the_start(dataset, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(environment, "commit", lambda: "later")
        return runs_at_once(*arguments)

    runs_at_once = program.runs_at_once
    monkeypatch.setattr(program, "runs_at_once", run)
    monkeypatch.setattr(environment, "commit", lambda: "first")
    (summary,) = program.make([TINY], dataset, test=False)
    assert summary["commit"] == "first"


def test_grid_holds_every_run_once():
    base = dataclasses.replace(CONFIG, strength=0.5, scale=0.25)
    grid = Sweep(
        base,
        regularizers=("relevance", "l2", "none"),
        seeds=(0, 1),
        strengths=(1e-3, 1e-4),
        scales=(1.0, 1e-2, 1e-4),
    )
    runs = grid.runs()
    assert len(runs) == len(set(runs)) == 2 * (2 * 3 + 2 + 1)
    # What plays no part is the default, as in a run by itself.
    assert {(run.strength, run.scale) for run in runs if run.regularizer == "none"} == {
        (CONFIG.strength, CONFIG.scale)
    }
    assert {run.scale for run in runs if run.regularizer == "l2"} == {CONFIG.scale}
    assert Sweep(base).runs() == [base]


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        ("--regularizers l2 none --scale 0.3", "--scale"),
        ("--regularizers l2 --scales 0.3 0.1", "--scale"),
        ("--regularizers none lobster --decoupled", "--decoupled"),
        ("--prune snip --fractions 0.1 0.2", "--fraction"),
        ("--regularizers none --strength 3", "--strength"),
        ("--regularizer l2 --regularizers relevance --scale 0.3", None),
        ("--regularizers relevance lobster --decoupled", None),
    ],
)
def test_what_plays_no_part_in_any_run_is_refused(flags, refused):
    settings = parse(["sweep", "digits", *flags.split()])
    if refused is None:
        settings.validate()
    else:
        with pytest.raises(ExperimentError, match=f"{refused} plays no part in any"):
            settings.validate()


def test_grid_makes_controls_of_what_has_them():
    grid = Sweep(
        CONFIG,
        regularizers=("relevance", "l2", "none"),
        controls=("none", "permuted", "mean"),
    )
    runs = [(run.regularizer, run.form.control) for run in grid.runs()]
    controls = [("relevance", name) for name in ("none", "permuted", "mean")]
    assert runs == [*controls, ("l2", "none"), ("none", "none")]


def test_batches_part_what_one_program_cannot_make():
    runs = Sweep(CONFIG, regularizers=("relevance", "l2"), seeds=(0, 1, 2)).runs()
    batches = list(sweep.batches(runs, 2))
    assert [len(batch) for batch in batches] == [1, 2, 1, 2]
    assert [run for batch in batches for run in batch] == runs
    for batch in batches:
        assert len({run.regularizer for run in batch}) == 1


@pytest.mark.parametrize(
    "number, sizes", [(8, [8]), (10, [5, 5]), (17, [5, 6, 6]), (1, [1])]
)
def test_batches_are_even(number, sizes):
    runs = Sweep(CONFIG, seeds=tuple(range(number))).runs()
    batches = list(sweep.batches(runs, 8))
    assert [len(batch) for batch in batches] == sizes
    assert [run for batch in batches for run in batch] == runs


def test_command_makes_what_is_missing(tmp_path, capsys):
    out = tmp_path / "sweep"
    command = ["sweep", "digits", "--out", str(out), *FLAGS, "--seeds", "0", "1"]
    main(command)
    files = sorted(out.glob("*.json"))
    assert len(files) == 2 and (out / "frontiers.png").stat().st_size > 10_000
    first = [json.loads(path.read_text()) for path in files]
    assert "test_accuracy" not in first[0]
    assert "Runs: 2, to be made: 2." in capsys.readouterr().out

    # As after a kill: one run was stored, the other was not.
    files[1].unlink()
    kept = files[0].stat().st_mtime_ns
    main(command)
    assert "Runs: 2, to be made: 1." in capsys.readouterr().out
    assert files[0].stat().st_mtime_ns == kept
    again = json.loads(files[1].read_text())
    assert again["seed"] == first[1]["seed"]
    assert again["kept"] == first[1]["kept"]

    # As if a default were another now: the id is made of what differs from defaults.
    write_json(files[1], {**again, "dense_strength": 0.5})
    main(command)
    assert "Runs: 2, to be made: 1." in capsys.readouterr().out
    assert json.loads(files[1].read_text())["dense_strength"] == 0

    main([*command, "--regularizers", "relevance", "none"])
    assert "Runs: 4, to be made: 2." in capsys.readouterr().out
    assert len(list(out.glob("*.json"))) == 4
    main(command)
    shown = capsys.readouterr().out
    assert "Runs: 2, to be made: 0." in shown and "none" not in shown


def test_test_set_is_read_only_when_asked_for(tmp_path, capsys, monkeypatch):
    reads = []
    load = data.load

    def counting(*args):
        dataset = load(*args)

        def read_test():
            reads.append(1)
            return dataset.read_test()

        return dataset._replace(read_test=read_test)

    monkeypatch.setattr(data, "load", counting)
    command = ["sweep", "digits", "--out", str(tmp_path), *FLAGS]
    main(command)
    assert not reads
    assert "test accuracy" not in capsys.readouterr().out
    main([*command, "--test"])
    assert len(reads) == 1
    assert "test accuracy" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    run = json.loads(path.read_text())
    assert 0.5 < run["test_accuracy"] <= 1 and 0.5 < run["dense_test_accuracy"] <= 1


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--at-once", "0"), "--at-once must be 1 or more; got 0"),
        (("--strengths", "1e-3", "-1"), "--strength must be 0 or more; got -1.0"),
        (("--scales", "0"), "--scale must be above 0; got 0.0"),
        (("--fractions", "1.5"), "--fraction must be between 0 and 1; got 1.5"),
        (("--seeds", "-1"), "--seed must be 0 or more; got -1"),
        (("--batch-size", "5000"), "--batch-size must be 1078 or less"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, flags, message):
    with pytest.raises(SystemExit) as info:
        main(["sweep", "digits", "--out", str(tmp_path / "x"), *flags])
    assert str(info.value.code).startswith("error: ") and message in info.value.code
    assert not list(tmp_path.glob("x/*.json"))


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    settings = Sweep(dataclasses.replace(TINY, out=tmp_path / "file"))
    with pytest.raises(ExperimentError, match="cannot"):
        sweep.sweep(settings, "")


@pytest.mark.parametrize("prune", ["gated", "gradual"])
def test_a_run_that_diverges_costs_no_other_run(prune, tmp_path, capsys):
    flags = ["--dense-epochs", "1", "--epochs", "1", "--out", str(tmp_path)]
    flags += ["--prune", prune, "--regularizer", "l2", "--optimizer", "sgd"]
    flags += ["--strengths", "1e-5", "1e37"]
    for missing in (2, 0):
        with pytest.raises(SystemExit, match=r"diverged: l2 at strength 1e\+37, "):
            main(["sweep", "digits", *flags, "--finetune-epochs", "0"])
        assert f"to be made: {missing}." in (text := capsys.readouterr().out)
        assert "│ l2 " in text  # what is left is reported
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert [run.get("diverged", False) for run in runs].count(True) == 1
    assert (tmp_path / "frontiers.png").exists()


def test_settings_are_told_apart_by_their_controls():
    form = {"control": "none"}
    common = {"regularizer": "relevance", "strength": 1.0, "scale": 1.0, "fraction": 1}
    runs = [
        {**common, "config_id": "a", "sparsity": 0.5, "form": form},
        {**common, "config_id": "b", "sparsity": 0.4, "form": {"control": "mean"}},
    ]
    groups = grid.by_settings(runs)
    assert list(groups) == ["relevance", "relevance, control mean"]
    assert list(groups.values()) == [[runs[0]], [runs[1]]]


def test_groups_of_runs_are_named_by_what_plays_a_part():
    common = {"fraction": 0.1, "form": {"control": "none"}}
    settings = [
        ("relevance", 0.1, 1.0),
        ("relevance", 0.1, 2.0),
        ("l2", 0.2, 5.0),
        ("none", 0.3, 6.0),
    ]
    runs = [
        {
            **common,
            **{"regularizer": name, "strength": strength, "scale": scale},
            **{"config_id": str(place), "sparsity": 1 - place / 10},
        }
        for place, (name, strength, scale) in enumerate(settings)
    ]
    assert list(grid.by_settings(runs)) == [
        *("relevance, strength 0.1, scale 1", "relevance, strength 0.1, scale 2"),
        *("l2, strength 0.2", "none"),
    ]
    # One scale among those that have any, one strength among all.
    assert list(grid.by_settings(runs[1:2] + runs[3:])) == ["relevance", "none"]


def test_frontier_is_the_best_at_a_sparsity_or_above():
    run = {"pruning": {"sparsity": [0.0, 0.5, 0.5, 0.75], "metric": [6, 4, 5, 3]}}
    sparsities = np.array([0.0, 0.2, 0.5, 0.6, 0.75])
    np.testing.assert_array_equal(figures.frontier(run, sparsities), [6, 5, 5, 3, 3])
