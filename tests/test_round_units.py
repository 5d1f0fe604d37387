"""Pruning that keeps multiples of units, and removes the lowest of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparse_optax

pytestmark = pytest.mark.quickly_compiled

SIZES = (5, 24, 20, 2)


def fn(params, x):
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params[-1]


def network():
    rng = np.random.default_rng(0)
    shapes = itertools.pairwise(SIZES)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def kept_units(masks):
    return [np.asarray(mask).any(axis=0) for mask in masks[:-1]]


@pytest.mark.parametrize("count", [8, 12, 20, 28])
def test_a_group_keeps_a_multiple(count):
    params = network()
    groups = sparse_optax.channel_groups(fn, params, jnp.ones((1, 5)), round_to=8)
    _, masks = sparse_optax.one_shot(params, count=count, structure=groups)
    kept = [int(units.sum()) for units in kept_units(masks)]
    assert sum(kept) == 24 + 20 - count
    assert sum(n % 8 > 0 for n in kept) <= 1


def test_the_highest_of_a_group_are_kept():
    params = network()
    groups = sparse_optax.channel_groups(fn, params, jnp.ones((1, 5)), round_to=8)
    _, masks = sparse_optax.one_shot(params, count=12, structure=groups)
    for group, units in zip(groups.select(None), kept_units(masks), strict=True):
        magnitudes = {m.leaf: jnp.abs(params[int(m.leaf)]) for m in group.members}
        all_kept = {name: jnp.ones(x.shape, bool) for name, x in magnitudes.items()}
        alone = sparse_optax.ChannelGroups((group,), groups.shapes)
        scores = alone.to_units(magnitudes, all_kept)[group.name].scores
        assert units.any()
        if not units.all():
            assert scores[units].min() > scores[~units].max()


def test_invalid_round_to_raises():
    with pytest.raises(ValueError, match="round_to"):
        sparse_optax.channel_groups(fn, network(), jnp.ones((1, 5)), round_to=0)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.6, 0.9])
def test_each_group_keeps_a_multiple_under_uniform_amounts(sparsity):
    params = network()
    groups = sparse_optax.channel_groups(fn, params, jnp.ones((1, 5)), round_to=8)
    tx = sparse_optax.prune_to_sparsity(
        sparsity, structure=groups, distribution="uniform"
    )
    params, state = sparse_optax.prune(params, tx.init(params), sparsity=sparsity)
    kept = [int(units.sum()) for units in kept_units(sparse_optax.get_masks(state))]
    wanted = [(n - round(sparsity * n), n) for n in SIZES[1:3]]
    assert kept == [min(-(-n // 8) * 8, size) for n, size in wanted]
    assert int(state.shortfall) == sum(kept) - sum(n for n, _ in wanted)


def test_minimums_are_rounded_up():
    params = network()
    groups = sparse_optax.channel_groups(fn, params, jnp.ones((1, 5)), round_to=8)
    _, masks = sparse_optax.one_shot(params, 1.0, structure=groups, min_kept=5)
    assert [int(units.sum()) for units in kept_units(masks)] == [8, 8]
