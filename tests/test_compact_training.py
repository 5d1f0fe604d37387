"""Compacted networks of frameworks, and further training with them."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from channel_networks import NETWORKS, quickly_compiled
from flax import nnx
from helpers import make_step, random_tree

import sparse_optax as so

pytestmark = pytest.mark.quickly_compiled

IMAGES = random_tree(0, shapes=(4, 4, 4, 3))


def assert_same(actual, expected, rtol=1e-5):
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(
            a, b, rtol=rtol, atol=rtol * np.abs(b).max(initial=0)
        )


def shapes_of(tree):
    return jax.tree.map(jnp.shape, tree)


def drawn(tree):
    """Positive numbers of the shapes: to initialise a module takes longer."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.exponential(0.1, x.shape), x.dtype), tree
    )


def dead(x, *units):
    """Zeros in units of the last axis."""
    return x.at[..., jnp.array(units)].set(0)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = nn.Conv(5, (3, 3), name="next")(x)
        return nn.Dense(2, name="dense")(nn.avg_pool(x, (2, 2)).reshape(len(x), -1))


@pytest.fixture(scope="module")
def linen():
    """Variables of which one channel of conv is zero, and two of next are."""
    variables = drawn(jax.eval_shape(Linen().init, jax.random.key(0), IMAGES))
    params = variables["params"]
    params["conv"] = jax.tree.map(lambda w: dead(w, 2), params["conv"])
    params["norm"] = jax.tree.map(lambda w: dead(w, 2), params["norm"])
    params["next"] = jax.tree.map(lambda w: dead(w, 0, 3), params["next"])
    return variables


def test_variables_of_linen_with_statistics(linen):
    model = Linen()
    compacted = so.compact(lambda v, x: model.apply(v, x), linen, IMAGES)
    assert shapes_of(compacted.params["batch_stats"]["norm"]) == {
        "mean": (5,),
        "var": (5,),
    }
    assert compacted.params["params"]["next"]["kernel"].shape == (3, 3, 5, 3)
    assert compacted.params["params"]["dense"]["kernel"].shape == (27, 2)


def test_the_training_mode_returns_smaller_statistics(linen):
    model = Linen()

    def train(variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    compacted = so.compact(lambda v, x: model.apply(v, x), linen, IMAGES)
    outputs, new = compacted.convert(train).apply(compacted.params, IMAGES)
    expected, new_expected = train(linen, IMAGES)
    assert_same(outputs, expected)
    assert_same(new, compacted.shrink(new_expected))
    assert shapes_of(new["batch_stats"]["norm"]) == {"mean": (5,), "var": (5,)}
    variables = compacted.params | new
    assert compacted.apply(variables, IMAGES).shape == (4, 2)


def test_convert_to_a_function_of_fewer_leaves(linen):
    model = Linen()

    def train(variables, x):  # without the statistics, old or new
        return model.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    compacted = so.compact(lambda v, x: model.apply(v, x), linen, IMAGES)
    found = compacted.convert(train).apply(compacted.params, IMAGES)
    assert_same(found, train(linen, IMAGES))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.out = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.hidden(x))))


def test_states_of_nnx_keep_their_variables():
    graph, state = nnx.split(nnx.eval_shape(lambda: Nnx(nnx.Rngs(0))))
    state, x = drawn(state), random_tree(0, shapes=(3, 4))
    state.out.kernel[...] = state.out.kernel[...].at[jnp.array([1, 5])].set(0)
    compacted = so.compact(lambda state, x: nnx.merge(graph, state)(x), state, x)
    assert isinstance(compacted.params["norm"]["mean"], nnx.BatchStat)
    assert compacted.params["norm"]["mean"].shape == (4,)
    assert_same(compacted.apply(compacted.params, x), compacted.fn(state, x))


def test_arrays_of_equinox(tmp_path):
    model = eqx.filter_eval_shape(eqx.nn.MLP, 4, 2, 6, 2, key=jax.random.key(0))
    shapes, static = eqx.partition(model, lambda x: hasattr(x, "dtype"))
    arrays = drawn(shapes)
    weight = arrays.layers[1].weight.at[:, jnp.array([0, 2])].set(0)
    arrays = eqx.tree_at(lambda m: m.layers[1].weight, arrays, weight)

    def fn(arrays, x):
        return jax.vmap(eqx.combine(arrays, static))(x)

    x = random_tree(0, shapes=(3, 4))
    compacted = so.compact(fn, arrays, x)
    assert compacted.params.layers[0].bias.shape == (4,)
    assert compacted.params.layers[1].weight.shape == (6, 4)
    assert_same(compacted.apply(compacted.params, x), fn(arrays, x))
    # As another process would, which knows the shapes before compaction alone.
    so.save_sparse(tmp_path / "compacted", compacted.state())
    state = so.load_sparse(tmp_path / "compacted")
    restored = so.Compacted.restore(fn, shapes, state)
    assert isinstance(restored.params, eqx.nn.MLP)
    assert_same(restored.apply(restored.params, x), fn(arrays, x), rtol=0)
    wrong = r"at layers/0/weight: \(6, 5\) instead of \(6, 4\)"
    other = jax.ShapeDtypeStruct((6, 5), jnp.float32)
    with pytest.raises(ValueError, match=wrong):
        shapes = eqx.tree_at(lambda m: m.layers[0].weight, shapes, other)
        so.Compacted.restore(fn, shapes, state)
    with pytest.raises(ValueError, match="state must be what"):
        so.Compacted.restore(fn, shapes, {"params": {}})


