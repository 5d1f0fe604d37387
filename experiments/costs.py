"""What an update and a prune cost, of random matrices and with nothing around them."""

import time
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_optax
from experiments.timing import ratios

PLAIN = optax.chain(optax.add_decayed_weights(1e-4), optax.adam(1e-3))
METHODS = {
    "the same again": PLAIN,
    "`chain(add_relevance_decay, adam, prune_by_magnitude)`": optax.chain(
        sparse_optax.add_relevance_decay(1e-4),
        optax.adam(1e-3),
        sparse_optax.prune_by_magnitude(0.1),
    ),
    "`relevance_pruning`": sparse_optax.relevance_pruning(optax.adam(1e-3), 1e-4),
    "`relevance_pruning(decoupled=True)`": sparse_optax.relevance_pruning(
        optax.adam(1e-3), 1e-4, decoupled=True
    ),
}


def matrices(size: int, number: int, seed: int = 0) -> list[jax.Array]:
    """Returns that many matrices, of `size` normal numbers in all or a few less."""
    rng = np.random.default_rng(seed)
    shape = (max(size // number // 1000, 1), 1000)
    return [jnp.asarray(rng.standard_normal(shape, np.float32)) for _ in range(number)]


def update(tx: Any) -> Any:
    """Returns the update of an optimizer, which overwrites what it is given."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def repeated(tx: Any, params: Any, grads: Any) -> Callable[[], Any]:
    """Returns a function that makes one update after the other."""
    step = update(tx)
    now = jax.tree.map(jnp.copy, params), tx.init(params)

    def call() -> Any:
        nonlocal now
        now = step(*now, grads)
        return now

    return call


def memory(tx: Any, params: list[jax.Array]) -> tuple[float, float]:
    """Returns bytes moved and bytes of temporaries of an update, for each weight."""
    compiled = update(tx).lower(params, tx.init(params), params).compile()
    size = sum(w.size for w in params)
    moved = compiled.cost_analysis()["bytes accessed"]
    return moved / size, temporaries_of(compiled) / size


def temporaries_of(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes that a program takes beside what it is given and returns."""
    return cast(Any, compiled.memory_analysis()).temp_size_in_bytes


def measure_updates(size: int, number: int, turns: int) -> dict[str, dict[str, float]]:
    """Returns the time, to that of plain weight decay, and memory of an update."""
    params, grads = matrices(size, number), matrices(size, number, seed=1)
    functions = {name: repeated(tx, params, grads) for name, tx in METHODS.items()}
    times = ratios(functions, repeated(PLAIN, params, grads), turns)
    found = {}
    for name, tx in METHODS.items():
        moved, temporaries = memory(tx, params)
        found[name] = {"time": times[name], "moved": moved, "temporaries": temporaries}
    return found


def measure_prune(size: int, number: int, turns: int) -> dict[str, float]:
    """Returns what a prune takes: in updates of Adam, of a sort, and in memory."""
    params, grads = matrices(size, number), matrices(size, number, seed=1)
    state = sparse_optax.prune_by_magnitude(0.1).init(params)
    sort = jax.jit(
        lambda ws: jnp.sort(jnp.concatenate([jnp.abs(w).ravel() for w in ws]))
    )
    adam = repeated(optax.adam(1e-3), params, grads)

    def prune() -> Any:
        return sparse_optax.prune(params, state, 0.1)

    start = time.perf_counter()
    lowered = jax.jit(lambda p, s, f: sparse_optax.prune(p, s, f)).lower(
        params, state, 0.1
    )
    compiled = lowered.compile()
    compilation = time.perf_counter() - start
    return {
        "adam": ratios({"prune": prune}, adam, turns)["prune"],
        "sort": ratios({"sort": lambda: sort(params)}, prune, max(turns // 20, 1))[
            "sort"
        ],
        "temporaries": temporaries_of(compiled) / sum(w.size for w in params),
        "compilation": compilation,
    }


def measure_growth(sizes: list[int], turns: int) -> dict[int, float]:
    """Returns the time of a prune by size, to that of the first and to the size."""
    found = {}
    first = matrices(sizes[0], 10)
    tx = sparse_optax.prune_by_magnitude(0.1)
    first_state = tx.init(first)
    for size in sizes:
        params = matrices(size, 10)
        state = tx.init(params)
        found[size] = ratios(
            {"prune": lambda p=params, s=state: sparse_optax.prune(p, s, 0.1)},
            lambda: sparse_optax.prune(first, first_state, 0.1),
            turns,
        )["prune"] * (sizes[0] / size)
    return found
