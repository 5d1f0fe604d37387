"""Structures: N:M, blocks and channels, against loops in NumPy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import num_kept
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import sparse_optax as so


def tied(shape, seed=0):
    """Few different magnitudes, zeros of either sign, and a NaN."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(-4, 5, shape) / np.float32(2)
    weights.flat[3], weights.flat[5] = np.nan, -0.0
    return weights


def best_of_groups(weights, n, m, axis):
    """Which are among the n best of their m; of equal ones later positions are."""
    size = np.moveaxis(np.abs(weights), axis, -1)
    size = np.where(np.isnan(size), np.inf, size)
    groups = size.reshape(-1, m)
    best = np.zeros(groups.shape, bool)
    for row, group in zip(best, groups, strict=True):
        row[np.argsort(group, kind="stable")[m - n :]] = True
    return np.moveaxis(best.reshape(size.shape), -1, axis)


def lowest(scores, removable, k):
    """The k lowest of what may be removed; earlier ones of equal scores."""
    flat = np.where(np.isnan(scores), np.inf, scores).ravel()
    order = np.argsort(flat, kind="stable")
    removed = np.zeros(flat.size, bool)
    removed[order[removable.ravel()[order]][:k]] = True
    return removed.reshape(scores.shape)


@pytest.mark.parametrize("axis", [-2, -1, 0])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (3, 4)])
def test_nm(n, m, axis):
    weights = tied((8, 4, 12))
    best = best_of_groups(weights, n, m, axis)
    structure = so.NM(n, m, axis)
    _, masks = so.one_shot(weights, structure=structure)
    np.testing.assert_array_equal(masks, best)
    for k in (0, 5, 50):
        _, masks = so.one_shot(weights, count=k, structure=structure)
        removed = lowest(np.abs(weights), ~best, k)
        np.testing.assert_array_equal(masks, ~removed)


def blocks(shape, sizes):
    """The slices of each block, in row-major order."""
    starts = [range(0, n, size) for n, size in zip(shape, sizes, strict=True)]
    for start in itertools.product(*starts):
        yield tuple(slice(i, i + size) for i, size in zip(start, sizes, strict=True))


CASES = [  # a structure, and the shape of what it removes of a leaf (6, 4, 8)
    (so.Block((2, 4)), (1, 2, 4)),
    (so.Block((3, 2), axes=(0, -1), pool="max"), (3, 1, 2)),
    (so.Block((4,), axes=(1,)), (1, 4, 1)),
    (so.Channel(), (6, 4, 1)),
    (so.Channel(axis=0, pool="max"), (1, 4, 8)),
]


@pytest.mark.parametrize(("structure", "sizes"), CASES, ids=lambda x: str(x)[:20])
def test_blocks_and_channels(structure, sizes):
    weights = np.nan_to_num(tied((6, 4, 8)))
    units = list(blocks(weights.shape, sizes))
    pool = np.max if structure.pool == "max" else np.mean
    scores = np.array(
        [pool(np.abs(weights[unit]).astype(np.float64)) for unit in units]
    )
    for share in (0.3, 0.7):
        k = round(share * len(units))
        expected = np.ones(weights.shape, bool)
        for i in np.argsort(scores.astype(np.float32), kind="stable")[:k]:
            expected[units[i]] = False
        params, masks = so.one_shot(weights, count=k, structure=structure)
        np.testing.assert_array_equal(masks, expected)
        np.testing.assert_array_equal(params, np.where(expected, weights, 0))
        _, by_share = so.one_shot(weights, k / len(units), structure=structure)
        np.testing.assert_array_equal(by_share, expected)


ALL = [so.NM(2, 4), *(structure for structure, _ in CASES)]


