"""Networks drawn at random stay the functions they are when they are compacted."""

import functools

import hypothesis
import jax
import numpy as np
import pytest
from helpers import first_unmarked
from hypothesis import strategies as st
from random_networks import kill_units, network

import sparse_optax

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


def size_of(params):
    return sum(w.size for w in jax.tree.leaves(params))


def differences(seed):
    """What compacting a network changes, each relative to the largest; its sizes."""
    net = network(seed)
    rng = np.random.default_rng(seed)
    params = kill_units(net, rng, share=rng.choice([0.2, 0.5, 0.9]))
    compacted = sparse_optax.compact(net.fn, params, *net.inputs, check=False)
    run, run_compacted = program(net.fn, seed), program(compacted.apply, seed)
    outputs, grads = run(params, net.inputs)
    found, found_grads = run_compacted(compacted.params, net.inputs)
    expand = quickly_compiled(compacted.expand)
    expanded, _ = run(expand(compacted.params), net.inputs)
    return {
        "outputs": difference(found, outputs),
        "expanded": difference(expanded, found),
        "gradients": difference(found_grads, compacted.shrink(grads)),
    }, (size_of(params), size_of(compacted.params))


LIMITS = {"outputs": 1e-5, "expanded": 1e-5, "gradients": 1e-4}


@pytest.fixture(scope="module")
def part(request):
    """Forgets the compiled programs of each part: they take 14 MB a network."""
    yield request.param
    jax.clear_caches()


@pytest.mark.parametrize("part", first_unmarked(*range(6), quick=1), indirect=True)
@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
@hypothesis.given(seed=st.integers(0, 2**31))
def test_compacted_networks_are_the_same_functions(part, seed):
    found, _ = differences(seed)
    assert {name: x for name, x in found.items() if x > LIMITS[name]} == {}