def test_modules_are_not_functions_of_params():
    model = eqx.nn.MLP(4, 2, 6, 2, key=jax.random.key(0))
    x = jnp.ones((1, 4))
    module = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    for fn, message in (
        (
            model,
            r"instance of MLP, which .* lambda params, x: jax.vmap\(eqx",
        ),
        (
            module,
            r"instance of Linear, which .* nnx.merge\(graphdef, params\)",
        ),
        (nn.Dense(2), r"instance of Dense, which .* pass model.apply"),
    ):
        with pytest.raises(TypeError, match=message):
            so.compact(fn, {"w": jnp.ones((4, 2))}, x)
        with pytest.raises(TypeError, match=message):
            so.channel_groups(fn, {"w": jnp.ones((4, 2))}, x)
    compacted = so.compact(
        eqx.filter_jit(lambda p, x: x @ p["w"]), {"w": jnp.ones((4, 2))}, x
    )
    for f in (compacted.shrink, lambda params: compacted.apply(params, x)):
        with pytest.raises(
            TypeError, match=r"(params|tree) has .* at activation, .* eqx.filter"
        ):
            f(model)


CASES = [
    ("mlp", optax.adam(0.01)),
    ("residual", optax.sgd(0.05, momentum=0.9)),
    ("flat attention", optax.adam(0.01)),
]


@pytest.mark.parametrize(
    ("name", "optimizer"), CASES, ids=["adam", "momentum", "heads"]
)
def test_training_equals_that_of_the_masked_network(name, optimizer):
    net = NETWORKS[name]
    params, x = net.params(), net.inputs()
    tx = optax.chain(optimizer, so.prune_by_magnitude(mask=None))

    def training_of(fn):
        def step(params, state):
            gradients = jax.grad(lambda p: jnp.mean(jnp.square(fn(p, x) - 1)))(params)
            return make_step(tx)(params, state, gradients)

        return quickly_compiled(step)

    train = training_of(net.fn)
    params, state = train(params, tx.init(params))
    masks = net.masks_of_two_thirds()
    params, state = so.apply_masks(params, masks), so.set_masks(state, masks)
    compacted = so.compact(net.fn, params, x)
    small, small_state = compacted.params, compacted.shrink(state)
    masks = so.get_masks(small_state)
    assert shapes_of(masks) == shapes_of(small) and so.sparsity(masks) == 0
    train_small = training_of(compacted.apply)
    for _ in range(4):
        params, state = train(params, state)
        small, small_state = train_small(small, small_state)
    assert_same(small, compacted.shrink(params), 1e-4)
    assert_same(compacted.expand(small), params, 1e-4)
    assert_same(small_state, compacted.shrink(state), 1e-4)


def test_gradual_pruning_restarts_on_a_smaller_network():
    net = NETWORKS["mlp"]
    params, x = net.params(), net.inputs()
    tx = so.prune_to_sparsity(0.8, mask=None, min_kept=4)
    params, state = so.apply_masks(params, net.masks_of_two_thirds()), tx.init(params)
    state = so.set_masks(state, net.masks_of_two_thirds())
    compacted = so.compact(net.fn, params, x)
    small, state = compacted.params, compacted.shrink(state)
    assert so.sparsity(so.get_masks(state)) == 0
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, small), state, small)
    small = optax.apply_updates(small, updates)
    so.check_sparsity(small, state)
    size = sum(w.size for w in jax.tree.leaves(small))
    assert sum(int(m.sum()) for m in jax.tree.leaves(so.get_masks(state))) == max(
        size - round(0.8 * size), sum(min(4, w.size) for w in jax.tree.leaves(small))
    )


def test_minimums_above_the_size_of_a_smaller_leaf_keep_all_of_it():
    net = NETWORKS["mlp"]
    params, x = net.params(), net.inputs()
    smallest = min(w.size for w in jax.tree.leaves(params))
    tx = so.prune_by_magnitude(1.0, mask=None, min_kept=smallest)
    state = so.set_masks(tx.init(params), net.masks_of_two_thirds())
    params = so.apply_masks(params, net.masks_of_two_thirds())
    compacted = so.compact(net.fn, params, x)
    _, state = so.prune(compacted.params, compacted.shrink(state), 1.0)
    for mask in jax.tree.leaves(so.get_masks(state)):
        assert mask.sum() == min(smallest, mask.size)
