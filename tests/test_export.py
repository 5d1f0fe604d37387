"""The files of finished runs, and how fast their networks are."""

import gzip
import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors
from short_runs import (
    ROOT,
    Small,
    checkpoints,
    digits,
    draw_run,
    error_line,
    quickly,  # noqa: F401
    read_summary,
)

import sparse_optax
from experiments.__main__ import main
from experiments.cost import latency, matrices, onnx_rivals
from experiments.networks import NETWORKS
from experiments.networks.encoder_decoder import Shape
from experiments.networks.functional import Variables, init_network
from experiments.networks.seq2seq import init_seq2seq
from experiments.pages import runs as stored_runs
from experiments.running import compaction, figures
from experiments.running.checkpoint import named_leaves
from experiments.settings import ExperimentError

pytestmark = pytest.mark.quickly_compiled


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the digits."""
    out = tmp_path_factory.mktemp("digits") / "run"
    main(digits(out))
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_the_sparse_file_of_a_run_is_written_again(finished, run, capsys):
    summary, path = read_summary(finished), finished / "network.safetensors"
    sizes = summary["bytes"]
    assert path.stat().st_size == sizes["sparse"]
    network = sparse_optax.load_sparse(path)
    kept = sum(int(jnp.count_nonzero(w)) for w in jax.tree.leaves(network["params"]))
    assert kept == summary["kept"]
    arrays = {name: np.asarray(x) for name, x in named_leaves(network).items()}
    dense = safetensors.save(arrays)
    assert len(dense) == sizes["dense"]
    assert len(gzip.compress(dense, mtime=0)) == sizes["gzipped"]
    (run / "network.safetensors").unlink()
    older = {name: value for name, value in summary.items() if name != "bytes"}
    (run / "summary.json").write_text(json.dumps(older))
    main(["export", str(run)])
    assert read_summary(run) == summary
    assert (run / "network.safetensors").read_bytes() == path.read_bytes()
    assert f"{kept:,}" in capsys.readouterr().out


def test_the_end_of_a_run_says_how_small_a_dense_network_is(finished, run, capsys):
    before, after = (read_summary(run)["compacted"][x] for x in ("before", "after"))
    assert before["weights"] == 50_610 and before["multiplications"] == 50_200
    assert 0 < after["multiplications"] <= before["multiplications"]
    main(digits(run))
    assert f"{after['multiplications']:,} of 50,200 multipl" in capsys.readouterr().out
    older = {k: v for k, v in read_summary(run).items() if k != "compacted"}
    (run / "summary.json").write_text(json.dumps({**older, "wall_seconds": 1}))
    main(digits(run))
    assert "multiplications" not in capsys.readouterr().out


ALONE = """
import sys, numpy, jax, jax.export
with open(sys.argv[1], "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
for number in (1, 7):
    images = numpy.load(sys.argv[2])[:number]
    found = program.call(images)
numpy.save(sys.argv[3], found)
assert not {"sparse_optax", "experiments", "flax", "optax"} & set(sys.modules)
"""


@pytest.mark.parametrize(
    "small",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["lenet300", "norms"],
)
def test_a_compacted_network_runs_without_this_library(
    small, run, tmp_path, capsys, monkeypatch
):
    """With the logits of the masked network, for batches of any size."""
    pytest.importorskip("flatbuffers", reason="programs are written with flatbuffers")
    if small:
        monkeypatch.setitem(NETWORKS, "lenet300", Small)
        run = tmp_path / "norms"
        main(digits(run))
    main(["export", "--compact", str(run)])
    shown, summary = capsys.readouterr().out, read_summary(run)
    for name in ("compacted.safetensors", "compacted.stablehlo"):
        size = (run / name).stat().st_size
        assert summary["compacted"]["bytes"][name] == size
        assert f"{run / name}: {size:,} bytes" in shown
    smaller = sparse_optax.load_sparse(run / "compacted.safetensors")
    weights = sum(leaf.size for leaf in jax.tree.leaves(smaller["params"]))
    assert weights == summary["compacted"]["after"]["weights"]
    network = Variables(**sparse_optax.load_sparse(run / "network.safetensors"))
    functional, _ = init_network(NETWORKS["lenet300"], (8, 8, 1), 16, seed=0)
    images = np.random.default_rng(0).integers(0, 17, (7, 8, 8, 1), np.uint8)
    np.save(tmp_path / "images.npy", images)
    files = run / "compacted.stablehlo", tmp_path / "images.npy", tmp_path / "found.npy"
    command = [sys.executable, "-I", "-c", ALONE, *map(str, files)]
    subprocess.run(command, cwd=tmp_path, check=True)
    wanted = functional.logits(network, jnp.asarray(images))
    np.testing.assert_allclose(np.load(files[2]), wanted, 1e-4, 1e-4)


def test_programs_need_a_package(run, monkeypatch):
    monkeypatch.setattr(compaction, "find_spec", lambda name: None)
    assert "pip install flatbuffers" in error_line(["export", "--compact", run])
    assert not (run / "compacted.safetensors").exists()


@pytest.mark.parametrize("command", ["export", "latency", "pages"])
def test_summaries_with_missing_keys_raise(command, run):
    (run / "summary.json").write_text("{}")
    line = error_line([command, run])
    assert re.search(r"run/summary\.json is damaged: it has no '\w+'", line)


def test_runs_that_cannot_be_exported_are_named(run, tmp_path):
    assert "contains no finished run" in error_line(["export", tmp_path])
    assert f"{tmp_path}/no does not exist" in error_line(["export", tmp_path / "no"])
    (run / "network.safetensors").unlink()
    (run / "network.safetensors").mkdir()
    assert "network.safetensors" in error_line(["export", run])
    before = (run / "summary.json").read_bytes()
    first, last = checkpoints(run)
    last.write_bytes(b"damaged")
    assert f"{last} is damaged" in error_line(["export", run])
    last.unlink()
    assert "is not that of the end of the run" in error_line(["export", run])
    first.unlink()
    assert (run / "summary.json").read_bytes() == before
    # One line, to the end of the process.
    command = [sys.executable, "-m", "experiments", "export", str(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: there is no checkpoint in") and done.returncode == 1


def test_warnings_are_shown_with_a_finished_run(finished, run, capsys):
    assert read_summary(finished)["warnings"] == []
    dead = {**read_summary(run), "warnings": ["a warning"], "wall_seconds": 1}
    (run / "summary.json").write_text(json.dumps(dead))
    main(digits(run))
    assert "warning: a warning" in capsys.readouterr().out


def test_a_run_is_stored_for_the_pages(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_runs, "RESULTS", tmp_path)
    path = stored_runs.store(finished)
    summary = json.loads((finished / "summary.json").read_text())
    name = f"digits-relevance-{summary['config_id']}-seed0"
    assert path == tmp_path / "runs" / f"{name}.json"
    assert json.loads(path.read_text()) == summary
    rounds = json.loads((tmp_path / "rounds" / f"{name}.json").read_text())
    assert rounds["phase"] == ["prune"] * 8 + ["finetune"] * 2
    assert rounds["kept_by_leaf"].keys() == summary["layers"].keys()
    monkeypatch.setattr(figures, "draw_run", draw_run)
    stored_runs.draw(name, tmp_path)
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    with pytest.raises(ExperimentError, match="contains no finished run"):
        stored_runs.store(tmp_path)


# ---------------------------------------------------------------------------- latency


@pytest.mark.parametrize(
    "name", ["lenet300", pytest.param("lenet5", marks=pytest.mark.slow)]
)
def test_all_ways_to_multiply_compute_the_same_network(name):
    _, variables = init_network(NETWORKS[name], (28, 28, 1), 255, seed=0)
    # Biases count, which start at zero.
    params = jax.tree.map(lambda w: w + 0.1 * (w.ndim == 1), variables.params)
    variables = latency.pruned(variables._replace(params=params), 0.9)
    total = sum(w.size for w in jax.tree.leaves(variables.params))
    kept = sum(int(jnp.count_nonzero(w)) for w in jax.tree.leaves(variables.params))
    assert kept == total - round(float(np.float32(0.9)) * total)
    summary = {"network": name, "dataset": "mnist", "structure": "unstructured"}
    whole = compaction.runnable(summary, variables)
    compacted = compaction.compact(whole)
    (images,) = whole.random_inputs(3)
    wanted = whole.logits(variables, images)
    found = latency.variants(summary, whole, compacted, 3)
    count = 3 + onnx_rivals.available()
    assert sum("compacted" in variant for variant in found) == count
    for variant, function in found.items():
        found = function()
        np.testing.assert_allclose(found, wanted, 1e-4, 1e-4, err_msg=variant)


def test_variants_with_different_logits_raise(monkeypatch):
    monkeypatch.setattr(latency, "BATCHES", (2,))
    _, variables = init_network(NETWORKS["lenet300"], (28, 28, 1), 255, seed=0)
    layer = matrices.Layer(
        np.ones((10, 784), np.float32), np.zeros((10, 1), np.float32), None, None
    )
    monkeypatch.setattr(matrices, "layers_of", lambda params, inputs=None: [layer])
    summary = {"network": "lenet300", "dataset": "mnist", "structure": "unstructured"}
    with pytest.raises(ExperimentError, match="returns other outputs"):
        latency.measure_network(summary, variables, turns=1)


def test_networks_that_were_pruned_before_are_named_so(finished, tmp_path):
    summary = {"pruned_from": str(finished)}
    assert latency.structure_before(summary) == "unstructured"
    assert latency.structure_before({}) is None
    with pytest.raises(ExperimentError, match=r"--pruned-from .* there is no run"):
        latency.structure_before({"pruned_from": str(tmp_path)})


def test_the_latency_of_networks_on_texts(monkeypatch):
    monkeypatch.setattr(latency, "BATCHES", (2,))
    summary = {"network": "transformer", "label_smoothing": 0.0, "num_layers": 1}
    summary |= {"features": 8, "hidden": 16, "heads": 2}
    shape = Shape(9, 9, True, 1, 8, 16, 2, 5, 6)
    _, params = init_seq2seq(shape, 0.0, seed=0)
    hidden = params["encoder"]["layers"]["00"]["feed_forward"]["hidden"]
    hidden["kernel"] = hidden["kernel"].at[:, 3:].set(0)
    found = latency.measure_network(summary, Variables(params, {}), turns=1)
    (row,) = found["rows"]
    for kind in ("ratios", "decoding"):
        assert {*row[kind]} == {"as it is trained, again", "compacted"}
    weights = (found["compacted"][when]["weights"] for when in ("before", "after"))
    assert next(weights) - next(weights) == 13 * (8 + 1 + 8)


@pytest.mark.slow
def test_latency_measures_runs_and_stores(finished, run, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "BATCHES", (2,))
    out = ["--out", str(tmp_path / "out")]
    main(["latency", str(finished), "--turns", "1", *out])
    found = json.loads((tmp_path / "out" / "cpu-digits.json").read_text())
    sparsity = read_summary(finished)["sparsity"]
    sparsities = [*latency.PRUNED_AT_ONCE, sparsity]
    assert [one["sparsity"] for one in found["runs"]] == sparsities
    table = latency.show([found])
    assert f"| lenet300, digits | weights, relevance | {100 * sparsity:.2f} |" in table
    assert "| lenet300, digits | at once | 80.00 | 2 |" in table
    assert "contains no finished run" in error_line(["latency", tmp_path, *out])
