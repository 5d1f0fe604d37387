"""Optimizers inside `relevance_pruning`: what it passes on, and what it clears."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import first_unmarked, make_whole, num_nonzero, random_tree

import sparse_optax

pytestmark = pytest.mark.quickly_compiled

SHAPES = ((4,), (6, 6))
PARAMS = {"dense": {"bias": jnp.arange(4.0), "kernel": jnp.ones((6, 6))}}


def loss(params):
    return sum(jnp.sum((w - 0.5) ** 2) for w in jax.tree.leaves(params))


def train(tx, params, prune=None, steps=3, **extra):
    """Steps of which the second prunes, as the caller of a line search makes them."""
    state = tx.init(params)
    for i in range(steps):
        value, grad = jax.value_and_grad(loss)(params)
        given = {"value": value, "grad": grad, "value_fn": loss} | extra
        if prune is not None:
            given["prune"] = prune(i == 1)
        updates, state = tx.update(grad, state, params, **given)
        params = optax.apply_updates(params, updates)
    return params, state


SEARCHES = {
    "lbfgs": optax.lbfgs(),
    "backtracking": optax.chain(
        optax.sgd(0.1), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5)
    ),
    "zoom": optax.chain(
        optax.sgd(1.0), optax.scale_by_zoom_linesearch(max_linesearch_steps=5)
    ),
    "polyak": optax.polyak_sgd(),
}


@pytest.mark.parametrize(
    ("search", "prune"),
    first_unmarked(
        *(("lbfgs", bool), ("backtracking", jnp.array), ("polyak", bool)),
        *(("lbfgs", None), ("zoom", bool)),
        quick=3,
    ),
)
def test_line_searches_work_inside(search, prune):
    tx = sparse_optax.relevance_pruning(SEARCHES[search], 1e-4, fraction=0.5)
    params, state = train(tx, PARAMS, prune)
    assert num_nonzero(params["dense"]["kernel"]) == (36 if prune is None else 18)
    sparse_optax.check_sparsity(params, state)


def test_sharpness_aware_minimization_inside():
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    sam = optax.contrib.sam(optax.sgd(0.1), adversary, opaque_mode=True)
    tx = sparse_optax.relevance_pruning(sam, 1e-4, fraction=0.5)
    state = tx.init(PARAMS)
    updates, state = tx.update(
        *(jax.grad(loss)(PARAMS), state, PARAMS),
        prune=True,
        grad_fn=lambda params, _: jax.grad(loss)(params),
    )
    params = optax.apply_updates(PARAMS, updates)
    assert num_nonzero(params["dense"]["kernel"]) == 18


def test_chain_passes_prune_to_every_transformation():
    # As the documentation says: `prune()` or the wrapper are for these optimizers.
    tx = optax.chain(optax.lbfgs(), sparse_optax.prune_by_magnitude(0.5))
    with pytest.raises(Exception, match="prune"):
        train(tx, PARAMS, bool, steps=1)
    params, state = train(tx, PARAMS, steps=1)
    params, state = sparse_optax.prune(params, state, 0.5)
    assert num_nonzero(params["dense"]["kernel"]) == 18


@pytest.mark.parametrize("prune", [True, jnp.array(True)], ids=["bool", "jax"])
def test_inner_schedules_restart_before_the_update(prune):
    seen = []
    inner = optax.chain(
        sparse_optax.add_relevance_decay(lambda t: seen.append(t) or 0.1 + 0.0 * t),
        optax.sgd(0.1),
    )
    tx = sparse_optax.relevance_pruning(inner, 1e-4)
    state = tx.init(PARAMS)
    for flag in (None, None, prune, None):
        _, state = tx.update(PARAMS, state, PARAMS, prune=flag)
    assert [int(t) for t in seen] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "inner",
    [
        sparse_optax.prune_by_magnitude(0.5),
        sparse_optax.relevance_pruning(optax.sgd(0.1), 1e-4),
    ],
    ids=["prune_by_magnitude", "relevance_pruning"],
)
def test_prune_by_as_the_optimizer_raises(inner):
    tx = sparse_optax.relevance_pruning(optax.chain(optax.sgd(0.1), inner), 1e-4)
    with pytest.raises(ValueError, match="would never prune"):
        tx.init(PARAMS)


def test_multi_steps_and_optimizers_as_pruning_raise():
    for arguments in (
        (optax.MultiSteps(optax.sgd(0.1), 2), sparse_optax.prune_by_magnitude(0.5)),
        (optax.sgd(0.1), optax.MultiSteps(sparse_optax.prune_by_magnitude(0.5), 2)),
    ):
        with pytest.raises(TypeError, match=r"must not be optax\.MultiSteps"):
            sparse_optax.hide_pruned(*arguments)
    inner = sparse_optax.relevance_pruning(optax.sgd(0.1), 1e-4)
    with pytest.raises(ValueError, match="pruning must be a pruning transformation"):
        sparse_optax.hide_pruned(optax.sgd(0.1), inner).init(PARAMS)


def test_irrelevance_fn_is_passed_on():
    tx = make_whole(optax.identity(), 0.5, irrelevance_fn=lambda grad, scale: 0.25)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    jax.tree.map(lambda u, w: np.testing.assert_allclose(u, 1.25 * w), updates, PARAMS)


# What optimizers remember of pruned weights. The table in the documentation names those
# that keep it in another shape than the weight's, where it cannot be cleared.

OPTAX = (
    *("adabelief", "adadelta", "adagrad", "adam", "adamax", "adamw", "adan"),
    *("amsgrad", "lamb", "lars", "lion", "nadam", "novograd", "radam"),
    *("rmsprop", "rprop", "yogi"),
)
CONTRIB = ("acprop", "ademamix", "adopt", "muon")
CLEARED = (
    {name: getattr(optax, name)(0.1) for name in OPTAX}
    | {name: getattr(optax.contrib, name)(0.1) for name in CONTRIB}
    | {name: getattr(optax.contrib, name)() for name in ("dadapt_adamw", "prodigy")}
    | {"schedule_free": optax.contrib.schedule_free_adamw(0.1)}
)
NOT_CLEARED = {
    "lbfgs": optax.lbfgs(0.1, linesearch=None),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "sm3": optax.sm3(0.1),
}
if hasattr(optax.contrib, "galore"):  # it is newer than the oldest optax
    NOT_CLEARED["galore"] = optax.contrib.galore(0.1, rank=2)


def after_a_pruning_step(optimizer):
    tx = sparse_optax.relevance_pruning(optimizer, 1e-4, fraction=0.5)
    _, state = train(tx, random_tree(0), bool, steps=2)
    return state.optimizer, sparse_optax.get_masks(state)["dense"]["kernel"]


@pytest.mark.parametrize("name", first_unmarked(*CLEARED, quick=2))
def test_memory_of_the_shape_of_weights_is_cleared(name):
    state, mask = after_a_pruning_step(CLEARED[name])
    like_weights = [np.asarray(x) for x in jax.tree.leaves(state) if x.shape == (6, 6)]
    assert like_weights
    for memory in like_weights:
        # Three of them add an epsilon of their own in every update.
        largest = 1e-8 if name in ("acprop", "adabelief", "adamax") else 0
        assert np.abs(memory[~np.asarray(mask)]).max() <= largest
        assert np.any(memory[np.asarray(mask)])


@pytest.mark.parametrize("name", NOT_CLEARED)
def test_memory_of_other_shapes_is_not_cleared(name):
    state, _ = after_a_pruning_step(NOT_CLEARED[name])
    others = [x for x in jax.tree.leaves(state) if x.ndim and x.shape not in SHAPES]
    assert any(map(np.any, others))


def test_memory_is_cleared_inside_the_boxes_of_linen():
    from flax import linen

    params = {"w": linen.Partitioned(jnp.array([[0.3, -0.1, 2.0, 0.2]]), (None, None))}
    tx = sparse_optax.hide_pruned(optax.adam(0.1), sparse_optax.prune_by_magnitude(0.5))
    state, grads = tx.init(params), jax.tree.map(jnp.ones_like, params)
    for prune in (False, True):
        _, state = tx.update(grads, state, params, prune=prune)
    memory = state.optimizer[0].mu["w"].value
    np.testing.assert_array_equal(memory[0] != 0, [True, False, True, False])
