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
from helpers import make_step, num_kept, num_nonzero

import sparse_optax

pytestmark = pytest.mark.quickly_compiled

X = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(8, 2)).astype(np.float32)


def mse(prediction):
    return jnp.mean((prediction - Y) ** 2)


def chain():
    return optax.chain(
        sparse_optax.add_relevance_decay(0.01, 0.1),
        optax.adam(0.05),
        sparse_optax.prune_by_magnitude(0.3),
    )


def whole():
    return sparse_optax.relevance_pruning(optax.adam(0.05), 0.01, 0.1, 0.3)


class Net(nnx.Module):
    """Two layers with a norm, statistics that are no parameters, and a rate."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(5, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.out = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.hidden(x))))


KERNELS = {"hidden/kernel": 30, "out/kernel": 12}
VECTORS = {"hidden/bias": 6, "norm/bias": 6, "norm/scale": 6, "out/bias": 2}


def make_nnx(form):
    model = Net(nnx.Rngs(0))
    return model, nnx.Optimizer(model, form(), wrt=nnx.Param)


def nnx_step(model, optimizer, prune):
    grads = nnx.grad(lambda m: mse(m(X)))(model)
    optimizer.update(model, grads, prune=prune)


def parameters(model):
    return nnx.state(model, nnx.Param)


def report_of(params, opt_state):
    return sparse_optax.sparsity_report(params, sparse_optax.get_masks(opt_state))


def test_nnx_optimizers_prune_with_the_masks_of_plain_arrays():
    model, optimizer = make_nnx(chain)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    plain = nnx.to_pure_dict(params)
    tx = chain()
    state, step, update = tx.init(plain), nnx.jit(nnx_step), jax.jit(make_step(tx))
    gradient = nnx.jit(nnx.grad(lambda m: mse(m(X))))
    kept = []
    for prune in (False, True, False, True):
        rest = nnx.state(model, nnx.Not(nnx.Param))
        boxed = parameters(model)
        nnx.replace_by_pure_dict(boxed, plain)
        grads = gradient(nnx.merge(graph, boxed, rest, copy=True))
        step(model, optimizer, jnp.asarray(prune))
        plain, state = update(
            plain, state, nnx.to_pure_dict(grads), prune=jnp.array(prune)
        )
        found = parameters(model)
        chex.assert_trees_all_close(
            nnx.to_pure_dict(found), plain, rtol=1e-5, atol=1e-6
        )
        masks = sparse_optax.get_masks(optimizer.opt_state)
        expected = sparse_optax.get_masks(state)
        chex.assert_trees_all_equal(*map(jax.tree.leaves, (masks, expected)))
        sparse_optax.check_sparsity(found, optimizer.opt_state)
        kept.append(num_kept(masks))
    assert kept == [42, 29, 29, 20]  # 42 weights, 30 % of what remains, rounded
    report = report_of(parameters(model), optimizer.opt_state)
    assert {n: leaf.size for n, leaf in report.leaves.items()} == KERNELS | VECTORS
    assert all(report.leaves[name].sparsity == 0 for name in VECTORS)
    assert sparse_optax.sparsity(parameters(model)) == np.float32(22 / 62)


def test_pruning_an_nnx_model_outside_of_a_step_is_pruning_inside():
    step = nnx.jit(nnx_step)
    inside, inside_optimizer = make_nnx(whole)
    step(inside, inside_optimizer, jnp.asarray(True))
    model, optimizer = make_nnx(whole)
    before = jax.tree.map(jnp.array, (parameters(model), optimizer.opt_state))
    pruned, opt_state = sparse_optax.prune(
        parameters(model), optimizer.opt_state, fraction=0.3
    )
    # Nothing is changed in place.
    chex.assert_trees_all_equal((parameters(model), optimizer.opt_state), before)
    assert jax.tree.structure(opt_state) == jax.tree.structure(before[1])

    nnx.update(model, pruned)
    optimizer.opt_state = opt_state
    step(model, optimizer, jnp.asarray(False))
    masks = [sparse_optax.get_masks(x.opt_state) for x in (optimizer, inside_optimizer)]
    chex.assert_trees_all_equal(*masks)
    sparse_optax.check_sparsity(parameters(model), optimizer.opt_state)
    masks = sparse_optax.get_masks(opt_state)
    dense = jax.tree.map(jnp.ones_like, pruned)
    with pytest.raises(ValueError, match=r"\d+ of \d+ at (hidden|out)/kernel"):
        sparse_optax.check_sparsity(dense, opt_state)
    applied = sparse_optax.apply_masks(dense, masks)
    assert jax.tree.structure(applied) == jax.tree.structure(dense)
    fresh = make_nnx(whole)[1].opt_state
    marked = sparse_optax.masks_from_zeros(applied, fresh)
    assert jax.tree.structure(marked) == jax.tree.structure(fresh)
    chex.assert_trees_all_equal(sparse_optax.get_masks(marked), masks)


def test_get_masks_raises_for_nnx_graph_states():
    # nnx.split makes one flat state of it, without the states of the transformations.
    _, state = nnx.split(make_nnx(whole)[1])
    with pytest.raises(ValueError, match=r"plain dicts.*pass the opt_state"):
        sparse_optax.get_masks(state)


def test_vectors_of_stacked_layers_are_no_matrices():

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(nn.LayerNorm()(nn.Dense(5)(x))), None

    layers = nn.scan(
        Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )()
    params = layers.init(jax.random.key(0), X, None)["params"]
    assert params["Dense_0"]["bias"].ndim == params["LayerNorm_0"]["scale"].ndim == 2
    selected = {
        "Dense_0": {"bias": False, "kernel": True},
        "LayerNorm_0": {"bias": False, "scale": False},
    }
    assert sparse_optax.matrices_only(params) == selected
    frozen = flax.core.freeze(params)
    assert sparse_optax.matrices_only(frozen) == flax.core.freeze(selected)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="hidden")(x)
        return nn.Dense(2, name="out")(nn.relu(nn.LayerNorm(name="norm")(x)))


def linen_state(tx):
    model = LinenNet()
    params = flax.core.freeze(model.init(jax.random.key(0), X)["params"])
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx)


@jax.jit
def linen_step(state):
    def loss(params):
        return mse(state.apply_fn({"params": params}, X))

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


def test_a_train_state_of_frozen_dicts():
    schedule = optax.linear_schedule(0.0, 0.5, 5)
    gradual = sparse_optax.prune_to_sparsity(schedule, every=2)
    state = linen_state(optax.chain(optax.adam(0.05), gradual))
    kept = []
    for _ in range(6):
        state = linen_step(state)
        report = report_of(state.params, state.opt_state)
        kept.append(sum(report.leaves[name].kept for name in KERNELS))
        sparse_optax.check_sparsity(state.params, state.opt_state)
    # 42 weights, of which every update has to have pruned a tenth more, if it prunes.
    assert kept == [42, 34, 34, 25, 25, 21]
    assert report.leaves.keys() == {**KERNELS, **VECTORS}.keys()
    params, opt_state = sparse_optax.prune(state.params, state.opt_state, 0.5)
    assert jax.tree.structure(params) == jax.tree.structure(state.params)
    state = linen_step(state.replace(params=params, opt_state=opt_state))
    sparse_optax.check_sparsity(state.params, state.opt_state)


def test_boxes_of_linen():
    kernel_init = nn.with_partitioning(nn.initializers.normal(), (None, "model"))
    model = nn.Dense(4, kernel_init=kernel_init)
    params = model.init(jax.random.key(0), X)["params"]
    assert jax.tree.leaves(sparse_optax.matrices_only(params)) == [False, True]
    tx = whole()
    state, step = tx.init(params), jax.jit(make_step(tx))
    gradient = jax.grad(lambda p: jnp.sum(model.apply({"params": p}, X) ** 2))
    structure = jax.tree.structure((params, state))
    for prune in (False, True, False):
        params, state = step(params, state, gradient(params), prune=jnp.array(prune))
    assert params["kernel"].names == (None, "model")
    report = report_of(params, state)
    assert report.leaves == {"bias": (4, 4), "kernel": (14, 20)}
    params, state = sparse_optax.prune(params, state, 0.5)
    assert num_nonzero(nn.unbox(params)["kernel"]) == 7
    sparse_optax.check_sparsity(params, state)
    assert jax.tree.structure((params, state)) == structure


def test_iterative_pruning_of_modules_as_trees():
    @jax.jit
    def train(state):
        state[0].train()
        nnx_step(*state, prune=False)
        return state

    def evaluate(state):
        model, _ = state
        model.eval()
        metric = -mse(model(X))
        model.out.kernel[...] *= 0  # what `evaluate` changes is forgotten
        return metric

    def prune(state):
        model, optimizer = state
        params, optimizer.opt_state = sparse_optax.prune(
            parameters(model), optimizer.opt_state, fraction=0.3
        )
        nnx.update(model, params)
        return model, optimizer

    rounds = list(
        sparse_optax.iterative_pruning(
            *(make_nnx(whole), train, evaluate, prune), bound=-5.0, max_rounds=4
        )
    )
    assert [r.pruned for r in rounds] == [True] * 4
    best = rounds[-1].state.best
    assert not best[0].norm.use_running_average and num_nonzero(parameters(best[0]))
    sparse_optax.check_sparsity(parameters(best[0]), best[1].opt_state)
    kept = num_kept(sparse_optax.get_masks(best[1].opt_state))
    assert kept == round(42 * (1 - rounds[-1].best_sparsity)) < 42
    # The states of earlier rounds are theirs still.
    num_pruning_steps = [
        r.state.current[1].opt_state.pruning.num_pruning_steps for r in rounds
    ]
    assert num_pruning_steps == [1, 2, 3, 4]
