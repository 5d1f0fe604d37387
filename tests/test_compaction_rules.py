"""Each primitive that has a rule, in a network that is compacted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from channel_networks import quickly_compiled
from helpers import random_tree
from jax import lax
from jax.extend import core
from moving_cases import CALLS, MADE, MOVES, unlike_its_derivative
from rule_cases import CASES, WEIGHTS

import sparse_optax as so
from sparse_optax._compaction import rules

pytestmark = pytest.mark.quickly_compiled

CASES = CASES | MOVES | MADE | CALLS
X = random_tree(1, shapes=(2, 4, 3))


class Weights(dict):
    """Notes which of them a function takes."""

    def __init__(self, tree):
        super().__init__(tree)
        self.used = set()

    def __getitem__(self, name):
        self.used.add(name)
        return super().__getitem__(name)


def network(case, seed=0):
    """The function between two dense layers, and params with zeros."""

    def fn(p, x):
        return case.op(x @ p["in"], p, x) @ p["out"]

    weights = Weights(random_tree(seed, shapes=WEIGHTS))
    y = jax.eval_shape(lambda h: case.op(h, weights, X), jnp.ones((2, 4, 6)))
    params = {name: weights[name] for name in sorted(weights.used)}
    params["in"] = random_tree(seed + 500, shapes=(3, 6))
    params["out"] = random_tree(seed + 1000, shapes=(y.shape[-1], 2))
    for name, indices, axis in (("in", case.dead, 1), ("out", case.rows, 0)):
        assert all(i < params[name].shape[axis] for i in indices)
        kept = ~np.isin(np.arange(params[name].shape[axis]), indices)
        params[name] *= np.expand_dims(kept, 1 - axis)
    return fn, params


def networks(names):
    """Several of them as one function, which is compiled at once."""
    found = {name: network(CASES[name], seed) for seed, name in enumerate(names)}

    def fn(params, inputs):
        return {name: found[name][0](params[name], inputs[name]) for name in names}

    return fn, {name: params for name, (_, params) in found.items()}


def outputs_and_gradients(fn, params, inputs):
    """Outputs, and the gradients of a random combination of each of them."""

    def combined(params, inputs):
        y = fn(params, inputs)
        rng = np.random.default_rng(4)
        total = sum(jnp.sum(y[k] * rng.normal(size=y[k].shape)) for k in sorted(y))
        return total, y

    run = quickly_compiled(jax.grad(combined, (0, 1), has_aux=True))
    (by_params, by_inputs), outputs = run(params, inputs)
    return outputs, by_params, by_inputs


def are_close(actual, expected):
    return all(
        np.allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max(initial=0))
        for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True)
    )


def check(names):
    fn, params = networks(names)
    inputs = dict.fromkeys(names, X)
    compacted = so.compact(fn, params, inputs, check=False)
    removed = {}
    for name in names:
        kept = compacted.kept.get(f"{name}/in", {}).get(1, range(6))
        removed[name] = tuple(i for i in range(6) if i not in kept)
    assert removed == {name: CASES[name].removed for name in names}
    outputs, by_params, by_inputs = outputs_and_gradients(fn, params, inputs)
    assert [name for name in names if not np.any(outputs[name])] == []
    expected = outputs, compacted.shrink(by_params), by_inputs
    found = outputs_and_gradients(compacted.apply, compacted.params, inputs)
    for a, b in zip(found, expected, strict=True):
        assert [name for name in names if not are_close(a[name], b[name])] == []


PARTS = [list(CASES)[i : i + 20] for i in range(0, len(CASES), 20)]


@pytest.mark.parametrize("names", PARTS, ids=lambda names: f"{names[0]} to {names[-1]}")
def test_units_that_are_removed(names):
    check(names)


def primitives(jaxpr):
    """The names of all primitives in a jaxpr and in those that it holds."""
    found = set()
    for eqn in jaxpr.eqns:
        found.add(eqn.primitive.name)
        for inner in jax.tree.leaves(eqn.params):
            if isinstance(inner, core.Jaxpr | core.ClosedJaxpr):
                found |= primitives(getattr(inner, "jaxpr", inner))
    return found


NOT_EMITTED = {"checkpoint", "copy_p"}  # of other versions of JAX


def test_every_rule_is_at_work():
    fn, params = networks(CASES)
    found = primitives(jax.make_jaxpr(fn)(params, dict.fromkeys(CASES, X)).jaxpr)
    assert rules.RULES.keys() - found == NOT_EMITTED
    without_rule = {"custom_vmap_call", "jit", "platform_index", "random_seed"}
    assert found - rules.RULES.keys() == without_rule


PARAMS = {"in": jnp.ones((3, 4)).at[:, 1].set(0), "out": jnp.ones((4, 1)).at[2].set(0)}


def compacted_with(f):
    def fn(p, x):
        return f(x @ p["in"]) @ p["out"]

    compacted = so.compact(fn, PARAMS, X)
    assert compacted.params["in"].shape == (3, 2)
    return compacted


def test_the_gradient_of_relu_at_zero_is_zero():
    compacted = compacted_with(jax.nn.relu)

    def loss(params):
        return jnp.sum(compacted.apply(params, jnp.array([[1.0, -1.0, 0.0]])))

    gradients = jax.grad(loss)(compacted.params)  # of `max` it would be a half
    assert not np.any(gradients["in"])


def three_times(h):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] / 2), (0, h))[1]


@pytest.mark.parametrize("f", [unlike_its_derivative, three_times, jax.nn.silu])
def test_tangents(f):
    compacted = compacted_with(f)
    direction = random_tree(5, shapes=X.shape)
    _, tangent = jax.jvp(lambda x: compacted.fn(PARAMS, x), (X,), (direction,))
    _, found = jax.jvp(
        lambda x: compacted.apply(compacted.params, x), (X,), (direction,)
    )
    np.testing.assert_allclose(found, tangent, rtol=1e-5)


def test_numbers_are_drawn_for_whole_arrays():
    """So that units that are kept have the noise that they had."""
    key = jax.random.key(0)

    def fn(p, key, x):
        h = x @ p["in"]
        return jnp.where(jax.random.bernoulli(key, 0.5, h.shape), h, 0) @ p["out"]

    compacted = so.compact(fn, PARAMS, key, X, check=False)
    assert compacted.params["in"].shape == (3, 2)
    apply, fn = quickly_compiled(compacted.apply), quickly_compiled(fn)
    for other in jax.random.split(key, 3):
        found = apply(compacted.params, other, X)
        np.testing.assert_allclose(found, fn(PARAMS, other, X), rtol=1e-5)
