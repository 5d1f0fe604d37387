"""What is measured of the cost of the method, and what becomes of it."""

import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import sparse_optax
from experiments.__main__ import main
from experiments.cost import (
    benchmark,
    prunes,
    timing,
    torch_rivals,
    training_time,
    updates,
)
from experiments.cost.settings import Benchmark
from experiments.reporting import results
from experiments.reporting.place import Place
from experiments.tasks.digits import CONFIG

ROOT = Path(__file__).parent.parent
needs_torch = pytest.mark.skipif(
    not torch_rivals.has_torch(), reason="PyTorch, to compare with, is not installed"
)


def test_benchmark_measures_stores_and_tabulates(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- benchmark: begin --><!-- benchmark: end -->")
    monkeypatch.setattr(results, "README", readme)
    monkeypatch.setattr(results, "STORE", tmp_path)
    costs = [benchmark.Row("this", "that", 1.5, "1.6"), benchmark.Row("a", "b", 2.0)]
    monkeypatch.setattr(benchmark, "rows_of", lambda _: costs)
    monkeypatch.setattr(torch_rivals, "has_torch", lambda: False)
    for backend in ("gpu", "cpu", "gpu"):
        where = {
            "backend": backend,
            "hardware": f"1 x {backend}",
            "versions": {"jax": "1.0"},
            "commit": "012345678",
        }
        monkeypatch.setattr(benchmark, "environment", lambda where=where: where)
        main(["benchmark"])
    cpu, gpu = (
        f"On 1 x {backend}, jax 1.0, commit 01234567:\n\n"
        "| measured | in units of | value | target |\n| --- | --- | --- | --- |\n"
        "| this | that | 1.50 | 1.6 |\n| a | b | 2.00 |  |\n"
        for backend in ("cpu", "gpu")
    )
    assert f"{cpu}\n{gpu}" in readme.read_text()

    readme.write_text("no markers")
    main(["benchmark", "--out", str(tmp_path / "else" / "where")])
    elsewhere = json.loads((tmp_path / "else" / "where" / "gpu.json").read_text())
    assert elsewhere["rows"] == [list(row) for row in costs]
    assert readme.read_text() == "no markers"


def test_where_nothing_can_be_written_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "rows_of", lambda _: pytest.fail("measured"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"error: cannot use .*file"):
        main(["benchmark", "--out", str(tmp_path / "file")])
    readme = tmp_path / "README.md"
    monkeypatch.setattr(results, "STORE", tmp_path)
    monkeypatch.setattr(results, "README", readme)
    with pytest.raises(SystemExit, match=r"error: cannot use .*README\.md"):
        main(["benchmark"])
    readme.write_text("no markers")
    with pytest.raises(SystemExit, match=r"error: README\.md needs"):
        main(["benchmark"])


def test_costs_are_measured():
    plain, chain = (
        updates.measure_update(tx, 2000, "bfloat16", 2, turns=1)
        for tx in (updates.PLAIN, updates.CHAIN)
    )
    assert plain["time"] > 0 and chain["time"] > 0
    assert plain["moved"] < chain["moved"] < plain["moved"] + 2
    traced = jax.numpy.array(False)
    flagged = updates.measure_update(
        updates.CHAIN, 2000, "float32", 2, turns=1, prune=traced
    )
    assert flagged["temporaries"] > chain["temporaries"]
    prune = prunes.measure_prune(prunes.PRUNABLE, 2000, "bfloat16", 2, turns=1)
    assert prune["adam"] > 0 and prune["temporaries"] > 0
    assert min(prunes.measure_rivals(10_000, turns=1).values()) > 0
    assert prunes.measure_compilation(2) > 0


def test_a_prune_is_measured_of_what_the_last_one_has_left():
    params = updates.matrices(2000, 2)
    prune = prunes.pruned_again(prunes.PRUNABLE, params)
    for number in (2000 - 20, 2000 - 20 - 20):
        masks = sparse_optax.get_masks(prune()[1])
        assert sum(int(mask.sum()) for mask in masks) == number
    assert all(jax.numpy.all(w != 0) for w in params)


def test_speed_is_measured():
    task = training_time.lenet300()._replace(num_steps=2)
    assert min(training_time.measure_training(task, turns=1).values()) > 0
    assert training_time.measure_at_once(CONFIG, 8, num_runs=2, num_turns=1) > 0


@pytest.mark.parametrize(
    ("make_task", "number"),
    [(training_time.resnet32, 464_154), (training_time.transformer, 3_627_520)],
)
def test_networks_that_are_timed_learn(make_task, number):
    task = make_task()
    few = task.data._replace(images=task.data.images[:8], labels=task.data.labels[:8])
    task = task._replace(data=few, batch_size=4, num_steps=2)
    assert sum(w.size for w in jax.tree.leaves(task.variables.params)) == number
    before, after = (
        task.network.loss(*variables, *few)[0]
        for variables in (
            task.variables,
            training_time.trainer(task, optax.adam(1e-3))().variables,
        )
    )
    assert after < before


def test_rows_of_the_benchmark(monkeypatch):
    """All of them, of as little as can be."""

    def little():
        images = training_time.random_images(8, 28)
        return training_time.lenet300()._replace(data=images, batch_size=4, num_steps=1)

    monkeypatch.setattr(training_time, "TASKS", {"LeNet": little})
    monkeypatch.setattr(training_time, "measure_at_once", lambda *_: 1.5)
    beside = {"ours": 0.5, "theirs": 1.8}
    monkeypatch.setattr(training_time, "measure_beside_torch", lambda turns: beside)
    rivals = {"`jnp.sort`": 40.0, "PyTorch": 9.0}
    monkeypatch.setattr(prunes, "measure_rivals", lambda size, turns: rivals)
    monkeypatch.setattr(torch_rivals, "has_torch", lambda: True)
    settings = Benchmark(
        sizes=(30_000,), rivals=(1000,), growth=(1000, 2000), leaves=(1,), turns=1
    )
    rows = {row.what: row for row in benchmark.rows_of(settings)}
    assert all(row.value >= 0 for row in rows.values())
    assert {what: row.target for what, row in rows.items() if row.target} == {
        "update by `chain(add_relevance_decay, adam, prune_by_magnitude)`, "
        "30,000 weights, float32": "1.3",
        "`prune`, 30,000 weights, float32": "6",
        "`prune`, 30,000 weights, bfloat16": "6",
        "`prune` of a state of `relevance_pruning(adam)`, 30,000 weights, float32": "6",
        "its temporaries": "5",
        "`jnp.sort`, 1,000 weights": "30, at least",
        "PyTorch, 1,000 weights": "1, at least",
        "training of LeNet, batch 4": "1.05",
        "training of LeNet-5, batch 100": "0.7",
    }


@needs_torch
def test_torch_shrinks_irrelevant_weights():
    data = training_time.random_images(80, 28)

    def size(strength):
        train = torch_rivals.make_train(
            data, batch_size=4, num_steps=20, strength=strength, scale=1.0
        )
        return sum(float(w.detach().square().sum()) for w in train())

    assert size(strength=1.0) < 0.7 * size(strength=None)


@needs_torch
def test_torch_prunes_what_we_do():
    weights = updates.matrices(3000, 3)
    tx = sparse_optax.prune_by_magnitude(0.1, mask=None)
    ours, _ = sparse_optax.prune(weights, tx.init(weights), 0.3)
    prune = torch_rivals.make_prune(weights, 0.3)
    for theirs in (prune(), prune()):
        for left, right in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(left, right.detach().numpy())


def test_ratios_are_of_what_was_timed_by_turns(monkeypatch):
    durations = {"reference": [9.0, 1.0, 2.0, 4.0], "other": [9.0, 3.0, 2.0, 8.0]}
    monkeypatch.setattr(timing, "seconds", lambda name: durations[name].pop(0))
    assert timing.ratios({"a": "other"}, "reference", turns=3) == {"a": 2.0}


@pytest.mark.parametrize(
    "flags",
    [["--sizes", "10"], ["--turns", "0"], ["--growth", "0"], ["--leaves", "-1"]],
)
def test_benchmark_refuses_numbers_that_make_no_sense(flags):
    with pytest.raises(SystemExit, match=f"error: {flags[0]} must be"):
        main(["benchmark", *flags])


def test_benchmark_in_the_readme_is_what_is_stored():
    measured = Place("benchmark", None).stored()
    readme = (ROOT / "README.md").read_text()
    assert measured
    table = benchmark.table(measured)
    assert results.insert(readme, "benchmark", table) == readme
