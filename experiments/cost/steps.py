"""What an update and a pruning step of random matrices cost in isolation."""

from collections.abc import Callable, Sequence
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
CHAIN_NAME = "`chain(add_relevance_decay, adam, prune_by_magnitude)`"
GRADUAL = sparse_optax.prune_to_sparsity(
    # Without any pruning step, which would take as long as many updates.
    sparse_optax.cubic_sparsity(0.0, 0.5, 0, 1_000_000),
    every=1_000_000,
    mask=None,
)
CHAIN_GRADUAL = optax.chain(
    sparse_optax.add_relevance_decay(1e-4, mask=None), optax.adam(1e-3), GRADUAL
)
PRUNING = sparse_optax.prune_by_magnitude(0.1, mask=None)
WHOLE = sparse_optax.relevance_pruning(optax.adam(1e-3), 1e-4, mask=None)
WHOLE_GRADUAL = sparse_optax.hide_pruned(
    optax.chain(sparse_optax.add_relevance_decay(1e-4, mask=None), optax.adam(1e-3)),
    GRADUAL,
)
DECOUPLED = sparse_optax.relevance_pruning(
    optax.adam(1e-3), 1e-4, decoupled=True, mask=None
)
# Several, to measure the time of the accelerator and not of Python.
UPDATES_PER_CALL = 5


def matrices(
    size: int, number: int, dtype: str = "float32", seed: int = 0
) -> list[jax.Array]:
    """Returns matrices with `size` normal numbers in total, or a few less."""
    shape = (max(size // number // 1000, 1), 1000)
    keys = jax.random.split(jax.random.key(seed), number)
    return [jax.random.normal(key, shape, dtype) for key in keys]


def make_update(tx: Any) -> Any:
    """Returns the jitted update of an optimizer, which donates its arguments."""

    def step(params: Any, state: Any, grads: Any, **extra: Any) -> Any:
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def repeated(
    step: Callable[..., Any], number: int, tx: Any, params: Any, *args: Any, **kw: Any
) -> Callable[[], Any]:
    """Returns a function that makes `number` steps, from where its last call ended."""
    now = jax.tree.map(jnp.copy, params), tx.init(params)

    def call() -> Any:
        nonlocal now
        for _ in range(number):
            now = step(*now, *args, **kw)
        return now

    return call


def updates(tx: Any, *args: Any, **extra: Any) -> Callable[[], Any]:
    return repeated(make_update(tx), UPDATES_PER_CALL, tx, *args, **extra)


def temporaries(compiled: jax.stages.Compiled, params: Sequence[Any]) -> float:
    """Returns the bytes per weight of the temporaries of a program."""
    memory = cast(Any, compiled.memory_analysis())
    return memory.temp_size_in_bytes / sum(w.size for w in params)


def measure_update(
    tx: Any, size: int, dtype: str, number: int, turns: int
) -> dict[str, float]:
    """Returns the time of an update, relative to Adam with plain weight decay.

    Also returns the bytes per weight of its reads and writes, and of its temporaries.
    """
    params = matrices(size, number, dtype)
    grads = matrices(size, number, dtype, seed=1)
    functions = {"time": updates(tx, params, grads)}
    times = ratios(functions, updates(PLAIN, params, grads), turns)
    compiled = make_update(tx).lower(params, tx.init(params), params).compile()
    moved = compiled.cost_analysis()["bytes accessed"] / sum(w.size for w in params)
    return times | {"moved": moved, "temporaries": temporaries(compiled, params)}


def measure_possible_pruning(
    tx: Any, gradual: Any, size: int, dtype: str, number: int, turns: int
) -> dict[str, dict[str, float]]:
    """Returns the times of updates that may prune, relative to updates that cannot.

    They prune if a traced flag is True, or after a number of updates. Also returns the
    bytes per weight of their temporaries.
    """
    params = matrices(size, number, dtype)
    grads = matrices(size, number, dtype, seed=1)
    flag = {"prune": jnp.array(False)}
    kinds = {
        "with a traced `prune=False`": (tx, flag),
        "with `prune_to_sparsity`": (gradual, {}),
    }
    functions = {
        name: updates(tx, params, grads, **extra) for name, (tx, extra) in kinds.items()
    }
    times = ratios(functions, updates(tx, params, grads), turns)

    def program(tx: Any, extra: dict[str, Any]) -> jax.stages.Compiled:
        return make_update(tx).lower(params, tx.init(params), params, **extra).compile()

    return {
        name: {"time": times[name], "temporaries": temporaries(program(*kind), params)}
        for name, kind in kinds.items()
    }


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


def network_shapes(number: int) -> list[tuple[int, ...]]:
    """Returns shapes of leaves of a transformer and of a ResNet."""
    block = [
        *[(256, 256), (256,), (256, 1024), (1024, 256), (256,), (256,)],
        *[(3, 3, 64, 64), (64,), (64,), (1, 1, 64, 256)],
    ]
    return (block * (number // len(block) + 1))[:number]


def measure_compilation(number: int) -> dict[str, float]:
    """Returns how many seconds programs for many leaves take to compile."""
    params = [jax.ShapeDtypeStruct(x, jnp.float32) for x in network_shapes(number)]
    plain, capped = (
        sparse_optax.prune_by_magnitude(0.1, mask=None, **caps)
        for caps in ({}, {"min_kept": 1, "max_sparsity": 0.99})
    )
    prune = jax.jit(sparse_optax.prune)
    adam = optax.adam(1e-3)

    def time(function: Any, tx: Any, *args: Any, **extra: Any) -> float:
        state = jax.eval_shape(tx.init, params)
        return seconds(lambda: function.lower(params, state, *args, **extra).compile())

    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    return {
        "`prune`": time(prune, plain, 0.1),
        "`prune` with minimum kept and maximum sparsity": time(prune, capped, 0.1),
        "update with a traced `prune`": time(
            make_update(CHAIN), CHAIN, params, prune=flag
        ),
        "update by `adam`": time(make_update(adam), adam, params),
    }


def measure_rivals(size: int, turns: int) -> dict[str, float]:
    """Returns the times of alternatives, relative to pruning 10 %.

    The alternatives in JAX only find the weights to prune.
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
