"""Small networks, every transformation, and choosing weights independently in NumPy."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparse_optax

SHAPES = {"dense": {"bias": (4,), "kernel": (6, 6)}}  # 40 weights

# Every transformation, with given arguments.
TRANSFORMATIONS = {
    "add_relevance_decay": lambda **k: sparse_optax.add_relevance_decay(0.1, **k),
    "prune_by_magnitude": lambda **k: sparse_optax.prune_by_magnitude(0.5, **k),
    "prune_to_sparsity": lambda **k: sparse_optax.prune_to_sparsity(0.5, **k),
    "relevance_pruning": lambda **k: sparse_optax.relevance_pruning(
        **{"optimizer": optax.sgd(0.1), "strength": 0.1, "fraction": 0.5} | k
    ),
}
PRUNING = [name for name in TRANSFORMATIONS if name != "add_relevance_decay"]


def random_tree(seed, dtype=jnp.float32, shapes=None):
    """A tree of normal numbers, the same on every run."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
        SHAPES if shapes is None else shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def make_step(tx):
    """One training step as everyone writes it."""

    def step(params, state, grads, **extra_args):
        updates, state = tx.update(grads, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    return step


def make_chain(
    optimizer, strength=0.01, scale=0.1, fraction=0.3, distribution="global"
):
    """Decay, an optimizer and pruning, of all leaves."""
    return optax.chain(
        sparse_optax.add_relevance_decay(strength, scale, mask=None),
        optimizer,
        sparse_optax.prune_by_magnitude(fraction, distribution=distribution, mask=None),
    )


def make_whole(optimizer, strength=0.01, scale=0.1, fraction=0.3, **options):
    """The same as one transformation."""
    return sparse_optax.relevance_pruning(
        optimizer, strength, scale, fraction, mask=None, **options
    )


def mesh_of(kind):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))


def on_host(tree):
    return jax.tree.map(np.asarray, tree)


def exact_share(fraction, n):
    """`float32(fraction) * n` rounded half to even, in exact arithmetic."""
    return round(Fraction(float(np.float32(fraction))) * n)


def numpy_drop(weights, masks, k):
    """`masks` without the k smallest kept weights, by a stable sort in NumPy.

    Zeros of either sign are equal; NaNs are, too, and larger than infinities.
    """
    leaves, structure = jax.tree.flatten(weights)
    kept = np.concatenate([np.ravel(m) for m in jax.tree.leaves(masks)])
    size = np.concatenate([np.abs(np.ravel(w).astype(np.float64)) for w in leaves])
    order = np.argsort(size, kind="stable")  # which puts NaNs last
    order = order[kept[order]]
    kept[order[:k]] = False
    ends = np.cumsum([np.size(w) for w in leaves])[:-1]
    split = np.split(kept, ends)
    return structure.unflatten(
        [m.reshape(np.shape(w)) for m, w in zip(split, leaves, strict=True)]
    )


def num_kept(masks):
    return sum(int(np.count_nonzero(mask)) for mask in jax.tree.leaves(masks))


def num_nonzero(params):
    return num_kept(jax.tree.map(lambda w: np.asarray(w) != 0, params))


def find_states(opt_state, kind):
    """All states of one class, wherever they are."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def first_unmarked(*cases, quick=1):
    """Cases for `parametrize`: after the first `quick`, marked as `every_case`."""
    rest = [case if isinstance(case, tuple) else (case,) for case in cases[quick:]]
    return [
        *cases[:quick],
        *(pytest.param(*case, marks=pytest.mark.every_case) for case in rest),
    ]
