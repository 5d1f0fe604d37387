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
from helpers import num_kept, num_nonzero, random_tree

import sparse_optax

PARAMS = {
    "embed": {"embedding": jnp.ones((5, 3))},
    "dense": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)},
    "norm": {"scale": jnp.zeros(4)},
    "stack": {"bias": jnp.zeros((2, 4))},
    "haiku": {"w": jnp.ones((2, 3, 4)), "b": jnp.zeros((2, 4))},
    "gain": jnp.ones(()),
}
MATRICES = ["dense/kernel", "embed/embedding", "haiku/w"]

GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def names_of(tree):
    """The names of leaves that are not left out."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return sorted(
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found
    )


def prunable(mask, params=PARAMS):
    tx = sparse_optax.prune_by_magnitude(0.5, **mask)
    return names_of(sparse_optax.get_masks(tx.init(params)))


def decaying(mask, params=PARAMS):
    tx = sparse_optax.add_relevance_decay(0.5, **mask)
    ones = jax.tree.map(jnp.ones_like, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(ones), ones)
    return [name for name in names_of(updates) if pick(updates, name).any()]


def pick(tree, name):
    for key in name.split("/"):
        tree = getattr(tree, key) if isinstance(tree, eqx.Module) else tree[key]
    return tree


def penalised(mask, params=PARAMS):
    grads = jax.tree.map(jnp.zeros_like, params)
    ones = jax.tree.map(jnp.ones_like, params)
    penalty = lambda p: sparse_optax.relevance_penalty(p, grads, 0.5, **mask)  # noqa: E731
    gradient = jax.grad(penalty)(ones)
    return [name for name in names_of(gradient) if pick(gradient, name).any()]


def marked(mask, params=PARAMS):
    state = sparse_optax.prune_by_magnitude(mask=None).init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    masks = sparse_optax.get_masks(sparse_optax.masks_from_zeros(zeros, state, **mask))
    return [name for name in names_of(masks) if not pick(masks, name).any()]


def converted(mask, params=PARAMS):
    sparse = sparse_optax.to_bcoo(params, **mask)
    is_bcoo = lambda x: isinstance(x, jax.experimental.sparse.BCOO)  # noqa: E731
    kinds = jax.tree.map(is_bcoo, sparse, is_leaf=is_bcoo)
    return [name for name in names_of(kinds) if pick(kinds, name)]


def by_sparsity(mask, params=PARAMS):
    tx = sparse_optax.prune_to_sparsity(0.5, **mask)
    return names_of(sparse_optax.get_masks(tx.init(params)))


def wrapped(mask, params=PARAMS):
    tx = sparse_optax.relevance_pruning(optax.sgd(0.1), 0.5, **mask)
    return names_of(sparse_optax.get_masks(tx.init(params)))


TAKE_A_MASK = {
    "prune_by_magnitude": prunable,
    "prune_to_sparsity": by_sparsity,
    "relevance_pruning": wrapped,
    "add_relevance_decay": decaying,
    "relevance_penalty": penalised,
    "masks_from_zeros": marked,
    "to_bcoo": converted,
}
everyone = pytest.mark.parametrize("function", TAKE_A_MASK)


@everyone
def test_the_default_is_matrices(function):
    selected = TAKE_A_MASK[function]
    assert selected({}) == selected({"mask": "matrices"}) == MATRICES
    assert selected({"mask": sparse_optax.matrices_only}) == MATRICES


@everyone
def test_none_is_every_floating_leaf(function):
    leaves = names_of(PARAMS)
    if function == "to_bcoo":
        leaves.remove("gain")  # scalars stay as they are
    assert TAKE_A_MASK[function]({"mask": None}) == leaves


@everyone
def test_a_dict_selects_by_name(function):
    selected = TAKE_A_MASK[function]
    by_name = {".*/kernel": True, "haiku/.*": True}
    assert selected({"mask": by_name}) == ["dense/kernel", "haiku/b", "haiku/w"]
    # The first match wins, and a pattern may match what a leaf is in.
    by_name = {"haiku/b": False, "haiku": True, "dense": True}
    expected = ["dense/bias", "dense/kernel", "haiku/w"]
    assert selected({"mask": by_name}) == expected


@everyone
def test_other_strings_raise_and_show_the_dict(function):
    with pytest.raises(ValueError, match=r"mask must be .*got 'kernel'.*{'kernel': Tr"):
        TAKE_A_MASK[function]({"mask": "kernel"})


@everyone
def test_patterns_that_are_wrong_raise(function):
    selected = TAKE_A_MASK[function]
    with pytest.raises(ValueError, match=r"mask .*'\(' *, which is no regular expr"):
        selected({"mask": {"(": True}})
    with pytest.raises(ValueError, match=r"mask has patterns .*'dens'.*there are"):
        selected({"mask": {"dens": True}})
    with pytest.raises(TypeError, match=r"mask must be a tree .*got 1 at dense"):
        selected({"mask": {"dense": 1}})


@everyone
def test_a_tree_without_a_matrix_raises(function):
    with pytest.raises(ValueError, match=r"no matrix, .*'bias'.*mask=None"):
        TAKE_A_MASK[function]({}, {"bias": jnp.ones(3)})


def test_zeros_of_initialisation_are_not_pruned_by_default():
    tx = sparse_optax.prune_by_magnitude(0.5)
    params, state = sparse_optax.prune(PARAMS, tx.init(PARAMS), 0.5)
    masks = sparse_optax.get_masks(state)
    assert masks["dense"]["bias"] == masks["norm"]["scale"] == optax.MaskedNode()
    assert num_kept(masks) == 51 - round(51 / 2) == num_nonzero(params) - 1


def test_reading_zeros_does_not_freeze_biases():
    tx = sparse_optax.prune_by_magnitude(0.5, mask=None)
    state = sparse_optax.masks_from_zeros(PARAMS, tx.init(PARAMS))
    masks = sparse_optax.get_masks(state)
    assert masks["dense"]["bias"].all() and masks["norm"]["scale"].all()


def test_the_wrapper_and_the_chain_have_one_default():
    whole = sparse_optax.relevance_pruning(optax.sgd(0.1), 0.3, 0.5)
    chain = optax.chain(
        sparse_optax.add_relevance_decay(0.3, 0.5),
        optax.sgd(0.1),
        sparse_optax.prune_by_magnitude(),
    )
    params, grads = random_tree(0), random_tree(1)
    (a, _), (b, _) = (t.update(grads, t.init(params), params) for t in (whole, chain))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_b_without_a_w_is_a_matrix():
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3))}
    assert sparse_optax.matrices_only(params) == {"a": True, "b": True}


def test_a_weight_beside_a_bias_of_its_shape_is_a_vector():
    keys = jax.random.split(jax.random.key(0), 3)
    norms = eqx.filter_vmap(lambda _: eqx.nn.LayerNorm(4))(keys)
    layers = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))(keys)
    assert norms.weight.shape == (3, 4)
    selected = sparse_optax.matrices_only({"norm": norms, "linear": layers})
    assert not selected["norm"].weight and not selected["linear"].bias
    assert selected["linear"].weight


def test_patterns_of_other_groups_are_ignored():
    params = {"enc": jnp.ones((3, 2)), "head": jnp.ones((2, 2))}
    patterns = {"enc.*": True, "head.*": True}
    tx = optax.multi_transform(
        {
            name: sparse_optax.prune_by_magnitude(0.5, mask=patterns)
            for name in ("a", "b")
        },
        {"enc": "a", "head": "b"},
    )
    masks = sparse_optax.get_masks(tx.init(params))
    assert names_of(masks) == ["enc", "head"]


def test_functions_may_look_at_weights_at_init():
    # And not at every update, where they would see tracers.
    mask = lambda p: jax.tree.map(lambda w: bool(jnp.any(w > 0)), p)  # noqa: E731
    params = {"a": jnp.ones((2, 2)), "b": jnp.zeros((2, 2))}
    tx = sparse_optax.prune_by_magnitude(0.5, mask=mask)
    state = tx.init(params)
    assert names_of(sparse_optax.get_masks(state)) == ["a"]
    jax.jit(tx.update)(params, state, params)


def test_patterns_that_a_function_returns_are_checked():
    tx = sparse_optax.prune_by_magnitude(mask=lambda params: {"(": True})
    with pytest.raises(ValueError, match="which is no regular expression"):
        tx.init(PARAMS)


def test_the_default_under_inject_hyperparams():
    make = optax.inject_hyperparams(sparse_optax.prune_by_magnitude)
    state = make(fraction=0.5).init(PARAMS)
    assert names_of(sparse_optax.get_masks(state)) == MATRICES


# Trees of other libraries.


class Module(eqx.Module):
    weight: Any
    bias: Any

    def __call__(self, x):
        return self.weight @ x + self.bias


@everyone
def test_a_module_of_booleans_is_a_tree(function):
    params = Module(jnp.ones((3, 2)), jnp.ones(3))
    assert TAKE_A_MASK[function]({"mask": Module(True, False)}, params) == ["weight"]


LINKS = {
    "prune_by_magnitude": lambda mask: sparse_optax.prune_by_magnitude(0.5, mask=mask),
    "prune_to_sparsity": lambda mask: sparse_optax.prune_to_sparsity(0.5, mask=mask),
    "add_relevance_decay": lambda mask: sparse_optax.add_relevance_decay(
        0.1, mask=mask
    ),
    "relevance_pruning": lambda mask: sparse_optax.relevance_pruning(
        optax.adam(0.1), 0.1, fraction=0.5, mask=mask
    ),
}


@pytest.mark.parametrize("link", LINKS)
def test_a_mask_made_of_nnx_state_fits_at_init_and_at_update(link):
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    mask = jax.tree.map(lambda w: w.ndim > 1, nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, LINKS[link](mask), wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads, prune=True)
    if link != "add_relevance_decay":
        masks = sparse_optax.get_masks(optimizer.opt_state)
        assert num_kept(masks) == np.count_nonzero(model.kernel[...]) == 8
    # And without the optimizer of nnx, which unboxes.
    state = nnx.state(model, nnx.Param)
    tx = LINKS[link](mask)
    updates, _ = tx.update(state, tx.init(state), state, prune=True)
    assert jax.tree.structure(updates) == jax.tree.structure(state)
    if link != "relevance_pruning":  # Adam's state has the boxes of init
        unboxed = nnx.State({name: leaf[...] for name, leaf in state.items()})
        tx.update(unboxed, tx.init(state), unboxed, prune=True)


# Leaves that are not weights.

COMPLEX = jnp.ones((3, 3), jnp.complex64)
NO_WEIGHTS = {
    "complex": (COMPLEX, "complex64"),
    "integer": (jnp.ones((3, 3), jnp.int32), "int32"),
    "boolean": (jnp.ones((3, 3), bool), "bool"),
    "int4": (jnp.ones((3, 3), "int4"), "int4"),
    "float8": (jnp.ones((3, 3)).astype("float8_e4m3fn"), "float8_e4m3fn"),
    "no-zero": (jnp.ones((3, 3)).astype("float8_e8m0fnu"), "float8_e8m0fnu"),
    "key": (jax.random.key(0), "key<fry>"),
    "keys": (jax.random.split(jax.random.key(0), (3, 3)), "key<fry>"),
    "bcoo": (
        jax.experimental.sparse.BCOO.fromdense(jnp.eye(3)),
        r"a sparse array \(BCOO\)",
    ),
}
every_kind = pytest.mark.parametrize("kind", NO_WEIGHTS)


LEAVING_OUT = {
    "all": None,
    "default": "matrices",
    "function": sparse_optax.matrices_only,
    "tree": {"odd": False, "w": True},
    "pattern": {"o.*": False, "w": True},
    "other-function": lambda params: {"odd": False, "w": True},
}


@every_kind
@pytest.mark.parametrize("mask", LEAVING_OUT)
@pytest.mark.parametrize("link", LINKS)
def test_other_leaves_are_left_out(link, mask, kind):
    if link == "relevance_pruning":  # without an optimizer for such leaves
        tx = sparse_optax.relevance_pruning(
            optax.identity(), 0.1, fraction=0.5, mask=LEAVING_OUT[mask]
        )
    else:
        tx = LINKS[link](LEAVING_OUT[mask])
    leaf, _ = NO_WEIGHTS[kind]
    params = {"odd": leaf, "w": jnp.arange(1.0, 5.0).reshape(2, 2)}
    updates, state = tx.update(params, tx.init(params), params, prune=True)
    same = jax.tree.map(lambda a, b: jnp.all(a == b), updates["odd"], leaf)
    assert all(jax.tree.leaves(same))
    if link != "add_relevance_decay":
        (found,) = jax.tree.leaves(sparse_optax.get_masks(state))
        assert np.count_nonzero(found) == 2


@every_kind
@pytest.mark.parametrize("link", LINKS)
def test_naming_one_raises(link, kind):
    leaf, described = NO_WEIGHTS[kind]
    params = {"odd": leaf, "w": jnp.ones((2, 2))}
    for mask in (
        {"odd": True, "w": True},
        lambda p: {"odd": True, "w": True},
        {"o.*": True, "w": True},
    ):
        with pytest.raises(TypeError, match=f"mask selects .*{described}.* at odd, wh"):
            LINKS[link](mask).init(params)


@every_kind
def test_a_tree_of_nothing_else_raises(kind):
    leaf, described = NO_WEIGHTS[kind]
    for mask in (None, "matrices"):
        tx = sparse_optax.prune_by_magnitude(0.5, mask=mask)
        with pytest.raises(
            ValueError, match=f"no leaf that can be pruned.*{described}"
        ):
            tx.init({"odd": leaf})


@every_kind
def test_functions_leave_them_out(kind):
    leaf, _ = NO_WEIGHTS[kind]
    weights = jnp.array([[0.0, 1.0], [2.0, 0.0]])
    params = {"odd": leaf, "w": weights}
    assert sparse_optax.sparsity(params) == 0.5
    report = sparse_optax.sparsity_report(params)
    assert list(report.leaves) == ["w"] and report.total == (2, 4)
    assert list(report.not_counted) == ["odd"]
    assert "not counted: odd, a" in str(report)
    state = sparse_optax.prune_by_magnitude(0.5).init(params)
    pruned, state = sparse_optax.prune(params, state, 0.75)
    assert num_nonzero(pruned["w"]) == 1
    state = sparse_optax.masks_from_zeros(pruned, state)
    sparse_optax.check_sparsity(pruned, state)
    masks = sparse_optax.get_masks(state)
    assert sparse_optax.sparsity_report(pruned, masks).total == (1, 4)
    applied = sparse_optax.apply_masks(params, masks)
    assert num_nonzero(applied["w"]) == 1
    assert isinstance(sparse_optax.irrelevance(params)["odd"], optax.MaskedNode)
    assert not sparse_optax.matrices_only(params)["odd"]
    if kind != "bcoo":  # which raises
        assert sparse_optax.to_bcoo(params)["odd"] is leaf
    assert sparse_optax.irrelevance(params)["w"].shape == (2, 2)
    assert sparse_optax.relevance_penalty(params, params, 1.0) > 0


@pytest.mark.parametrize("kind", sorted({*NO_WEIGHTS} - {"bcoo", "key"}))
def test_weights_of_such_kinds_raise_where_there_are_masks(kind):
    leaf, described = NO_WEIGHTS[kind]
    state = sparse_optax.prune_by_magnitude(0.5).init(jnp.ones((3, 3)))
    masks = sparse_optax.get_masks(state)
    for call in (
        lambda: sparse_optax.prune(leaf, state, 0.5),
        lambda: sparse_optax.masks_from_zeros(leaf, state),
        lambda: sparse_optax.check_sparsity(leaf, state),
        lambda: sparse_optax.sparsity_report(leaf, masks),
        lambda: sparse_optax.apply_masks(leaf, masks),
    ):
        with pytest.raises(
            TypeError, match=f"params has .*{described}.* at \\(root\\)"
        ):
            call()


def test_sparsity_of_nothing_that_can_be_counted():
    with pytest.raises(ValueError, match=r"neither weights nor masks .*complex64"):
        sparse_optax.sparsity({"c": COMPLEX})
    with pytest.raises(
        TypeError, match=r"which is no array; of an equinox module, pass eqx"
    ):
        sparse_optax.sparsity({"c": jax.nn.relu})
    assert sparse_optax.sparsity({}) == 0


def complex_params():
    return {"c": COMPLEX, "w": jnp.arange(1.0, 10.0).reshape(3, 3)}


def test_split_real_and_imaginary_is_named():
    tx = optax.contrib.split_real_and_imaginary(sparse_optax.prune_by_magnitude(0.5))
    params = complex_params()
    state = tx.init(params)
    for call in (
        lambda: sparse_optax.prune(params, state, 0.5),
        lambda: sparse_optax.check_sparsity(params, state),
        lambda: sparse_optax.masks_from_zeros(params, state),
        lambda: sparse_optax.apply_masks(params, sparse_optax.get_masks(state)),
    ):
        with pytest.raises(ValueError, match=r"split_real_and_imaginary makes two arr"):
            call()


KERNEL = random_tree(0)["dense"]["kernel"]


def test_flatten_is_named():
    tx = optax.flatten(sparse_optax.prune_by_magnitude(0.5, mask=None))
    params = random_tree(0)
    state = tx.init(params)
    for call in (
        lambda: sparse_optax.prune(params, state, 0.5),
        lambda: sparse_optax.check_sparsity(params, state),
        lambda: sparse_optax.masks_from_zeros(params, state),
        lambda: sparse_optax.apply_masks(params, sparse_optax.get_masks(state)),
        lambda: sparse_optax.set_masks(state, jax.tree.map(lambda w: w > 0, params)),
        # Of a single array, too.
        lambda: sparse_optax.prune(params["dense"]["kernel"], tx.init(KERNEL), 0.5),
    ):
        with pytest.raises(ValueError, match=r"optax.flatten makes one vector"):
            call()


# Names.


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    query: Any
    key: Any
    value: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Gate:
    value: Any


def test_a_field_called_value_keeps_its_name():
    weight = jnp.arange(1.0, 5.0).reshape(2, 2)
    params = {"attn": Attention(weight, weight, weight), "gate": Gate(weight)}
    tx = sparse_optax.prune_by_magnitude(0.5, mask={"attn/value": True, "gate": True})
    state = tx.init(params)
    masks = sparse_optax.get_masks(state)
    assert isinstance(masks["gate"], Gate) and isinstance(masks["attn"], Attention)
    assert masks["attn"].query == optax.MaskedNode()
    report = sparse_optax.sparsity_report(params, masks)
    attention = ["attn/query", "attn/key", "attn/value"]
    assert list(report.leaves) == [*attention, "gate/value"]
    floors = sparse_optax.prune_by_magnitude(0.5, min_kept={"attn/value": 3})
    pruned, _ = sparse_optax.prune(params, floors.init(params), 0.9)
    assert num_nonzero(pruned["attn"].value) == 3
