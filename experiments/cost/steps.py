"""What an update and a pruning step of random matrices cost, with nothing around."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

import sparse_optax
from experiments.cost import torch_rivals
from experiments.cost.measurement import ratios, seconds

PLAIN = optax.chain(optax.add_decayed_weights(1e-4), optax.adam(1e-3))
CHAIN = optax.chain(
    sparse_optax.add_relevance_decay(1e-4, mask=None),
    optax.adam(1e-3),
    sparse_optax.prune_by_magnitude(0.1, mask=None),
)
PRUNING = sparse_optax.prune_by_magnitude(0.1, mask=None)
WHOLE = sparse_optax.relevance_pruning(optax.adam(1e-3), 1e-4, mask=None)
DECOUPLED = sparse_optax.relevance_pruning(
    optax.adam(1e-3), 1e-4, decoupled=True, mask=None
)
# Several, so that the time is that of an accelerator and not of Python.
UPDATES_PER_CALL = 5


def matrices(
    size: int, number: int, dtype: str = "float32", seed: int = 0
) -> list[jax.Array]:
    """Returns matrices with `size` normal numbers in all, or a few less."""
    shape = (max(size // number // 1000, 1), 1000)
    keys = jax.random.split(jax.random.key(seed), number)
    return [jax.random.normal(key, shape, dtype) for key in keys]


def make_update(tx: Any) -> Any:
    """Returns the update of an optimizer, which overwrites its arguments."""

    def step(params: Any, state: Any, grads: Any, **extra: Any) -> Any:
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def repeated(
    step: Callable[..., Any], number: int, tx: Any, params: Any, *args: Any, **kw: Any
) -> Callable[[], Any]:
    """Returns a function that makes some steps from where its last call ended."""
    now = jax.tree.map(jnp.copy, params), tx.init(params)

    def call() -> Any:
        nonlocal now
        for _ in range(number):
            now = step(*now, *args, **kw)
        return now

    return call


def updates(tx: Any, *args: Any, **extra: Any) -> Callable[[], Any]:
    return repeated(make_update(tx), UPDATES_PER_CALL, tx, *args, **extra)


def temporaries(compiled: jax.stages.Compiled, params: list[jax.Array]) -> float:
    """Returns the bytes per weight of the temporaries of a program."""
    memory = cast(Any, compiled.memory_analysis())
    return memory.temp_size_in_bytes / sum(w.size for w in params)


def measure_update(
    tx: Any, size: int, dtype: str, number: int, turns: int, **extra: Any
) -> dict[str, float]:
    """Returns the time of an update, relative to plain weight decay.

    Also the bytes per weight that it reads and writes, and those of its temporaries.
    """
    params = matrices(size, number, dtype)
    grads = matrices(size, number, dtype, seed=1)
    functions = {"time": updates(tx, params, grads, **extra)}
    times = ratios(functions, updates(PLAIN, params, grads), turns)
    lowered = make_update(tx).lower(params, tx.init(params), params, **extra)
    compiled = lowered.compile()
    moved = compiled.cost_analysis()["bytes accessed"] / sum(w.size for w in params)
    return times | {"moved": moved, "temporaries": temporaries(compiled, params)}


def measure_prune(
    tx: Any, size: int, dtype: str, number: int, turns: int
) -> dict[str, float]:
    """Returns the time of a pruning step in updates of Adam, and its temporaries."""
    params = matrices(size, number, dtype)
    adam = updates(optax.adam(1e-3), params, matrices(size, number, dtype, seed=1))
    prune = jax.jit(sparse_optax.prune, donate_argnums=(0, 1))
    functions = {"prune": repeated(prune, 1, tx, params, 0.01)}
    times = ratios(functions, adam, turns)
    compiled = jax.jit(sparse_optax.prune).lower(params, tx.init(params), 0.1).compile()
    return {
        "adam": times["prune"] * UPDATES_PER_CALL,
        "temporaries": temporaries(compiled, params),
    }


def measure_compilation(number: int) -> float:
    """Returns the seconds that a pruning step of small matrices takes to compile."""
    params = matrices(number * 40_000, number)
    state = PRUNING.init(params)
    prune = jax.jit(sparse_optax.prune)
    return seconds(lambda: prune.lower(params, state, 0.1).compile())


def measure_rivals(size: int, turns: int) -> dict[str, float]:
    """Returns the times of alternatives, relative to pruning 10 %.

    Those of JAX only find the weights to prune.
    """
    params = matrices(size, 10)
    state = PRUNING.init(params)

    def magnitudes(weights: list[jax.Array]) -> jax.Array:
        return jnp.concatenate([jnp.abs(w).ravel() for w in weights])

    sort = jax.jit(lambda weights: jnp.sort(magnitudes(weights)))
    top_k = jax.jit(lambda weights: lax.top_k(-magnitudes(weights), size // 10))
    rivals = {"`jnp.sort`": lambda: sort(params), "`lax.top_k`": lambda: top_k(params)}
    if torch_rivals.comparable():
        rivals["PyTorch's `global_unstructured`"] = torch_rivals.make_prune(params, 0.1)
    return ratios(rivals, lambda: sparse_optax.prune(params, state, 0.1), turns)
