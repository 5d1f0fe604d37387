"""What the method costs: what is measured, and what is stored of it."""

import dataclasses
import json
import math

import jax.numpy as jnp
import pytest
from short_runs import error_line, quickly  # noqa: F401

from experiments.__main__ import main
from experiments.cost import (
    benchmark,
    footprint,
    measurement,
    steps,
    storage,
    torch_rivals,
    training_time,
)
from experiments.networks import LeNet300
from experiments.tasks import digits

SMALL = footprint.Decoder(layers=3, width=64, keys=32, hidden=128, vocabulary=512)
WEIGHTS = 2 * 512 * 64 + 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)


# --------------------------------------------------------------------------- benchmark


def test_updates_read_and_write_little_more_than_plain_ones():
    plain, chain = (
        steps.measure_update(tx, 2000, "bfloat16", 2, turns=1)
        for tx in (steps.PLAIN, steps.CHAIN)
    )
    assert plain["moved"] < chain["moved"] < plain["moved"] + 2
    plain, whole = (
        steps.measure_update(tx, 200_000, "float32", 2, turns=1)
        for tx in (steps.PLAIN, steps.WHOLE)
    )
    assert plain["moved"] < whole["moved"] < plain["moved"] + 4
    assert whole["temporaries"] < 1
    without = steps.measure_update(steps.CHAIN, 2000, "float32", 2, 1)
    possible = steps.measure_possible_pruning(
        steps.CHAIN, steps.CHAIN_GRADUAL, 2000, "float32", 2, 1
    )
    for found in possible.values():
        assert without["temporaries"] < found["temporaries"] < 4


def test_ratios_are_of_times_of_the_same_turn(monkeypatch):
    durations = {"reference": [9.0, 1.0, 2.0, 4.0], "other": [9.0, 3.0, 2.0, 8.0]}
    monkeypatch.setattr(measurement, "seconds", lambda name: durations[name].pop(0))
    assert measurement.ratios({"a": "other"}, "reference", turns=3) == {"a": 2.0}


@pytest.mark.slow
def test_the_benchmark_measures_and_stores(tmp_path, monkeypatch):
    def little():
        images = training_time.random_images(8, 28)
        return training_time.image_task(LeNet300, images, 1)._replace(batch_size=4)

    monkeypatch.setattr(training_time, "TASKS", {"LeNet": little})
    monkeypatch.setattr(training_time, "measure_at_once", lambda *_: 2.0)
    monkeypatch.setattr(torch_rivals, "comparable", lambda: False)
    sizes = "--sizes 30000 --rivals 1000 --growth 1000 2000 --leaves 1 --turns 1"
    main(["benchmark", *sizes.split(), "--out", str(tmp_path)])
    found = json.loads((tmp_path / "cpu.json").read_text())
    rows = [row for topic in found["topics"].values() for row in topic]
    assert all(math.isfinite(row[2]) for row in rows)
    targets = {row[0]: row[3] for row in rows if row[3]}
    assert targets["training of LeNet, batch 4"] == "1.05"
    assert targets["`jnp.sort`, 1,000 weights"] == "30, at least"
    assert len(targets) == 12
    table = benchmark.draw_and_show(tmp_path, found)
    assert "| training of LeNet, batch 4 | that with plain Adam |" in table
    at_once = "| 8 runs of lenet300 on 28x28 images, in turn | all of them at once |"
    assert at_once in table


@pytest.mark.slow
def test_runs_at_once_are_timed():
    config = dataclasses.replace(digits.CONFIG, batch_size=500)
    assert 0 < training_time.measure_at_once(config, 8, num_runs=2, num_turns=1) < 20


def test_invalid_numbers_raise():
    for command in (
        *("benchmark --sizes 10", "benchmark --turns 0", "benchmark --leaves -1"),
        *("storage --size 9999", "storage --large 0", "storage --turns 0"),
        *("footprint --devices 0", "footprint --devices 12"),
    ):
        _, flag, _ = command.split()
        assert f"{flag} must be" in error_line(command.split())


# --------------------------------------------------------------------------- footprint


def test_memory_is_divided_among_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(footprint, "DECODERS", (SMALL,))
    main(["footprint", "--devices", "1", "8", "--out", str(tmp_path)])
    stored = json.loads((tmp_path / "cpu.json").read_text())
    assert "| 0.0B | 8 | 0 MB | 0 MB | 0 MB |" in footprint.show(stored)
    for found, num_devices in zip(stored["rows"], (1, 8), strict=True):
        assert (found["weights"], found["devices"]) == (WEIGHTS, num_devices)
        assert (found["exchanged"] > 0) == (num_devices > 1)
        # Four bytes each for a weight and its two moments, one for its mask, and
        # counters.
        assert 0 <= found["given"] - 13 * WEIGHTS / num_devices < 100
        assert 0 <= found["returned"] - found["given"] < 400
        assert found["temporaries"] < 5 * WEIGHTS / num_devices


def test_exchanges_are_counted_in_bytes():
    program = """
      %a = u32[80]{0} all-reduce(%x), replica_groups={}
      %b = (f32[2,3]{1,0}, /*index=1*/u32[], pred[7]) all-reduce-start(%y, %z)
      ROOT %c = bf16[4] all-gather(%a)
      %e = s8[3]{0} all-to-all(%a), dimensions={0}
      %f = u32[2] ragged-all-to-all(%a)
      %g = u32[5] collective-permute-start(%a)
      %h = u32[6] reduce-scatter(%a)
      %d = u32[80]{0} add(%all-reduce, %all-gather)
    """
    reduced = 4 * 80 + 4 * 6 + 4 + 7
    assert footprint.exchanged(program) == reduced + 8 + 3 + 8 + 20 + 24


# ----------------------------------------------------------------------------- storage


def test_storage_is_measured_and_stored(tmp_path):
    weights = storage.matrix(20_000, 0.999, "bfloat16")
    assert weights.shape == (20, 1000) and jnp.count_nonzero(weights) == 20
    for size, kept, itemsize, expected in ((800, 400, 4, 1700), (800, 800, 2, 1600)):
        assert storage.information(size, kept, itemsize) == expected
    flags = "--size", "10000", "--large", "10000", "--turns", "1"
    main(["storage", *flags, "--out", str(tmp_path)])
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert [row["sparsity"] for row in found["files"]] == [*storage.SPARSITIES] * 2
    for row in found["files"]:
        assert row["sparse"] <= 1.25 * row["information"] + 256 + 4096
        assert row["sparse"] <= row["savez"] + 512
        assert ("csr" in row) == (row["dtype"] == "float32")
    assert "| 99 | float32 |" in storage.show(found)
