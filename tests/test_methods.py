"""Competitors of the method, in the same loop: each against a hand computation."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import exact_share, find_states, numpy_drop
from shallow import Shallow

import sparse_optax
from experiments import data, networks
from experiments.__main__ import main
from experiments.forms import Form
from experiments.networks.functional import init_network
from experiments.tasks.digits import CONFIG
from experiments.training import masks_at_init, optimizers
from experiments.training.augmentation import augment
from experiments.training.image_problem import ImageProblem
from experiments.training.phases import Phases

TINY = (
    *("--dense-epochs", "2", "--epochs", "6", "--interval", "16"),
    *("--batch-size", "64", "--finetune-epochs", "2"),
)


def changed(**changes):
    return dataclasses.replace(CONFIG, **changes)


def chain_of(config, num_steps=100):
    return optimizers.pruning_optimizer(config, num_steps, steps_per_epoch=10)


# ----------------------------------------------------------------------------- lobster


@pytest.mark.parametrize("learning_rate", [0.5, 0.25])
def test_lobster_shrinks_what_the_loss_is_insensitive_to(learning_rate):
    """w - eta * (momentum) - lambda * w * max(0, 1 - |g|), by hand."""
    config = changed(
        **{"regularizer": "lobster", "strength": 0.1, "optimizer": "sgd"},
        learning_rate=learning_rate,
        schedule="constant",
    )
    tx = chain_of(config)
    w = np.array([2.0, -4.0, 1.0, 0.0], np.float32)
    g = np.array([0.0, 0.25, -3.0, 0.5], np.float32)
    updates, _ = tx.update(
        jnp.asarray(g), tx.init(jnp.asarray(w)), jnp.asarray(w), abs_grads=jnp.abs(g)
    )
    shrinkage = np.array([0.1 * 2 * 1, 0.1 * -4 * 0.75, 0, 0])
    by_hand = learning_rate * np.array([0, -0.25, 3, -0.5]) - shrinkage
    np.testing.assert_allclose(updates, by_hand, rtol=1e-6)


# ----------------------------------------------------------------------------- gradual


def test_gradual_pruning_follows_the_cubic_schedule():
    """s * (1 - (1 - t/n)^3) at every interval, to three quarters of the updates."""
    config = changed(prune="gradual", target_sparsity=0.8, interval=10)
    tx = chain_of(config, num_steps=80)
    params = {"w": jnp.arange(1.0, 1001.0)}
    state = tx.init(params)
    step = jax.jit(lambda s: tx.update({"w": jnp.zeros(1000)}, s, params)[1])
    kept = []
    for _ in range(80):
        state = step(state)
        kept.append(int(sparse_optax.get_masks(state)["w"].sum()))
    updates = np.minimum(np.arange(10, 81, 10), 60)
    sparsity = 0.8 * (1 - (1 - updates / 60) ** 3)
    assert kept[9::10] == [1000 - round(1000 * s) for s in sparsity]
    assert kept[:9] == [1000] * 9 and kept[10:19] == kept[9:10] * 9
    assert not sparse_optax.get_masks(state)["w"][:800].any()


# ------------------------------------------------------------------- at initialisation


def test_snip_scores_are_the_connections_share_of_the_loss():
    """|g * w|, by finite differences of the loss along every connection."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 17, (6, 4, 4, 1), np.uint8)
    split = data.Split(images, rng.integers(0, 10, 6, np.int32))
    network, variables = init_network(networks.LeNet300, (4, 4, 1), 16, 0)
    scores = masks_at_init.snip_scores(network, variables, split, 6, seed=0)
    params = variables.params
    w = params["output"]["kernel"]

    def loss(i, j, factor):
        kernel = w.at[i, j].multiply(factor)
        output = {**params["output"], "kernel": kernel}
        params_there = {**params, "output": output}
        return network.loss(params_there, {}, *map(jnp.asarray, split))[0]

    for i, j in ((0, 0), (3, 7), (99, 9)):
        slope = (loss(i, j, 1.01) - loss(i, j, 0.99)) / 0.02
        np.testing.assert_allclose(
            scores["output"]["kernel"][i, j], abs(slope), rtol=2e-2, atol=2e-5
        )