@pytest.mark.parametrize("structure", ALL, ids=lambda x: str(x)[:20])
def test_caps_count_units_and_stacked_layers_are_apart(structure):
    layers = [np.nan_to_num(tied((6, 4, 8), seed)) for seed in range(2)]
    layers[0] *= 10  # which one ranking of both would keep
    options = {"structure": structure, "min_kept": 2, "max_sparsity": 0.6}
    tx = so.prune_by_magnitude(**options)
    apart = [so.prune(w, tx.init(w), 0.5)[1].masks for w in layers]
    stacked = np.stack(layers, axis=2)
    tx = so.prune_by_magnitude(**options, distribution="uniform", stacked={".*": 2})
    _, state = so.prune(stacked, tx.init(stacked), 0.5)
    for i, mask in enumerate(apart):
        np.testing.assert_array_equal(state.masks[:, :, i], mask)


@pytest.mark.parametrize("structure", ALL, ids=lambda x: str(x)[:20])
def test_masks_do_not_depend_on_how_they_are_made(structure):
    weights = jax.random.normal(jax.random.key(0), (3, 24, 16, 8)).astype(jnp.bfloat16)
    weights = jnp.round(weights * 4) / 4

    def prune(w):
        return so.one_shot(w, count=20, structure=structure)[1]

    expected = [prune(w) for w in weights]
    np.testing.assert_array_equal(jax.vmap(prune)(weights), expected)
    scanned = jax.lax.scan(lambda _, w: (None, prune(w)), None, weights)[1]
    np.testing.assert_array_equal(scanned, expected)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    spread = jax.device_put(weights[0], NamedSharding(mesh, P("x", "y")))
    np.testing.assert_array_equal(jax.jit(prune)(spread), expected[0])


def test_gradual_nm_that_is_resumed_ends_at_nm():
    schedule = optax.linear_schedule(0.0, 0.5, 10)
    tx = optax.chain(
        optax.adam(0.1),
        so.prune_to_sparsity(schedule, every=3, structure=so.NM(2, 4), mask=None),
    )
    params = jnp.asarray(np.nan_to_num(tied((16, 8))))
    step = jax.jit(lambda p, s: tx.update(jnp.sin(7 * p + s[0][0].count), s, p))
    state, at_six = tx.init(params), None
    for i in range(15):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
        if i == 6:
            at_six = jax.tree.map(np.asarray, (params, state))
    params, resumed = at_six
    for _ in range(7, 15):
        updates, resumed = step(params, resumed)
        params = optax.apply_updates(params, updates)
    masks = so.get_masks(state)
    np.testing.assert_array_equal(so.get_masks(resumed), masks)
    groups = np.moveaxis(masks, -2, -1).reshape(-1, 4)
    np.testing.assert_array_equal(groups.sum(axis=1), 2)


def test_amounts_beyond_what_a_structure_allows():
    weights, structure = jnp.ones((8, 4)), so.NM(1, 4)
    for make in (so.prune_by_magnitude, so.prune_to_sparsity):
        with pytest.raises(ValueError, match=r"at most 0.75, the limit of NM\(n=1"):
            make(0.8, structure=structure)
    state = so.prune_by_magnitude(structure=structure).init(weights)
    with pytest.raises(ValueError, match=r"sparsity must be at most 0.75"):
        so.prune(weights, state, sparsity=0.8)
    _, state = so.prune(weights, state, sparsity=jnp.float32(1.0))
    assert (num_kept(state.masks), int(state.shortfall)) == (8, 8)
    with pytest.raises(ValueError, match="needs fraction, count or sparsity"):
        so.one_shot(weights)
    with pytest.raises(ValueError, match="needs fraction, count or sparsity"):
        so.one_shot(weights, structure={".*": so.Channel()})


BAD = [
    (
        so.NM(2, 4),
        r"structure does not fit w: NM\(2, 4\) does not divide axis -2 of le",
    ),
    (so.NM(2, 4, axis=2), "structure does not fit v: .* has axis 2, and the leaf has"),
    (so.Block((4, 4)), r"does not divide axis -2 of length 6: choose .*`mask`"),
    (so.Block((1, 1), axes=(0, -2)), "one of them twice"),
    ({"other": so.NM(2, 4)}, "patterns that match no leaf"),
    ({"v.*": so.Channel()}, r"structure has no pattern for \['w'\]"),
]


