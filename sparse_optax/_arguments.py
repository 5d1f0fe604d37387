"""Checks of the arguments of public functions, and their values.

Only known values can be checked: a traced number has no value yet, and under
`optax.inject_hyperparams` every number of a transformation becomes an array, traced or
not. Such numbers are clamped where they are used.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

ScalarOrSchedule = float | jax.Array | optax.Schedule


def check_number(
    name: str,
    value: Any,
    *,
    low: float = 0.0,
    high: float = math.inf,
    open_low: bool = False,
    finite: bool = True,
    schedule: bool = True,
) -> None:
    """Raises unless `value` is a number in range, an array or an allowed schedule.

    The range is [low, high], or (low, high] with `open_low`.
    """
    is_array = isinstance(value, jax.Array | np.ndarray) and value.ndim == 0
    if is_array and (
        jnp.issubdtype(value.dtype, jnp.integer)
        or jnp.issubdtype(value.dtype, jnp.floating)
    ):
        if schedule or isinstance(value, Tracer):
            return
        value = value.item()
    if schedule and callable(value):
        return
    kinds = "a number or a schedule" if schedule else "a number"
    real = int | float | np.integer | np.floating
    if isinstance(value, bool) or not isinstance(value, real):
        raise TypeError(f"{name} must be {kinds}; got {value!r}.")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf if value > 0 else -math.inf
    inside = low < number <= high if open_low else low <= number <= high
    if not inside or (finite and math.isinf(number)):
        end = ")" if finite and math.isinf(high) else "]"
        wanted = f"in {'(' if open_low else '['}{low:g}, {high:g}{end}"
        raise ValueError(f"{name} must be {wanted}; got {value!r}.")


def check_integer(
    name: str, value: Any, low: int | None = None, high: int | None = None
) -> None:
    """Raises unless `value` is an integer, from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer; got {value!r}.")
    if low is not None and value < low:
        raise ValueError(f"{name} must be at least {low}; got {value!r}.")
    if high is not None and value > high:
        raise ValueError(f"{name} must be at most {high}; got {value!r}.")


def check_callable(name: str, value: Any) -> None:
    """Raises unless `value` can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable; got {value!r}.")


def check_key(name: str, value: Any) -> None:
    """Raises unless `value` is a key of `jax.random`, typed or raw."""
    dtype = getattr(value, "dtype", np.dtype(object))
    if not (dtype == np.uint32 or jnp.issubdtype(dtype, jax.dtypes.prng_key)):
        raise TypeError(f"{name} must be a key of jax.random; got {value!r}.")


def check_params(params: Any) -> None:
    """Raises if `update` was called without params."""
    if params is None:
        raise ValueError(
            "You are using a transformation that requires the current value of "
            "parameters, but you are not passing `params` when calling `update`: got "
            "params=None."
        )


def check_state(state: Any, kind: type) -> None:
    """Raises unless `update` was called with a state of the class from `init`."""
    if not isinstance(state, kind):
        raise TypeError(
            f"state must be the {kind.__name__} that init returns; got a "
            f"{type(state).__name__}. A state that was restored as plain dicts and "
            "lists has lost its types: restore it into tx.init(params)."
        )


def as_flag(prune: Any) -> bool | jax.Array:
    """The extra argument `prune`: a Python boolean if known, else a traced one."""
    if prune is None:
        return False
    if isinstance(prune, bool):
        return prune
    arrays = jax.Array | np.ndarray | np.bool_
    if not isinstance(prune, arrays) or prune.dtype != np.bool_:
        raise TypeError(f"prune must be a boolean; got {prune!r}.")
    if prune.shape:
        raise ValueError(f"prune must be a scalar; got shape {prune.shape}.")
    return prune if isinstance(prune, Tracer) else bool(prune)


def value_at(name: str, value: ScalarOrSchedule, count: jax.Array) -> jax.Array:
    """A number, or a schedule's value at `count`, as a `float32` scalar."""
    result = jnp.asarray(value(count) if callable(value) else value, jnp.float32)
    if result.shape:
        raise ValueError(f"{name} must be a scalar; got {result}.")
    return result
