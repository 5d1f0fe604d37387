"""The table of sparsities: its totals, with and without masks, and of many leaves."""

import jax.numpy as jnp
import numpy as np
import pytest

import sparse_optax

pytestmark = pytest.mark.quickly_compiled

PARAMS = {"kernel": jnp.arange(1.0, 101).reshape(10, 10), "bias": jnp.zeros(20)}


def pruned():
    tx = sparse_optax.prune_by_magnitude(0.1)
    params, state = sparse_optax.prune(PARAMS, tx.init(PARAMS), 0.5)
    return params, sparse_optax.get_masks(state)


def test_every_sparsity_has_one_meaning():
    params, masks = pruned()
    report = sparse_optax.sparsity_report(params, masks)
    assert report.prunable == (50, 100)
    assert report.total == (70, 120)
    # Of masks: pruned of what is prunable. Of params: zero, for whatever reason.
    assert sparse_optax.sparsity(masks) == np.float32(report.prunable.sparsity)
    without = sparse_optax.sparsity_report(params)
    assert without.total == without.prunable == (50, 120)
    assert sparse_optax.sparsity(params) == np.float32(without.total.sparsity)
    assert str(report).splitlines()[-2:] == [
        "prunable    50   100    50.00%         2.0x",
        "total       70   120    41.67%         1.7x",
    ]
    assert "prunable" not in str(without)


def test_without_masks_zeros_count_as_pruned():
    params = {"a": jnp.array([0.0, -0.0, 1e-45, jnp.nan, 2.0]), "b": jnp.zeros((2, 2))}
    report = sparse_optax.sparsity_report(params)
    assert report.leaves == {"a": (3, 5), "b": (0, 4)}
    assert report.warnings == ("b has no weight left",)
    # A vector may be zero.
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.zeros(2), "bias": jnp.zeros(2)}
    assert sparse_optax.sparsity_report(params).warnings == ()


def network(blocks):
    return {
        f"blocks_{i}": {
            "attention": {"kernel": jnp.ones((4, 4)), "bias": jnp.zeros(4)},
            "mlp": {"kernel": jnp.arange(16.0).reshape(4, 4) + i, "bias": jnp.ones(4)},
        }
        for i in range(blocks)
    } | {"head": {"kernel": jnp.ones((4, 2))}}


@pytest.mark.parametrize("blocks", [12, 40])
def test_many_leaves_are_grouped(blocks):
    params = network(blocks)
    report = sparse_optax.sparsity_report(params)
    lines = str(report).splitlines()
    assert len(lines) <= 70
    assert len(report.leaves) == 4 * blocks + 1
    titles = [line for line in lines if line.startswith("[")]
    assert titles == ["[blocks]", "[most sparse]", "[least sparse]"]
    most = lines[lines.index("[most sparse]") + 1 : lines.index("[least sparse]")]
    assert len(most) == 10
    assert all("attention/bias" in line and "100.00%" in line for line in most)
    least = lines[lines.index("[least sparse]") + 1 : -1]
    assert len(least) == 10 and all("  0.00%" in line for line in least)
    assert lines[-1].startswith("total")


def test_forty_leaves_are_all_shown():
    params = {f"layer{i:02}": jnp.ones((2, 2)) for i in range(40)}
    lines = str(sparse_optax.sparsity_report(params)).splitlines()
    assert len(lines) == 42 and lines[1].startswith("layer00")


def test_the_same_names_at_one_level_only():
    params = {f"w{i:02}": jnp.ones((2, 2)) for i in range(41)}
    lines = str(sparse_optax.sparsity_report(params)).splitlines()
    assert lines[2].split() == ["(all)", "164", "164", "0.00%", "1.0x"]
    assert len(lines) == 4  # all are alike: none is the most sparse


def test_leaves_of_one_name_are_reported_apart():
    report = sparse_optax.sparsity_report({"a/b": jnp.ones(3), "a": {"b": jnp.ones(5)}})
    assert len(report.leaves) == 2 and report.total == (8, 8)
