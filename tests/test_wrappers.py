"""The table of wrappers: which keep the zeros, which lose them, and what each sees."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    exact_share,
    find_states,
    first_unmarked,
    make_chain,
    make_step,
    make_whole,
    num_kept,
    num_nonzero,
    numpy_drop,
    random_tree,
)

import sparse_optax
from sparse_optax import PruneState, StepsSincePruning

SIZE = 40  # weights in the tree of these tests
LABELS = {"dense": {"bias": "a", "kernel": "b"}}
KERNEL_ONLY = {"dense": {"bias": False, "kernel": True}}
NOT_ZERO = r"not zero: .* at dense/kernel"
by_magnitude = functools.partial(sparse_optax.prune_by_magnitude, mask=None)
decay = functools.partial(sparse_optax.add_relevance_decay, 1e-3, 0.5, mask=None)


def base():
    return make_chain(optax.adam(0.05), 1e-3, 0.5, 0.5)


def whole(optimizer, fraction=0.5):
    return make_whole(optimizer, 1e-3, 0.5, fraction)


def injected():
    make = optax.inject_hyperparams(
        sparse_optax.relevance_pruning, static_args=("optimizer",)
    )
    return make(optimizer=optax.adam(0.05), strength=1e-3, fraction=0.5, mask=None)


# Each wrapper, and in which groups of leaves its transformations rank weights.
BOTH = [["bias", "kernel"]]
APART = [["bias"], ["kernel"]]
KEEP_ZEROS = {
    "chain": (base, BOTH),
    "relevance_pruning": (lambda: whole(optax.adam(0.05)), BOTH),
    "masked": (lambda: optax.masked(base(), KERNEL_ONLY), [["kernel"]]),
    "inject_hyperparams": (injected, BOTH),
    "nested": (
        lambda: optax.MultiSteps(
            optax.apply_if_finite(
                optax.multi_transform({"a": base(), "b": base()}, LABELS), 3
            ),
            1,
        ).gradient_transformation(),
        APART,
    ),
    "named_chain": (
        lambda: optax.named_chain(
            ("decay", decay()), ("adam", optax.adam(0.05)), ("prune", by_magnitude(0.5))
        ),
        BOTH,
    ),
    "masked-prefix": (lambda: optax.masked(base(), {"dense": True}), BOTH),
    "multi_transform-prefix": (
        lambda: optax.multi_transform(
            {"a": base(), "b": optax.sgd(0.1)}, {"dense": "a"}
        ),
        BOTH,
    ),
    "partition": (
        lambda: optax.partition({"a": base(), "b": base()}, lambda _: LABELS),
        APART,
    ),
}


def assert_masks(state, groups, weights, fraction):
    """The masks are those of the smallest weights of each group, and of no others."""
    masks = sparse_optax.get_masks(state)["dense"]
    for group in groups:
        leaves = {name: weights["dense"][name] for name in group}
        whole = jax.tree.map(lambda w: np.ones(w.shape, bool), leaves)
        k = exact_share(fraction, sum(w.size for w in leaves.values()))
        for name, mask in numpy_drop(leaves, whole, k).items():
            np.testing.assert_array_equal(masks[name], mask)
    for name in {"bias", "kernel"} - {name for group in groups for name in group}:
        assert masks[name] == optax.MaskedNode()


@pytest.mark.parametrize("wrapper", first_unmarked(*KEEP_ZEROS, quick=5))
def test_zeros_are_kept(wrapper):
    make, groups = KEEP_ZEROS[wrapper]
    tx, params = make(), random_tree(0)
    state = tx.init(params)
    step = jax.jit(make_step(tx))
    no, yes = jnp.array(False), jnp.array(True)
    params, state = step(params, state, random_tree(1), prune=no)
    pruned, pruned_state = step(params, state, random_tree(2), prune=yes)
    assert_masks(pruned_state, groups, params, 0.5)

    # It is a call of `prune`, and then an update.
    outside, outside_state = sparse_optax.prune(params, state, 0.5)
    outside, outside_state = step(outside, outside_state, random_tree(2), prune=no)
    masks = sparse_optax.get_masks(pruned_state)
    chex.assert_trees_all_equal(outside, pruned)
    chex.assert_trees_all_equal(sparse_optax.get_masks(outside_state), masks)
    after, after_state = pruned, pruned_state
    for i in (3, 4):
        after, after_state = step(after, after_state, random_tree(i), prune=no)
        sparse_optax.check_sparsity(after, after_state)
        assert num_nonzero(after) == num_nonzero(pruned)
    chex.assert_trees_all_equal(sparse_optax.get_masks(after_state), masks)
    prunes = {int(s.num_pruning_steps) for s in find_states(after_state, PruneState)}
    steps = find_states(after_state, StepsSincePruning)
    assert prunes == {1} and {int(s.num_steps) for s in steps} == {3}

    # Masks of zeros that are there already.
    zeros = jax.tree.map(lambda w: jnp.where(w > 0.3, w, 0), random_tree(0))
    marked = sparse_optax.masks_from_zeros(zeros, state, mask=None)
    chex.assert_trees_all_equal_shapes_and_dtypes(marked, state)
    masks = sparse_optax.get_masks(marked)["dense"]
    names = [name for group in groups for name in group]
    for name in names:
        np.testing.assert_array_equal(masks[name], zeros["dense"][name] != 0)
    assert len(jax.tree.leaves(masks)) == len(names)
    sparse_optax.check_sparsity(*step(zeros, marked, random_tree(1), prune=no))
    selected = sparse_optax.masks_from_zeros(zeros, state, mask=KERNEL_ONLY)
    if "bias" in names:
        assert np.all(sparse_optax.get_masks(selected)["dense"]["bias"])


# Wrappers that discard a step discard its pruning step.


def test_multi_steps_discards_a_pruning_step_between_two_updates():
    tx, params = optax.MultiSteps(base(), 2), random_tree(0)
    step = jax.jit(make_step(tx))
    first, state = step(params, tx.init(params), random_tree(1), prune=jnp.array(True))
    chex.assert_trees_all_equal(first, params)
    assert num_kept(sparse_optax.get_masks(state)) == SIZE
    # On the step that does update, it is obeyed.
    second, state = step(first, state, random_tree(2), prune=jnp.array(True))
    assert num_kept(sparse_optax.get_masks(state)) == num_nonzero(second) == SIZE // 2
    assert find_states(state, PruneState)[0].num_pruning_steps == 1
    # `prune` works in between.
    params, state = step(second, state, random_tree(3), prune=jnp.array(False))
    pruned, state = sparse_optax.prune(params, state, 0.5)
    for i in range(3):
        pruned, state = step(pruned, state, random_tree(i + 4), prune=jnp.array(False))
        sparse_optax.check_sparsity(pruned, state)
    assert num_nonzero(pruned) == num_kept(sparse_optax.get_masks(state)) == SIZE // 4


@pytest.mark.parametrize("inner", [base, lambda: whole(optax.adam(0.05))])
def test_apply_if_finite_discards_the_pruning_step_of_a_rejected_update(inner):
    tx, params = optax.apply_if_finite(inner(), 1), random_tree(0)
    step = jax.jit(make_step(tx))
    params, state = step(params, tx.init(params), random_tree(1), prune=jnp.array(True))
    nan = jax.tree.map(lambda w: jnp.full_like(w, jnp.nan), params)
    rejected, after = step(params, state, nan, prune=jnp.array(True))
    chex.assert_trees_all_equal(rejected, params)
    chex.assert_trees_all_equal(after.inner_state, state.inner_state)
    pruned, _ = sparse_optax.prune(rejected, after, 0.5)
    assert num_nonzero(pruned) == SIZE // 4
    # Once it lets NaNs through, they revive nothing.
    let, state = step(rejected, after, nan, prune=jnp.array(False))
    assert num_kept(sparse_optax.get_masks(state)) == SIZE // 2
    sparse_optax.check_sparsity(let, state)


def test_wrappers_without_extra_args_drop_the_pruning_step():
    """`MultiSteps.gradient_transformation` is passed no extra args by what wraps it."""
    inner = optax.MultiSteps(base(), 1).gradient_transformation()
    tx, params = optax.apply_if_finite(inner, 3), random_tree(0)
    _, state = tx.update(params, tx.init(params), params, prune=True)
    assert (
        find_states(state, PruneState)[0].num_pruning_steps == 0
    )  # which is how it is seen


# Wrappers that lose the zeros, and what catches them.


def train(tx, params, prune_at=1, steps=4):
    step = jax.jit(make_step(tx))
    state = tx.init(params)
    for i in range(steps):
        prune = jnp.array(i == prune_at)
        params, state = step(params, state, random_tree(i + 1), prune=prune)
    return params, state


def assert_caught(params, state):
    with pytest.raises(ValueError, match=NOT_ZERO):
        sparse_optax.check_sparsity(params, state)
    masked = sparse_optax.apply_masks(params, sparse_optax.get_masks(state))
    sparse_optax.check_sparsity(masked, state)


LOSE_ZEROS = {
    "add_noise": lambda: optax.chain(base(), optax.add_noise(0.1, 0.5, 0)),
    "scale": lambda: optax.chain(base(), optax.scale(0.5)),
    "trace": lambda: optax.chain(base(), optax.trace(0.9)),
    "mechanize": lambda: optax.contrib.mechanize(base()),
}


@pytest.mark.parametrize("wrapper", first_unmarked(*LOSE_ZEROS, quick=2))
def test_a_later_transformation_is_caught(wrapper):
    params, state = train(LOSE_ZEROS[wrapper](), random_tree(0), steps=2)
    assert num_kept(sparse_optax.get_masks(state)) == SIZE // 2
    assert_caught(params, state)


def test_lookahead_is_caught_in_its_slow_weights():
    # Its update takes no extra arguments, so that the step count has to prune.
    inner = optax.chain(optax.sgd(0.05), sparse_optax.prune_to_sparsity(0.5, mask=None))
    tx = optax.lookahead(inner, sync_period=3, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(random_tree(0))
    updates, state = tx.update(random_tree(1), tx.init(params), params)
    params = optax.apply_updates(params, updates)
    sparse_optax.check_sparsity(params.fast, state)
    assert_caught(params.slow, state)


@pytest.mark.slow
@pytest.mark.parametrize("prune_at", [0, 1])
def test_schedule_free_around_the_whole_chain(prune_at):
    """It averages iterates: pruned weights are zero only if they always were.

    What the base optimizer gives is added to an iterate of its own, and not to the
    params. At the first update all iterates are still the same.
    """
    tx = optax.contrib.schedule_free(base(), 0.05)
    params, state = train(tx, random_tree(0), prune_at)
    assert num_kept(sparse_optax.get_masks(state)) == SIZE // 2
    evaluated = optax.contrib.schedule_free_eval_params(state, params)
    check = sparse_optax.check_sparsity if prune_at == 0 else assert_caught
    check(params, state)
    check(evaluated, state)


def test_schedule_free_inside_the_chain_is_caught():
    inner = optax.contrib.schedule_free(optax.sgd(0.05), 0.05)
    params, state = train(optax.chain(inner, by_magnitude(0.5)), random_tree(0))
    sparse_optax.check_sparsity(params, state)
    assert_caught(optax.contrib.schedule_free_eval_params(state[0], params), state)


# What the optimizer inside relevance_pruning sees, and what it remembers.


def spy():
    """Passes updates on, and leaves a copy of them in its state."""
    return optax.GradientTransformation(
        lambda params: {"seen": jax.tree.map(jnp.zeros_like, params)},
        lambda updates, state, params=None: (updates, {"seen": updates}),
    )


def labelled(labels):
    optimizers = {"a": optax.adam(0.01), "b": optax.sgd(0.02, momentum=0.9)}
    return optax.multi_transform(optimizers, labels)


OPTIMIZERS = {
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
    "labels": labelled(lambda _: LABELS),
    "labels by prefix": labelled({"dense": "a"}),
    "adafactor": optax.adafactor(0.01, min_dim_size_to_factor=2, momentum=0.9),
    "muon": optax.contrib.muon(0.01),
}


def by_path(tree):
    return [
        (jax.tree_util.keystr(path), np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def assert_cleared(before, after, masks):
    """`after` is `before` except for moments of pruned weights, which are zero."""
    cleared = 0
    for (name, old), (_, new) in zip(by_path(before), by_path(after), strict=True):
        for tail, mask in by_path(masks):
            if name.endswith(tail) and old.shape == mask.shape:
                cleared += np.count_nonzero(old[~mask])
                old = np.where(mask, old, 0)
        np.testing.assert_array_equal(old, new, err_msg=name)
    assert cleared


@pytest.mark.parametrize("optimizer", first_unmarked(*OPTIMIZERS, quick=2))
def test_the_optimizer_never_sees_a_pruned_weight(optimizer):
    tx = whole(optax.chain(spy(), OPTIMIZERS[optimizer]))
    step = jax.jit(make_step(tx))
    no, yes = jnp.array(False), jnp.array(True)
    params = random_tree(0)
    params, state = step(params, tx.init(params), random_tree(1), prune=no)
    # A call of `prune` clears moments, and an update with a pruning step is that of
    # the network that is left.
    outside, pruned_state = sparse_optax.prune(params, state, 0.5)
    masks = sparse_optax.get_masks(pruned_state)
    assert num_kept(masks) == SIZE // 2
    assert_cleared(state.optimizer[1], pruned_state.optimizer[1], masks)
    outside = step(outside, pruned_state, random_tree(2), prune=no)
    params, state = step(params, state, random_tree(2), prune=yes)
    chex.assert_trees_all_equal((params, state), outside)
    # From now on gradients of pruned weights are zero before the optimizer.
    grads = jax.tree.map(lambda m, g: jnp.where(m, g, jnp.nan), masks, random_tree(3))
    # NaNs, which show wherever they get through.
    params, state = step(params, state, grads, prune=no)
    assert num_nonzero(state.optimizer[1][0]["seen"]) == SIZE // 2
    chex.assert_tree_all_finite((params, state.optimizer))
    sparse_optax.check_sparsity(params, state)


@pytest.mark.parametrize("prune", [False, True])
def test_scalar_hyperparameters_are_untouched_by_pruning_everything(prune):
    inner = optax.inject_hyperparams(optax.adam)(learning_rate=0.01, b1=0.8)
    tx = whole(inner, fraction=1.0)
    params = {"a": jnp.float32(2.0), "b": jnp.ones(3)}
    _, state = tx.update(params, tx.init(params), params, prune=prune)
    _, inner = state.optimizer
    assert inner.hyperparams["learning_rate"] == jnp.float32(0.01)
    assert inner.hyperparams["b1"] == jnp.float32(0.8)
    assert num_nonzero(inner.inner_state[0].mu) == (0 if prune else 4)


def test_transformations_inside_of_relevance_pruning_are_reached():
    gradual = sparse_optax.prune_to_sparsity(0.25, every=100, mask=None)
    tx = whole(optax.chain(decay(), optax.sgd(0.1), gradual))
    params = {"w": jnp.arange(1.0, 9.0)}
    _, state = tx.update(params, tx.init(params), params)
    assert state.optimizer[1][0].num_steps == 1
    _, state = sparse_optax.prune(params, state, 0.5)
    outer, inner = state.optimizer
    assert outer.num_steps == inner[0].num_steps == 0
    assert state.pruning.num_pruning_steps == inner[2].num_pruning_steps == 1
    zeros = {"w": jnp.zeros(8)}
    state = sparse_optax.masks_from_zeros(zeros, state, mask=None)
    assert not np.any(state.pruning.masks["w"] | state.optimizer[1][2].masks["w"])


def test_masks_of_two_transformations_on_one_leaf_are_combined():
    tx = optax.chain(by_magnitude(0.25), by_magnitude(0.5))
    params = jnp.array([1.0, -2.0, 3.0, 4.0])
    _, state = tx.update(jnp.zeros(4), tx.init(params), params, prune=True)
    np.testing.assert_array_equal(state[0].masks, [False, True, True, True])
    np.testing.assert_array_equal(
        sparse_optax.get_masks(state), state[0].masks & state[1].masks
    )
