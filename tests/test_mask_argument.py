"""The argument `mask`: which leaves take part, by default and by name."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import TRANSFORMATIONS, first_unmarked, num_kept, num_nonzero
from jax.experimental.sparse import BCOO

import sparse_optax

pytestmark = pytest.mark.quickly_compiled

PARAMS = {
    "embed": {"embedding": jnp.ones((5, 3))},
    "dense": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)},
    "norm": {"scale": jnp.zeros(4)},
    "stack": {"bias": jnp.zeros((2, 4))},
    "haiku": {"w": jnp.ones((2, 3, 4)), "b": jnp.zeros((2, 4))},
    "gain": jnp.ones(()),
}
MATRICES = ["dense/kernel", "embed/embedding", "haiku/w"]


def names_where(tree, is_leaf=None):
    """The names of leaves that are true, or have an element that is."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return sorted(
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in found
        if np.any(leaf)
    )


def prunable(name):
    def names(params=PARAMS, **mask):
        tx = TRANSFORMATIONS[name](**mask)
        return names_where(sparse_optax.get_masks(tx.init(params)))

    return names


def decaying(params=PARAMS, **mask):
    tx = sparse_optax.add_relevance_decay(0.5, **mask)
    ones, zeros = (optax.tree.full_like(params, x) for x in (1, 0))
    updates, _ = tx.update(zeros, tx.init(ones), ones)
    return names_where(updates)


def penalised(params=PARAMS, **mask):
    ones, zeros = (optax.tree.full_like(params, x) for x in (1, 0))
    penalty = lambda p: sparse_optax.relevance_penalty(p, zeros, 0.5, **mask)  # noqa: E731
    return names_where(jax.grad(penalty)(ones))


def marked(params=PARAMS, **mask):
    state = sparse_optax.prune_by_magnitude(mask=None).init(params)
    zeros = optax.tree.zeros_like(params)
    state = sparse_optax.masks_from_zeros(zeros, state, **mask)
    return names_where(jax.tree.map(jnp.invert, sparse_optax.get_masks(state)))


def converted(params=PARAMS, **mask):
    sparse = sparse_optax.to_bcoo(params, **mask)
    is_bcoo = lambda x: isinstance(x, BCOO)  # noqa: E731
    return names_where(jax.tree.map(is_bcoo, sparse, is_leaf=is_bcoo))


# Every function with a `mask`: the names of the leaves that it selects.
TAKE_A_MASK = {
    "prune_by_magnitude": prunable("prune_by_magnitude"),
    "prune_to_sparsity": prunable("prune_to_sparsity"),
    "relevance_pruning": prunable("relevance_pruning"),
    "add_relevance_decay": decaying,
    "relevance_penalty": penalised,
    "masks_from_zeros": marked,
    "to_bcoo": converted,
}


class Module(eqx.Module):
    weight: Any
    bias: Any

    def __call__(self, x):
        return self.weight @ x + self.bias


@pytest.mark.parametrize("function", TAKE_A_MASK)
def test_leaves_are_selected(function):
    selected = TAKE_A_MASK[function]
    assert selected() == selected(mask="matrices") == MATRICES
    assert selected(mask=sparse_optax.matrices_only) == MATRICES
    everything = names_where(optax.tree.full_like(PARAMS, 1))
    if function == "to_bcoo":
        everything.remove("gain")  # scalars stay as they are
    assert selected(mask=None) == everything
    by_name = {".*/kernel": True, "haiku/.*": True}
    assert selected(mask=by_name) == ["dense/kernel", "haiku/b", "haiku/w"]
    # The first match wins, and a pattern may match what a leaf is in.
    by_name = {"haiku/b": False, "haiku": True, "dense": True}
    assert selected(mask=by_name) == ["dense/bias", "dense/kernel", "haiku/w"]
    prefix = dict.fromkeys(PARAMS, False) | {"dense": True}
    assert selected(mask=lambda _: prefix) == ["dense/bias", "dense/kernel"]
    # A module of booleans is a tree, though it can be called.
    module = Module(jnp.ones((3, 2)), jnp.ones(3))
    assert selected(module, mask=Module(True, False)) == ["weight"]


SMALL = {"dense": {"bias": jnp.arange(4.0), "kernel": jnp.ones((4, 4))}}
BAD_MASKS = [
    ("kernel", ValueError, r"mask must be .*got 'kernel'.*{'\.\*kernel': True"),
    ({"conv": True}, ValueError, r"mask has patterns .*\['conv'\]; there are"),
    ({"dense": {"kernel": True}}, ValueError, "mask does not fit .*dense/bias"),
    (
        {"dense": {"bias": True, "kernel": [True, False]}},
        ValueError,
        "mask does not fit .*dense/kernel",
    ),
    (
        {"dense": {"bias": jnp.ones(4, bool), "kernel": True}},
        TypeError,
        r"mask must be a tree .*an array of bool, shape \(4,\) at dense/bias",
    ),
    ({"dense": 1}, TypeError, "mask must be a tree .*1 at dense"),
    (0.5, TypeError, r"mask .*0\.5"),
    ({"dense": {"bias": "no", "kernel": "yes"}}, TypeError, "mask .*'no'"),
    ({"(": True}, ValueError, r"mask has '\(', which is not a regular expression"),
    (lambda _: {"(": True}, ValueError, r"mask has '\(', which is not a regular"),
    (False, ValueError, "mask selects none.*dense/kernel.*static_args"),
    ({".*": False}, ValueError, "mask selects none.*dense/kernel"),
    (lambda _: 3, TypeError, "mask .*3"),
]


