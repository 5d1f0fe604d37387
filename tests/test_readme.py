"""What the README shows is generated from what is stored, and from nothing else."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from experiments import readme
from experiments.config import ExperimentError
from experiments.forms import Form
from experiments.frontiers import report as frontier_report
from experiments.reporting import illustrations, results, text_results
from experiments.reporting.place import Place
from experiments.study import report as study_report, texts

ROOT = Path(__file__).parent.parent
LAYERS = {
    "output/bias": {"kept": 2, "size": 10},
    "output/kernel": {"kept": 3, "size": 40},
}
SUMMARY = {
    **{"experiment": "digits", "dataset": "digits", "network": "lenet300"},
    **{"regularizer": "relevance", "config_id": "0123abcd", "wall_seconds": 90.0},
    **{"strength": 1e-4, "strength_decay_epochs": 2.0, "scale": 0.01},
    **{"fraction": 0.04, "bound": 0.04, "relative_bound": True},
    **{"dense_test_accuracy": 0.975, "dense_validation_accuracy": 0.98},
    **{"validation_bound": 0.96, "validation_accuracy": 0.965, "layers": LAYERS},
    **{"sparsity": 0.9, "kept": 5, "total": 50},
    "magnitudes": {"edges": [0.01, 0.1, 1.0], "dense": [30, 20], "sparse": [0, 5]},
}


def row(phase, number, kept):
    """Returns a row of the metrics of a run with so many weights left."""
    return {
        **{"phase": phase, "round": number, "metric": 0.97, "pruned": kept == 20},
        **{"sparsity": 1 - kept / 50, "step": number, "loss": 0.5 + 1e-9},
        **{"relevant": 0.25, "relevant_by_leaf": dict.fromkeys(LAYERS, 0.25)},
        "kept_by_leaf": {"output/bias": 2, "output/kernel": kept - 2},
    }


ROWS = [row("dense", 0, 50), row("prune", 0, 20), row("prune", 1, 5)]
ROWS[-1]["relevant_by_leaf"] = {"output/bias": None, "output/kernel": 0.25}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two finished runs of two seeds; what is stored of runs is stored elsewhere."""
    for seed, accuracy in enumerate((0.96, 0.98)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        summary = {**SUMMARY, "seed": seed, "test_accuracy": accuracy}
        (folder / "summary.json").write_text(json.dumps(summary))
        lines = "".join(json.dumps(row) + "\n" for row in ROWS)
        (folder / "metrics.jsonl").write_text(lines)
    monkeypatch.setattr(results, "STORE", tmp_path / "stored")
    monkeypatch.setattr(results, "README", tmp_path / "README.md")
    results.STORE.mkdir()
    parts = [
        f"<!-- {name}: begin -->\nold\n<!-- {name}: end -->\n"
        for name in ("results", "export", "transformers", "wmt14", "study-texts")
    ]
    results.README.write_text(f"before\n{''.join(parts)}after\n")
    return [tmp_path / "0", tmp_path / "1"]


def test_command_stores_runs_and_writes_all_parts(runs, monkeypatch):
    parts = ["results", "export", "transformers", "wmt14", "study-texts"]
    monkeypatch.setattr(Place, "show", lambda self, table: parts.append(self._name))
    monkeypatch.setattr(
        Place, "__init__", lambda self, name, out: vars(self).update(_name=name)
    )
    for name, module in (("frontiers", frontier_report), ("study", study_report)):
        monkeypatch.setattr(
            module, "write", lambda store, name=name: parts.append(name)
        )
    readme.main([str(folder) for folder in runs])
    text = results.README.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "old" not in text
    assert (
        "| digits | lenet300 | relevance | 0.0001, 0 after 2 epochs, scale 0.01 "
        "| 4 % each, above dense - 4 % | 2 | 2.50 ± 0.00 | 3.00 ± 1.41 | 90.00 ± 0.00 "
        "| 5 ± 0 of 50 | 10.0 ± 0.0 |\n"
    ) in text
    # Every part that the README marks is written.
    marked = re.findall("<!-- (.*): begin -->", (ROOT / "README.md").read_text())
    assert sorted(parts) == sorted(marked)
    stored = sorted(
        str(p.relative_to(results.STORE)) for p in results.STORE.rglob("*.*")
    )
    name = "digits-relevance-0123abcd-seed"
    assert stored == [
        *(f"{name}0.json", f"{name}1.json"),
        *(f"rounds/{name}0.json", f"rounds/{name}0.png"),
    ]
    assert (results.STORE / f"rounds/{name}0.png").stat().st_size > 10_000
    readme.main([])
    assert results.README.read_text() == text


def test_runs_on_part_of_a_data_set_are_said_to_be_reduced():
    run = {**SUMMARY, "seed": 0, "test_accuracy": 0.9, "num_train": 5_000}
    whole = {**run, "num_train": None, "config_id": "all"}
    _, _, other, reduced = results.table([run, whole]).splitlines()
    assert reduced.startswith("| digits (reduced run: 5,000 images) | lenet300 |")
    assert other.startswith("| digits | lenet300 |")


TEXT_RUN = {
    **{name: SUMMARY[name] for name in SUMMARY if "accuracy" not in name},
    **{"experiment": "transformer-multi30k", "dataset": "multi30k", "seed": 0},
    **{"network": "transformer", "num_layers": 2, "features": 256, "bound": 1.5},
    **{"metric": "bleu", "dense_test_bleu": 36.5, "test_bleu": 35.25},
    "layers": {
        "embedding/embedding": {"kept": 3, "size": 20},
        "encoder/positions/embedding/embedding": {"kept": 2, "size": 8},
        "encoder/layers/0/attention/key/bias": {"kept": 0, "size": 4},
        "encoder/layers/0/attention/key/kernel": {"kept": 1, "size": 8},
        "encoder/layers/0/attention/value/kernel": {"kept": 1, "size": 8},
        "decoder/layers/0/attention_residual/norm/bias": {"kept": 0, "size": 5},
        "decoder/layers/0/feed_forward/output/kernel": {"kept": 0, "size": 5},
    },
}


def test_runs_on_text_have_a_table_of_their_own():
    tables = text_results.tables([TEXT_RUN]).splitlines()
    assert tables[0].count("|") == tables[1].count("|") == tables[2].count("|") == 12
    assert "| dense BLEU | BLEU |" in tables[0]
    assert tables[2] == (
        "| multi30k | transformer, 2+2 layers of 256 | relevance "
        "| 0.0001, 0 after 2 epochs, scale 0.01 | 4 % each, above dense - 1.5 BLEU | 1 "
        "| 36.50 | 35.25 | 90.00 | 5 of 50 | 10.0 |"
    )
    assert tables[3].startswith("| taskmaster tm1 | not run |")
    assert tables[4].startswith("| wmt14 | not run |")
    assert all(row.count("|") == 12 for row in tables[3:5])
    assert tables[-3:] == [
        "| data set | network | strength | prunes | sparsity, %: all "
        "| both embedding | encoder position | encoder attention | encoder bias "
        "| decoder feed-forward | decoder norm |",
        "| --- " * 11 + "|",
        "| multi30k | transformer, 2+2 layers of 256 "
        "| 0.0001, 0 after 2 epochs, scale 0.01 | 4 % each, above dense - 1.5 BLEU "
        "| 90.0 | 85.0 | 75.0 | 87.5 | 100.0 | 100.0 | 100.0 |",
    ]
    assert "| 4 % each, above dense |" in text_results.tables(
        [{**TEXT_RUN, "bound": 0}]
    )
    adjusted = text_results.tables([{**TEXT_RUN, "adjust_dropout": True}])
    assert "| transformer, 2+2 layers of 256, dropout adjusted |" in adjusted
    run = {**TEXT_RUN, "dataset": "taskmaster", "edition": "tm1", "num_train": 10}
    tables = text_results.tables([run])
    assert "| taskmaster tm1 (reduced run: 10 pairs) |" in tables
    assert "| taskmaster tm1 | not run |" in tables


def test_wmt14_is_not_run_until_it_is():
    assert text_results.wmt14_table([TEXT_RUN]).endswith("This library: not run.\n")
    run = {**TEXT_RUN, "dataset": "wmt14", "whole": 29_000, "pairs": 500}
    assert text_results.wmt14_table([run]).endswith("This library: not run.\n")
    tables = text_results.tables([run])
    assert "| wmt14 (other texts in its place: 500 pairs) |" in tables
    assert "| wmt14 | not run |" in tables
    table = text_results.wmt14_table([{**run, "whole": 4_500_000}])
    assert "not run" not in table and "| 36.50 | 35.25 |" in table
    assert "| 79.9 | 25.56 | 24.52 | 24.33 | 24.65 |" in table


def controlled(seed, bleu, changes, kept=1):
    """Returns a run of the study's controls on text."""
    kernel = "encoder/layers/0/attention/key/kernel"
    return {
        **{**TEXT_RUN, "seed": seed, "test_bleu": bleu, "validation_bleu": bleu + 1},
        **{"prune": "gradual", "target_sparsity": 0.9, "num_train": 10_000},
        "layers": {**TEXT_RUN["layers"], kernel: {"kept": kept, "size": 8}},
        "sparsity_by_frequency": [0.25, 0.5, 0.625, 0.75],
        **changes,
    }


def test_controls_on_text_are_compared_over_pairs_of_runs():
    spared, permuted, l2, none = (
        {"form": dataclasses.asdict(form), **changes}
        for form, changes in (
            (Form(unit="leaf"), {}),
            (Form(unit="leaf", control="permuted"), {"config_id": "permuted"}),
            (Form(), {"config_id": "l2", "regularizer": "l2"}),
            (Form(), {"config_id": "none", "regularizer": "none"}),
        )
    )
    runs = [
        *(controlled(seed, 30.0 + seed, spared) for seed in (0, 1, 2)),
        *(controlled(seed, 29.5 + seed, l2, kept=5) for seed in (0, 2, 1)),
        *(controlled(seed, 28.0 + 2 * seed, permuted) for seed in (1, 2)),
        *(controlled(seed, 29.0 + seed, none) for seed in (2, 1)),
    ]
    compared, tried = texts.tables(runs).split("\n\n")
    assert compared.splitlines()[2:] == [
        "| l2 | 0.0001, 0 after 2 epochs | 2 | 36.50 ± 0.00 | 31.00 ± 0.71 "
        "| +0.50 (+0.50 to +0.50) | +0.50 (+0.50 to +0.50) | 62.5 ± 0.0 | 85.0 ± 0.0 "
        "| 25.0 ± 0.0 | 75.0 ± 0.0 |",
        "| none |  | 2 | 36.50 ± 0.00 | 30.50 ± 0.71 "
        "|  | +1.00 (+1.00 to +1.00) | 87.5 ± 0.0 | 85.0 ± 0.0 "
        "| 25.0 ± 0.0 | 75.0 ± 0.0 |",
        "| relevance, unit leaf | 0.0001, 0 after 2 epochs, scale 0.01 | 2 "
        "| 36.50 ± 0.00 | 31.50 ± 0.71 | +1.00 (+1.00 to +1.00) |  | 87.5 ± 0.0 "
        "| 85.0 ± 0.0 | 25.0 ± 0.0 | 75.0 ± 0.0 |",
        "| relevance, unit leaf, control permuted "
        "| 0.0001, 0 after 2 epochs, scale 0.01 | 2 | 36.50 ± 0.00 | 31.00 ± 1.41 "
        "| +0.50 (-5.85 to +6.85) | +0.50 (-5.85 to +6.85) | 87.5 ± 0.0 | 85.0 ± 0.0 "
        "| 25.0 ± 0.0 | 75.0 ± 0.0 |",
    ]
    assert tried.splitlines()[2:] == [
        "| l2 | 0.0001, 0 after 2 epochs | 30.50 |",
        "| relevance, unit leaf | 0.0001, 0 after 2 epochs, scale 0.01 | 31.00 |",
    ]
    # Of other dense networks, or sizes, there are no pairs.
    others = [{**run, "kept": 6} for run in runs if run["regularizer"] == "l2"]
    (row, *_) = texts.tables([*runs[:3], *others]).splitlines()[2:]
    assert row.startswith("| l2 |") and "| 31.00 ± 0.71 |  |  |" in row
    assert texts.tables([]) == ""
    # One run of each tells nothing of what chance does.
    (*_, row) = (
        texts.tables([run for run in runs if run["seed"] == 1])
        .split("\n\n")[0]
        .splitlines()
    )
    assert "| 30.00 |  |  | 87.5 | 85.0 | 25.0 | 75.0 |" in row


def test_rounds_are_stored_as_they_were_but_for_digits_that_cannot_be_seen(runs):
    illustrations.store(runs[0])
    (path,) = (results.STORE / "rounds").iterdir()
    rows = illustrations.rows_of(json.loads(path.read_text()))
    assert rows == [{**row, "loss": 0.5} for row in ROWS[1:]]


def test_folders_without_a_finished_run_are_refused(runs, tmp_path):
    with pytest.raises(SystemExit, match=r"error: .* holds no finished run"):
        readme.main([str(tmp_path)])
    summary = (runs[0] / "summary.json").read_text()
    (runs[0] / "summary.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"error: .*damaged: it has no 'experiment'"):
        readme.main([str(runs[0])])
    (runs[0] / "summary.json").write_text(summary)
    (runs[0] / "metrics.jsonl").write_text("{")
    with pytest.raises(SystemExit, match=r"error: .*metrics\.jsonl is damaged"):
        readme.main([str(runs[0])])
    (runs[0] / "metrics.jsonl").write_text("")
    with pytest.raises(SystemExit, match=r"error: .* no rounds of a sparse network"):
        readme.main([str(runs[0])])
    (runs[0] / "metrics.jsonl").unlink()
    with pytest.raises(SystemExit, match=r"error: there is no .*metrics\.jsonl"):
        readme.main([str(runs[0])])
    assert not list(results.STORE.rglob("*.json"))  # nothing is stored by halves


def test_what_is_stored_but_damaged_is_told_in_one_line(runs):
    illustrations.store(runs[0])
    results.store(runs[0])
    (path,) = results.STORE.glob("*.json")
    path.write_text(path.read_text()[:99])
    for write in (results.write, illustrations.write):
        with pytest.raises(ExperimentError, match=rf"{path.name} is damaged"):
            write()
    (rounds,) = (results.STORE / "rounds").glob("*.json")
    whole, summary = rounds.read_text(), (runs[0] / "summary.json").read_text()
    path.write_text(summary)
    rounds.write_text("{}")
    with pytest.raises(ExperimentError, match=rf"rounds/{path.name} .*no 'phase'"):
        illustrations.write()
    rounds.write_text(whole)
    path.write_text(summary.replace("magnitudes", "sizes"))
    with pytest.raises(ExperimentError, match=rf"{path.name} .*no 'magnitudes'"):
        illustrations.write()
    path.write_text(json.dumps({"seed": 0}))
    for write in (results.write, illustrations.write):
        with pytest.raises(ExperimentError, match=r"damaged: it has no 'experiment'"):
            write()
    path.unlink()
    with pytest.raises(ExperimentError, match=r"the summary of .* is not there"):
        illustrations.write()


def test_parts_need_their_markers():
    with pytest.raises(ExperimentError, match="once each"):
        results.insert("no markers", "results", "table")


def test_results_in_the_readme_are_what_is_stored(tmp_path, monkeypatch):
    path = tmp_path / "README.md"
    path.write_text((ROOT / "README.md").read_text())
    monkeypatch.setattr(results, "README", path)
    for module in (results, text_results, texts):
        module.write()
    assert path.read_text() == (ROOT / "README.md").read_text()


def test_what_is_shown_of_runs_was_made_by_code_that_is_committed():
    for path in results.STORE.glob("*.json"):
        summary = json.loads(path.read_text())
        exported = summary.get("bytes", summary)
        for commit in (
            *(summary["commit"], exported["commit"]),
            *summary.get("earlier_commits", []),
        ):
            assert commit and "-dirty" not in commit, path
