"""Small networks, and an independent NumPy version of choosing weights."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax

SHAPES = {"dense": {"bias": (4,), "kernel": (6, 6)}}  # 40 weights


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


def exact_share(fraction, n):
    """`float32(fraction) * n` rounded half to even, in exact arithmetic."""
    return round(Fraction(float(np.float32(fraction))) * n)


def numpy_drop(weights, masks, k):
    """`masks` without the k smallest kept weights, by a stable sort in NumPy."""
    leaves, structure = jax.tree.flatten(weights)
    kept = np.concatenate([np.ravel(m) for m in jax.tree.leaves(masks)])
    size = np.concatenate([np.abs(np.ravel(w).astype(np.float64)) for w in leaves])
    order = np.argsort(size, kind="stable")  # NaN is last, as it should be
    order = order[kept[order]]
    kept[order[:k]] = False
    ends = np.cumsum([w.size for w in leaves])[:-1]
    split = np.split(kept, ends)
    return structure.unflatten(
        [m.reshape(w.shape) for m, w in zip(split, leaves, strict=True)]
    )


def num_kept(masks):
    return sum(int(np.count_nonzero(mask)) for mask in jax.tree.leaves(masks))


def num_nonzero(params):
    return num_kept(jax.tree.map(lambda w: np.asarray(w) != 0, params))


def find_states(opt_state, kind):
    """All states of one class, wherever they are."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]
