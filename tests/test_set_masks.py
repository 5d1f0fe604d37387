"""Masks put into a state: rewinding, other optimizers, new heads, releasing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import make_step, num_nonzero, random_tree

import sparse_optax

pytestmark = pytest.mark.quickly_compiled

PARAMS = random_tree(0)
MASKS = jax.tree.map(lambda w: w > 0, PARAMS)


def whole(**options):
    options = {"fraction": 0.5, "mask": None} | options
    return sparse_optax.relevance_pruning(optax.adam(0.1), 1e-4, **options)


def chain():
    return optax.chain(optax.adam(0.1), sparse_optax.prune_by_magnitude(mask=None))


OPTIMIZERS = {
    "chain": chain,
    "wrapper": whole,
    "gradual": lambda: sparse_optax.prune_to_sparsity(0.5, every=9, mask=None),
    "MultiSteps": lambda: optax.MultiSteps(chain(), 2),
    "inject": lambda: optax.inject_hyperparams(sparse_optax.prune_by_magnitude)(
        fraction=0.5, mask=None
    ),
    "by-labels": lambda: optax.multi_transform(
        {"a": chain(), "b": whole()}, {"dense": {"bias": "a", "kernel": "b"}}
    ),
    "twice": lambda: optax.chain(sparse_optax.prune_by_magnitude(mask=None), chain()),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_get_masks_returns_what_set_masks_puts_in(optimizer):
    tx = OPTIMIZERS[optimizer]()
    state = tx.init(PARAMS)
    for put in (sparse_optax.set_masks, jax.jit(sparse_optax.set_masks)):
        after = put(state, MASKS)
        chex.assert_trees_all_equal(sparse_optax.get_masks(after), MASKS)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        released = put(after, jax.tree.map(jnp.ones_like, MASKS))
        chex.assert_trees_all_equal(released, state)


def test_a_lottery_ticket_is_rewound():
    tx = whole()
    step = jax.jit(make_step(tx))
    init = random_tree(0) | {"zeros": jnp.zeros((3, 3))}
    grads = jax.tree.map(jnp.ones_like, init)
    params, state = step(init, tx.init(init), grads)
    params, state = sparse_optax.prune(params, state, 0.5)
    masks = sparse_optax.get_masks(state)

    ticket = sparse_optax.apply_masks(init, masks)
    state = sparse_optax.set_masks(tx.init(init), masks)
    chex.assert_trees_all_equal(sparse_optax.get_masks(state), masks)  # no zero of init
    assert num_nonzero(ticket["zeros"]) == 0
    params, state = step(ticket, state, grads)
    sparse_optax.check_sparsity(params, state)
    assert np.array_equal(params["zeros"] != 0, masks["zeros"])


def test_moments_of_pruned_weights_are_zero():
    tx = whole()
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
    state = sparse_optax.set_masks(state, MASKS)
    for moment in (state.optimizer[1][0].mu, state.optimizer[1][0].nu):
        chex.assert_trees_all_equal(jax.tree.map(lambda m: m != 0, moment), MASKS)
    assert state.pruning.num_pruning_steps == 0


def test_set_masks_leaves_extra_leaves_dense():
    tx = sparse_optax.prune_by_magnitude(0.5)  # matrices
    _, state = sparse_optax.prune(PARAMS, tx.init(PARAMS), 0.5)
    masks = sparse_optax.get_masks(state)
    assert masks["dense"]["bias"] == optax.MaskedNode()
    state = sparse_optax.set_masks(chain().init(PARAMS), masks)
    after = sparse_optax.get_masks(state)
    assert after["dense"]["bias"].all()
    chex.assert_trees_all_equal(after["dense"]["kernel"], masks["dense"]["kernel"])


def test_set_masks_raises_for_leaves_that_are_not_prunable():
    state = sparse_optax.prune_by_magnitude(0.5).init(PARAMS)
    with pytest.raises(ValueError, match="pruned weights at dense/bias, which no"):
        sparse_optax.set_masks(state, MASKS)
    with pytest.raises(ValueError, match="pruned weights at dense/bias, which no"):
        jax.jit(sparse_optax.set_masks)(state, MASKS)
    bias = jnp.ones(4, bool)
    masks = {"dense": {"bias": bias, "kernel": MASKS["dense"]["kernel"]}}
    after = sparse_optax.get_masks(sparse_optax.set_masks(state, masks))
    chex.assert_trees_all_equal(after["dense"]["kernel"], masks["dense"]["kernel"])


def test_masks_are_copied():
    masks = jax.tree.map(jnp.copy, MASKS)
    tx = OPTIMIZERS["twice"]()
    step = jax.jit(make_step(tx), donate_argnums=(0, 1))
    for _ in range(2):  # several seeds of one ticket
        params = jax.tree.map(jnp.copy, PARAMS)
        state = sparse_optax.set_masks(tx.init(params), masks)
        step(params, state, PARAMS)
    chex.assert_trees_all_equal(masks, MASKS)


def test_masks_are_placed_like_those_in_the_state():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = jax.device_put(jnp.ones((4, 3)), rows)
    tx = sparse_optax.prune_by_magnitude(0.1)
    shardings = jax.tree.map(
        lambda x: rows if x.shape == params.shape else everywhere,
        jax.eval_shape(tx.init, params),
    )
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    for masks in (np.eye(4, 3, dtype=bool), jax.device_put(np.eye(4, 3) > 0)):
        placed = sparse_optax.set_masks(state, masks)
        assert placed.masks.sharding == rows
        sparse_optax.prune(params, placed, 0.5)


BAD = [
    (PARAMS, TypeError, "masks must be boolean; got an array of float32"),
    (
        {"dense": {"bias": True, "kernel": True}},
        TypeError,
        "masks must be boolean; got True at dense/bias",
    ),
    ({"conv": jnp.ones(3, bool)}, ValueError, "masks has another tree"),
    (
        {"dense": {"kernel": MASKS["dense"]["kernel"]}},
        ValueError,
        "masks has another tree .*dense/bias",
    ),
    (
        {"dense": MASKS["dense"] | {"kernel": jnp.ones((1, 6), bool)}},
        ValueError,
        r"masks has shape \(1, 6\) at dense/kernel, where those in the state have \(6,",
    ),
]


def test_masks_with_another_tree_raise():
    for masks, error, message in BAD:
        with pytest.raises(error, match=message):
            sparse_optax.set_masks(chain().init(PARAMS), masks)


def test_masks_are_stored_in_sparse_files(tmp_path):
    tx = sparse_optax.prune_by_magnitude(0.5)
    params, state = sparse_optax.prune(PARAMS, tx.init(PARAMS), 0.9)
    masks = sparse_optax.get_masks(state)
    sparse_optax.save_sparse(tmp_path / "file", {"params": params, "masks": masks})
    loaded = sparse_optax.load_sparse(tmp_path / "file")
    chex.assert_trees_all_equal(loaded, {"params": params, "masks": masks})
    state = sparse_optax.set_masks(tx.init(loaded["params"]), loaded["masks"])
    chex.assert_trees_all_equal(sparse_optax.get_masks(state), masks)
