"""What a prune costs, of random matrices: beside updates, sorts and smaller ones."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

import sparse_optax
from experiments.cost import torch_rivals
from experiments.cost.timing import ratios
from experiments.cost.updates import (
    UPDATES_A_CALL,
    matrices,
    repeated,
    temporaries_of,
)

PRUNABLE = sparse_optax.prune_by_magnitude(
    0.1, mask=None
)  # has masks, and nothing else

# Of 30 matrices.
FLOORS = {
    "that hold nothing back": sparse_optax.prune_by_magnitude(
        0.1, min_kept=1, mask=None
    ),
    "that hold half of the matrices back": sparse_optax.prune_by_magnitude(
        0.1, max_sparsity={"[0-9]|1[0-4]": 0.0}, mask=None
    ),
}


def pruned_again(tx: Any, params: Any) -> Callable[[], Any]:
    """Returns a function that prunes, at each call, what the last one has left.

    It overwrites what it is given, as a training loop would: memory that is asked for
    anew takes longer to get than weights take to choose, if there are many.
    """
    prune = jax.jit(sparse_optax.prune, donate_argnums=(0, 1))
    now = jax.tree.map(jnp.copy, params), tx.init(params)

    def call() -> Any:
        nonlocal now
        now = prune(*now, 0.01)
        return now

    return call


def measure_prune(
    tx: Any, size: int, dtype: str, number: int, turns: int
) -> dict[str, float]:
    """Returns the time of a prune, in updates of Adam, and its temporaries a weight."""
    params = matrices(size, number, dtype)
    grads = matrices(size, number, dtype, seed=1)
    adam = repeated(optax.adam(1e-3), params, grads)
    times = ratios({"prune": pruned_again(tx, params)}, adam, turns)
    compiled = jax.jit(sparse_optax.prune).lower(params, tx.init(params), 0.1).compile()
    return {
        "adam": times["prune"] * UPDATES_A_CALL,
        "temporaries": temporaries_of(compiled) / sum(w.size for w in params),
    }


def measure_floors(size: int, turns: int) -> dict[str, float]:
    """Returns the times of prunes with floors, to that of one without, by name."""
    params = matrices(size, 30)
    with_floors = {name: pruned_again(tx, params) for name, tx in FLOORS.items()}
    return ratios(with_floors, pruned_again(PRUNABLE, params), turns)


def measure_compilation(number: int) -> float:
    """Returns the seconds in which a prune of that many small matrices compiles."""
    params = matrices(number * 40_000, number)
    state = PRUNABLE.init(params)
    start = time.perf_counter()
    jax.jit(sparse_optax.prune).lower(params, state, 0.1).compile()
    return time.perf_counter() - start


def measure_rivals(size: int, turns: int) -> dict[str, float]:
    """Returns the times of others, to that of a prune of 10 %, by name.

    Those of JAX only look for the weights to be dropped, and drop none. That of PyTorch
    is there where PyTorch is, and JAX computes on CPU as it does.
    """
    params = matrices(size, 10)
    state = PRUNABLE.init(params)

    def magnitudes(weights: list[jax.Array]) -> jax.Array:
        return jnp.concatenate([jnp.abs(w).ravel() for w in weights])

    sort = jax.jit(lambda weights: jnp.sort(magnitudes(weights)))
    top_k = jax.jit(lambda weights: lax.top_k(-magnitudes(weights), size // 10))
    rivals = {
        "`jnp.sort`": lambda: sort(params),
        "`lax.top_k`": lambda: top_k(params),
    }
    if jax.default_backend() == "cpu" and torch_rivals.has_torch():
        rivals["PyTorch's `global_unstructured`"] = torch_rivals.make_prune(params, 0.1)
    return ratios(
        rivals,
        lambda: sparse_optax.prune(params, state, 0.1),
        turns,
    )
