"""The checks that every transformation in `optax.contrib` has to pass."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import find_states, first_unmarked, make_step, num_kept, random_tree
from jax.extend import core as jax_core

import sparse_optax
from sparse_optax import PruneState

ADAM = optax.adam(0.05)
DECAY = {"strength": 1e-3, "scale": 0.5, "mask": None}


def gradual(fraction):
    return lambda t: jnp.where(t < 1, 0.0, fraction)


# Each with its numbers as they are, or injected: see `injected`.


def decay(inject=lambda make, *static: make):
    tx = inject(sparse_optax.add_relevance_decay, "mask")(**DECAY)
    return optax.chain(tx, ADAM)


def chained_pruning(inject=lambda make, *static: make):
    tx = inject(sparse_optax.prune_by_magnitude, "mask", "distribution")
    return optax.chain(
        decay(inject), tx(fraction=0.5, distribution="global", mask=None)
    )


def prune_to_sparsity(inject=lambda make, *static: make):
    tx = inject(sparse_optax.prune_to_sparsity, "sparsity", "mask")
    return optax.chain(ADAM, tx(sparsity=gradual(0.5), every=1, mask=None))


def coupled(inject=lambda make, *static: make, decoupled=False):
    static = ("optimizer", "decoupled", "mask")
    return inject(sparse_optax.relevance_pruning, *static)(
        optimizer=ADAM, fraction=0.5, decoupled=decoupled, **DECAY
    )


decoupled = functools.partial(coupled, decoupled=True)
FACTORIES = (decay, chained_pruning, prune_to_sparsity, coupled, decoupled)
every_transformation = pytest.mark.parametrize("make", FACTORIES)
DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
PRUNES = (False, True, False, True)  # which of four steps are pruning steps
SEEDS = range(3)


def stack(*trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def masks_of(state):
    return [s.masks for s in find_states(state, PruneState)]


def run(tx, step, seed=0):
    params = random_tree(seed)
    state = tx.init(params)
    for i, prune in enumerate(PRUNES):
        grads = random_tree(1000 * seed + i + 1)
        params, state = step(params, state, grads, prune=jnp.array(prune))
    return params, state


def traced_once(tx):
    chex.clear_trace_counter()
    return jax.jit(chex.assert_max_traces(make_step(tx), n=1))


@functools.cache
def compiled_runs(make):
    """Four steps for each seed, by one program, without promotion of ranks."""
    tx = make()
    step = traced_once(tx)
    with jax.numpy_rank_promotion("raise"):
        return [run(tx, step, seed) for seed in SEEDS]


def assert_same_run(found, expected, **tolerance):
    (params, state), (expected, expected_state) = found, expected
    chex.assert_trees_all_equal(masks_of(state), masks_of(expected_state))
    chex.assert_trees_all_close(params, expected, **tolerance)


@pytest.mark.parametrize("make", first_unmarked(*reversed(FACTORIES), quick=2))
def test_jit_equals_eager(make):
    tx = make()
    params, state = compiled_runs(make)[0]
    assert_same_run((params, state), run(tx, make_step(tx)), rtol=1e-5, atol=1e-6)
    for masks in masks_of(state):
        assert num_kept(masks) in (10, 20)  # two pruning steps, or one


@every_transformation
def test_vmap_over_seeds_of_a_scan_equals_loops(make):
    tx = make()
    params = stack(*map(random_tree, SEEDS))
    grads = [stack(*(random_tree(1000 * s + i + 1) for i in range(4))) for s in SEEDS]

    def train(params, grads):
        def body(carry, xs):
            return make_step(tx)(*carry, xs[0], prune=xs[1]), None

        return jax.lax.scan(
            body, (params, tx.init(params)), (grads, jnp.array(PRUNES))
        )[0]

    result = jax.jit(jax.vmap(train))(params, stack(*grads))
    assert_same_run(result, stack(*compiled_runs(make)), rtol=1e-5, atol=1e-6)


def injected(make, *static):
    return optax.inject_hyperparams(make, static_args=static)


@every_transformation
def test_inject_hyperparams_equals_direct(make):
    tx = make(injected)
    found = run(tx, jax.jit(make_step(tx)))
    assert_same_run(found, compiled_runs(make)[0], rtol=1e-5)
    states = find_states(found[1], optax.InjectStatefulHyperparamsState)
    names = set().union(*(state.hyperparams for state in states))
    expected = {decay: {"strength", "scale"}, prune_to_sparsity: {"every"}}
    assert names == expected.get(make, {"strength", "scale", "fraction"})


@pytest.mark.parametrize("static", [False, True], ids=["evaluated", "static"])
def test_injected_schedules_count_all_updates_unless_static(static):
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    make = injected(sparse_optax.add_relevance_decay, *["strength"] * static)
    tx = make(strength=schedule, mask=None)
    params, counts = jnp.ones(1), []
    state = tx.init(params)
    for prune in (False, False, True, False, False):
        updates, state = tx.update(jnp.zeros(1), state, params, prune=prune)
        # The update is 2 * strength for a weight of 1 and a gradient of 0.
        counts.append(round(10 * (1 - float(updates[0]) / 2)))
    assert counts == ([0, 1, 0, 1, 2] if static else [0, 1, 2, 3, 4])


@every_transformation
@pytest.mark.parametrize("mask", [None, "matrices"])
def test_map_params_knows_params_from_the_rest(make, mask):
    def with_mask(factory, *static):
        return lambda **options: factory(**options | {"mask": mask})

    tx, params = make(with_mask), random_tree(0)
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    state = tx.init(params)
    mapped = optax.tree.map_params(
        tx, lambda _: "params", state, transform_non_params=lambda _: "other"
    )
    chex.assert_trees_all_equal_structs(state, mapped)
    kinds = jax.tree.map(
        lambda leaf, kind: (jnp.shape(leaf) in shapes) == (kind == "params"),
        *(state, mapped),
    )
    assert jax.tree.leaves(kinds) and all(jax.tree.leaves(kinds)), mapped


def rosenbrock(params):
    x, y = params
    return (0.5 - x) ** 2 + (y - x**2) ** 2


ROOTS = np.roots([4.0, 0.0, 2.0, -1.0])  # where rosenbrock has its minimum on y = 0
WITHOUT_Y = float(ROOTS[np.abs(ROOTS.imag) < 1e-12].real[0])
CONVERGING = {"strength": optax.linear_schedule(1e-3, 0.0, 100)} | {
    "sparsity": lambda t: jnp.where(t < 1000, 0.0, 0.5)
}


@every_transformation
def test_converges_in_a_scan(make):
    """Where the decay begins anew at the pruning step, and then fades."""

    def fading(factory, *static):
        def with_schedules(**options):
            schedules = {n: s for n, s in CONVERGING.items() if n in options}
            return factory(**options | schedules)

        return with_schedules

    tx = make(fading)
    step = make_step(tx)

    @jax.jit
    def train(params):
        def body(carry, i):
            grads = jax.grad(rosenbrock)(carry[0])
            return step(*carry, grads, prune=i == 1000), None

        return jax.lax.scan(body, (params, tx.init(params)), jnp.arange(2000))[0]

    params, state = train(jnp.zeros(2))
    optimum = [0.5, 0.25] if make is decay else [WITHOUT_Y, 0.0]
    np.testing.assert_allclose(params, optimum, atol=1e-3)
    if make is not decay:
        assert params[1] == 0
        sparse_optax.check_sparsity(params, state)


# What types alone show.


@every_transformation
@pytest.mark.parametrize("dtype", [*DTYPES, jnp.float64])
def test_types_are_stable_through_cond(make, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        tx, params = make(), random_tree(0, dtype)
        state = tx.init(params)

        def maybe_step(prune, params, state):
            def step():
                return make_step(tx)(params, state, params, prune=prune)

            return jax.lax.cond(prune, step, lambda: (params, state))

        shapes = jax.eval_shape(maybe_step, True, params, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(shapes, (params, state))
        for extra in ({}, {"prune": False}, {"prune": True}):
            update = lambda p, s, extra=extra: tx.update(p, s, p, **extra)  # noqa: E731
            shapes = jax.eval_shape(update, params, state)
            chex.assert_trees_all_equal_shapes_and_dtypes(shapes, (params, state))


@every_transformation
def test_unexpected_extra_args_change_nothing(make):
    tx, params = make(), random_tree(0)
    extra = {"value": 1.0, "unexpected": "text"}
    state = tx.init(params)
    plain = jax.make_jaxpr(lambda p, s: tx.update(p, s, p))(params, state)
    given = jax.make_jaxpr(lambda p, s: tx.update(p, s, p, **extra))(params, state)
    assert str(given) == str(plain)


@every_transformation
def test_init_accepts_shapes_and_shares_no_buffers(make):
    tx, params = make(), random_tree(0)
    state = tx.init(params)
    chex.assert_trees_all_equal(tx.init(jax.eval_shape(lambda: params)), state)
    leaves = jax.tree.leaves((params, state))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
    assert len(set(pointers)) == len(pointers)


def test_prune_does_not_donate_and_works_inside_jit_and_vmap():
    tx = chained_pruning()
    trees = [random_tree(seed) for seed in SEEDS]
    states = [tx.init(params) for params in trees]
    before = jax.tree.map(np.array, (trees, states))
    expected = [sparse_optax.prune(p, s, 0.3) for p, s in zip(*before, strict=True)]
    chex.assert_trees_all_equal((trees, states), before)
    vmapped = jax.jit(jax.vmap(sparse_optax.prune))
    pruned = vmapped(stack(*trees), stack(*states), jnp.full(3, 0.3))
    chex.assert_trees_all_equal(pruned, stack(*expected))


def test_vmap_with_some_that_prune_and_some_that_do_not():
    tx = coupled()
    params = stack(random_tree(0), random_tree(1))
    step = jax.jit(jax.vmap(lambda p, s, g, f: make_step(tx)(p, s, g, prune=f)))
    _, state = step(params, jax.vmap(tx.init)(params), params, jnp.array([True, False]))
    np.testing.assert_array_equal(state.pruning.num_pruning_steps, [1, 0])
    np.testing.assert_array_equal(state.optimizer[0].num_steps, [1, 1])
    masks = jax.tree.leaves(masks_of(state))
    assert [num_kept([m[i] for m in masks]) for i in range(2)] == [20, 40]


# What is compiled.


def equations(jaxpr):
    """All of them, each before those of its inner programs."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(eqn.params):
            if isinstance(value, jax_core.Jaxpr | jax_core.ClosedJaxpr):
                yield from equations(getattr(value, "jaxpr", value))


def primitives(jaxpr):
    return [eqn.primitive.name for eqn in equations(jaxpr)]


def test_selection_is_compiled_only_where_it_can_be_needed():
    tx, params = sparse_optax.prune_by_magnitude(0.5, mask=None), random_tree(0)
    state = tx.init(params)
    for extra, loops in ({}, False), ({"prune": False}, False), ({"prune": True}, True):
        update = lambda p, s, extra=extra: tx.update(p, s, p, **extra)  # noqa: E731
        assert ("while" in primitives(jax.make_jaxpr(update)(params, state))) == loops
    update = lambda p, s, prune: tx.update(p, s, p, prune=prune)  # noqa: E731
    jaxpr = jax.make_jaxpr(update)(params, state, True)
    cond = next(eqn for eqn in equations(jaxpr) if eqn.primitive.name == "cond")
    within = [name for branch in cond.params["branches"] for name in primitives(branch)]
    for name in ("while", "reduce"):  # all that selects is in there
        assert 0 < primitives(jaxpr).count(name) == within.count(name)