@pytest.mark.parametrize(("structure", "message"), BAD)
def test_structures_that_do_not_fit_raise(structure, message):
    params = {"v": jnp.ones((8, 8)), "w": jnp.ones((6, 4))}
    with pytest.raises(ValueError, match=message):
        so.prune_by_magnitude(0.1, structure=structure).init(params)
    with pytest.raises(ValueError, match=r"stacked has axis 5 for v, of shape"):
        so.prune_by_magnitude(0.1, stacked={"v": 5}).init(params)


def test_wrong_arguments_of_structures():
    for make, error in (
        (lambda: so.NM(5, 4), ValueError),
        (lambda: so.NM(0, 4), ValueError),
        (lambda: so.NM(2, 4.0), TypeError),
        (lambda: so.Block((2, 0)), ValueError),
        (lambda: so.Block((2, 2), axes=(1,)), ValueError),
        (lambda: so.Block((2,), pool="sum"), ValueError),
        (lambda: so.Channel(axis="out"), TypeError),
        (lambda: so.prune_by_magnitude(0.1, structure=so.NM), TypeError),
        (lambda: so.prune_by_magnitude(0.1, structure={"a": "2:4"}), TypeError),
        (lambda: so.prune_by_magnitude(0.1, stacked=0), TypeError),
    ):
        with pytest.raises(error):
            make()


def test_rules_that_contradict_those_of_the_state():
    params, zeros = jnp.ones((8, 8)), jnp.zeros((8, 8))
    state = so.prune_by_magnitude(0.1, structure=so.NM(2, 4)).init(params)
    same = so.prune_by_magnitude(0.5, structure=so.NM(2, 4))
    same.update(zeros, state, params)
    for options in (
        {},
        {"structure": so.NM(1, 4)},
        {"structure": so.NM(2, 4), "min_kept": 1},
    ):
        with pytest.raises(ValueError, match=r"a different (structure|min_kept) than"):
            so.prune_by_magnitude(0.1, **options).update(zeros, state, params)


