"""The table of wrappers: which keep the zeros, which lose them, and what each sees."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    exact_share,
    find_states,
    make_step,
    num_kept,
    num_nonzero,
    numpy_drop,
    random_tree,
)

import sparse_optax
from sparse_optax import PruneState, RelevanceDecayState

SIZE = 40  # weights in the tree of these tests
LEAF_LABELS = {"dense": {"bias": "a", "kernel": "b"}}


def base(fraction=0.5):
    return optax.chain(
        sparse_optax.add_relevance_decay(1e-3, 0.5, mask=None),
        optax.adam(0.05),
        sparse_optax.prune_by_magnitude(fraction, mask=None),
    )


def named():
    return optax.named_chain(
        ("decay", sparse_optax.add_relevance_decay(1e-3, 0.5, mask=None)),
        ("adam", optax.adam(0.05)),
        ("prune", sparse_optax.prune_by_magnitude(0.5, mask=None)),
    )


def injected():
    return optax.inject_hyperparams(
        sparse_optax.relevance_pruning, static_args=("optimizer",)
    )(optimizer=optax.adam(0.05), strength=1e-3, scale=0.5, fraction=0.5, mask=None)


# Each wrapper, and in which groups of leaves its links rank weights.
BOTH = [["dense/bias", "dense/kernel"]]
APART = [["dense/bias"], ["dense/kernel"]]
KERNEL = [["dense/kernel"]]
KEEP_ZEROS = {
    "chain": (base, BOTH),
    "named_chain": (named, BOTH),
    "relevance_pruning": (
        lambda: sparse_optax.relevance_pruning(
            optax.adam(0.05), 1e-3, 0.5, 0.5, mask=None
        ),
        BOTH,
    ),
    "masked-tree": (
        lambda: optax.masked(base(), {"dense": {"bias": False, "kernel": True}}),
        KERNEL,
    ),
    "masked-prefix": (lambda: optax.masked(base(), {"dense": True}), BOTH),
    "masked-callable": (
        lambda: optax.masked(base(), sparse_optax.matrices_only),
        KERNEL,
    ),
    "multi_transform": (
        lambda: optax.multi_transform({"a": base(), "b": base()}, LEAF_LABELS),
        APART,
    ),
    "multi_transform-prefix": (
        lambda: optax.multi_transform(
            {"a": base(), "b": optax.sgd(0.1)}, {"dense": "a"}
        ),
        BOTH,
    ),
    "partition-callable": (
        lambda: optax.partition({"a": base(), "b": base()}, lambda _: LEAF_LABELS),
        APART,
    ),
    "MultiSteps": (
        lambda: optax.MultiSteps(base(), 1).gradient_transformation(),
        BOTH,
    ),
    "apply_if_finite": (lambda: optax.apply_if_finite(base(), 3), BOTH),
    "inject_hyperparams": (injected, BOTH),
    "nested": (
        lambda: optax.MultiSteps(
            optax.apply_if_finite(
                optax.multi_transform({"a": base(), "b": base()}, LEAF_LABELS), 3
            ),
            1,
        ).gradient_transformation(),
        APART,
    ),
}
every_wrapper = pytest.mark.parametrize("wrapper", KEEP_ZEROS)


def pick(tree, name):
    for key in name.split("/"):
        tree = tree[key]
    return tree


def expected_masks(groups, weights, fraction):
    """What each group of leaves should keep, or None where nothing may be pruned."""
    result = {}
    for group in groups:
        leaves = {name: np.asarray(pick(weights, name)) for name in group}
        masks = jax.tree.map(lambda w: np.ones(w.shape, bool), leaves)
        k = exact_share(fraction, sum(w.size for w in leaves.values()))
        result |= numpy_drop(leaves, masks, k)
    return result


def assert_masks(masks, groups, weights, fraction):
    expected = expected_masks(groups, weights, fraction)
    for name in ("dense/bias", "dense/kernel"):
        if name in expected:
            np.testing.assert_array_equal(pick(masks, name), expected[name])
        else:
            assert pick(masks, name) == optax.MaskedNode()


@every_wrapper
def test_zeros_are_kept(wrapper):
    make, groups = KEEP_ZEROS[wrapper]
    tx, params = make(), random_tree(0)
    state = tx.init(params)
    step = jax.jit(make_step(tx))
    for i in range(2):
        params, state = step(params, state, random_tree(i + 1), prune=jnp.array(False))
    unpruned, _ = step(params, state, random_tree(3), prune=jnp.array(False))
    params, state = step(params, state, random_tree(3), prune=jnp.array(True))
    masks = sparse_optax.get_masks(state)
    assert_masks(masks, groups, unpruned, 0.5)
    chex.assert_trees_all_equal(params, sparse_optax.apply_masks(unpruned, masks))
    for i in range(2):
        params, state = step(params, state, random_tree(i + 4), prune=jnp.array(False))
        sparse_optax.check_sparsity(params, state)
        assert num_nonzero(params) == num_nonzero(
            sparse_optax.apply_masks(jax.tree.map(jnp.ones_like, params), masks)
        )
    chex.assert_trees_all_equal(sparse_optax.get_masks(state), masks)
    assert {int(s.num_prunes) for s in find_states(state, PruneState)} == {1}
    steps = {int(s.steps_since_prune) for s in find_states(state, RelevanceDecayState)}
    assert steps == {2}


@every_wrapper
def test_prune_from_outside(wrapper):
    make, groups = KEEP_ZEROS[wrapper]
    tx, params = make(), random_tree(0)
    state = tx.init(params)
    step = jax.jit(make_step(tx))
    params, state = step(params, state, random_tree(1))
    pruned, pruned_state = sparse_optax.prune(params, state, 0.25)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        (pruned, pruned_state), (params, state)
    )
    masks = sparse_optax.get_masks(pruned_state)
    assert_masks(masks, groups, params, 0.25)
    chex.assert_trees_all_equal(pruned, sparse_optax.apply_masks(params, masks))
    for s in find_states(pruned_state, PruneState):
        assert s.num_prunes == 1
    for before, after in zip(
        find_states(state, RelevanceDecayState),
        find_states(pruned_state, RelevanceDecayState),
        strict=True,
    ):
        assert (before.steps_since_prune, after.steps_since_prune) == (1, 0)
    after, after_state = step(pruned, pruned_state, random_tree(2))
    sparse_optax.check_sparsity(after, after_state)
    chex.assert_trees_all_equal(sparse_optax.get_masks(after_state), masks)


@every_wrapper
def test_masks_from_zeros(wrapper):
    make, groups = KEEP_ZEROS[wrapper]
    tx = make()
    params = jax.tree.map(lambda w: jnp.where(w > 0.3, w, 0), random_tree(0))
    state = tx.init(params)
    marked = sparse_optax.masks_from_zeros(params, state, mask=None)
    chex.assert_trees_all_equal_shapes_and_dtypes(marked, state)
    masks = sparse_optax.get_masks(marked)
    names = [name for group in groups for name in group]
    for name in names:
        np.testing.assert_array_equal(pick(masks, name), pick(params, name) != 0)
    assert len(jax.tree.leaves(masks)) == len(names)
    assert {int(s.num_prunes) for s in find_states(marked, PruneState)} == {0}
    after, after_state = jax.jit(make_step(tx))(params, marked, random_tree(1))
    sparse_optax.check_sparsity(after, after_state)
    selected = sparse_optax.masks_from_zeros(
        params, state, mask={"dense": {"bias": False, "kernel": True}}
    )
    if "dense/bias" in names:
        assert np.all(pick(sparse_optax.get_masks(selected), "dense/bias"))


@pytest.mark.parametrize("traced", [False, True])
def test_two_links_know_of_a_prune_from_the_same_argument(traced):
    tx, params = base(), random_tree(0)
    static, flag = (None, jnp.array) if traced else ("prune", bool)
    step = jax.jit(make_step(tx), static_argnames=static)
    state, seen = tx.init(params), []
    for prune in (False, False, True, False):
        params, state = step(params, state, random_tree(1), prune=flag(prune))
        seen.append((int(state[0].steps_since_prune), int(state[2].num_prunes)))
    assert seen == [(1, 0), (2, 0), (0, 1), (1, 1)]


# Wrappers that discard a step discard its prune.


def test_multi_steps_discards_a_prune_between_two_updates():
    tx, params = optax.MultiSteps(base(), 2), random_tree(0)
    step = jax.jit(make_step(tx))
    state = tx.init(params)
    first, state = step(params, state, random_tree(1), prune=jnp.array(True))
    chex.assert_trees_all_equal(first, params)
    assert num_kept(sparse_optax.get_masks(state)) == SIZE
    assert find_states(state, PruneState)[0].num_prunes == 0
    assert find_states(state, RelevanceDecayState)[0].steps_since_prune == 0
    # On the step that does update, it is obeyed.
    second, state = step(first, state, random_tree(2), prune=jnp.array(True))
    assert num_kept(sparse_optax.get_masks(state)) == num_nonzero(second) == SIZE // 2
    assert find_states(state, PruneState)[0].num_prunes == 1


def test_prune_works_between_two_updates_of_multi_steps():
    tx, params = optax.MultiSteps(base(), 3), random_tree(0)
    step = jax.jit(make_step(tx))
    params, state = step(params, tx.init(params), random_tree(1))
    pruned, state = sparse_optax.prune(params, state, 0.5)
    masks = sparse_optax.get_masks(state)
    for i in range(5):
        pruned, state = step(pruned, state, random_tree(i + 2))
        sparse_optax.check_sparsity(pruned, state)
    chex.assert_trees_all_equal(sparse_optax.get_masks(state), masks)
    assert num_nonzero(pruned) == num_kept(masks) == SIZE // 2
    assert num_nonzero(optax.tree.sub(pruned, params)) == SIZE  # it did train


def with_nan(tree):
    bias = tree["dense"]["bias"].at[1].set(jnp.nan)
    return {"dense": tree["dense"] | {"bias": bias}}


def test_apply_if_finite_discards_the_prune_of_a_rejected_step():
    tx, params = optax.apply_if_finite(base(), 5), random_tree(0)
    step = jax.jit(make_step(tx))
    params, state = step(params, tx.init(params), random_tree(1), prune=jnp.array(True))
    rejected, after = step(
        params, state, with_nan(random_tree(2)), prune=jnp.array(True)
    )
    chex.assert_trees_all_equal(rejected, params)
    chex.assert_trees_all_equal(after.inner_state, state.inner_state)
    assert after.total_notfinite == 1
    pruned, state = sparse_optax.prune(rejected, after, 0.5)
    assert num_nonzero(pruned) == SIZE // 4
    assert find_states(state, PruneState)[0].num_prunes == 2


def test_nan_gradients_that_are_let_through_revive_nothing():
    tx, params = optax.apply_if_finite(base(), 0), random_tree(0)
    step = jax.jit(make_step(tx))
    params, state = step(params, tx.init(params), random_tree(1), prune=jnp.array(True))
    nan = jax.tree.map(lambda w: jnp.full_like(w, jnp.nan), params)
    after, after_state = step(params, state, nan, prune=jnp.array(False))
    masks = sparse_optax.get_masks(after_state)
    chex.assert_trees_all_equal(masks, sparse_optax.get_masks(state))
    assert num_kept(jax.tree.map(jnp.isnan, after)) == SIZE // 2  # all that were kept
    sparse_optax.check_sparsity(after, after_state)


def test_a_wrapper_that_drops_extra_args_drops_the_prune():
    """`MultiSteps.gradient_transformation` is passed no extra args by what wraps it."""
    inner = optax.MultiSteps(base(), 1).gradient_transformation()
    tx, params = optax.apply_if_finite(inner, 3), random_tree(0)
    _, state = tx.update(params, tx.init(params), params, prune=True)
    assert find_states(state, PruneState)[0].num_prunes == 0  # which is how it is seen
    assert num_kept(sparse_optax.get_masks(state)) == SIZE


# Wrappers that lose the zeros, and what catches them.


def train(tx, params, prune_at=1, steps=4):
    step = jax.jit(make_step(tx))
    state = tx.init(params)
    for i in range(steps):
        prune = jnp.array(i == prune_at)
        params, state = step(params, state, random_tree(i + 1), prune=prune)
    return params, state


LATER_LINKS = {
    "add_noise": optax.add_noise(0.1, 0.5, jax.random.key(0)),
    "scale": optax.scale(0.5),
    "clip_by_global_norm": optax.clip_by_global_norm(1e-3),
    "trace": optax.trace(0.9),
}


@pytest.mark.parametrize("link", LATER_LINKS)
def test_a_later_link_is_caught(link):
    tx = optax.chain(base(), LATER_LINKS[link])
    params, state = train(tx, random_tree(0), prune_at=1, steps=2)
    with pytest.raises(ValueError, match=r"not zero: .* at dense/kernel"):
        sparse_optax.check_sparsity(params, state)


def test_mechanize_is_caught():
    params, state = train(optax.contrib.mechanize(base()), random_tree(0))
    assert num_kept(sparse_optax.get_masks(state)) == SIZE // 2
    with pytest.raises(ValueError, match=r"not zero: .* at dense/kernel"):
        sparse_optax.check_sparsity(params, state)


def test_lookahead_is_caught_in_its_slow_weights():
    # Its update takes no extra arguments, so that the step count has to prune.
    inner = optax.chain(optax.sgd(0.05), sparse_optax.prune_to_sparsity(0.5, mask=None))
    tx = optax.lookahead(inner, sync_period=3, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(random_tree(0))
    updates, state = tx.update(random_tree(1), tx.init(params), params)
    params = optax.apply_updates(params, updates)
    sparse_optax.check_sparsity(params.fast, state)
    assert num_nonzero(params.fast) == SIZE // 2
    with pytest.raises(ValueError, match=r"not zero: .* at dense/kernel"):
        sparse_optax.check_sparsity(params.slow, state)


@pytest.mark.parametrize("prune_at", [0, 1, 2])
def test_schedule_free_around_the_whole_chain(prune_at):
    """It averages iterates: pruned weights are zero only if they always were.

    What the base optimizer gives is added to an iterate of its own, and not to the
    params. At the first update all iterates are still the same.
    """
    tx = optax.contrib.schedule_free(base(), 0.05)
    params, state = train(tx, random_tree(0), prune_at)
    assert num_kept(sparse_optax.get_masks(state)) == SIZE // 2
    evaluated = optax.contrib.schedule_free_eval_params(state, params)
    if prune_at == 0:
        sparse_optax.check_sparsity(params, state)
        sparse_optax.check_sparsity(evaluated, state)
        return
    for weights in (params, evaluated):
        with pytest.raises(ValueError, match=r"not zero: .* at dense/kernel"):
            sparse_optax.check_sparsity(weights, state)
    masked = sparse_optax.apply_masks(evaluated, sparse_optax.get_masks(state))
    sparse_optax.check_sparsity(masked, state)


def test_schedule_free_inside_the_chain_is_caught():
    tx = optax.chain(
        optax.contrib.schedule_free(optax.sgd(0.05), 0.05),
        sparse_optax.prune_by_magnitude(0.5, mask=None),
    )
    params, state = train(tx, random_tree(0))
    sparse_optax.check_sparsity(params, state)
    evaluated = optax.contrib.schedule_free_eval_params(state[0], params)
    with pytest.raises(ValueError, match=r"not zero: .* at dense/kernel"):
        sparse_optax.check_sparsity(evaluated, state)


def test_a_moving_average_of_params_is_caught():
    tx, ema = base(), optax.ema(0.9)
    params = random_tree(0)
    state, average = tx.init(params), ema.init(params)
    step = jax.jit(make_step(tx))
    for prune in (False, True):
        params, state = step(params, state, random_tree(1), prune=jnp.array(prune))
        mean, average = ema.update(params, average)
    sparse_optax.check_sparsity(params, state)
    with pytest.raises(ValueError, match=r"not zero: .* at dense/kernel"):
        sparse_optax.check_sparsity(mean, state)
    masked = sparse_optax.apply_masks(mean, sparse_optax.get_masks(state))
    sparse_optax.check_sparsity(masked, state)


# What the optimizer inside relevance_pruning sees, and what it remembers.


def spy():
    """Passes updates on, and leaves a copy of them in its state."""
    return optax.GradientTransformation(
        lambda params: {"seen": jax.tree.map(jnp.zeros_like, params)},
        lambda updates, state, params=None: (updates, {"seen": updates}),
    )


def labels_by_leaf(optimizer):
    return optax.multi_transform(
        {"a": optimizer, "b": optax.adam(0.02)}, lambda _: LEAF_LABELS
    )


OPTIMIZERS = {
    "adam": optax.adam(0.01),
    "adamw": optax.adamw(0.01),
    "sgd": optax.sgd(0.01, momentum=0.9),
    "lion": optax.lion(0.01),
    "adafactor": optax.adafactor(0.01, momentum=0.9),
    "adafactor-factored": optax.adafactor(0.01, min_dim_size_to_factor=2, momentum=0.9),
    "lamb": optax.lamb(0.01),
    "muon": optax.contrib.muon(0.01),
    "labels-leaf": labels_by_leaf(optax.adam(0.01)),
    "labels-prefix": optax.multi_transform(
        {"a": optax.adam(0.01), "b": optax.sgd(0.1)}, {"dense": "a"}
    ),
    "clipped-adam": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01)),
    "injected-adam": optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
}


def by_params_path(tree, params):
    """The leaves of `tree` that stand at a path and have the shape of a weight."""
    paths = {
        jax.tree_util.keystr(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        for tail, shape in paths.items():
            if name.endswith(tail) and jnp.shape(leaf) == shape:
                found[name] = tail
    return found


def assert_cleared(before, after, masks, params):
    """`after` is `before` but for moments of pruned weights, which are zero."""
    like_params = by_params_path(before, params)
    assert like_params
    masks = {
        jax.tree_util.keystr(path): mask
        for path, mask in jax.tree_util.tree_leaves_with_path(masks)
    }
    flat = jax.tree_util.tree_leaves_with_path(before)
    remembered = 0
    for (path, old), new in zip(flat, jax.tree.leaves(after), strict=True):
        name = jax.tree_util.keystr(path)
        if name in like_params:
            mask = np.asarray(masks[like_params[name]])
            remembered += np.count_nonzero(np.asarray(old)[~mask])
            old = np.where(mask, old, 0)
        np.testing.assert_array_equal(old, new, err_msg=name)
    assert remembered > 0, "there was something to clear"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_never_sees_a_pruned_weight(optimizer):
    tx = sparse_optax.relevance_pruning(
        optax.chain(spy(), OPTIMIZERS[optimizer]), 1e-3, 0.5, 0.5, mask=None
    )
    step = jax.jit(make_step(tx))
    params = random_tree(0)
    params, state = step(
        params, tx.init(params), random_tree(1), prune=jnp.array(False)
    )
    grads = random_tree(2)
    kept_params, kept_state = step(params, state, grads, prune=jnp.array(False))
    params, state = step(params, state, grads, prune=jnp.array(True))
    masks = sparse_optax.get_masks(state)
    assert num_kept(masks) == SIZE // 2
    assert_cleared(kept_state.optimizer, state.optimizer, masks, params)

    # A prune from outside clears just as much.
    _, pruned_state = sparse_optax.prune(kept_params, kept_state, 0.5)
    chex.assert_trees_all_equal(pruned_state, state)

    # From now on gradients of pruned weights are zero before the optimizer.
    grads = with_nan_where(random_tree(3), masks)
    params, state = step(params, state, grads, prune=jnp.array(False))
    seen = state.optimizer[0]["seen"]
    assert num_nonzero(seen) == SIZE // 2
    chex.assert_trees_all_equal(seen, sparse_optax.apply_masks(seen, masks))
    chex.assert_tree_all_finite((params, state.optimizer))
    sparse_optax.check_sparsity(params, state)


def with_nan_where(grads, masks):
    """Gradients that show wherever they get through."""
    return jax.tree.map(lambda g, m: jnp.where(m, g, jnp.nan), grads, masks)


def test_clipping_sees_the_norm_of_kept_weights():
    before, after = spy(), spy()
    tx = sparse_optax.relevance_pruning(
        optax.chain(before, optax.clip_by_global_norm(0.1), after, optax.adam(0.01)),
        strength=0.0,
        mask=None,
    )
    params = random_tree(0)
    params, state = sparse_optax.prune(params, tx.init(params), 0.9)
    masks = sparse_optax.get_masks(state)
    grads = random_tree(1)
    _, state = tx.update(grads, state, params)
    kept = jax.tree.map(lambda g, m: np.where(m, g, 0), grads, masks)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(kept)))
    assert norm < 0.5 * float(optax.tree.norm(grads))
    chex.assert_trees_all_equal(state.optimizer[0]["seen"], kept)
    clipped = jax.tree.map(lambda g: 0.1 / norm * g, kept)
    chex.assert_trees_all_close(state.optimizer[2]["seen"], clipped, rtol=1e-5)


@pytest.mark.parametrize("prune", [False, True])
def test_scalar_hyperparameters_are_untouched_by_a_prune_of_all(prune):
    inner = optax.inject_hyperparams(optax.adam)(learning_rate=0.01, b1=0.8)
    tx = sparse_optax.relevance_pruning(inner, 0.1, fraction=1.0, mask=None)
    params = {"a": jnp.float32(2.0), "b": jnp.ones(3)}
    _, state = tx.update(params, tx.init(params), params, prune=prune)
    hyperparams = state.optimizer.hyperparams
    assert hyperparams["learning_rate"] == jnp.float32(0.01)
    assert hyperparams["b1"] == jnp.float32(0.8)
    moment = state.optimizer.inner_state[0].mu
    assert num_nonzero(moment) == (0 if prune else 4)


def test_masks_of_several_links_on_one_leaf_are_combined():
    tx = optax.chain(
        sparse_optax.prune_by_magnitude(0.25, mask=None),
        sparse_optax.prune_by_magnitude(0.5, mask=None),
    )
    params = jnp.array([1.0, -2.0, 3.0, 4.0])
    _, state = tx.update(jnp.zeros(4), tx.init(params), params, prune=True)
    np.testing.assert_array_equal(state[0].masks, [False, True, True, True])
    np.testing.assert_array_equal(
        sparse_optax.get_masks(state), state[0].masks & state[1].masks
    )


def test_multi_transform_prunes_only_what_is_labelled():
    labels = {"dense": {"bias": "plain", "kernel": "sparse"}}
    tx = optax.multi_transform({"plain": optax.sgd(0.1), "sparse": base()}, labels)
    params, state = train(tx, random_tree(0))
    masks = sparse_optax.get_masks(state)
    assert masks["dense"]["bias"] == optax.MaskedNode()
    assert num_kept(masks) == 18
    assert num_nonzero(params) == 22


def test_groups_of_labels_by_prefix_merge_into_one_tree():
    shapes = {"a": {"x": (4,), "y": (2, 2)}, "b": {"x": (6,)}, "c": (3,)}
    params = random_tree(0, shapes=shapes)
    tx = optax.multi_transform(
        {"first": base(0.5), "second": base(1 / 3), "none": optax.sgd(0.1)},
        {"a": "first", "b": "second", "c": "none"},
    )
    step = jax.jit(make_step(tx))
    after, state = step(params, tx.init(params), params, prune=jnp.array(True))
    masks = sparse_optax.get_masks(state)
    assert masks["c"] == optax.MaskedNode()
    assert (num_kept(masks["a"]), num_kept(masks["b"])) == (4, 4)
    report = sparse_optax.sparsity_report(after, masks)
    assert list(report.leaves) == ["a/x", "a/y", "b/x", "c"]
    assert (report.total.kept, report.total.size) == (11, 17)
    sparse_optax.check_sparsity(after, state)
