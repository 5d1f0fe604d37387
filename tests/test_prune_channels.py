"""Whole units pruned, by groups as structure: every way to prune, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from channel_networks import NETWORKS, quickly_compiled
from helpers import first_unmarked, mesh_of, on_host, random_tree
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import sparse_optax as so

SHAPES = {"w1": (4, 8), "b": (8,), "g": (8,), "w2": (8, 4), "w3": (4, 2)}
PARAMS, GRADS = (random_tree(seed, shapes=SHAPES) for seed in range(2))


def network(p, x):
    x = jax.nn.relu(x @ p["w1"] + p["b"]) * p["g"]
    return jax.nn.relu(x @ p["w2"]) @ p["w3"]


GROUPS = so.channel_groups(network, PARAMS, jnp.ones((1, 4)))
UNITS = {  # the axes of leaves, in each hidden group
    "w1:1": {"w1": 1, "b": 0, "g": 0, "w2": 0},
    "w2:1": {"w2": 1, "w3": 0},
}


def slices(group):
    """For each unit of a group, the leaves and the indices of its weights."""
    for i in range(SHAPES[group.split(":")[0]][-1]):
        axes = UNITS[group].items()
        yield [(name, (slice(None),) * axis + (i,)) for name, axis in axes]


def by_hand(k, groups=tuple(UNITS), masks=None, scores=PARAMS):
    """Masks without the k units whose kept weights have the least mean square."""
    masks = masks or {name: np.ones(shape, bool) for name, shape in SHAPES.items()}
    ranking = []
    for unit in (unit for group in groups for unit in slices(group)):
        kept = np.concatenate([masks[name][where].ravel() for name, where in unit])
        x = np.concatenate([np.ravel(scores[name][where]) for name, where in unit])
        if kept.any():
            ranking.append((np.sqrt(np.mean(x[kept] ** 2)), unit))
    masks = {name: mask.copy() for name, mask in masks.items()}
    for _, unit in sorted(ranking, key=lambda x: x[0])[:k]:
        for name, where in unit:
            masks[name][where] = False
    return masks


def assert_equal(masks, expected):
    for name in SHAPES:
        np.testing.assert_array_equal(masks[name], expected[name], err_msg=name)


def one_shot(params, *args, **options):
    return quickly_compiled(lambda p: so.one_shot(p, *args, **options))(params)


def by_one_shot(**options):
    return one_shot(PARAMS, 0.4, **options)[1]


@quickly_compiled
def pruned(params, state):
    return so.prune(params, state, 0.4)


def by_prune(**options):
    state = so.prune_by_magnitude(**options).init(PARAMS)
    return so.get_masks(pruned(PARAMS, state)[1])


def by_rounds(**options):
    *_, last = so.iterative_pruning(
        (PARAMS, so.prune_by_magnitude(**options).init(PARAMS)),
        train=lambda state: state,
        evaluate=lambda state: 1.0,
        prune=lambda state: pruned(*state),
        bound=0.0,
        max_rounds=1,
    )
    return so.get_masks(last.state.current[1])


def by_update(tx, **extra_args):
    @quickly_compiled
    def run(params, grads):
        updates, state = tx.update(grads, tx.init(params), params, **extra_args)
        return optax.apply_updates(params, updates), so.get_masks(state)

    params, masks = run(PARAMS, GRADS)
    for name, mask in masks.items():
        assert not np.any(params[name][~mask])
    return masks


def by_chain(**options):
    tx = optax.chain(optax.sgd(0.0), so.prune_by(so.magnitude, 0.4, **options))
    return by_update(tx, prune=True)


def by_wrapper(**options):
    tx = so.hide_pruned(optax.adam(0.1), so.prune_by(so.magnitude, 0.4, **options))
    return by_update(tx, prune=jnp.array(True))


def by_schedule(**options):
    return by_update(so.prune_to_sparsity(optax.constant_schedule(0.4), **options))


def by_relevance(**options):
    tx = so.relevance_pruning(optax.adam(0.1), 0.1, fraction=0.4, **options)
    return by_update(tx, prune=True)


WAYS = [by_one_shot, by_prune, by_chain, by_wrapper, by_schedule, by_rounds]
WAYS += [by_relevance]


@pytest.mark.parametrize("way", WAYS)
def test_the_units_of_least_mean_square_are_removed(way):
    assert_equal(way(structure=GROUPS), by_hand(5))  # round(0.4 * 12) of both groups


def test_masks_are_the_same_without_jit():
    groups = GROUPS.drop("w1:1")
    masks = so.one_shot(PARAMS, 0.4, structure=groups)[1]
    jax.tree.map(np.testing.assert_array_equal, masks, by_one_shot(structure=groups))


def test_units_rank_by_their_remaining_weights():
    state = so.prune_by_magnitude(structure=GROUPS).init(PARAMS)
    params, masks = PARAMS, None
    for k in (5, 3, 2, 1):  # round(0.4 * 12), round(0.4 * 7) and so on
        params, state = pruned(params, state)
        masks = by_hand(k, masks=masks)
        assert_equal(state.masks, masks)


@pytest.mark.parametrize("group", UNITS)
def test_masks_name_groups(group):
    masks = by_one_shot(structure=GROUPS, mask={group: True})
    expected = by_hand(3 if group == "w1:1" else 2, groups=[group])
    for name, mask in masks.items():
        if name in UNITS[group]:
            np.testing.assert_array_equal(mask, expected[name])
        else:
            assert isinstance(mask, optax.MaskedNode)


def num_units(masks):
    """How many units of each group have a weight left."""
    masks = on_host(masks)
    return {
        group: sum(any(np.any(masks[n][i]) for n, i in unit) for unit in slices(group))
        for group in UNITS
    }


AMOUNTS = [  # arguments, and how many units of the groups are left
    ({"count": {"w1:1": 3, "w2:1": 2}}, (5, 2)),
    ({"sparsity": {"w1.*": 0.5, ".*": 0.25}, "distribution": "uniform"}, (4, 3)),
    ({"sparsity": 1.0, "min_kept": {"w1:1": 6, "w2:1": 1}}, (6, 1)),
    ({"sparsity": 1.0, "max_sparsity": {"w1:1": 0.25}, "min_kept": 2}, (6, 2)),
]


@pytest.mark.parametrize(("options", "left"), AMOUNTS, ids=lambda x: str(x)[:30])
def test_amounts_and_caps_name_groups(options, left):
    masks = one_shot(PARAMS, structure=GROUPS, **options)[1]
    assert tuple(num_units(masks).values()) == left


def test_caps_name_groups_that_are_there():
    with pytest.raises(ValueError, match=r"min_kept .*'w1:0'"):
        so.prune_by_magnitude(structure=GROUPS, min_kept={"w1:0": 2}).init(PARAMS)


def test_saliency_of_units():
    pruning = so.prune_by(so.saliency, count=5, structure=GROUPS)
    masks = by_update(so.hide_pruned(optax.sgd(0.0), pruning), prune=True)
    products = {name: PARAMS[name] * GRADS[name] for name in SHAPES}
    assert_equal(masks, by_hand(5, scores=products))


SPECS = {
    "w1": P("data", "model"),
    "b": P(("data", "model")),
    "g": P("model"),
    "w2": P("model", "data"),
    "w3": P("data", None),
}


@pytest.mark.parametrize("kind", first_unmarked(AxisType.Explicit, AxisType.Auto))
def test_units_that_extend_over_devices(kind):
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        params = {
            name: jax.device_put(w, NamedSharding(mesh, SPECS[name]))
            for name, w in PARAMS.items()
        }
        _, masks = one_shot(params, 0.4, structure=GROUPS)
    assert_equal(on_host(masks), by_hand(5))


def test_reports_count_units():
    groups = GROUPS.select({"w2:1": True})
    params, masks = one_shot(PARAMS, 0.4, structure=groups)
    report = so.sparsity_report(params, masks, structure=groups)
    assert report.units == {"w2:1": (2, 4)}


def test_compact_leaves_the_units_that_were_kept():
    params, masks = one_shot(PARAMS, 0.4, structure=GROUPS)
    compacted = so.compact(network, params, jnp.ones((2, 4)))
    n, m = num_units(masks).values()
    assert jax.tree.map(jnp.shape, compacted.params) == {
        "w1": (4, n), "b": (n,), "g": (n,), "w2": (n, m), "w3": (m, 2)
    }  # fmt: skip
    assert compacted.not_removed == ()


def test_heads_and_their_dimensions():
    net = NETWORKS["flat attention"]
    params, x = net.params(), net.inputs()
    groups = so.channel_groups(net.fn, params, x)
    count = {r"k:1\[0\+1x2x4\]": 1, r"k:1\[0\+2x4x1\]": 2, r"v:.*": 1}
    params, masks = one_shot(params, count=count, structure=groups)
    assert sorted(np.any(masks["q"], 0).reshape(2, 4).sum(1)) == [0, 2]
    shapes = jax.tree.map(jnp.shape, so.compact(net.fn, params, x).params)
    assert shapes == {"q": (8, 2), "k": (8, 2), "v": (8, 2), "o": (2, 5)}


def test_relevance_decay_of_units():
    strength, scale = 0.05, 0.3
    tx = so.add_relevance_decay(strength, scale, structure=GROUPS)
    updates, _ = quickly_compiled(tx.update)(GRADS, tx.init(PARAMS), PARAMS)
    expected = {name: np.array(g, np.float64) for name, g in GRADS.items()}
    for unit in (unit for group in UNITS for unit in slices(group)):
        g = np.concatenate([np.ravel(GRADS[name][where]) for name, where in unit])
        factor = 2 * strength * np.exp(-np.mean(np.abs(g)) / scale)
        for name, where in unit:  # weights of w2 decay twice
            expected[name][where] += factor * np.asarray(PARAMS[name])[where]
    for name in SHAPES:
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("decoupled", [False, True])
def test_relevance_pruning_shrinks_units(decoupled):
    tx = so.relevance_pruning(
        optax.sgd(1.0), 0.05, 0.3, structure=GROUPS, decoupled=decoupled
    )
    decay = so.add_relevance_decay(0.05, 0.3, structure=GROUPS)
    decay = optax.chain(decay, optax.sgd(1.0))
    updates, expected = (
        quickly_compiled(t.update)(GRADS, t.init(PARAMS), PARAMS)[0]
        for t in (tx, decay)
    )
    for name in SHAPES:
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-6, atol=1e-7)


def test_group_lasso():
    params = PARAMS | {
        "w1": PARAMS["w1"].at[:, 2].set(0),
        "b": PARAMS["b"].at[2].set(0),
    }
    params |= {"g": params["g"].at[2].set(0), "w2": params["w2"].at[2].set(0)}
    tx = so.add_l1_decay(0.5, structure=GROUPS)
    updates, _ = quickly_compiled(tx.update)(GRADS, tx.init(params), params)
    expected = {name: np.array(g, np.float64) for name, g in GRADS.items()}
    for unit in (unit for group in UNITS for unit in slices(group)):
        w = np.concatenate([np.ravel(params[name][where]) for name, where in unit])
        for name, where in unit:
            norm = np.linalg.norm(w) or np.inf  # no weight left: no direction
            expected[name][where] += 0.5 * np.asarray(params[name])[where] / norm
    for name in SHAPES:
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-5, atol=1e-7)


DECAYS = [
    lambda **k: so.add_relevance_decay(0.1, **k),
    lambda **k: so.add_l1_decay(0.1, **k),
]


@pytest.mark.parametrize("make", DECAYS, ids=["relevance", "l1"])
def test_decays_of_selected_groups(make):
    tx = make(structure=GROUPS, mask={"w2:1": True})
    updates, _ = quickly_compiled(tx.update)(GRADS, tx.init(PARAMS), PARAMS)
    changed = {name for name in SHAPES if np.any(updates[name] != GRADS[name])}
    assert changed == {"w2", "w3"}
    with pytest.raises(ValueError, match="mask has 'w1', which matches no group of"):
        make(structure=GROUPS, mask={"w1": True})


@pytest.mark.parametrize("make", DECAYS, ids=["relevance", "l1"])
def test_decays_need_groups(make):
    for structure in (so.Channel(), so.NM(2, 4), {".*": GROUPS}):
        with pytest.raises(TypeError, match="structure must be groups of units"):
            make(structure=structure)


def test_groups_for_other_params_raise():
    params = PARAMS | {"b": jnp.ones(7)}
    message = r"structure has groups for b of shape \(8,\), which has \(7,\) here"
    with pytest.raises(ValueError, match=message):
        so.prune_by_magnitude(structure=GROUPS).init(params)
    params = {name: w for name, w in PARAMS.items() if name != "w3"}
    with pytest.raises(ValueError, match="w3"):
        so.prune_by_magnitude(structure=GROUPS).init(params)
    for make in DECAYS:
        tx = make(structure=GROUPS)
        with pytest.raises(
            ValueError, match=r"b of shape \(8,\), which has \(7,\) here"
        ):
            other = PARAMS | {"b": jnp.ones(7)}
            tx.update(other, tx.init(other), other)


def test_masks_that_do_not_select_groups_raise():
    def prune(mask, params=PARAMS, structure=GROUPS):
        tx = so.prune_by(so.magnitude, 0.5, structure=structure, mask=mask)
        return tx.init(params)

    for mask in ("typo", PARAMS, {"w1:1": 1}, lambda p: p):
        with pytest.raises(TypeError, match="mask must be a dict from regular"):
            prune(mask)
    with pytest.raises(ValueError, match=r"mask has '\(', which is not a regular"):
        prune({"(": True})
    with pytest.raises(
        ValueError, match=r"groups for b of shape \(8,\), which does not exist"
    ):
        prune("matrices", {"w1": PARAMS["w1"]})
    with pytest.raises(KeyError, match=r"no leaf 'nope'; there are \['b', 'g', 'w1'"):
        GROUPS.freeze("nope", 0)


def test_a_decay_of_units_beside_leaves_that_are_masked():
    params = PARAMS | {"other": jnp.ones(3)}
    decay = optax.masked(
        so.add_l1_decay(0.1, structure=GROUPS),
        {name: name != "other" for name in params},
    )
    updates, _ = decay.update(params, decay.init(params), params)
    np.testing.assert_array_equal(updates["other"], params["other"])
    assert not np.array_equal(updates["w1"], params["w1"])
