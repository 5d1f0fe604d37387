"""What an update costs, of random matrices and with nothing around it."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

import sparse_optax
from experiments.cost.timing import ratios

PLAIN = optax.chain(optax.add_decayed_weights(1e-4), optax.adam(1e-3))
CHAIN = optax.chain(
    sparse_optax.add_relevance_decay(1e-4, mask=None),
    optax.adam(1e-3),
    sparse_optax.prune_by_magnitude(0.1, mask=None),
)
# In a row, so that of an accelerator it is what it takes and not what Python does.
UPDATES_A_CALL = 5


def matrices(
    size: int, number: int, dtype: str = "float32", seed: int = 0
) -> list[jax.Array]:
    """Returns that many matrices, of `size` normal numbers in all or a few less."""
    shape = (max(size // number // 1000, 1), 1000)
    keys = jax.random.split(jax.random.key(seed), number)
    return [jax.random.normal(key, shape, dtype) for key in keys]


def update(tx: Any) -> Any:
    """Returns the update of an optimizer, which overwrites what it is given."""

    def step(params: Any, state: Any, grads: Any, **extra: Any) -> Any:
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def repeated(tx: Any, params: Any, grads: Any, **extra: Any) -> Callable[[], Any]:
    """Returns a function that makes `UPDATES_A_CALL` updates, one after the other."""
    step = update(tx)
    now = jax.tree.map(jnp.copy, params), tx.init(params)

    def call() -> Any:
        nonlocal now
        for _ in range(UPDATES_A_CALL):
            now = step(*now, grads, **extra)
        return now

    return call


def temporaries_of(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes that a program takes beside what it is given and returns."""
    return cast(Any, compiled.memory_analysis()).temp_size_in_bytes


def measure_update(
    tx: Any, size: int, dtype: str, number: int, turns: int, **extra: Any
) -> dict[str, float]:
    """Returns an update's time, to that of plain weight decay, and bytes a weight.

    Those are the bytes that it reads and writes, and those of its temporaries. The
    update is made with the arguments `extra`.
    """
    params = matrices(size, number, dtype)
    grads = matrices(size, number, dtype, seed=1)
    times = ratios(
        {"update": repeated(tx, params, grads, **extra)},
        repeated(PLAIN, params, grads),
        turns,
    )
    compiled = update(tx).lower(params, tx.init(params), params, **extra).compile()
    weights = sum(w.size for w in params)
    return {
        "time": times["update"],
        "moved": compiled.cost_analysis()["bytes accessed"] / weights,
        "temporaries": temporaries_of(compiled) / weights,
    }
