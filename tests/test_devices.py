"""Image experiments that divide every batch among the eight devices."""

import dataclasses
import re
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short_runs import (
    assert_same_run,
    checkpoints,
    digits,
    error_line,
    quickly,  # noqa: F401
    read_rows,
)

from experiments.__main__ import main
from experiments.data import images
from experiments.running import program
from experiments.tasks.digits import CONFIG
from experiments.training.image_problem import ImageProblem
from experiments.training.phases import Phases

# What is tested of programs does not depend on how well they are optimized: how the
# partitioner divides them, and results up to rounding.

EPOCHS = {"dense_epochs": 2, "epochs": 2, "finetune_epochs": 2}
TINY = dataclasses.replace(CONFIG, batch_size=64, interval=16, fraction=0.2, **EPOCHS)


@pytest.fixture(scope="module")
def dataset():
    return images.load(CONFIG)


def phases(dataset, **settings):
    config = dataclasses.replace(TINY, **settings)
    return Phases(config, ImageProblem(config, dataset))


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["gradient", "per-example"])
def test_every_device_trains_on_a_part_of_the_batch(dataset, measure):
    form = dataclasses.replace(CONFIG.form, measure=measure)
    one = phases(dataset, form=form)
    all_of_them = phases(dataset, form=form, data_parallel=True)
    states = []
    for each in (one, all_of_them):
        state = each.start_pruning(each.train_dense(each.start_dense())).current
        states.append(each.train_sparse(each.prune(state)))
    for leaf in jax.tree.leaves(states[1]):
        assert len(leaf.sharding.device_set) == jax.device_count() == 8
        assert leaf.sharding.is_fully_replicated
    # Parts of sums are added up in another order, and nothing else is different.
    chex.assert_trees_all_close(*states, rtol=1e-3, atol=1e-4)

    # The data become constants of this program, and are not among its images.
    program = jax.jit(all_of_them.train_sparse).lower(states[1]).compile().as_text()
    assert "all-reduce" in program and "all-gather" not in program
    assert "f32[8,1,8,8,1]" in program  # 64 images on 8 devices
    assert not re.search(r"f32\[64,(1,)?8,8,1\]", program)


@pytest.mark.slow
def test_counts_are_those_of_one_device(dataset):
    assert len(dataset.validation.labels) % 8  # which cannot be divided evenly
    variables = phases(dataset).problem.variables
    counts = [
        int(phases(dataset, data_parallel=flag).problem.count_correct(variables))
        for flag in (False, True)
    ]
    logits = phases(dataset).problem.network.logits(
        variables, jnp.array(dataset.validation[0])
    )
    right = np.asarray(logits).argmax(-1) == dataset.validation.labels
    assert counts == [right.sum()] * 2


@pytest.mark.slow
def test_data_parallel_run_goes_on_with_all_devices_or_with_one(tmp_path, capsys):
    whole = tmp_path / "whole"
    main(digits(whole, "--data-parallel"))
    assert any(row["pruned"] for row in read_rows(whole))
    for flags in (["--data-parallel"], []):
        out = tmp_path / "-".join(["again", *flags])
        shutil.copytree(whole, out)
        (out / "summary.json").unlink()
        checkpoints(out)[-1].unlink()
        main(digits(out, *flags))
        assert "Resuming after round 12." in capsys.readouterr().out
        if flags:
            assert_same_run(whole, out)
        else:
            assert len(read_rows(out)) == len(read_rows(whole)) == 13


@pytest.mark.slow
def test_sweeps_divide_batches_too(dataset):
    outcomes = []
    for flag in (False, True):
        config = dataclasses.replace(TINY, data_parallel=flag)
        numbers = [getattr(config, name) for name in program.Numbers._fields]
        both = program.Numbers(*(jnp.stack([jnp.asarray(x)] * 2) for x in numbers))
        outcomes.append(program.runs_at_once(config, both, *dataset[:2], dataset.white))
    assert len(jax.tree.leaves(outcomes[1])[0].sharding.device_set) == 8
    # The few weights that Adam moves by a sign of nothing but rounding go elsewhere.
    for one, other in zip(*map(jax.tree.leaves, outcomes), strict=True):
        assert np.mean(np.abs(np.asarray(one, float) - other) > 1e-3) < 0.01


def test_batch_that_cannot_be_divided_is_an_error(tmp_path):
    out = tmp_path / "run"
    message = error_line(digits(out, "--data-parallel", "--batch-size", "60"))
    assert "--batch-size must be a multiple of 8, the number of devices" in message
    assert message.endswith("got 60.") and not out.exists()
