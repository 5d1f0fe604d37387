"""The checks that every transformation in `optax.contrib` has to pass."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import find_states, make_step, num_kept, num_nonzero, random_tree
from jax.extend import core as jax_core

import sparse_optax
from sparse_optax import PruneState, RelevanceDecayState


def decay(fraction=0.5, optimizer=None):
    del fraction
    return optax.chain(
        sparse_optax.add_relevance_decay(1e-3, 0.5, mask=None),
        optimizer or optax.adam(0.05),
    )


def prune_link(fraction=0.5, optimizer=None):
    return optax.chain(
        sparse_optax.add_relevance_decay(1e-3, 0.5, mask=None),
        optimizer or optax.adam(0.05),
        sparse_optax.prune_by_magnitude(fraction, mask=None),
    )


def prune_to_sparsity(fraction=0.5, optimizer=None):
    return optax.chain(
        optimizer or optax.adam(0.05),
        sparse_optax.prune_to_sparsity(
            lambda t: jnp.where(t < 1, 0.0, fraction), mask=None
        ),
    )


def coupled(fraction=0.5, optimizer=None):
    return sparse_optax.relevance_pruning(
        optimizer or optax.adam(0.05), 1e-3, 0.5, fraction, mask=None
    )


def decoupled(fraction=0.5, optimizer=None):
    return sparse_optax.relevance_pruning(
        optimizer or optax.adam(0.05), 1e-3, 0.5, fraction, decoupled=True, mask=None
    )


FACTORIES = (decay, prune_link, prune_to_sparsity, coupled, decoupled)
every_transformation = pytest.mark.parametrize("make", FACTORIES)
PRUNING = (prune_link, prune_to_sparsity, coupled, decoupled)
DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
PRUNES = (False, True, False, True)  # what four steps are told


@pytest.fixture(autouse=True)
def count_traces_afresh():
    chex.clear_trace_counter()


def masks_of(state):
    return [s.masks for s in find_states(state, PruneState)]


def run(make, step_wrapper=lambda step: step, seed=0):
    """Four steps, of which two prune."""
    tx = make()
    step = step_wrapper(make_step(tx))
    params = random_tree(seed)
    state = tx.init(params)
    for i, prune in enumerate(PRUNES):
        grads = random_tree(1000 * seed + i + 1)
        params, state = step(params, state, grads, prune=jnp.array(prune))
    return params, state


@every_transformation
def test_unexpected_extra_args_change_nothing(make):
    tx, params, grads = make(), random_tree(0), random_tree(1)
    expected = tx.update(grads, tx.init(params), params)
    extra = {"value": 1.0, "grad": grads, "unexpected": "text"}
    chex.assert_trees_all_equal(
        tx.update(grads, tx.init(params), params, **extra), expected
    )


@every_transformation
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_second_call_does_not_compile_again(make, dtype):
    tx, params, grads = make(), random_tree(0, dtype), random_tree(1, dtype)
    step = jax.jit(chex.assert_max_traces(make_step(tx), n=1))
    state = tx.init(params)
    for prune in PRUNES:
        params, state = step(params, state, grads, prune=jnp.array(prune))


@every_transformation
def test_works_where_ranks_may_not_be_promoted(make):
    with jax.numpy_rank_promotion("raise"):
        _, state = run(make, jax.jit)
    for masks in masks_of(state):
        assert 0 < num_kept(masks) < 40


@every_transformation
@pytest.mark.parametrize(
    "mask", [None, sparse_optax.matrices_only], ids=["all", "matrices"]
)
def test_map_params_tells_params_from_the_rest(make, mask):
    if mask is not None:
        make = {
            decay: lambda: sparse_optax.add_relevance_decay(0.1, mask=mask),
            prune_link: lambda: sparse_optax.prune_by_magnitude(0.5, mask=mask),
            prune_to_sparsity: lambda: sparse_optax.prune_to_sparsity(0.5, mask=mask),
            coupled: lambda: sparse_optax.relevance_pruning(
                optax.adam(0.1), 0.1, mask=mask
            ),
            decoupled: lambda: sparse_optax.relevance_pruning(
                optax.adam(0.1), 0.1, decoupled=True, mask=mask
            ),
        }[make]
    tx, params = make(), random_tree(0)
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
    assert jax.tree.leaves(kinds), "there is something to map"
    assert all(jax.tree.leaves(kinds)), mapped


# Where each objective starts, its optimum, and its best points with fewer weights.
def parabola(params):
    target = {"x": jnp.array([3.0, -2.0]), "y": jnp.array([[0.2], [-0.1]])}
    return optax.tree.norm(optax.tree.sub(params, target), squared=True)


def rosenbrock(params):
    x, y = params["x"][0], params["x"][1]
    return (0.5 - x) ** 2 + (y - x**2) ** 2


def without_y():
    """The minimum of rosenbrock on y = 0: a root of 4 x^3 + 2 x - 1."""
    roots = np.roots([4.0, 0.0, 2.0, -1.0])
    return float(roots[np.abs(roots.imag) < 1e-12].real[0])


PARABOLA = {"x": jnp.array([-1.0, 1.0]), "y": jnp.array([[1.0], [1.0]])}
OBJECTIVES = {
    "parabola-dense": (
        parabola,
        PARABOLA,
        0.0,
        {"x": np.array([3.0, -2.0]), "y": np.array([[0.2], [-0.1]])},
    ),
    "parabola-sparse": (
        parabola,
        PARABOLA,
        0.5,
        {"x": np.array([3.0, -2.0]), "y": np.zeros((2, 1))},
    ),
    "rosenbrock-dense": (
        rosenbrock,
        {"x": jnp.zeros(2)},
        0.0,
        {"x": np.array([0.5, 0.25])},
    ),
    "rosenbrock-sparse": (
        rosenbrock,
        {"x": jnp.zeros(2)},
        0.5,
        {"x": np.array([without_y(), 0.0])},
    ),
}


def converging(kind, fraction):
    """The five again, with a decay that restarts at the prune and then fades."""
    optimizer = optax.adam(0.05)
    fading = optax.linear_schedule(1e-3, 0.0, 100)
    match kind:
        case "decay":
            return optax.chain(
                sparse_optax.add_relevance_decay(fading, mask=None), optimizer
            )
        case "prune_link":
            return optax.chain(
                sparse_optax.add_relevance_decay(fading, mask=None),
                optimizer,
                sparse_optax.prune_by_magnitude(fraction, mask=None),
            )
        case "prune_to_sparsity":
            schedule = lambda t: jnp.where(t < 1000, 0.0, fraction)  # noqa: E731
            return optax.chain(
                optimizer, sparse_optax.prune_to_sparsity(schedule, mask=None)
            )
        case _:
            return sparse_optax.relevance_pruning(
                optimizer,
                fading,
                fraction=fraction,
                decoupled=kind == "decoupled",
                mask=None,
            )


@pytest.mark.parametrize(
    ("make", "objective"),
    [
        (make, objective)
        for make in FACTORIES
        for objective in OBJECTIVES
        if make is not decay or "dense" in objective
    ],
)
def test_converges_in_a_scan(make, objective):
    loss, params, fraction, optimum = OBJECTIVES[objective]
    tx = converging(make.__name__, fraction)
    step = make_step(tx)

    @jax.jit
    def train(params):
        def body(carry, i):
            grads = jax.grad(loss)(carry[0])
            return step(*carry, grads, prune=i == 1000), None

        return jax.lax.scan(body, (params, tx.init(params)), jnp.arange(2000))[0]

    params, state = train(params)
    chex.assert_trees_all_close(params, optimum, atol=1e-3)
    if fraction:
        assert num_nonzero(params) == num_nonzero(optimum)
        sparse_optax.check_sparsity(params, state)


def injected(make):
    """The same transformation, its numbers injected, and direct."""
    adam = optax.adam(0.05)
    match make.__name__:
        case "decay":
            factory, numbers, static = (
                sparse_optax.add_relevance_decay,
                {"strength": 0.1, "scale": 0.5},
                {},
            )
        case "prune_link":
            factory, numbers, static = (
                sparse_optax.prune_by_magnitude,
                {"fraction": 0.3},
                {"scope": "leaf", "mask": sparse_optax.matrices_only},
            )
        case "prune_to_sparsity":
            factory, numbers, static = (
                sparse_optax.prune_to_sparsity,
                {"every": 2},
                {"schedule": optax.linear_schedule(0.0, 0.8, 6)},
            )
        case kind:
            factory, numbers, static = (
                sparse_optax.relevance_pruning,
                {"scale": 0.5, "fraction": 0.3},
                {
                    "optimizer": adam,
                    "strength": optax.linear_schedule(0.1, 0.0, 3),
                    "mask": sparse_optax.matrices_only,
                    "decoupled": kind == "decoupled",
                },
            )
    wrapped = optax.inject_hyperparams(factory, static_args=tuple(static))
    return factory(**numbers, **static), wrapped(**numbers, **static), numbers


@every_transformation
def test_inject_hyperparams_equals_direct(make):
    direct, wrapped, numbers = injected(make)
    params, wrapped_params = random_tree(0), random_tree(0)
    state, wrapped_state = direct.init(params), wrapped.init(params)
    assert set(wrapped_state.hyperparams) == set(numbers)
    step, wrapped_step = jax.jit(make_step(direct)), jax.jit(make_step(wrapped))
    for i, prune in enumerate(PRUNES):
        prune = jnp.array(prune)
        grads = random_tree(i + 1)
        params, state = step(params, state, grads, prune=prune)
        wrapped_params, wrapped_state = wrapped_step(
            wrapped_params, wrapped_state, grads, prune=prune
        )
        chex.assert_trees_all_close(wrapped_params, params, rtol=1e-6)
    chex.assert_trees_all_equal(masks_of(wrapped_state), masks_of(state))
    chex.assert_trees_all_close(wrapped_state.inner_state, state, rtol=1e-6)


def test_injected_numbers_can_be_changed_between_steps():
    tx = optax.inject_hyperparams(sparse_optax.prune_by_magnitude)(
        fraction=0.25, mask=None
    )
    params = jnp.arange(1.0, 9.0)
    state = tx.init(params)
    step = jax.jit(chex.assert_max_traces(make_step(tx), n=1))
    params, state = step(params, state, jnp.zeros(8), prune=jnp.array(True))
    assert num_nonzero(params) == 6
    state.hyperparams["fraction"] = jnp.float32(0.5)
    params, state = step(params, state, jnp.zeros(8), prune=jnp.array(True))
    np.testing.assert_array_equal(params, [0, 0, 0, 0, 0, 6, 7, 8])


@pytest.mark.parametrize("static", [False, True], ids=["evaluated", "static"])
def test_injected_schedule_counts_all_steps_unless_static(static):
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    tx = optax.inject_hyperparams(
        sparse_optax.add_relevance_decay, static_args=("strength",) if static else ()
    )(strength=schedule, mask=None)
    params, state, counts = jnp.ones(1), None, []
    state = tx.init(params)
    for prune in (False, False, True, False, False):
        updates, state = tx.update(jnp.zeros(1), state, params, prune=prune)
        # The update is 2 * strength for a weight of 1 and a gradient of 0.
        counts.append(round(10 * (1 - float(updates[0]) / 2)))
    assert counts == ([0, 1, 2, 0, 1] if static else [0, 1, 2, 3, 4])


@every_transformation
@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_have_the_dtype_of_params(make, dtype):
    tx, params = make(), random_tree(0, dtype)
    updates, _ = jax.eval_shape(tx.update, params, tx.init(params), params)
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(
    ("make", "dtype", "grad_dtype"),
    [(prune_link, dtype, grad_dtype) for dtype in DTYPES for grad_dtype in DTYPES]
    + [
        (make, dtype, grad_dtype)
        for make in (prune_to_sparsity, coupled, decoupled)
        for dtype, grad_dtype in [(DTYPES[0], DTYPES[2]), (DTYPES[2], DTYPES[0])]
    ],
)
def test_pruned_weights_are_zero_whatever_the_dtypes(make, dtype, grad_dtype):
    tx = make()
    step = jax.jit(make_step(tx))
    params = random_tree(0, dtype)
    state = tx.init(params)
    for i, prune in enumerate(PRUNES):
        grads = random_tree(i + 1, grad_dtype)
        params, state = step(params, state, grads, prune=jnp.array(prune))
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    assert num_nonzero(params) == num_kept(masks_of(state)) < 40
    sparse_optax.check_sparsity(params, state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_decay_gives_the_dtype_of_add_decayed_weights(dtype):
    ours, theirs = (
        sparse_optax.add_relevance_decay(0.1, mask=None),
        optax.add_decayed_weights(0.1),
    )
    for grad_dtype in DTYPES:
        params, grads = random_tree(0, dtype), random_tree(1, grad_dtype)
        mine, _ = ours.update(grads, ours.init(params), params)
        expected, _ = theirs.update(grads, theirs.init(params), params)
        chex.assert_trees_all_equal_shapes_and_dtypes(mine, expected)


@every_transformation
def test_multi_steps_begins_with_zeros(make):
    tx = optax.MultiSteps(make(), 4)
    params = random_tree(0)
    updates, _ = tx.update(random_tree(1), tx.init(params), params)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))


@every_transformation
@pytest.mark.parametrize("dtype", [*DTYPES, jnp.float64])
def test_state_is_stable_through_cond(make, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        tx = make()
        params = random_tree(0, dtype)
        value = jnp.ones([], jnp.float32 if dtype == jnp.float16 else jnp.float16)

        @jax.jit
        def maybe_step(pred, params, state, grads, value):
            def update():
                step = make_step(tx)
                return step(params, state, grads, value=value, prune=pred)

            return jax.lax.cond(pred, update, lambda: (params, state))

        state = tx.init(params)
        grads = random_tree(1, dtype)
        unchanged = maybe_step(jnp.array(False), params, state, grads, value)
        chex.assert_trees_all_equal(unchanged, (params, state))
        changed = maybe_step(jnp.array(True), params, state, grads, value)
        chex.assert_trees_all_equal_shapes_and_dtypes(changed, (params, state))
        assert num_nonzero(optax.tree.sub(changed[0], params)) > 0


@pytest.mark.parametrize("make", PRUNING)
def test_mixed_float32_and_float64_keep_their_dtypes(make):
    with jax.enable_x64(True):
        params = random_tree(0)
        kernel = params["dense"]["kernel"]
        params["dense"]["kernel"] = kernel.astype(jnp.float64) / 3
        tx = make()
        state = tx.init(params)
        step = jax.jit(make_step(tx))
        after, after_state = params, state
        for prune in PRUNES:
            after, after_state = step(after, after_state, params, prune=prune)
        chex.assert_trees_all_equal_shapes_and_dtypes(
            (after, after_state), (params, state)
        )
        sparse_optax.check_sparsity(after, after_state)
        assert num_nonzero(after) == num_kept(masks_of(after_state)) < 40


@every_transformation
def test_init_from_shapes(make):
    tx, params = make(), random_tree(0)
    shapes = jax.eval_shape(lambda: params)
    chex.assert_trees_all_equal(tx.init(shapes), tx.init(params))


@every_transformation
def test_donated_buffers(make):
    expected = run(make, jax.jit)
    donated = run(make, lambda step: jax.jit(step, donate_argnums=(0, 1)))
    chex.assert_trees_all_equal(donated, expected)


def test_prune_does_not_donate():
    tx = coupled()
    params = random_tree(0)
    state = tx.init(params)
    before = jax.tree.map(np.array, (params, state))
    pruned, _ = sparse_optax.prune(params, state, 0.5)
    assert num_nonzero(pruned) == 20
    chex.assert_trees_all_equal((params, state), before)


@every_transformation
def test_jit_equals_eager(make):
    params, state = run(make)
    jit_params, jit_state = run(make, jax.jit)
    chex.assert_trees_all_equal(masks_of(jit_state), masks_of(state))
    chex.assert_trees_all_close(jit_params, params, rtol=1e-5, atol=1e-6)


@every_transformation
def test_scan_equals_loop(make):
    params, state = run(make, jax.jit)
    tx = make()
    step = make_step(tx)
    grads = jax.tree.map(
        lambda *g: jnp.stack(g), *(random_tree(i + 1) for i in range(len(PRUNES)))
    )

    @jax.jit
    def train(params, grads):
        def body(carry, xs):
            return step(*carry, xs[0], prune=xs[1]), None

        carry = params, tx.init(params)
        return jax.lax.scan(body, carry, (grads, jnp.array(PRUNES)))[0]

    scanned, scanned_state = train(random_tree(0), grads)
    chex.assert_trees_all_equal(masks_of(scanned_state), masks_of(state))
    chex.assert_trees_all_close(scanned, params, rtol=1e-5, atol=1e-6)


@every_transformation
def test_vmap_over_seeds_equals_loop(make):
    seeds, tx = range(3), make()
    stack = lambda *xs: jnp.stack(xs)  # noqa: E731
    params = jax.tree.map(stack, *(random_tree(s) for s in seeds))
    state = jax.vmap(tx.init)(params)
    step = jax.jit(jax.vmap(lambda p, s, g, prune: make_step(tx)(p, s, g, prune=prune)))
    for i, prune in enumerate(PRUNES):
        grads = [random_tree(1000 * s + i + 1) for s in seeds]
        params, state = step(
            params, state, jax.tree.map(stack, *grads), jnp.array([prune] * 3)
        )
    compiled = jax.jit(make_step(tx))
    loop = [run(make, lambda _: compiled, seed) for seed in seeds]
    expected, expected_state = jax.tree.map(stack, *loop)
    chex.assert_trees_all_equal(masks_of(state), masks_of(expected_state))
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-6)


def test_vmap_with_some_that_prune_and_some_that_do_not():
    tx = coupled()
    params = jax.tree.map(lambda *x: jnp.stack(x), *(random_tree(s) for s in range(2)))
    step = jax.jit(jax.vmap(lambda p, s, g, f: make_step(tx)(p, s, g, prune=f)))
    _, state = step(params, jax.vmap(tx.init)(params), params, jnp.array([True, False]))
    np.testing.assert_array_equal(state.pruning.num_prunes, [1, 0])
    np.testing.assert_array_equal(state.decay.steps_since_prune, [0, 1])
    kept = sum(np.sum(m, axis=tuple(range(1, m.ndim))) for m in
               jax.tree.leaves(state.pruning.masks))  # fmt: skip
    np.testing.assert_array_equal(kept, [20, 40])


def test_prune_works_inside_jit_and_vmap():
    tx = prune_link()
    seeds = [random_tree(s) for s in range(3)]
    expected = [sparse_optax.prune(p, tx.init(p), 0.3) for p in seeds]
    stack = lambda *xs: jnp.stack(xs)  # noqa: E731
    params = jax.tree.map(stack, *seeds)
    fractions = jnp.full(3, 0.3)
    pruned = jax.jit(jax.vmap(sparse_optax.prune))(
        params, jax.vmap(tx.init)(params), fractions
    )
    chex.assert_trees_all_equal(pruned, jax.tree.map(stack, *expected))


def inner_programs(eqn):
    for value in jax.tree.leaves(eqn.params):
        if isinstance(value, jax_core.Jaxpr | jax_core.ClosedJaxpr):
            yield getattr(value, "jaxpr", value)


def primitives(jaxpr):
    """The names of all primitives, those of inner programs included."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for program in inner_programs(eqn):
            yield from primitives(program)


