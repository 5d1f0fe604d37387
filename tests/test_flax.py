"""With flax: nnx and linen, whose trees have boxes, other paths and other loops."""

import chex
import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import sparse_optax

X = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(8, 2)).astype(np.float32)


def mse(prediction):
    return jnp.mean((prediction - Y) ** 2)


def chain(mask=None, fraction=0.3):
    return optax.chain(
        sparse_optax.add_relevance_decay(0.01, 0.1, mask=mask),
        optax.adam(0.05),
        sparse_optax.prune_by_magnitude(fraction, mask=mask),
    )


def whole(mask=None, fraction=0.3):
    return sparse_optax.relevance_pruning(
        optax.adam(0.05), 0.01, 0.1, fraction, mask=mask
    )


def gradual(mask=None, fraction=0.3):
    return optax.chain(
        optax.adam(0.05), sparse_optax.prune_to_sparsity(fraction, every=2, mask=mask)
    )


FORMS = {"chain": chain, "whole": whole}


# nnx


class Net(nnx.Module):
    """Two layers with a norm, statistics that are no parameters, and a rate."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(5, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.out = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.hidden(x))))


KERNELS = {"hidden/kernel": 30, "out/kernel": 12}
PARAMETERS = {
    **KERNELS,
    "hidden/bias": 6,
    "norm/bias": 6,
    "norm/scale": 6,
    "out/bias": 2,
}


def make_nnx(form, mask=sparse_optax.matrices_only, seed=0):
    model = Net(nnx.Rngs(seed))
    return model, nnx.Optimizer(model, FORMS[form](mask), wrt=nnx.Param)


def nnx_step(model, optimizer, prune):
    grads = nnx.grad(lambda m: mse(m(X)))(model)
    optimizer.update(model, grads, prune=prune)


def plain_step(state, prune):
    """The same in `jax.jit`: a module is a tree, changed in place and returned."""
    model, optimizer = state
    nnx_step(model, optimizer, prune)
    return model, optimizer


def parameters(model):
    return nnx.state(model, nnx.Param)


def report_of(model, optimizer):
    masks = sparse_optax.get_masks(optimizer.opt_state)
    return sparse_optax.sparsity_report(parameters(model), masks)


@pytest.mark.parametrize("compiled", ["nnx.jit", "jax.jit"])
@pytest.mark.parametrize("form", FORMS)
def test_nnx_optimizer_prunes_when_it_is_told(form, compiled):
    model, optimizer = make_nnx(form)
    if compiled == "nnx.jit":
        step = nnx.jit(nnx_step)
    else:
        jitted = jax.jit(plain_step)
    sizes = []
    for prune in [False, True, False, True, False]:
        if compiled == "nnx.jit":
            step(model, optimizer, jnp.asarray(prune))
        else:
            model, optimizer = jitted((model, optimizer), prune)
        report = report_of(model, optimizer)
        sizes.append(sum(report.leaves[name].kept for name in KERNELS))
        sparse_optax.check_sparsity(parameters(model), optimizer.opt_state)
    # 42 weights, 30 % of those that remain, rounded.
    assert sizes == [42, 29, 29, 20, 20]
    assert {n: leaf.size for n, leaf in report.leaves.items()} == PARAMETERS
    for name in set(PARAMETERS) - set(KERNELS):
        assert report.leaves[name].sparsity == 0
    assert sparse_optax.sparsity(parameters(model)) == np.float32(22 / 62)


def test_nnx_optimizer_prunes_by_a_static_flag_and_all_leaves_by_default():
    model, optimizer = make_nnx("chain", mask=None)
    step = nnx.jit(nnx_step, static_argnames="prune")
    step(model, optimizer, prune=False)
    assert report_of(model, optimizer).total.kept == 62
    step(model, optimizer, prune=True)
    assert report_of(model, optimizer).total.kept == 62 - 19
    sparse_optax.check_sparsity(parameters(model), optimizer.opt_state)


@pytest.mark.parametrize("form", FORMS)
def test_nnx_gives_the_masks_of_plain_arrays(form):
    model, optimizer = make_nnx(form)
    plain = nnx.to_pure_dict(parameters(model))
    tx = FORMS[form](sparse_optax.matrices_only)
    state = tx.init(plain)
    step, update = nnx.jit(nnx_step), jax.jit(tx.update)
    gradient = nnx.jit(nnx.grad(lambda m: mse(m(X))))
    for prune in (True, False, True):
        graph, boxed, rest = nnx.split(model, nnx.Param, ...)
        nnx.replace_by_pure_dict(boxed, plain)
        twin = nnx.merge(graph, boxed, rest, copy=True)
        grads = nnx.to_pure_dict(gradient(twin))
        step(model, optimizer, jnp.asarray(prune))
        updates, state = update(grads, state, plain, prune=prune)
        plain = optax.apply_updates(plain, updates)
        chex.assert_trees_all_close(
            nnx.to_pure_dict(parameters(model)), plain, rtol=1e-5, atol=1e-6
        )
        boxed_masks = sparse_optax.get_masks(optimizer.opt_state)
        chex.assert_trees_all_equal(
            jax.tree.leaves(boxed_masks), jax.tree.leaves(sparse_optax.get_masks(state))
        )


@pytest.mark.parametrize("form", FORMS)
def test_pruning_an_nnx_model_outside_of_a_step(form):
    model, optimizer = make_nnx(form)
    step = nnx.jit(nnx_step)
    step(model, optimizer, jnp.asarray(False))
    params, before = parameters(model), optimizer.opt_state
    copy = jax.tree.map(jnp.array, (params, before))

    pruned, opt_state = sparse_optax.prune(params, before, 0.5)
    assert jax.tree.structure(pruned) == jax.tree.structure(params)
    assert jax.tree.structure(opt_state) == jax.tree.structure(before)
    chex.assert_trees_all_equal((params, before), copy)  # nothing changed in place
    sparse_optax.check_sparsity(pruned, opt_state)
    masks = sparse_optax.get_masks(opt_state)
    assert sum(int(m.sum()) for m in jax.tree.leaves(masks)) == 21

    nnx.update(model, pruned)
    optimizer.opt_state = opt_state
    kept = jax.tree.map(np.asarray, parameters(model))
    for _ in range(3):
        step(model, optimizer, jnp.asarray(False))
    sparse_optax.check_sparsity(parameters(model), optimizer.opt_state)
    assert report_of(model, optimizer).total.kept == 62 - 21
    chex.assert_trees_all_equal(sparse_optax.get_masks(optimizer.opt_state), masks)
    moved = jax.tree.map(lambda a, b: np.any(a != b), kept, parameters(model))
    assert all(jax.tree.leaves(moved))
    # And again inside of jit, from boxed states.
    again = jax.jit(lambda p, s: sparse_optax.prune(p, s, sparsity=0.75))
    _, opt_state = again(parameters(model), optimizer.opt_state)
    masks = sparse_optax.get_masks(opt_state)
    assert sum(int(m.sum()) for m in jax.tree.leaves(masks)) == 42 - 32  # 31.5 to even


@pytest.mark.parametrize("form", FORMS)
def test_a_prune_outside_of_a_step_is_one_inside_for_nnx(form):
    step = nnx.jit(nnx_step)
    inside, inside_optimizer = make_nnx(form)
    step(inside, inside_optimizer, jnp.asarray(True))
    model, optimizer = make_nnx(form)
    step(model, optimizer, jnp.asarray(False))
    params, opt_state = sparse_optax.prune(
        parameters(model), optimizer.opt_state, fraction=0.3
    )
    chex.assert_trees_all_equal(params, parameters(inside))
    assert jax.tree.structure(opt_state) == jax.tree.structure(
        inside_optimizer.opt_state
    )
    chex.assert_trees_all_equal(opt_state, inside_optimizer.opt_state)


def test_masks_of_a_boxed_state():
    model, optimizer = make_nnx("whole")
    nnx.jit(nnx_step)(model, optimizer, jnp.asarray(True))
    masks = sparse_optax.get_masks(optimizer.opt_state)
    dense = jax.tree.map(jnp.ones_like, parameters(model))
    with pytest.raises(ValueError, match=r"\d+ of \d+ at (hidden|out)/kernel"):
        sparse_optax.check_sparsity(dense, optimizer.opt_state)
    applied = sparse_optax.apply_masks(dense, masks)
    assert jax.tree.structure(applied) == jax.tree.structure(dense)
    sparse_optax.check_sparsity(applied, optimizer.opt_state)
    assert sum(int(p.sum()) for p in jax.tree.leaves(applied)) == 62 - 13

    fresh = make_nnx("whole")[1].opt_state
    marked = sparse_optax.masks_from_zeros(applied, fresh, mask=None)
    assert jax.tree.structure(marked) == jax.tree.structure(fresh)
    chex.assert_trees_all_equal(
        jax.tree.leaves(sparse_optax.get_masks(marked)), jax.tree.leaves(masks)
    )


def test_matrices_only_of_an_nnx_model():
    params = parameters(Net(nnx.Rngs(0)))
    for tree in (params, nnx.to_pure_dict(params)):
        selected = sparse_optax.matrices_only(tree)
        names = {
            jax.tree_util.keystr(path, simple=True, separator="/").removesuffix(
                "/value"
            ): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(selected)
        }
        assert names == {name: name in KERNELS for name in PARAMETERS}


@pytest.mark.parametrize("form", FORMS)
def test_vectors_of_stacked_nnx_layers_are_no_matrices(form):
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def stack(rngs):
        return nnx.Linear(5, 5, rngs=rngs)

    model = stack(nnx.Rngs(0))
    assert parameters(model)["bias"].get_value().ndim == 2

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def apply(layer, x):
        return nnx.relu(layer(x))

    optimizer = nnx.Optimizer(
        model, FORMS[form](sparse_optax.matrices_only), wrt=nnx.Param
    )

    @nnx.jit
    def step(model, optimizer, prune):
        grads = nnx.grad(lambda m: jnp.sum(apply(m, X) ** 2))(model)
        optimizer.update(model, grads, prune=prune)

    for prune in (False, True):
        step(model, optimizer, jnp.asarray(prune))
    report = report_of(model, optimizer)
    assert report.leaves["bias"].sparsity == 0
    assert report.leaves["kernel"].kept == 75 - 23  # float32(0.3) is above 0.3
    sparse_optax.check_sparsity(parameters(model), optimizer.opt_state)


# linen


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="hidden")(x)
        return nn.Dense(2, name="out")(nn.relu(nn.LayerNorm(name="norm")(x)))


def linen_state(tx, seed=0, freeze=False):
    model = LinenNet()
    params = model.init(jax.random.key(seed), X)["params"]
    if freeze:
        params = flax.core.freeze(params)
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx)


@jax.jit
def linen_step(state):
    def loss(params):
        return mse(state.apply_fn({"params": params}, X))

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


@pytest.mark.parametrize("freeze", [False, True], ids=["dict", "FrozenDict"])
def test_a_train_state_prunes_by_its_step_count(freeze):
    tx = gradual(sparse_optax.matrices_only, optax.linear_schedule(0.0, 0.5, 5))
    state = linen_state(tx, freeze=freeze)
    kept = []
    for _ in range(6):
        state = linen_step(state)
        report = sparse_optax.sparsity_report(
            state.params, sparse_optax.get_masks(state.opt_state)
        )
        kept.append(sum(report.leaves[name].kept for name in KERNELS))
        sparse_optax.check_sparsity(state.params, state.opt_state)
    # 42 weights, of which every update has to have pruned a tenth more, if it prunes.
    assert kept == [42, 34, 34, 25, 25, 21]
    assert report.leaves.keys() == PARAMETERS.keys()
    assert report.total.kept == 62 - 21


@pytest.mark.parametrize("freeze", [False, True], ids=["dict", "FrozenDict"])
@pytest.mark.parametrize("form", FORMS)
def test_a_train_state_is_pruned_outside_of_its_steps(form, freeze):
    state = linen_state(FORMS[form](sparse_optax.matrices_only), freeze=freeze)
    state = linen_step(state)
    params, opt_state = sparse_optax.prune(state.params, state.opt_state, 0.5)
    assert jax.tree.structure(params) == jax.tree.structure(state.params)
    assert jax.tree.structure(opt_state) == jax.tree.structure(state.opt_state)
    state = state.replace(params=params, opt_state=opt_state)
    for _ in range(3):
        state = linen_step(state)
    sparse_optax.check_sparsity(state.params, state.opt_state)
    assert sparse_optax.sparsity(state.params) == np.float32(21 / 62)


@pytest.mark.parametrize(
    "wrap", [lambda p: p, flax.core.freeze], ids=["dict", "FrozenDict"]
)
def test_matrices_only_of_a_linen_model(wrap):
    params = wrap(LinenNet().init(jax.random.key(0), X)["params"])
    selected = sparse_optax.matrices_only(params)
    assert jax.tree.structure(selected) == jax.tree.structure(params)
    for layer in ("hidden", "out"):
        assert selected[layer]["kernel"] is True
        assert selected[layer]["bias"] is False
    assert not any(selected["norm"].values())


def test_vectors_of_stacked_linen_layers_are_no_matrices():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(nn.LayerNorm()(nn.Dense(5)(x))), None

    stack = nn.scan(
        Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )()
    params = stack.init(jax.random.key(0), X, None)["params"]
    assert params["Dense_0"]["bias"].ndim == params["LayerNorm_0"]["scale"].ndim == 2
    assert sparse_optax.matrices_only(params) == {
        "Dense_0": {"bias": False, "kernel": True},
        "LayerNorm_0": {"bias": False, "scale": False},
    }


@pytest.mark.parametrize("form", FORMS)
def test_linen_partitioned_boxes(form):
    kernel_init = nn.with_partitioning(nn.initializers.normal(), (None, "model"))
    model = nn.Dense(4, kernel_init=kernel_init)
    params = model.init(jax.random.key(0), X)["params"]
    assert isinstance(params["kernel"], nn.Partitioned)
    assert sparse_optax.matrices_only(params)["bias"] is False
    assert jax.tree.leaves(sparse_optax.matrices_only(params)) == [False, True]
    tx = FORMS[form](sparse_optax.matrices_only)
    state = tx.init(params)

    @jax.jit
    def step(params, state, prune):
        grads = jax.grad(lambda p: jnp.sum(model.apply({"params": p}, X) ** 2))(params)
        updates, state = tx.update(grads, state, params, prune=prune)
        return optax.apply_updates(params, updates), state

    for prune in (False, True, False):
        params, state = step(params, state, prune)
    assert params["kernel"].names == (None, "model")
    report = sparse_optax.sparsity_report(params, sparse_optax.get_masks(state))
    assert report.leaves["kernel"].kept == 14
    assert report.leaves["bias"].kept == 4
    structure = jax.tree.structure((params, state))
    params, state = sparse_optax.prune(params, state, 0.5)
    assert jax.tree.structure((params, state)) == structure
    assert int(jnp.sum(nn.unbox(params)["kernel"] != 0)) == 7
    params, state = step(params, state, False)
    sparse_optax.check_sparsity(params, state)
    assert jax.tree.structure((params, state)) == structure


# The iterative algorithm

OPTIONS = {"bound": -2.0, "max_rounds": 6, "patience": 3}


def assert_a_run_is_sound(rounds, params_of, opt_state_of):
    assert sum(r.pruned for r in rounds) >= 3
    best = rounds[-1].state.best
    sparse_optax.check_sparsity(params_of(best), opt_state_of(best))
    masks = jax.tree.leaves(sparse_optax.get_masks(opt_state_of(best)))
    kept = sum(int(m.sum()) for m in masks)
    assert kept == round(42 * (1 - rounds[-1].best_sparsity)) < 42


def test_iterative_pruning_of_an_nnx_model_split_into_states():
    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    tx = whole(sparse_optax.matrices_only)

    def loss(params, rest):
        model = nnx.merge(graph, params, rest, copy=True)
        return mse(model(X)), nnx.state(model, nnx.Not(nnx.Param))

    @jax.jit
    def train(state):
        def step(state, _):
            params, rest, opt_state = state
            grads, rest = jax.grad(loss, has_aux=True)(params, rest)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), rest, opt_state), None

        return jax.lax.scan(step, state, length=5)[0]

    def prune(state):
        params, rest, opt_state = state
        params, opt_state = sparse_optax.prune(params, opt_state, 0.3)
        return params, rest, opt_state

    rounds = list(
        sparse_optax.iterative_pruning(
            (params, rest, tx.init(params)),
            train,
            jax.jit(lambda state: -loss(*state[:2])[0]),
            prune,
            **OPTIONS,
        )
    )
    assert_a_run_is_sound(rounds, lambda s: s[0], lambda s: s[2])


def test_a_split_optimizer_has_no_masks_to_be_found():
    # nnx.split makes one flat state of it, without the states of the links.
    _, state = nnx.split(make_nnx("whole")[1])
    with pytest.raises(ValueError, match=r"plain dicts.*give its opt_state"):
        sparse_optax.get_masks(state)


def test_iterative_pruning_of_modules_as_trees():
    @jax.jit
    def train(state):
        for _ in range(5):
            state = plain_step(state, prune=False)
        return state

    def prune(state):
        model, optimizer = state
        params, optimizer.opt_state = sparse_optax.prune(
            parameters(model), optimizer.opt_state, fraction=0.3
        )
        nnx.update(model, params)
        return model, optimizer

    @jax.jit
    def evaluate(state):
        return -mse(state[0](X))

    for pruning in (prune, lambda state: plain_step(state, prune=True)):
        rounds = list(
            sparse_optax.iterative_pruning(
                make_nnx("whole"), train, evaluate, pruning, **OPTIONS
            )
        )
        assert_a_run_is_sound(
            rounds, lambda s: parameters(s[0]), lambda s: s[1].opt_state
        )
        # The states of earlier rounds are theirs still.
        assert [r.num_prunes for r in rounds] == [
            int(r.state.current[1].opt_state.pruning.num_prunes) for r in rounds
        ]


def test_iterative_pruning_of_a_train_state():
    def prune(state):
        params, opt_state = sparse_optax.prune(state.params, state.opt_state, 0.3)
        return state.replace(params=params, opt_state=opt_state)

    def train(state):
        return jax.lax.fori_loop(0, 5, lambda _, s: linen_step(s), state)

    rounds = list(
        sparse_optax.iterative_pruning(
            linen_state(whole(sparse_optax.matrices_only)),
            jax.jit(train),
            jax.jit(lambda s: -mse(s.apply_fn({"params": s.params}, X))),
            prune,
            finetune=jax.jit(train),
            finetune_rounds=2,
            **OPTIONS,
        )
    )
    assert [r.phase for r in rounds[-2:]] == ["finetune"] * 2
    assert_a_run_is_sound(rounds, lambda s: s.params, lambda s: s.opt_state)
    assert isinstance(rounds[-1].state.best, TrainState)
    assert int(rounds[-1].state.best.step) > 0
