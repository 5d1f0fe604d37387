"""Every row of docs/migration.md runs."""

import pathlib
import re

import jax
import jax.numpy as jnp
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
def test_a_row_runs(code):
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
