"""What is left on disk of runs, and of random masks; and how fast it is."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import digits, error_line

import sparse_optax
from experiments.__main__ import main
from experiments.config import ExperimentError
from experiments.cost import latency, storage
from experiments.networks.functional import init_network
from experiments.networks.lenets import LeNet5, LeNet300
from experiments.reporting import files, results
from experiments.reporting.place import Place
from experiments.running import export
from experiments.training import loop

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the digits."""
    out = tmp_path_factory.mktemp("digits") / "run"
    main(digits(out))
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def summary_of(out):
    return json.loads((out / "summary.json").read_text())


def test_a_run_ends_with_its_sparse_file(finished):
    summary = summary_of(finished)
    sizes = summary["bytes"]
    file = finished / "network.safetensors"
    assert file.stat().st_size == sizes["sparse"]
    network = sparse_optax.load_sparse(file)
    kept = sum(int(jnp.count_nonzero(w)) for w in jax.tree.leaves(network["params"]))
    assert kept == summary["kept"]
    assert network["params"]["hidden1"]["kernel"].shape == (64, 300)
    arrays = 4 * summary["total"]
    assert arrays < sizes["dense"] < arrays + 2_000
    # Dense and gzipped it is all of the network as well.
    dense = export.dense_file(network)
    assert len(dense) == sizes["dense"]
    assert len(gzip.compress(dense, mtime=0)) == sizes["gzipped"]


def test_a_run_tells_the_newcomer_how_small_it_is(finished, capsys):
    main(digits(finished))
    told = " ".join(capsys.readouterr().out.split())
    sizes = summary_of(finished)["bytes"]
    times = f"{sizes['dense'] / sizes['sparse']:.1f}"
    assert (
        f"As a sparse file the network has {sizes['sparse']:,} bytes: {times} times "
        "smaller than a dense one." in told
    )


def test_export_makes_it_of_older_runs(finished, run, capsys):
    before = summary_of(run)
    (run / "network.safetensors").unlink()
    del before["bytes"]
    (run / "summary.json").write_text(json.dumps(before))
    main(["export", str(run)])
    assert summary_of(run) == summary_of(finished)
    assert (run / "network.safetensors").read_bytes() == (
        finished / "network.safetensors"
    ).read_bytes()
    assert f"{before['kept']:,}" in capsys.readouterr().out


def test_what_cannot_be_exported_is_told(run, tmp_path, capsys):
    assert "holds no finished run" in error_line(capsys, ["export", str(tmp_path)])
    last = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    largest = max(last.rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(b"damaged")
    message = error_line(capsys, ["export", str(run)])
    assert "cannot be used: not as it was written" in message
    assert largest.name in message and last.exists()
    shutil.rmtree(run / "checkpoints")
    assert "there is no checkpoint" in error_line(capsys, ["export", str(run)])


def test_only_the_end_of_a_run_is_exported(run, capsys):
    last = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    before = (run / "summary.json").read_bytes()
    shutil.rmtree(last)
    message = error_line(capsys, ["export", str(run)])
    assert "is not that of the end of the run" in message
    assert (run / "summary.json").read_bytes() == before


def test_mistakes_are_one_line_to_the_end_of_the_process(run):
    shutil.rmtree(run / "checkpoints")
    (run / "network.safetensors").unlink()
    command = [sys.executable, "-m", "experiments", "export", str(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: there is no checkpoint in")
    assert not (run / "checkpoints").exists()


def test_files_that_cannot_be_written_are_told(run, capsys):
    (run / "network.safetensors").unlink()
    (run / "network.safetensors").mkdir()
    assert "network.safetensors" in error_line(capsys, ["export", str(run)])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"test_accuracy": None}, "'test_accuracy' is None"),
        ({"bytes": {"dense": 1, "sparse": 1}}, "it has no 'gzipped'"),
        ({"bytes": 3}, "it has no 'dense'"),
    ],
    ids=str,
)
def test_damaged_summaries_are_told(run, capsys, change, message):
    damaged = {**summary_of(run), **change}
    (run / "summary.json").write_text(json.dumps(damaged))
    assert message in error_line(capsys, ["export", str(run)])
    assert message in error_line(capsys, digits(run))


def test_dead_layers_are_told_at_the_end(finished, run, capsys):
    assert summary_of(finished)["warnings"] == []
    dead = {**summary_of(run), "warnings": ["output/kernel has no weight left"]}
    (run / "summary.json").write_text(json.dumps(dead))
    capsys.readouterr()
    main(digits(run))
    assert "warning: output/kernel has no weight left" in capsys.readouterr().out


