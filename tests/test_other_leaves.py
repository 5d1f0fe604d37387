"""Leaves that are no weights, trees without leaves, and leaves of odd shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import PRUNING, TRANSFORMATIONS, num_kept, num_nonzero
from jax.experimental.sparse import BCOO

import sparse_optax

pytestmark = pytest.mark.quickly_compiled

MASKED = optax.MaskedNode()
W = jnp.array([[0.0, 1.0], [2.0, 0.0]])
OTHERS = {
    "complex": (jnp.ones((2, 2), jnp.complex64), "complex64"),
    "integer": (jnp.ones((2, 2), jnp.int32), "int32"),
    "boolean": (jnp.ones((2, 2), bool), "bool"),
    "int4": (jnp.ones((2, 2), "int4"), "int4"),
    "float8": (jnp.ones((2, 2)).astype("float8_e4m3fn"), "float8_e4m3fn"),
    "no zero": (jnp.ones((2, 2)).astype("float8_e8m0fnu"), "float8_e8m0fnu"),
    "key": (jax.random.key(0), "key<fry>"),
    "keys": (jax.random.split(jax.random.key(0), (2, 2)), "key<fry>"),
    "bcoo": (BCOO.fromdense(jnp.eye(3)), r"a sparse array \(BCOO\)"),
}
every_kind = pytest.mark.parametrize("kind", OTHERS)

# All of them in one tree, beside what has no elements and what stands for nothing.
ODD = {kind: leaf for kind, (leaf, _) in OTHERS.items()}
ODD |= {"empty": jnp.zeros((0, 3)), "masked": MASKED, "none": None}
PARAMS = {"odd": ODD, "scalar": jnp.float32(0.5), "w": jnp.array([[1.0, -2], [3, -4]])}
MASKS = (
    *(
        "matrices",
        sparse_optax.matrices_only,
        {"odd": False, "scalar": False, "w": True},
    ),
    *(
        {"odd/.*": False, "w": True},
        lambda _: {"odd": False, "scalar": False, "w": True},
    ),
)


def gradients(params):
    """Those that `jax.grad` makes where integers are allowed."""
    zero = lambda x: np.zeros(np.shape(x), jax.dtypes.float0)  # noqa: E731
    names = ("integer", "boolean", "int4", "key", "keys")
    return params | {"odd": params["odd"] | {n: zero(params["odd"][n]) for n in names}}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_other_leaves_pass_through_updates(name, compiled):
    options = {"optimizer": optax.identity()} if name == "relevance_pruning" else {}
    tx = TRANSFORMATIONS[name](mask=None, **options)
    grads = gradients(PARAMS)
    update = lambda state: tx.update(grads, state, PARAMS, prune=True)  # noqa: E731
    updates, state = (jax.jit(update) if compiled else update)(tx.init(PARAMS))
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)
    for given, returned in zip(
        *map(jax.tree.leaves, (grads["odd"], updates["odd"])), strict=True
    ):
        assert given.dtype == returned.dtype and given.shape == returned.shape
        if given.dtype != jax.dtypes.float0:
            assert jnp.all(given == returned)
    if name != "add_relevance_decay":
        masks = sparse_optax.get_masks(state)
        assert all(masks["odd"][kind] == MASKED for kind in (*OTHERS, "masked"))
        assert num_kept(masks) == 3 and masks["w"][1].all()  # half of five, to even


@pytest.mark.parametrize("name", PRUNING)
def test_other_leaves_have_no_masks(name):
    for mask in MASKS:
        masks = TRANSFORMATIONS[name](mask=mask).init(PARAMS)
        masks = sparse_optax.get_masks(masks)
        assert all(masks["odd"][kind] == MASKED for kind in (*OTHERS, "masked"))
        assert masks["scalar"] == MASKED and masks["w"].all()


def test_functions_leave_other_leaves_out():
    tree = {"odd": {**ODD}, "w": W}
    assert sparse_optax.sparsity(tree) == 0.5
    report = sparse_optax.sparsity_report(tree)
    assert report.leaves == {"odd/empty": (0, 0), "w": (2, 4)}
    assert set(report.not_counted) == {f"odd/{kind}" for kind in OTHERS}
    assert "not counted: odd/complex, an array of complex64, shape (2, 2)" in str(
        report
    )
    tx = sparse_optax.prune_by_magnitude(0.5)
    pruned, state = sparse_optax.prune(tree, tx.init(tree), 0.75)
    assert jax.tree.structure(pruned) == jax.tree.structure(tree)
    assert num_nonzero(pruned["w"]) == 1 and pruned["odd"]["integer"].all()
    sparse_optax.check_sparsity(pruned, state)
    masks = sparse_optax.get_masks(state)
    assert sparse_optax.sparsity_report(pruned, masks).total == (1, 4)
    assert num_nonzero(sparse_optax.apply_masks(tree, masks)["w"]) == 1
    marked = sparse_optax.masks_from_zeros(pruned, tx.init(tree))
    np.testing.assert_array_equal(marked.masks["w"], masks["w"])
    relevance = sparse_optax.irrelevance(tree)
    assert all(relevance["odd"][kind] == MASKED for kind in OTHERS)
    assert relevance["w"].shape == (2, 2)
    assert sparse_optax.relevance_penalty(tree, tree, 1.0) > 0
    assert not any(sparse_optax.matrices_only(tree)["odd"][kind] for kind in OTHERS)
    del tree["odd"]["bcoo"]  # which raises
    sparse = sparse_optax.to_bcoo(tree)
    assert isinstance(sparse["w"], BCOO)
    assert all(sparse["odd"][kind] is ODD[kind] for kind in OTHERS if kind != "bcoo")


@every_kind
def test_other_leaves_cannot_be_selected(kind):
    leaf, described = OTHERS[kind]
    masks = (
        {"odd": True, "w": True},
        lambda p: {"odd": True, "w": True},
        {"o.*": True},
    )
    for make in TRANSFORMATIONS.values():
        for mask in masks:
            with pytest.raises(
                TypeError, match=f"mask selects .*{described}.* at odd,"
            ):
                make(mask=mask).init({"odd": leaf, "w": W})
        for mask in (None, "matrices"):
            with pytest.raises(ValueError, match=f"no leaf that can .*{described}"):
                make(mask=mask).init({"odd": leaf})


@every_kind
def test_other_leaves_raise_where_there_are_masks(kind):
    leaf, _ = OTHERS[kind]
    masks = jnp.ones(leaf.shape, bool)
    state = sparse_optax.prune_by_magnitude(mask=None).init(jnp.ones(leaf.shape))
    for call in (
        lambda: sparse_optax.prune(leaf, state, 0.5),
        lambda: sparse_optax.masks_from_zeros(leaf, state, mask=None),
        lambda: sparse_optax.check_sparsity(leaf, state),
        lambda: sparse_optax.sparsity_report(leaf, masks),
        lambda: sparse_optax.apply_masks(leaf, masks),
    ):
        with pytest.raises((TypeError, ValueError), match="params has"):
            call()


def test_trees_without_weights_raise():
    with pytest.raises(ValueError, match=r"neither weights nor masks .*complex64"):
        sparse_optax.sparsity({"c": ODD["complex"]})
    with pytest.raises(
        TypeError, match=r"not an array: for an equinox module, pass eqx"
    ):
        sparse_optax.sparsity({"c": jax.nn.relu})


@pytest.mark.parametrize(
    "tree", [{}, (), MASKED, {"a": {}, "b": MASKED, "c": None}], ids=repr
)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_trees_without_arrays(name, tree):
    tx = TRANSFORMATIONS[name](mask=None)
    updates, state = tx.update(tree, tx.init(tree), tree, prune=True)
    assert jax.tree.structure(updates) == jax.tree.structure(tree)
    assert sparse_optax.sparsity(tree) == 0
    if name in PRUNING:
        pruned, _ = sparse_optax.prune(tree, state, 0.5)
        assert jax.tree.structure(pruned) == jax.tree.structure(tree)
        sparse_optax.check_sparsity(tree, state)


@pytest.mark.parametrize("shape", [(), (0,), (1, 1, 1)], ids=str)
def test_trees_of_a_single_array_work(shape):
    params = jnp.ones(shape)
    tx = TRANSFORMATIONS["relevance_pruning"](fraction=1.0, mask=None)
    updates, state = tx.update(params, tx.init(params), params, prune=True)
    assert num_kept(sparse_optax.get_masks(state)) == 0
    assert num_nonzero(optax.apply_updates(params, updates)) == 0


def test_non_arrays_in_optimizer_states_stay():
    def init(params):
        return {"count": 0, "mom": jax.tree.map(jnp.ones_like, params), "name": "abc"}

    inner = optax.GradientTransformation(init, lambda u, s, p=None: (u, s))
    tx = sparse_optax.relevance_pruning(inner, 0.1)
    _, state = sparse_optax.prune(W, tx.init(W), 1.0)
    assert (state.optimizer[1]["count"], state.optimizer[1]["name"]) == (0, "abc")
    assert num_nonzero(state.optimizer[1]["mom"]) == 0