@pytest.mark.parametrize("function", TAKE_A_MASK)
def test_invalid_masks_raise(function):
    for mask, error, message in BAD_MASKS:
        with pytest.raises(error, match=message):
            TAKE_A_MASK[function](SMALL, mask=mask)
    with pytest.raises(ValueError, match=r"no matrix, .*'bias'.*mask=None"):
        TAKE_A_MASK[function]({"bias": jnp.ones(3)})


def test_a_weight_beside_a_bias_of_its_shape_is_a_vector():
    keys = jax.random.split(jax.random.key(0), 3)
    norms = eqx.filter_vmap(lambda _: eqx.nn.LayerNorm(4))(keys)
    layers = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))(keys)
    assert norms.weight.shape == (3, 4)
    selected = sparse_optax.matrices_only({"norm": norms, "linear": layers})
    assert names_where(selected) == ["linear/weight"]
    without_w = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3))}
    assert sparse_optax.matrices_only(without_w) == {"a": True, "b": True}


# Functions, wrappers and other libraries.


def test_patterns_of_other_groups_are_ignored():
    params = {"enc": jnp.ones((3, 2)), "head": jnp.ones((2, 2))}
    tx = sparse_optax.prune_by_magnitude(0.5, mask={"enc.*": True, "head.*": True})
    tx = optax.multi_transform({"a": tx, "b": tx}, {"enc": "a", "head": "b"})
    masks = sparse_optax.get_masks(tx.init(params))
    assert names_where(masks) == ["enc", "head"]


def test_mask_functions_can_read_values_at_init():
    # And not at every update, where they would see tracers.
    mask = lambda p: jax.tree.map(lambda w: bool(jnp.any(w > 0)), p)  # noqa: E731
    params = {"a": jnp.ones((2, 2)), "b": jnp.zeros((2, 2))}
    tx = sparse_optax.prune_by_magnitude(0.5, mask=mask)
    state = tx.init(params)
    assert names_where(sparse_optax.get_masks(state)) == ["a"]
    jax.jit(tx.update)(params, state, params)


def test_inject_hyperparams_leaves_the_default_as_it_is():
    make = optax.inject_hyperparams(sparse_optax.prune_by_magnitude)
    state = make(fraction=0.5).init(PARAMS)
    assert names_where(sparse_optax.get_masks(state)) == MATRICES


@pytest.mark.parametrize(
    "mask",
    [
        lambda params: jax.tree.map(lambda p: jnp.ndim(p) > 1, params),  # False
        lambda params: jax.tree.map(lambda p: jnp.ndim(p) < 2, params),  # True
        lambda step: step == 0,  # traced
    ],
    ids=["false", "true", "traced"],
)
def test_inject_hyperparams_takes_a_function_for_a_schedule(mask):
    """It calls the function with a step count, unless the mask is a static argument."""
    make = sparse_optax.prune_by_magnitude
    evaluated = optax.inject_hyperparams(make)(fraction=0.5, mask=mask)
    with pytest.raises((TypeError, ValueError), match="static_args"):
        jax.jit(evaluated.init)(SMALL)
    static = optax.inject_hyperparams(make, static_args="mask")
    tx = static(0.5, mask=sparse_optax.matrices_only)
    assert names_where(sparse_optax.get_masks(tx.init(SMALL))) == ["dense/kernel"]


@pytest.mark.parametrize("name", first_unmarked(*reversed(TRANSFORMATIONS), quick=2))
def test_a_mask_made_of_nnx_state_fits_at_init_and_at_update(name):
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    mask = jax.tree.map(lambda w: w.ndim > 1, nnx.state(model, nnx.Param))
    tx = TRANSFORMATIONS[name](mask=mask)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads, prune=True)
    if name != "add_relevance_decay":
        masks = sparse_optax.get_masks(optimizer.opt_state)
        assert num_kept(masks) == np.count_nonzero(model.kernel[...]) == 8
    # And without the optimizer of nnx, which takes the boxes off.
    state = nnx.state(model, nnx.Param)
    updates, _ = tx.update(state, tx.init(state), state, prune=True)
    assert jax.tree.structure(updates) == jax.tree.structure(state)
    if name != "relevance_pruning":  # the optimizer inside has the boxes of init
        unboxed = nnx.State({name: leaf[...] for name, leaf in state.items()})
        tx.update(unboxed, tx.init(state), unboxed, prune=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    query: Any
    value: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Gate:
    value: Any


def test_a_field_called_value_keeps_its_name():
    weight = jnp.arange(1.0, 5.0).reshape(2, 2)
    params = {"attn": Attention(weight, weight), "gate": Gate(weight)}
    tx = sparse_optax.prune_by_magnitude(0.5, mask={"attn/value": True, "gate": True})
    masks = sparse_optax.get_masks(tx.init(params))
    assert isinstance(masks["gate"], Gate) and isinstance(masks["attn"], Attention)
    assert masks["attn"].query == optax.MaskedNode()
    report = sparse_optax.sparsity_report(params, masks)
    assert list(report.leaves) == ["attn/query", "attn/value", "gate/value"]
    tx = sparse_optax.prune_by_magnitude(0.5, min_kept={"attn/value": 3})
    pruned, _ = sparse_optax.prune(params, tx.init(params), 0.9)
    assert num_nonzero(pruned["attn"].value) == 3