@dataclasses.dataclass(frozen=True)
class Halves(so.LeafStructure):
    """The upper and the lower half of a matrix: a structure from outside."""

    def to_units(self, scores, mask):
        scores, kept = (x.reshape(2, -1) for x in (scores, mask))
        return so.Units(scores.max(axis=1), kept.any(axis=1))

    def to_mask(self, kept, mask):
        return mask & jnp.repeat(kept, mask.shape[0] // 2)[:, None]


@dataclasses.dataclass(frozen=True)
class Neurons:
    """A column of one leaf and the row of the next: units that span two leaves."""

    def check(self, shapes):
        if shapes["in"][1] != shapes["out"][0]:
            raise ValueError("the leaves do not fit")

    def to_units(self, scores, masks):
        total = scores["in"].sum(axis=0) + scores["out"].sum(axis=1)
        return {"hidden": so.Units(total, masks["in"].any(axis=0))}

    def to_masks(self, kept, masks):
        kept = kept["hidden"]
        return {"in": masks["in"] & kept, "out": masks["out"] & kept[:, None]}

    def num_layers(self, shapes):
        return {"hidden": 0}


def test_custom_structures_work():
    weights = jnp.arange(8.0).reshape(4, 2)
    _, masks = so.one_shot(weights, count=1, structure=Halves())
    np.testing.assert_array_equal(masks, weights >= 4)

    params = {
        "in": jnp.array([[1.0, 3.0, 1.0]]),
        "out": jnp.array([[1.0], [0.0], [3.0]]),
    }
    tx = so.hide_pruned(
        optax.sgd(0.1), so.prune_by_magnitude(0.34, structure=Neurons(), min_kept=1)
    )
    params, state = so.prune(params, tx.init(params), 0.34)
    assert jax.tree.map(jnp.count_nonzero, params) == {"in": 2, "out": 1}
    params, state = so.prune(params, state, 1.0)
    assert jax.tree.map(jnp.count_nonzero, params) == {"in": 1, "out": 1}
    wrong = {"in": jnp.ones((1, 2)), "out": jnp.ones((3, 1))}
    with pytest.raises(ValueError, match="do not fit"):
        tx.init(wrong)


def test_reports_show_units_and_layers():
    params = {"layers": jnp.ones((2, 4, 6)), "bias": jnp.ones((6,))}
    options = {"structure": so.Channel(), "stacked": {"layers": 0}}
    params, masks = so.one_shot(params, count=3, **options)
    report = so.sparsity_report(params, masks, **options)
    assert report.leaves["layers[0]"] == (12, 24) and report.leaves["bias"] == (6, 6)
    assert report.units == {"layers[0]": (3, 6), "layers[1]": (6, 6)}
    assert report.prunable == (36, 48)
    assert "[units]" in str(report)


def test_amounts_and_caps_can_name_groups_of_units():
    params = {"in": jnp.ones((1, 4)), "out": jnp.arange(4.0)[:, None]}
    tx = so.prune_by_magnitude({"hidden": 0.5}, structure=Neurons(), min_kept={".*": 1})
    _, state = so.prune(params, tx.init(params), {"hidden": 1.0})
    np.testing.assert_array_equal(state.masks["in"], [[False, False, False, True]])
    assert state.shortfall == 1


def test_the_exact_sparsity_of_n_m_is_an_amount():
    for n, m, sparsity in ((9, 10, 0.1), (4, 5, 0.2), (2, 4, np.float32(0.5))):
        _, masks = so.one_shot(jnp.ones((m, 3)), sparsity, structure=so.NM(n, m))
        assert num_kept(masks) == 3 * n
    for amount in (0.51, np.float32(0.51), {".*": 0.51}):
        with pytest.raises(ValueError, match=r"at most 0\.5, the limit of NM"):
            so.one_shot(jnp.ones((4, 3)), amount, structure=so.NM(2, 4))
    structures = {"a": so.NM(2, 4), "b": so.Unstructured()}
    params = dict.fromkeys("ab", jnp.ones((4, 4)))
    with pytest.raises(ValueError, match=r"fraction of a must be at most 0\.5"):
        so.prune_by_magnitude({".*": 0.9}, structure=structures).init(params)


def test_schedules_beyond_n_m_stay_there():
    def schedule(count):
        return jnp.where(count > 100, 0.5, jnp.minimum(0.25 * count, 0.75))

    tx = so.prune_to_sparsity(schedule, structure=so.NM(2, 4))
    params, num_pruning_steps = jnp.arange(16.0).reshape(8, 2), []
    state = tx.init(params)
    for _ in range(5):
        updates, state = tx.update(jnp.zeros_like(params), state, params)
        params = optax.apply_updates(params, updates)
        num_pruning_steps.append(int(state.num_pruning_steps))
    assert num_pruning_steps == [1, 2, 2, 2, 2]
    assert num_kept(state.masks) == 8 and state.shortfall == 4


def test_the_best_of_a_group_are_among_what_is_kept():
    scores = jnp.array([[-jnp.inf, 1.0, 2.0, 3.0]]).T
    tx = so.prune_by_magnitude(structure=so.NM(2, 4))
    masks = jnp.array([[True, False, False, True]]).T
    state = so.set_masks(tx.init(scores), masks)
    _, state = so.prune(jnp.ones((4, 1)), state, scores=scores)
    np.testing.assert_array_equal(state.masks, masks)


def test_layers_that_are_empty_are_warned_of():
    params = {"layers": {"kernel": jnp.ones((2, 4, 4)).at[0].set(0.1)}}
    stacked = {"layers": 0}
    tx = so.prune_by_magnitude(stacked=stacked)
    params, state = so.prune(params, tx.init(params), 0.5)
    report = so.sparsity_report(params, so.get_masks(state), stacked=stacked)
    assert report.warnings[0] == "layers/kernel[0] has no weight left"
    rounds = so.iterative_pruning(
        (params, tx.init(params)),
        train=lambda state: state,
        evaluate=lambda state: 1.0,
        prune=lambda state: so.prune(*state, 0.5),
        bound=0.0,
        max_rounds=1,
    )
    with pytest.warns(
        UserWarning, match=r"all weights of layers/kernel\[0\]. Use min_"
    ):
        list(rounds)


class Plain(so.LeafStructure):
    pass


@dataclasses.dataclass(frozen=True)
class Forgetful(Neurons):
    def to_masks(self, kept, masks):
        return {"in": masks["in"] & kept["hidden"]}


def test_incomplete_custom_structures_raise():
    with pytest.raises(TypeError, match="as a frozen dataclass does"):
        so.prune_by_magnitude(0.5, structure=Plain())
    params = {"in": jnp.ones((1, 4)), "out": jnp.ones((4, 1))}
    with pytest.raises(ValueError, match=r"no masks for \['out'\]"):
        so.one_shot(params, 0.5, structure=Forgetful())


LAYERS = {name: jnp.ones((40, 10)) for name in ("conv", "a", "b")}
MIXED = {"conv": so.Unstructured(), ".*": so.NM(2, 4)}
TOO_MUCH = r"sparsity must be at most {}, the limit of .*; got {}"


@pytest.mark.parametrize(
    ("sparsity", "structure", "message"),
    [
        (0.9, so.NM(2, 4), TOO_MUCH.format(0.5, r"0\.9")),
        (
            so.cubic_sparsity(0.0, 0.9, 0, 9),
            so.NM(2, 4),
            TOO_MUCH.format(0.5, "a schedule with 0.9 "),
        ),
        (
            0.9,
            {"a": so.NM(2, 4), ".*": so.NM(1, 10)},
            TOO_MUCH.format(r"0\.766667", r"0\.9"),
        ),
        (0.9, MIXED, TOO_MUCH.format(r"0\.666667", r"0\.9")),
        (
            {"conv": 0.9, ".*": so.cubic_sparsity(0.0, 0.6, 0, 9)},
            MIXED,
            "sparsity of a",
        ),
        (optax.linear_schedule(0, 90, 9), so.Unstructured(), r"in \[0, 1\]; .*with 90"),
    ],
)
def test_amounts_that_structures_do_not_allow_raise(sparsity, structure, message):
    with pytest.raises(ValueError, match=message):
        so.prune_to_sparsity(sparsity, structure=structure, every=3).init(LAYERS)


def test_amounts_that_structures_just_allow():
    schedule = so.cubic_sparsity(0.0, 0.3, 0, 9)  # which is above 0.3 in float64
    so.prune_to_sparsity(schedule, structure=so.NM(7, 10), every=3).init(LAYERS)
    so.prune_to_sparsity(2 / 3, structure=MIXED, every=3).init(LAYERS)
    each = {"conv": 0.9, ".*": 0.5}
    so.prune_to_sparsity(each, structure=MIXED, every=3).init(LAYERS)
    with pytest.raises(ValueError, match=r"sparsity of a must be at most 0\.5"):
        so.prune_to_sparsity(
            0.6, structure=MIXED, distribution="uniform", every=3
        ).init(LAYERS)


def test_schedules_that_cannot_be_checked_are_used():
    def init(final):
        return so.prune_to_sparsity(lambda count: final, every=3).init(LAYERS)

    assert jax.jit(init)(0.5).masks["a"].all()
    so.prune_to_sparsity(lambda count: count / 10).init(LAYERS)  # is clamped
    so.prune_by(so.magnitude, lambda count: [0.5, 0.3][int(count)]).init(LAYERS)
    # Its last value is not exact.
    schedule = so.cubic_sparsity(0.0, 1 - 1 / 3, 0, 9)
    so.prune_to_sparsity(schedule, structure=so.NM(1, 3)).init({"w": jnp.ones((9, 2))})