def test_masks_at_init_spare_norms():
    """A scale that is gone would take a channel with it."""
    images = np.ones((4, 8, 8, 3), np.uint8)
    split = data.Split(images, np.arange(4, dtype=np.int32))
    network, variables = init_network(Shallow, (8, 8, 3), 255, 0)
    for scores in (
        masks_at_init.snip_scores(network, variables, split, 4, seed=0),
        masks_at_init.random_scores(variables.params, seed=0),
    ):
        norms = jax.tree.leaves(scores.pop("norm"))
        assert len(norms) == 2 and all(jnp.all(x == jnp.inf) for x in norms)
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(scores))


def test_random_scores_are_all_different():
    params = {"a": jnp.zeros((30, 20)), "b": jnp.zeros(40)}
    scores = masks_at_init.random_scores(params, seed=0)
    values = np.concatenate([np.ravel(x) for x in jax.tree.leaves(scores)])
    assert values.min() > 0 and len(np.unique(values)) == 640
    assert abs(values.mean() - 0.5) < 0.05
    other = masks_at_init.random_scores(params, seed=1)
    assert jnp.any(other["a"] != scores["a"])


@pytest.mark.parametrize("prune", ["snip", "random"])
def test_masks_at_init_are_those_of_the_untrained_network(prune):
    dataset = data.load_digits()
    config = changed(prune=prune, target_sparsity=0.7, batch_size=100, seed=3)
    phases = Phases(config, ImageProblem(config, dataset))
    dense = phases.start_dense()
    dense = dense._replace(params=jax.tree.map(lambda w: w + 1, dense.params))
    state = phases.start_pruning(dense).current
    masks = sparse_optax.get_masks(state.opt_state)
    start = phases.problem.variables
    scores = {
        "snip": masks_at_init.snip_scores(
            phases.problem.network, start, dataset.train, config.batch_size, config.seed
        ),
        "random": masks_at_init.random_scores(start.params, config.seed),
    }[prune]
    everything = jax.tree.map(np.ones_like, masks)
    total = sum(mask.size for mask in jax.tree.leaves(masks))
    expected = numpy_drop(scores, everything, exact_share(0.7, total))
    for mask, wanted, w, initial in zip(
        *map(jax.tree.leaves, (masks, expected, state.params, start.params)),
        strict=True,
    ):
        np.testing.assert_array_equal(mask, wanted)
        np.testing.assert_array_equal(w, jnp.where(mask, initial, 0))


# ---------------------------------------------------------------------- in a whole run


