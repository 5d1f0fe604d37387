"""How an amount is spread over layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import exact_share, num_kept

import sparse_optax as so

SHAPES = {
    "conv1": (3, 3, 3, 16),
    "conv2": (3, 3, 16, 32),
    "dense": (64, 100),
    "out": (100, 10),
}
PARAMS = {
    name: jax.random.normal(jax.random.key(i), shape)
    for i, (name, shape) in enumerate(SHAPES.items())
}
KEY = jax.random.key(0)
SIZES = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}


def erk_densities(density, shapes=SHAPES):
    """By iteration: what would be more than dense is dense, and the rest is less."""
    raw = {n: sum(shape) / np.prod(shape) for n, shape in shapes.items()}
    sizes = {n: np.prod(shape) for n, shape in shapes.items()}
    dense = set()
    while True:
        rest = density * sum(sizes.values()) - sum(sizes[n] for n in dense)
        scale = rest / sum(raw[n] * sizes[n] for n in shapes if n not in dense)
        over = {n for n in shapes if n not in dense and scale * raw[n] > 1}
        if not over:
            return {n: 1.0 if n in dense else scale * raw[n] for n in shapes}
        # Those of the largest raw density first.
        dense |= {n for n in over if raw[n] == max(raw[m] for m in over)}


def kept(masks):
    return {name: num_kept(mask) for name, mask in masks.items()}


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 0.95, 0.999, 1.0])
def test_erk(sparsity):
    removed = exact_share(sparsity, sum(SIZES.values()))
    densities = erk_densities(1 - removed / sum(SIZES.values()))
    wanted = {n: SIZES[n] - exact_share(1 - densities[n], SIZES[n]) for n in SHAPES}
    _, masks = so.one_shot(PARAMS, sparsity, distribution="erk")
    assert kept(masks) == wanted
    for name, number in kept(masks).items():
        assert abs(number / SIZES[name] - densities[name]) <= 0.5 / SIZES[name] + 1e-6

    # The same where the sparsity is traced, under jit and in a scan.
    tx = so.prune_by_magnitude(distribution="erk")
    state = tx.init(PARAMS)

    def prune(_, sparsity):
        return None, so.prune(PARAMS, state, sparsity=sparsity)[1].masks

    for traced in (
        jax.jit(prune)(None, sparsity)[1],
        jax.tree.map(
            lambda m: m[0], jax.lax.scan(prune, None, jnp.array([sparsity]))[1]
        ),
    ):
        jax.tree.map(np.testing.assert_array_equal, traced, masks)


def test_erk_of_a_fraction_is_that_of_the_sparsity_that_results():
    tx = so.prune_by_magnitude(0.5, distribution="erk")
    params, state = so.prune(PARAMS, tx.init(PARAMS), 0.5)
    _, once = so.one_shot(PARAMS, 0.5, distribution="erk")
    assert kept(state.masks) == kept(once)
    _, state = so.prune(params, state, 0.5)
    total = sum(kept(once).values())
    sparsity = 1 - (total - exact_share(0.5, total)) / sum(SIZES.values())
    wanted = erk_densities(1 - sparsity)
    for name, number in kept(state.masks).items():
        assert abs(number / SIZES[name] - wanted[name]) <= 1 / SIZES[name]


def test_uniform_takes_the_amount_of_each_leaf():
    _, masks = so.one_shot(PARAMS, 0.37, distribution="uniform")
    for name, number in kept(masks).items():
        assert number == SIZES[name] - exact_share(0.37, SIZES[name])
    _, masks = so.one_shot(PARAMS, count=5, distribution="uniform")
    assert kept(masks) == {name: size - 5 for name, size in SIZES.items()}
    _, masks = so.one_shot(PARAMS, count=5)
    assert sum(kept(masks).values()) == sum(SIZES.values()) - 5


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_stacked_layers_are_leaves_of_their_own(distribution):
    layers = [jax.random.normal(jax.random.key(i), (8, 6)) * (i + 1) for i in range(3)]
    apart = {f"layer{i}": layer for i, layer in enumerate(layers)}
    apart["out"] = jnp.ones((6, 2))
    together = {"layers": jnp.stack(layers, axis=1), "out": apart["out"]}
    options = {"distribution": distribution, "min_kept": 10}
    _, expected = so.one_shot(apart, 0.8, **options)
    _, masks = so.one_shot(together, 0.8, stacked={"layers": 1}, **options)
    for i in range(3):
        np.testing.assert_array_equal(masks["layers"][:, i], expected[f"layer{i}"])


def test_amounts_by_name():
    amounts = {"conv.*": 0.5, "dense": optax.linear_schedule(0.0, 1.0, 4), "out": 0.0}
    tx = so.prune_to_sparsity(amounts)
    state, zeros = tx.init(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
    for step in (1, 2):
        _, state = tx.update(zeros, state, PARAMS)
        wanted = {"conv1": 0.5, "conv2": 0.5, "dense": step / 4, "out": 0.0}
        assert kept(state.masks) == {
            n: SIZES[n] - exact_share(wanted[n], SIZES[n]) for n in SIZES
        }
    with pytest.raises(ValueError, match=r"fraction has no pattern for \['out'\]"):
        so.prune(PARAMS, tx.init(PARAMS), {"conv.*": 0.5, "dense": 0.1})
    with pytest.raises(ValueError, match="needs one amount"):
        so.prune_by_magnitude({"a": 0.5}, distribution="erk")
    with pytest.raises(ValueError, match="'global', 'uniform' or 'erk'; got 'leaf'"):
        so.prune_by_magnitude(0.5, distribution="leaf")


def test_caps_hold_in_every_distribution():
    for distribution in ("uniform", "erk"):
        tx = so.prune_by_magnitude(distribution=distribution, min_kept={"out": 900})
        _, state = so.prune(PARAMS, tx.init(PARAMS), sparsity=0.9)
        free = so.one_shot(PARAMS, 0.9, distribution=distribution)[1]
        assert kept(state.masks) == kept(free) | {"out": max(900, kept(free)["out"])}
        assert state.shortfall == max(900 - kept(free)["out"], 0)


def test_straight_through_has_the_gradient_of_the_whole():
    params = {"w": jnp.array([[3.0, 1.0, -2.0, jnp.inf, jnp.nan]])}
    scores = {"w": jnp.array([[5.0, 2.0, 4.0, 3.0, 1.0]])}

    @jax.jit
    def loss(params):
        _, masks = so.one_shot(params, count=3, scores=scores)
        masked = so.straight_through(params, masks)
        return jnp.sum(masked["w"] * jnp.array([1.0, 10.0, 100.0, 1000.0, 0.0]))

    assert loss(params) == -197.0
    np.testing.assert_array_equal(jax.grad(loss)(params)["w"], [[1, 10, 100, 1000, 0]])


def test_cubic_sparsity_by_hand():
    schedule = so.cubic_sparsity(0.1, 0.9, begin=10, end=50)
    for t in (0, 10, 11, 30, 49, 50, 99):
        left = 1 - np.clip((t - 10) / 40, 0, 1)
        np.testing.assert_allclose(schedule(t), 0.9 - 0.8 * left**3, rtol=1e-6)
    with pytest.raises(ValueError, match="end must be at least 11; got 10"):
        so.cubic_sparsity(0.0, 0.5, begin=10, end=10)


def test_counts_are_numbers_schedules_and_dicts():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    for given, removed in (
        (7, [7, 14]),
        (lambda n: 3 + n, [3, 7]),
        ({"conv.*": 2, "dense": 0, "out": 10_000}, [2 + 2 + 1000, 4 + 4 + 1000]),
    ):
        tx = so.prune_by_magnitude(count=given)
        state = tx.init(PARAMS)
        for wanted in removed:
            _, state = tx.update(zeros, state, PARAMS, prune=jnp.array(True))
            assert sum(SIZES.values()) - num_kept(state.masks) == wanted


def test_dicts_of_amounts_override_the_distribution():
    amounts = {"conv.*": 0.2, "dense": 0.8, "out": 0.5}
    for distribution in ("global", "uniform", "erk"):
        tx = so.prune_by_magnitude(distribution=distribution)
        _, state = so.prune(PARAMS, tx.init(PARAMS), sparsity=amounts)
        assert kept(state.masks) == {
            n: SIZES[n] - exact_share(amounts.get(n, 0.2), SIZES[n]) for n in SIZES
        }
    # And changes no distribution: by a number, smaller weights are removed first.
    params = {"a": jnp.ones(8), "b": 2 * jnp.ones(8)}
    tx = so.prune_by_magnitude({".*": 0.0}, mask=None)
    _, state = so.prune(params, tx.init(params), 0.5)
    assert kept(state.masks) == {"a": 0, "b": 8}


def test_amounts_by_name_are_checked_at_init():
    for make in (so.prune_by_magnitude, so.prune_to_sparsity):
        with pytest.raises(ValueError, match=r"match no leaf.*\['convolution'\]"):
            make({"convolution": 0.5, ".*": 0.1}).init(PARAMS)
    # Where a transformation prunes no leaf, there is no amount.
    tx = optax.multi_transform(
        {"a": so.prune_to_sparsity({".*": 0.5}), "b": optax.sgd(0.1)},
        jax.tree.map(lambda _: "b", PARAMS),
    )
    tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_scalars_are_dense_under_erk():
    params = {"scale": jnp.float32(0.1), "w": jax.random.normal(KEY, (64, 64))}
    _, masks = so.one_shot(params, 0.9, distribution="erk", mask=None)
    assert masks["scale"]


def test_counts_of_schedules_are_rounded_and_others_are_integers():
    tx = so.prune_by_magnitude(count=optax.linear_schedule(0.0, 2.9, 1))
    state, zeros = tx.init(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
    for removed in (0, 3):
        _, state = tx.update(zeros, state, PARAMS, prune=True)
        assert sum(SIZES.values()) - num_kept(state.masks) == removed
    for count in (1.0, jnp.float32(1), lambda _: 1):
        with pytest.raises(TypeError, match="count must be an integer"):
            so.prune(PARAMS, state, count=count)
    with pytest.raises(TypeError, match="fraction must be a number"):
        so.prune(PARAMS, state, lambda _: 0.1)
    with pytest.raises(ValueError, match="count must be at most 2147483647"):
        so.prune(PARAMS, state, count=2**31)
