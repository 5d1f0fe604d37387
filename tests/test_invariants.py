"""What holds for any weights, gradients and prunes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from helpers import exact_share
from hypothesis import given, settings, strategies as st

import sparse_optax

FLOATS = [jnp.float32, jnp.bfloat16, jnp.float16]
SEEDS = st.integers(0, 2**32 - 1)


def chain(fraction=0.3, scope="global", optimizer=None):
    return optax.chain(
        sparse_optax.add_relevance_decay(0.01, 0.1, mask=None),
        optax.sgd(0.5) if optimizer is None else optimizer,
        sparse_optax.prune_by_magnitude(fraction, scope=scope, mask=None),
    )


def whole(fraction=0.3, scope="global", optimizer=None):
    optimizer = optax.sgd(0.5) if optimizer is None else optimizer
    return sparse_optax.relevance_pruning(
        optimizer, 0.01, 0.1, fraction, scope=scope, mask=None
    )


def gradual(fraction=0.3, scope="global", optimizer=None):
    return optax.chain(
        sparse_optax.add_relevance_decay(0.01, 0.1, mask=None),
        optax.sgd(0.5) if optimizer is None else optimizer,
        sparse_optax.prune_to_sparsity(
            lambda t: 1 - (1 - fraction) ** t, every=2, scope=scope, mask=None
        ),
    )


FORMS = {"chain": chain, "whole": whole, "gradual": gradual}


def make_step(tx):
    @jax.jit
    def step(params, state, grads, prune):
        updates, state = tx.update(grads, state, params, prune=prune)
        return optax.apply_updates(params, updates), state

    return step


def masks_of(state):
    return [np.asarray(m) for m in jax.tree.leaves(sparse_optax.get_masks(state))]


def flat_masks(state):
    return np.concatenate([m.ravel() for m in masks_of(state)])


def assert_zeros_where_pruned(params, state):
    for p, m in zip(jax.tree.leaves(params), masks_of(state), strict=True):
        assert not np.any(np.asarray(p)[~m])  # a NaN would count as true


@pytest.mark.parametrize(
    ("form", "dtype", "grad_dtype"),
    [
        *(("chain", p, g) for p in FLOATS for g in FLOATS),
        ("whole", jnp.float32, jnp.bfloat16),
        ("whole", jnp.bfloat16, jnp.bfloat16),
        ("whole", jnp.float16, jnp.float32),
        ("gradual", jnp.bfloat16, jnp.float32),
        ("gradual", jnp.float16, jnp.float16),
    ],
)
def test_pruned_weights_are_exactly_zero_in_every_dtype(form, dtype, grad_dtype):
    tx = FORMS[form](optimizer=optax.adam(0.1))
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(30, 10)), "b": rng.normal(size=40)}
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)
    state, step = tx.init(params), make_step(tx)
    for i in range(8):
        grads = jax.tree.map(
            lambda p: jnp.asarray(rng.normal(size=p.shape), grad_dtype), params
        )
        before = state
        params, state = step(params, state, grads, i % 3 == 1)
        if dtype == grad_dtype:  # else the state of Adam itself changes its dtypes
            chex.assert_trees_all_equal_dtypes(state, before)
        assert all(p.dtype == dtype for p in params.values())
        assert_zeros_where_pruned(params, state)
    assert (~flat_masks(state)).sum() > 100
    if form == "gradual":
        return  # it would go on to drop weights that are NaN
    masks = masks_of(state)
    # What is gone does not come back for anything in a gradient or an update.
    for bad in (np.nan, np.inf, -np.inf, float(jnp.finfo(grad_dtype).max)):
        grads = jax.tree.map(lambda p, b=bad: jnp.full(p.shape, b, grad_dtype), params)
        params, state = step(params, state, grads, False)
        assert_zeros_where_pruned(params, state)
        chex.assert_trees_all_equal(masks_of(state), masks)


# Few different weights, so that most tie; those that are not numbers among them.
VALUES = [0.0, -0.0, 0.5, -0.5, 1.0, 2.0, -2.0, np.inf, -np.inf, np.nan]
TREE = {"a": (4, 6), "b": (5,), "c": (), "d": (0, 3), "e": (2, 2, 3)}


def draw_tree(rng, values=None, dtypes=(np.float32,)):
    dtypes = list(dtypes) * len(TREE)
    return {
        name: (
            rng.normal(size=shape) if values is None else rng.choice(values, shape)
        ).astype(dtype)
        for (name, shape), dtype in zip(TREE.items(), dtypes, strict=False)
    }


@pytest.mark.parametrize("scope", ["global", "leaf"])
@pytest.mark.parametrize("form", [chain, whole])
def test_counts_are_exact_and_the_kept_set_shrinks(form, scope):
    @jax.jit
    def step(params, state, grads, fraction, prune):
        updates, state = form(fraction, scope).update(grads, state, params, prune=prune)
        return optax.apply_updates(params, updates), state

    @settings(max_examples=30)
    @given(
        SEEDS,
        st.lists(
            st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=6
        ),
        st.booleans(),
    )
    def check(seed, steps, special):
        rng = np.random.default_rng(seed)
        params = draw_tree(rng, VALUES if special else None)
        state = form(0.5, scope).init(params)
        masks = masks_of(state)
        # No update can make a weight zero that is not a number: NaN - NaN is NaN.
        lost = [np.zeros(m.shape, bool) for m in masks]
        for fraction, prune in steps:
            before_step = [np.asarray(p) for p in jax.tree.leaves(params)]
            grads = draw_tree(rng, VALUES if special else None)
            params, state = step(params, state, grads, np.float32(fraction), prune)
            following = masks_of(state)
            groups = [[m] for m in masks] if scope == "leaf" else [masks]
            now = [[m] for m in following] if scope == "leaf" else [following]
            for before, after in zip(groups, now, strict=True):
                remaining = sum(int(m.sum()) for m in before)
                dropped = exact_share(fraction, remaining) if prune else 0
                assert sum(int(m.sum()) for m in after) == remaining - dropped
            assert all(np.all(b | ~a) for b, a in zip(masks, following, strict=True))
            for i, p in enumerate(jax.tree.leaves(params)):
                lost[i] |= masks[i] & ~following[i] & ~np.isfinite(before_step[i])
                assert not np.any(np.asarray(p)[~following[i] & ~lost[i]])
            cleaned = sparse_optax.apply_masks(params, sparse_optax.get_masks(state))
            assert_zeros_where_pruned(cleaned, state)
            masks = following

    check()


# Each leaf of another dtype; two beyond the smallest normal number of their dtype.
EXTREMES = [1e-45, 3e-41, -1e-39, 1e-38, 6e-8, 1e-6, -6e-5, 1.0, 1.001, -1.0, 6e4, 0.0]


@settings(max_examples=60)
@given(SEEDS, st.sampled_from([None, EXTREMES]), st.floats(0, 1, width=32))
def test_magnitudes_order_as_a_stable_sort_of_all_leaves(seed, values, fraction):
    rng = np.random.default_rng(seed)
    params = draw_tree(rng, values, [jnp.bfloat16, np.float32, jnp.float16])
    state = sparse_optax.prune_by_magnitude(0.5, mask=None).init(params)
    _, state = sparse_optax.prune(params, state, np.float32(fraction))
    magnitude = np.abs(
        np.concatenate([params[n].ravel().astype(np.float64) for n in sorted(params)])
    )
    kept = np.ones(magnitude.size, bool)
    k = exact_share(fraction, magnitude.size)
    kept[np.argsort(magnitude, kind="stable")[:k]] = False
    np.testing.assert_array_equal(flat_masks(state), kept)


def eighths(rng, shape):
    """Numbers with which sums and halves are exact, however they are compiled."""
    return rng.integers(-40, 41, shape).astype(np.float32) / 8


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_masks_are_the_same_eager_compiled_scanned_and_vmapped(scope):
    tx = optax.chain(
        optax.sgd(0.5), sparse_optax.prune_by_magnitude(0.3, scope=scope, mask=None)
    )
    rng = np.random.default_rng(5)
    shapes = {"a": (4, 3), "b": (7,)}
    batch, length = 2, 4
    params = {n: eighths(rng, (batch, *s)) for n, s in shapes.items()}
    grads = {n: eighths(rng, (batch, length, *s)) for n, s in shapes.items()}
    prunes = np.array([False, True, True, False])

    def step(carry, x):
        params, state = carry
        updates, state = tx.update(x[0], state, params, prune=x[1])
        return (optax.apply_updates(params, updates), state), None

    def scanned(params, grads):
        carry = params, tx.init(params)
        return jax.lax.scan(step, carry, (grads, prunes))[0]

    def looped(step, params, grads):
        carry = params, tx.init(params)
        for i, prune in enumerate(prunes):
            x = jax.tree.map(lambda g, i=i: g[i], grads)
            carry, _ = step(carry, (x, jnp.asarray(prune)))
        return carry

    vmapped = jax.jit(jax.vmap(scanned))(params, grads)
    compiled = jax.jit(step)
    for i in range(batch):
        one = jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), (params, grads))
        expected = looped(compiled, *one)
        assert (~flat_masks(expected[1])).sum() == 10  # 6 and 4, or 4 + 2 and 2 + 2
        chex.assert_trees_all_equal(jax.jit(scanned)(*one), expected)
        chex.assert_trees_all_equal(
            jax.tree.map(lambda x, i=i: x[i], vmapped), expected
        )
        if i == 0 and scope == "global":
            chex.assert_trees_all_equal(looped(step, *one), expected)


@settings(max_examples=40)
@given(SEEDS, st.integers(-20, 20), st.floats(0, 1, width=32))
def test_masks_do_not_depend_on_the_scale_of_weights(seed, power, fraction):
    params = draw_tree(np.random.default_rng(seed))
    scaled = {n: (p * 2.0**power).astype(np.float32) for n, p in params.items()}
    state = sparse_optax.prune_by_magnitude(0.5, mask=None).init(params)
    _, a = sparse_optax.prune(params, state, fraction)
    _, b = sparse_optax.prune(scaled, state, fraction)
    chex.assert_trees_all_equal(a, b)


@pytest.mark.parametrize("scope", ["global", "leaf"])
@settings(max_examples=30)
@given(seed=SEEDS, fraction=st.floats(0, 1, width=32))
def test_masks_are_permuted_with_the_weights(scope, seed, fraction):
    rng = np.random.default_rng(seed)
    # All magnitudes differ.
    size = sum(int(np.prod(shape)) for shape in TREE.values())
    numbers = rng.permutation(size) + 1.0
    numbers = iter((numbers * rng.choice([-1, 1], size)).astype(np.float32))
    params = {
        name: np.array([next(numbers) for _ in range(int(np.prod(shape)))], np.float32)
        for name, shape in TREE.items()
    }
    orders = {n: rng.permutation(p.size) for n, p in params.items()}
    permuted = {n: p[orders[n]] for n, p in params.items()}
    shaped, permuted = (
        {n: p.reshape(TREE[n]) for n, p in tree.items()} for tree in (params, permuted)
    )
    state = sparse_optax.prune_by_magnitude(0.5, mask=None).init(shaped)
    _, a = sparse_optax.prune(shaped, state, fraction, scope=scope)
    _, b = sparse_optax.prune(permuted, state, fraction, scope=scope)
    for name, order in orders.items():
        np.testing.assert_array_equal(
            np.ravel(a.masks[name])[order], np.ravel(b.masks[name])
        )


OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.1),
    "lamb": optax.lamb(0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
}


def nothing_as_chain(optimizer):
    return optax.chain(
        sparse_optax.add_relevance_decay(0.0, mask=None),
        optimizer,
        sparse_optax.prune_by_magnitude(0.0, mask=None),
    )


def nothing_as_gradual(optimizer):
    return optax.chain(
        sparse_optax.add_relevance_decay(0.0, mask=None),
        optimizer,
        sparse_optax.prune_to_sparsity(0.0, mask=None),
    )


def nothing_as_whole(optimizer):
    return sparse_optax.relevance_pruning(optimizer, 0.0, fraction=0.0, mask=None)


def nothing_as_decoupled(optimizer):
    return sparse_optax.relevance_pruning(
        optimizer, 0.0, fraction=0.0, decoupled=True, mask=None
    )


@pytest.mark.parametrize(
    "form",
    [nothing_as_chain, nothing_as_gradual, nothing_as_whole, nothing_as_decoupled],
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_decay_and_pruning_it_is_the_optimizer_inside(form, optimizer):
    inner = OPTIMIZERS[optimizer]
    tx = form(inner)
    rng = np.random.default_rng(2)
    params = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    params = jax.tree.map(jnp.float32, params)
    state, inner_state = tx.init(params), inner.init(params)
    for i in range(3):
        grads = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), params)
        # Not compiled: XLA may round a step in two ways, as a part of two programs.
        updates, state = tx.update(grads, state, params, prune=i == 1)
        expected, inner_state = inner.update(grads, inner_state, params)
        chex.assert_trees_all_equal(updates, expected)
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("how", ["irrelevance_fn", "infinite scale"])
def test_if_all_is_irrelevant_it_is_weight_decay(how, dtype):
    strength = 0.03
    if how == "irrelevance_fn":
        tx = sparse_optax.add_relevance_decay(
            strength, irrelevance_fn=lambda g, _: jnp.ones_like(g), mask=None
        )
    else:
        tx = sparse_optax.add_relevance_decay(strength, np.inf, mask=None)
    decay = optax.add_decayed_weights(2 * strength)
    rng = np.random.default_rng(3)
    params, grads = (
        {"a": jnp.asarray(rng.normal(size=(3, 4)), dtype), "b": jnp.ones(2, dtype)}
        for _ in range(2)
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    expected, _ = decay.update(grads, decay.init(params), params)
    if dtype == jnp.float32:
        chex.assert_trees_all_equal(updates, expected)
    else:
        # add_decayed_weights rounds the decay to the dtype of the weights first.
        chex.assert_trees_all_close(
            jax.tree.map(jnp.float32, updates),
            jax.tree.map(jnp.float32, expected),
            rtol=4 * float(jnp.finfo(dtype).eps),
            atol=float(jnp.finfo(dtype).eps) / 4,
        )


CHECKPOINTED = {
    "chain": lambda: chain(optimizer=optax.adam(0.1)),
    "gradual": lambda: gradual(optimizer=optax.adam(0.1)),
    "whole": lambda: sparse_optax.relevance_pruning(
        optax.adam(0.1), 0.01, 0.1, 0.3, mask=sparse_optax.matrices_only
    ),
}


@pytest.mark.parametrize("form", CHECKPOINTED)
def test_saved_restored_and_continued_is_uninterrupted(form, tmp_path):
    tx = CHECKPOINTED[form]()
    rng = np.random.default_rng(4)
    params = {
        "a": jnp.asarray(rng.normal(size=(6, 5)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
        "steps": jnp.int32(3),
    }
    grads = [
        {
            "a": jnp.asarray(rng.normal(size=(6, 5)), jnp.float32),
            "b": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
            "steps": jnp.int32(0),
        }
        for _ in range(8)
    ]
    prunes = [False, True, False, True, False, True, True, False]
    step = make_step(tx)

    def train(carry, steps):
        for i in steps:
            carry = step(*carry, grads[i], prunes[i])
        return carry

    middle = train((params, tx.init(params)), range(4))
    expected = train(middle, range(4, 8))
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), middle
    )
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "middle", middle)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "middle", target)
    assert jax.tree.structure(restored) == jax.tree.structure(middle)
    chex.assert_trees_all_equal(restored, middle)
    chex.assert_trees_all_equal_dtypes(restored, middle)
    chex.assert_trees_all_equal(train(restored, range(4, 8)), expected)
    assert (~flat_masks(expected[1])).sum() > (~flat_masks(middle[1])).sum() > 0