@pytest.mark.parametrize(
    "flags",
    [
        ("--regularizer", "lobster", "--bound", "0.5", "--strength", "1e-5"),
        ("--prune", "gradual", "--target-sparsity", "0.9"),
        ("--prune", "snip", "--target-sparsity", "0.9", "--regularizer", "none"),
        ("--prune", "random", "--target-sparsity", "0.9", "--regularizer", "none"),
    ],
    ids=lambda flags: flags[1],
)
def test_a_run_of_each(flags, tmp_path):
    main(["digits", "--out", str(tmp_path), *TINY, *flags])
    summary = json.loads((tmp_path / "summary.json").read_text())
    rows = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    if "--prune" in flags:
        total = summary["total"]
        kept = total - round(float(np.float32(0.9)) * total)
        assert summary["kept"] == kept
        assert summary["validation_bound"] == -1
        assert not any(row["pruned"] for row in rows)
        sparsities = [row["sparsity"] for row in rows if row["phase"] == "prune"]
        assert sparsities == sorted(sparsities)
        assert (sparsities[0] == sparsities[-1]) == ("gradual" not in flags)
    else:
        assert 0 < summary["sparsity"] < 1
    assert [row["phase"] for row in rows[-2:]] == ["finetune"] * 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prune", "gradual", "--patience", "3"), "--patience .* gradual; got 3"),
        (("--prune", "snip", "--fraction", "0.3"), "--fraction .* snip; got 0.3"),
        (("--prune", "random", "--bound", "0.3"), "--bound .* random; got 0.3"),
        (("--target-sparsity", "0.5"), "--target-sparsity .* gated; got 0.5"),
        (("--regularizer", "none", "--strength", "3"), "--strength .* none; got 3"),
        (("--regularizer", "l2", "--scale", "5"), "--scale plays no part .* l2; got 5"),
        (
            ("--prune", "gradual", "--strength-decay-epochs", "2"),
            "--strength-decay-epochs .* gradual .*; got 2",
        ),
        (
            ("--prune", "gradual", "--acts-on", "both"),
            "--acts-on both .* --prune gradual",
        ),
        (("--regularizer", "lobster", "--decoupled"), "--decoupled .* lobster"),
        (("--target-sparsity", "1"), "--target-sparsity must be in .*; got 1.0"),
        (("--shift", "-1"), "--shift must be 0 or more; got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(flags, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        main(["digits", "--out", str(tmp_path), *flags])
    assert not any(tmp_path.iterdir())


# ---------------------------------------------------------------------------- settings


def test_dense_training_is_momentum_with_l2_and_a_rate_along_a_cosine():
    """v <- 0.9 v + g + 2 s w and w <- w - eta (1 + cos(pi t / n)) / 2 v, by hand."""
    config = changed(
        **{"dense_optimizer": "sgd", "dense_strength": 0.1, "dense_learning_rate": 0.5}
    )
    tx = optimizers.dense_optimizer(config, num_steps=4)
    w, v = np.array([2.0, -1.0]), np.zeros(2)
    params = jnp.asarray(w, jnp.float32)
    state = tx.init(params)
    for step, g in enumerate(np.array([[1.0, 0.5], [-1.0, 0.25], [0.0, 2.0]])):
        updates, state = tx.update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        v = 0.9 * v + g + 2 * 0.1 * w
        w = w - 0.5 * (1 + np.cos(np.pi * step / 4)) / 2 * v
        np.testing.assert_allclose(params, w, rtol=1e-6)


@pytest.mark.parametrize(
    ("phase", "changes"),
    [
        ("dense", {"dense_optimizer": "sgd"}),
        ("dense", {"dense_strength": 0.1}),
        ("dense", {"dense_learning_rate": 0.1}),
        ("dense", {"bfloat16": True}),
        ("dense", {"mirror": True}),
        ("dense", {"shift": 1}),
        ("sparse", {"optimizer": "sgd"}),
        ("sparse", {"learning_rate": 0.1}),
        ("sparse", {"schedule": "cosine"}),
        ("finetune", {"finetune_learning_rate": 0.1}),
        ("finetune", {"finetune_schedule": "cosine"}),
    ],
    ids=str,
)
def test_settings_of_training_reach_it(phase, changes):
    plain = {"finetune_epochs": 1, "schedule": "constant", "interval": 2}
    one, other = (trained(changed(**plain | more), phase) for more in (plain, changes))
    assert any(
        jnp.any(w != v)
        for w, v in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def test_relevance_is_told_in_the_unit_of_its_form():
    """A scale of 0.3 is above all gradients here, but below many in a tensor's unit."""
    config = changed(scale=0.3, interval=2)
    told = {
        unit: float(
            trained_state(
                dataclasses.replace(config, form=Form(unit=unit)), "sparse"
            ).progress.relevant
        )
        for unit in ("absolute", "leaf")
    }
    assert told["absolute"] < 0.01 < 0.1 < told["leaf"]


def trained(config, phase):
    """Returns params after a round of a phase."""
    return trained_state(config, phase).params


@functools.cache
def trained_state(config, phase):
    """Returns the state after a round of a phase, on few of the digits."""
    # So that an epoch, and with it the course of a rate, is short.
    split = data.Split(*(x[:300] for x in data.load_digits().train))
    phases = Phases(config, ImageProblem(config, data.Dataset(split, split, None, 16)))
    state = phases.start_dense()
    if phase == "dense":
        return phases.train_dense(state)
    train = phases.train_sparse if phase == "sparse" else phases.finetune
    return train(phases.start_pruning(state).current)


# ------------------------------------------------------------------------ augmentation


def test_images_are_moved_and_mirrored():
    image = np.zeros((7, 9, 2), np.uint8)
    image[3, 2] = [5, 6]
    images = jnp.asarray(np.stack([image] * 400))
    result = np.asarray(augment(images, jax.random.key(0), shift=2, mirror=True))
    assert result.dtype == np.uint8
    places = set()
    for moved in result:
        ((row, column),) = np.argwhere(moved.any(-1))
        assert moved[row, column].tolist() == [5, 6]
        places.add((row - 3, column - 2))
    moves = range(-2, 3)
    # The mirrored pixel is at 6, four further to the right.
    assert places == {(i, j + k) for i in moves for j in moves for k in (0, 4)}


def test_what_is_moved_in_is_black():
    images = jnp.full((50, 4, 4, 1), 9, jnp.uint8)
    moved = np.asarray(augment(images, jax.random.key(1), shift=1, mirror=False))
    areas = {int((image == 9).sum()) for image in moved}
    assert areas == {16, 12, 9} and set(np.unique(moved)) == {0, 9}


def test_without_augmentation_images_stay():
    images = jnp.ones((3, 4, 4, 1), jnp.uint8)
    assert augment(images, jax.random.key(0), shift=0, mirror=False) is images


# ------------------------------------------------------------------------- fine-tuning


def test_the_learning_rate_of_fine_tuning_begins_anew():
    config = changed(
        **{"finetune_schedule": "cosine", "finetune_learning_rate": 0.5},
        **{"schedule": "cosine", "regularizer": "none", "optimizer": "sgd"},
    )
    params, grads = jnp.ones(3), jnp.zeros(3)
    pruning = chain_of(config, num_steps=20)
    state = pruning.init(params)
    for _ in range(7):
        _, state = pruning.update(grads, state, params)
    state = optimizers.restart_schedule(state)
    finetuning = optimizers.finetuning_optimizer(config, 10, 20)
    rates = []
    for _ in range(11):
        updates, state = finetuning.update(grads.at[0].set(1.0), state, params)
        state = (state[0], optax.TraceState(jnp.zeros(3)), *state[2:])  # no momentum
        rates.append(-float(updates[0]))
    expected = [0.25 * (1 + np.cos(np.pi * min(t / 10, 1))) for t in range(11)]
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_fine_tuning_begins_with_its_whole_learning_rate():
    """And goes along its own course: that of the pruning is longer, and at its end."""
    dataset = data.load_digits()
    config = changed(
        **{"finetune_schedule": "cosine", "finetune_learning_rate": 0.5},
        **{"finetune_epochs": 2, "epochs": 4, "interval": 1, "batch_size": 1000},
        **{"optimizer": "sgd", "regularizer": "none"},
    )
    phases = Phases(config, ImageProblem(config, dataset))
    assert phases.num_rounds[1:] == (4, 2)
    state = phases.start_pruning(phases.start_dense())
    for _ in range(4):
        state = state._replace(current=phases.train_sparse(state.current))
    before = phases.start_finetuning(state._replace(best=state.current)).current
    for rate in (0.5, 0.25):
        after = phases.finetune(before)
        (trace,) = find_states(after.opt_state, optax.TraceState)
        for w, then, momentum in zip(
            *map(jax.tree.leaves, (before.params, after.params, trace.trace)),
            strict=True,
        ):
            np.testing.assert_allclose(then, w - rate * momentum, rtol=1e-5, atol=1e-6)
        before = after
