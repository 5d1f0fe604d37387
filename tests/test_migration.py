"""Every row of docs/migration.md runs."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparse_optax as so

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "migration.md"


def rows():
    """The code of the second column of every row, with what it stands for."""
    for line in PAGE.read_text().splitlines():
        cells = line.split(" | ")
        if len(cells) == 2 and not line.startswith(("| ---", "| jaxpruner", "| Py")):
            name = cells[0].strip("| ")
            for code in re.findall(r"`(so\.[^`]+\))`", cells[1]):
                yield pytest.param(code, id=f"{name}: {code}")


def names():
    """What the page says that there is."""
    params = {
        "conv": {"kernel": jax.random.normal(jax.random.key(1), (4, 4, 4, 8))},
        "output": {"kernel": jax.random.normal(jax.random.key(2), (8, 8))},
    }
    tx = so.hide_pruned(optax.adam(1e-3), so.prune_by_magnitude(0.1))
    opt_state = tx.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    _, opt_state = tx.update(grads, opt_state, params)
    masks, scores = so.get_masks(opt_state), jax.tree.map(jnp.abs, params)
    key = jax.random.key(0)
    return {**globals(), **locals()}


@pytest.mark.slow
@pytest.mark.parametrize("code", list(rows()))
def test_migration_rows_run(code):
    given = names()
    made = eval(code, given)
    if not isinstance(made, optax.GradientTransformation):
        return
    params, grads = given["params"], given["grads"]
    state = made.init(params)
    extra = {} if "sparse_training" in code else {"prune": True, "grad": grads}
    updates, state = made.update(grads, state, params, **extra)
    masks = so.get_masks(state)
    new = optax.apply_updates(so.apply_masks(params, masks), updates)
    so.check_sparsity(so.apply_masks(new, masks), state)


def test_there_are_rows():
    assert len(list(rows())) > 50


# What jaxpruner's tests of masks and distributions cover, with values by hand. Two
# things differ: of equal scores jaxpruner keeps the first, and it pads what blocks do
# not divide.

SCORES = jnp.array([[5.0, 1, 8, 2], [7, 3, 4, 9], [6, 0, 3, 2], [1, 1, 9, 8]])


@pytest.mark.parametrize(
    ("structure", "amount", "kept"),
    [
        # Eight of sixteen: 0 to 3, of which the last 3 is the eighth.
        (so.Unstructured(), 0.5, ["1010", "1011", "1000", "0011"]),
        (so.NM(2, 4, axis=-1), None, ["1010", "1001", "1010", "0011"]),
        (so.NM(2, 4, axis=0), None, ["0010", "1101", "1000", "0111"]),
        # Sums of columns are 19, 5, 24 and 21.
        (so.Channel(axis=-1), 0.5, ["0011"] * 4),
        # Means of rows are 4, 5.75, 2.75 and 4.75.
        (so.Channel(axis=0), 0.25, ["1111", "1111", "0000", "1111"]),
        # Means are 4 and 5.75; 2 and 5.5. Maxima are 7 and 9; 6 and 9.
        (so.Block((2, 2)), 0.5, ["0011", "0011", "0011", "0011"]),
        (so.Block((2, 2), pool="max"), 0.25, ["1111", "1111", "0011", "0011"]),
        (so.Block((1, 2)), 0.25, ["1111", "1111", "1100", "0011"]),
    ],
    ids=str,
)
def test_masks_by_hand(structure, amount, kept):
    def prune(params):
        return so.one_shot(params, amount, scores=SCORES, structure=structure)[1]

    wanted = np.array([[c == "1" for c in row] for row in kept])
    for fn in (prune, jax.jit(prune)):
        np.testing.assert_array_equal(fn(jnp.ones((4, 4))), wanted)


def test_equal_scores_by_hand():
    ones = jnp.ones((8,))
    for structure, kept in (
        (so.Unstructured(), [0, 0, 0, 0, 1, 1, 1, 1]),
        (so.NM(2, 4, axis=0), [0, 0, 1, 1, 0, 0, 1, 1]),
    ):
        _, masks = so.one_shot(ones, 0.5, structure=structure, mask=None)
        np.testing.assert_array_equal(masks, np.array(kept, bool))


SMALL = {"a": (2, 4), "b": (3, 6), "c": (2, 4, 6)}
UNIFORM, ERK = {"distribution": "uniform"}, {"distribution": "erk"}
LARGER = {"a": (2, 4), "c": (3, 6, 7), "d": (7, 4)}


@pytest.mark.parametrize(
    ("shapes", "options", "kept"),
    [
        (
            SMALL,
            {"distribution": "uniform", "sparsity": 0.5},
            {"a": 4, "b": 9, "c": 24},
        ),
        (LARGER, {"sparsity": {"d": 0.1, ".*": 0.5}}, {"a": 4, "c": 63, "d": 25}),
        # Densities are s * 6/8, s * 9/18 and s * 12/48. Of 74 weights 37 are kept: s
        # would be 37/27, and "a" more than dense. Without it s is 29/21.
        (SMALL, ERK | {"sparsity": 0.5}, {"a": 8, "b": 12, "c": 17}),
        # 15 of 74 are kept: s is 15/27.
        (SMALL, ERK | {"sparsity": 0.8}, {"a": 3, "b": 5, "c": 7}),
        # 81 of 162 are kept. "a" is dense, then "d", and 45 are left for "c".
        (LARGER, ERK | {"sparsity": 0.5}, {"a": 8, "c": 45, "d": 28}),
    ],
)
def test_distributions_by_hand(shapes, options, kept):
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    _, masks = so.one_shot(params, **options)
    assert jax.tree.map(lambda mask: int(mask.sum()), masks) == kept