def outermost(jaxpr, name):
    """The equations of a primitive that are in no other of the same."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == name:
            yield eqn
        else:
            for program in inner_programs(eqn):
                yield from outermost(program, name)


@pytest.mark.parametrize(
    ("extra", "loops"),
    [({}, False), ({"prune": False}, False), ({"prune": True}, True)],
    ids=["absent", "false", "true"],
)
@pytest.mark.parametrize("make", [prune_link, coupled])
def test_selection_is_compiled_only_where_it_can_be_needed(make, extra, loops):
    tx, params = make(), random_tree(0)
    jaxpr = jax.make_jaxpr(lambda p, s: tx.update(p, s, p, **extra))(
        params, tx.init(params)
    )
    assert ("while" in set(primitives(jaxpr.jaxpr))) == loops


def test_traced_prune_sits_under_one_cond():
    tx, params = sparse_optax.prune_by_magnitude(0.5, mask=None), random_tree(0)
    jaxpr = jax.make_jaxpr(lambda p, s, f: tx.update(p, s, p, prune=f))(
        params, tx.init(params), True
    )
    names = list(primitives(jaxpr.jaxpr))
    conds = list(outermost(jaxpr.jaxpr, "cond"))
    (within,) = ([*map(primitives, c.params["branches"])] for c in conds)
    within = [name for branch in within for name in branch]
    for name in ("while", "reduce"):  # all that selects is in there
        assert 0 < names.count(name) == within.count(name)


def test_steps_since_prune_restarts():
    tx = decay()
    params = random_tree(0)
    state = tx.init(params)
    counts = []
    for prune in PRUNES:
        _, state = tx.update(params, state, params, prune=prune)
        counts.append(int(find_states(state, RelevanceDecayState)[0].steps_since_prune))
    assert counts == [1, 0, 1, 0]