def test_a_network_without_weights_is_dead():
    params = {"layer": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
    tx = sparse_optax.prune_by_magnitude(0.1, mask=None)
    params, opt_state = sparse_optax.prune(params, tx.init(params), 1.0)
    zero = jnp.zeros([], jnp.int32)
    sizes = loop.sizes(loop.TrainState(params, opt_state, zero, None, {}))
    assert sizes["warnings"] == ["layer/kernel has no weight left"]
    assert sizes["kept"] == 0 and sizes["compression"] is None


def test_the_table_of_exports_has_the_runs_whose_files_were_made(finished):
    summary = summary_of(finished)
    lines = files.table([summary, {k: v for k, v in summary.items() if k != "bytes"}])
    (line,) = lines.splitlines()[2:]
    assert f"| {summary['bytes']['sparse']:,} |" in line
    assert f"| {summary['kept']:,} of 50,610 |" in line


# ----------------------------------------------------------------------- random masks


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sparsity", [0.5, 0.98, 0.999])
def test_matrices_have_exactly_that_sparsity(sparsity, dtype):
    weights = storage.matrix(20_000, sparsity, dtype)
    assert weights.shape == (20, 1000)
    assert jnp.count_nonzero(weights) == round((1 - sparsity) * 20_000)


def test_information_is_that_of_values_and_masks():
    assert storage.information(800, 400, 4) == 400 * 4 + 100
    assert storage.information(800, 800, 2) == 1600
    assert storage.information(800, 0, 2) == 0


def test_storage_measures_stores_and_tabulates(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- storage: begin --><!-- storage: end -->")
    monkeypatch.setattr(results, "README", readme)
    monkeypatch.setattr(results, "STORE", tmp_path)
    main(["storage", "--size", "10000", "--large", "10000", "--turns", "1"])
    found = json.loads((tmp_path / "storage/cpu.json").read_text())
    assert [row["sparsity"] for row in found["files"]] == [*storage.SPARSITIES] * 2
    for row in found["files"]:
        assert row["sparse"] <= 1.25 * row["information"] + 256 + 4096
        assert ("csr" in row) == (row["dtype"] == "float32")
    assert all(row["write"] > 0 and row["read_seconds"] > 0 for row in found["times"])
    assert storage.table([found]) in readme.read_text()


@pytest.mark.parametrize(
    "flags", [["--size", "9999"], ["--large", "0"], ["--turns", "0"]]
)
def test_storage_refuses_numbers_that_make_no_sense(flags, capsys):
    assert flags[0] in error_line(capsys, ["storage", *flags])


# ---------------------------------------------------------------------------- latency


@pytest.mark.parametrize("name, network", [("lenet300", LeNet300), ("lenet5", LeNet5)])
def test_all_ways_to_multiply_compute_the_same_network(name, network):
    functional, variables = init_network(network, (28, 28, 1), 255, seed=0)
    biases = np.random.default_rng(1)
    variables = variables._replace(
        params={
            layer: {**leaves, "bias": jnp.asarray(biases.random(leaves["bias"].shape))}
            for layer, leaves in variables.params.items()
        }
    )
    variables = latency.pruned(variables, 0.9)
    total = sum(w.size for w in jax.tree.leaves(variables.params))
    kept = sum(int(jnp.count_nonzero(w)) for w in jax.tree.leaves(variables.params))
    assert kept == total - round(float(np.float32(0.9)) * total)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    wanted = functional.logits(variables, jnp.asarray(images))
    for variant, make in latency.variants(name, "mnist", variables).items():
        np.testing.assert_allclose(
            make(images)(), wanted, rtol=1e-4, atol=1e-4, err_msg=variant
        )


def test_a_way_that_computes_another_network_is_told(monkeypatch):
    monkeypatch.setattr(latency, "BATCHES", (2,))
    _, variables = init_network(LeNet300, (28, 28, 1), 255, seed=0)
    monkeypatch.setattr(
        latency,
        "layers_of",
        lambda params: [
            latency.Layer(np.ones((10, 784), np.float32), np.zeros((10, 1)), None)
        ],
    )
    with pytest.raises(ExperimentError, match="computes another network"):
        latency.measure("lenet300", "mnist", variables, turns=1)


def test_latency_measures_stores_and_tabulates(finished, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- latency: begin --><!-- latency: end -->")
    monkeypatch.setattr(results, "README", readme)
    monkeypatch.setattr(results, "STORE", tmp_path)
    main(["latency", str(finished), "--turns", "1"])
    found = json.loads((tmp_path / "latency/cpu.json").read_text())
    assert [run["sparsity"] for run in found["runs"]] == [
        *latency.PRUNED_AT_ONCE,
        summary_of(finished)["sparsity"],
    ]
    for run in found["runs"]:
        assert [row["batch"] for row in run["rows"]] == [1, 256]
        for row in run["rows"]:
            assert "as it is trained, again" in row["ratios"]
            assert all(ratio > 0 for ratio in row["ratios"].values())
    assert latency.table([found]) in readme.read_text()


def test_latency_refuses_what_is_no_lenet(run, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert "holds no finished run" in error_line(
        capsys, ["latency", str(tmp_path), *out]
    )
    summary = {**summary_of(run), "network": "resnet32"}
    (run / "summary.json").write_text(json.dumps(summary))
    assert "holds no LeNet" in error_line(capsys, ["latency", str(run), *out])


@pytest.mark.parametrize(
    "name, table", [("storage", storage.table), ("latency", latency.table)]
)
def test_readme_has_what_is_stored(name, table):
    readme = (ROOT / "README.md").read_text()
    stored = Place(name, None).stored()
    assert stored
    assert results.insert(readme, name, table(stored)) == readme


def test_readme_has_the_exports_that_are_stored():
    readme = (ROOT / "README.md").read_text()
    table = files.table(results.stored())
    assert len(table.splitlines()) > 2
    assert results.insert(readme, "export", table) == readme
