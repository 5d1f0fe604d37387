"""What holds for any weights, gradients and pruning steps."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from helpers import exact_share, make_step
from hypothesis import given, settings, strategies as st

import sparse_optax

FLOATS = [jnp.float32, jnp.bfloat16, jnp.float16]
SEEDS = st.integers(0, 2**32 - 1)
SGD = optax.sgd(0.5)


def chain(fraction=0.3, scope="global", optimizer=SGD, strength=0.01, pruning=None):
    if pruning is None:
        pruning = sparse_optax.prune_by_magnitude(fraction, scope=scope, mask=None)
    decay = sparse_optax.add_relevance_decay(strength, 0.1, mask=None)
    return optax.chain(decay, optimizer, pruning)


def gradual(fraction=0.3, optimizer=SGD, strength=0.01):
    pruning = sparse_optax.prune_to_sparsity(
        lambda t: 1 - (1 - fraction) ** t, every=2, mask=None
    )
    return chain(optimizer=optimizer, strength=strength, pruning=pruning)


def whole(fraction=0.3, scope="global", optimizer=SGD, strength=0.01, **options):
    return sparse_optax.relevance_pruning(
        optimizer, strength, 0.1, fraction, scope=scope, mask=None, **options
    )


FORMS = {"chain": chain, "whole": whole, "gradual": gradual}


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
        ("chain", jnp.bfloat16, jnp.float32),
        ("chain", jnp.float32, jnp.float16),
        ("whole", jnp.float32, jnp.bfloat16),
        ("gradual", jnp.float16, jnp.float16),
    ],
)
def test_pruned_weights_are_exactly_zero_in_every_dtype(form, dtype, grad_dtype):
    tx = FORMS[form](optimizer=optax.adam(0.1))
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(30, 10)), "b": rng.normal(size=40)}
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)
    state, step = tx.init(params), jax.jit(make_step(tx))
    for i in range(8):
        grads = jax.tree.map(
            lambda p: jnp.asarray(rng.normal(size=p.shape), grad_dtype), params
        )
        before = state
        params, state = step(params, state, grads, prune=i % 3 == 1)
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
        params, state = step(params, state, grads, prune=False)
        assert_zeros_where_pruned(params, state)
        chex.assert_trees_all_equal(masks_of(state), masks)


# Few different weights, so that most tie; those that are not numbers among them.
VALUES = [0.0, -0.0, 0.5, -0.5, 1.0, 2.0, -2.0, np.inf, -np.inf, np.nan]
TREE = {"a": (4, 6), "b": (5,), "c": (), "d": (0, 3), "e": (2, 2, 3)}


def draw_tree(rng, values=None):
    draw = rng.normal if values is None else lambda size: rng.choice(values, size)
    return {name: np.asarray(draw(size=s), np.float32) for name, s in TREE.items()}


@pytest.mark.parametrize(("form", "scope"), [(chain, "leaf"), (whole, "global")])
def test_counts_are_exact_and_the_kept_set_shrinks(form, scope):
    @jax.jit
    def step(params, state, grads, fraction, prune):
        return make_step(form(fraction, scope))(params, state, grads, prune=prune)

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


def eighths(rng, shape):
    """Numbers with which sums and halves are exact, however they are compiled."""
    return rng.integers(-40, 41, shape).astype(np.float32) / 8


@pytest.mark.parametrize(
    "scope", ["global", pytest.param("leaf", marks=pytest.mark.slow)]
)
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
        return make_step(tx)(*carry, x[0], prune=x[1]), None

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


@pytest.mark.parametrize("scope", ["global", "leaf"])
@settings(max_examples=30)
@given(seed=SEEDS, fraction=st.floats(0, 1, width=32))
def test_masks_are_permuted_with_the_weights(scope, seed, fraction):
    rng = np.random.default_rng(seed)
    sizes = {name: int(np.prod(shape)) for name, shape in TREE.items()}
    numbers = 1 + rng.permutation(sum(sizes.values()))  # all magnitudes differ
    numbers = np.split(numbers.astype(np.float32), np.cumsum([*sizes.values()])[:-1])
    orders = {name: rng.permutation(size) for name, size in sizes.items()}
    shaped, permuted = (
        {n: w[order(n)].reshape(TREE[n]) for n, w in zip(TREE, numbers, strict=True)}
        for order in (lambda n: slice(None), orders.get)
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
    "adamw": optax.adamw(0.1, weight_decay=0.1),
    "lamb": optax.lamb(0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
}


NOTHING = FORMS | {"decoupled": functools.partial(whole, decoupled=True)}


@pytest.mark.parametrize(
    ("form", "optimizer"),
    [
        *(("chain", "clipped"), ("gradual", "adamw"), ("decoupled", "lamb")),
        *(("whole", "sgd"), ("whole", "clipped")),
    ],
)
def test_without_decay_and_pruning_it_is_the_optimizer_inside(form, optimizer):
    inner = OPTIMIZERS[optimizer]
    tx = NOTHING[form](0.0, optimizer=inner, strength=0.0)
    rng = np.random.default_rng(2)
    params = {"a": jnp.float32(rng.normal(size=(3, 4))), "b": jnp.ones(5)}
    state, inner_state = tx.init(params), inner.init(params)
    for i in range(3):
        grads = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), params)
        # Not compiled: XLA may round a step in two ways, as a part of two programs.
        updates, state = tx.update(grads, state, params, prune=i == 1)
        expected, inner_state = inner.update(grads, inner_state, params)
        chex.assert_trees_all_equal(updates, expected)
        params = optax.apply_updates(params, updates)


def test_if_all_is_irrelevant_it_is_weight_decay():
    decay = optax.add_decayed_weights(2 * 0.03)
    params, grads = (draw_tree(np.random.default_rng(seed)) for seed in (3, 4))
    expected, _ = decay.update(grads, decay.init(params), params)
    for options in (
        {"irrelevance_fn": lambda g, _: jnp.ones_like(g)},
        {"scale": np.inf},
    ):
        tx = sparse_optax.add_relevance_decay(0.03, mask=None, **options)
        updates, _ = tx.update(grads, tx.init(params), params)
        chex.assert_trees_all_equal(updates, expected)


@pytest.mark.parametrize("form", ["gradual", "whole"])
def test_saved_restored_and_continued_is_uninterrupted(form, tmp_path):
    tx = FORMS[form](optimizer=optax.adam(0.1))
    rng = np.random.default_rng(4)

    def tree(steps):
        return {
            "a": jnp.asarray(rng.normal(size=(6, 5)), jnp.float32),
            "b": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
            "steps": jnp.int32(steps),
        }

    params, grads = tree(3), [tree(0) for _ in range(8)]
    prunes = [False, True, False, True, False, True, True, False]
    step = jax.jit(make_step(tx))

    def train(carry, steps):
        for i in steps:
            carry = step(*carry, grads[i], prune=prunes[i])
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
