"""Networks drawn at random stay the functions they are when they are compacted."""

import functools
import itertools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from random_networks import kill_units, network

import sparse_optax

pytestmark = pytest.mark.quickly_compiled

# Compiling takes the time here: programs that are quickly compiled run long enough.
QUICKLY_COMPILED = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


quickly_compiled = functools.partial(jax.jit, compiler_options=QUICKLY_COMPILED)


def program(fn, seed):
    """The outputs of a function, and the gradient of a random combination of them."""

    @quickly_compiled
    def run(params, inputs):
        outputs, pull = jax.vjp(lambda p: fn(p, *inputs), params)
        rng = np.random.default_rng(seed)
        directions = jax.tree.map(
            lambda y: rng.normal(size=y.shape).astype(y.dtype), outputs
        )
        return outputs, pull(directions)[0]

    return run


def difference(actual, expected):
    """The largest one between two trees, relative to the largest number expected."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    actual, expected = jax.device_get(
        (jax.tree.leaves(actual), jax.tree.leaves(expected))
    )
    assert [a.shape for a in actual] == [b.shape for b in expected]
    largest = max(np.abs(b).max(initial=0) for b in expected)
    assert np.isfinite(largest) and largest > 0
    gaps = (np.abs(a - b).max(initial=0) for a, b in zip(actual, expected, strict=True))
    return float(max(gaps) / largest)


def units_with(net, tree):
    """For each unit, whether a leaf is not zero in any of its slices."""
    return np.array(
        [
            any(tree[key][name][index].any() for key, name, index in slices)
            for slices in (
                unit.writes + unit.reads for unit in itertools.chain(*net.groups)
            )
        ],
        bool,
    )


def compare(seed):
    """Compacts a network: what changes, and how many units are dead and removed.

    Differences are relative to the largest number. A unit is dead if the outputs have
    no derivative along its weights: `jax.jvp` is 0 along each of its slices.
    """
    net = network(seed)
    rng = np.random.default_rng(seed)
    params = kill_units(net, rng, share=rng.choice([0.2, 0.5, 0.9]))
    compacted = sparse_optax.compact(net.fn, params, *net.inputs, check=False)
    run, run_compacted = program(net.fn, seed), program(compacted.apply, seed)
    outputs, grads = run(params, net.inputs)
    found, found_grads = run_compacted(compacted.params, net.inputs)
    expand = quickly_compiled(compacted.expand)
    # As NumPy arrays: jax compiles again for arrays that a program returned.
    small = jax.device_get(compacted.params)
    expanded, _ = run(jax.device_get(expand(small)), net.inputs)
    params, grads = jax.device_get((params, grads))
    derivatives = jax.tree.map(lambda w, g: (w != 0) & (g != 0), params, grads)
    ones = jax.tree.map(np.ones_like, small)
    alive = units_with(net, derivatives)
    kept = units_with(net, jax.device_get(expand(ones)))
    # Constant units have derivatives: those that become part of a bias, and those
    # whose bias is rounded to zero.
    constant = compacted.folded or "straight_through" in net.layers
    return {
        "outputs": difference(found, outputs),
        "expanded": difference(expanded, found),
        "gradients": difference(found_grads, compacted.shrink(grads)),
        "alive": 0.0 if constant else float(np.sum(alive & ~kept)),
    }, (int(np.sum(~alive)), int(np.sum(~kept)))


LIMITS = {"outputs": 1e-5, "expanded": 1e-5, "gradients": 1e-4, "alive": 0.0}


@pytest.fixture(scope="module")
def part(request):
    """Forgets the compiled programs of each part: they take 14 MB a network."""
    yield request.param
    jax.clear_caches()


slow, every_case = pytest.mark.slow, pytest.mark.every_case
PARTS = [0, *(pytest.param(i, marks=slow) for i in range(1, 6))]
PARTS += [pytest.param(i, marks=every_case) for i in range(6, 20)]


@pytest.mark.parametrize("part", PARTS, indirect=True)
@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
@hypothesis.given(seed=st.integers(0, 2**31))
def test_compacted_networks_are_the_same_functions(part, seed):
    found, _ = compare(seed)
    assert {name: x for name, x in found.items() if x > LIMITS[name]} == {}


def test_most_dead_units_are_removed():
    dead, removed = np.sum([compare(seed)[1] for seed in range(20)], axis=0)
    assert removed > 0.5 * dead
