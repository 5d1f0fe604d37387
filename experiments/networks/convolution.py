"""A convolution that is fast on every backend, also inside of a loop."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

CHUNK = 16  # images; XLA is slow where a kernel's gradient sums over more of them


def make_conv(
    channels: int, features: int, size: int, rngs: nnx.Rngs, **settings: Any
) -> nnx.Conv:
    return nnx.Conv(
        channels,
        features,
        (size, size),
        padding="VALID",
        conv_general_dilated=conv,
        rngs=rngs,
        **settings,
    )


def conv(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str,
    *,
    precision: lax.PrecisionLike = None,
    **unused: Any,
) -> jax.Array:
    """Convolves `inputs`, `[B, H, W, C]`, with `kernel`, `[h, w, C, D]`, unpadded.

    A `conv_general_dilated` for `nnx.Conv`. On CPU, XLA is fast at convolutions in this
    form. In `lax.scan`, it is some ten times slower at the forms into which JAX
    transposes them, and it is slow at batches of kernels. So gradients on CPU are
    convolutions in this form too (forward-mode derivatives raise), and `jax.vmap`
    computes one convolution after the other.
    """
    del unused
    assert padding == "VALID"
    default = functools.partial(_conv, tuple(strides), precision)
    cpu = functools.partial(_conv_on_cpu, tuple(strides), precision)
    return lax.platform_dependent(inputs, kernel, cpu=cpu, default=default)


def _conv(
    strides: tuple[int, ...],
    precision: lax.PrecisionLike,
    inputs: jax.Array,
    kernel: jax.Array,
) -> jax.Array:
    return lax.conv_general_dilated(
        inputs,
        kernel,
        strides,
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv_on_cpu(strides, precision, inputs, kernel):
    conv = functools.partial(_conv, strides, precision)
    return jax.custom_batching.sequential_vmap(conv)(inputs, kernel)


def _forward(strides, precision, inputs, kernel):
    return _conv_on_cpu(strides, precision, inputs, kernel), (inputs, kernel)


def _backward(strides, precision, arrays, grads):
    """Returns the gradients of inputs and kernel; `grads` are those of the outputs."""
    inputs, kernel = arrays
    convolve = functools.partial(_conv_on_cpu, (1, 1), precision)
    # Those of the outputs without strides: zeros where the window does not stand.
    height, width = kernel.shape[:2]
    (rows, columns), (down, right) = grads.shape[1:3], strides
    below = inputs.shape[1] - height - (rows - 1) * down
    beside = inputs.shape[2] - width - (columns - 1) * right
    gaps = [(0, 0, 0), (0, below, down - 1), (0, beside, right - 1), (0, 0, 0)]
    grads = lax.pad(grads, jnp.zeros([], grads.dtype), gaps)

    edges = [(0, 0), (height - 1, height - 1), (width - 1, width - 1), (0, 0)]
    reverse = kernel[::-1, ::-1].swapaxes(2, 3)
    input_grads = convolve(jnp.pad(grads, edges), reverse)

    def of_chunk(chunk):
        inputs, grads = chunk
        return convolve(inputs.transpose(3, 1, 2, 0), grads.transpose(1, 2, 0, 3))

    kernel_grads = lax.map(of_chunk, (_chunks(inputs), _chunks(grads))).sum(0)
    return input_grads, kernel_grads.transpose(1, 2, 0, 3)


def _chunks(x):
    """Divides a batch into chunks, the last of which ends with zeros."""
    batch = x.shape[0]
    if not isinstance(batch, int):  # a symbol of `jax.export`
        return x[None]
    size = min(batch, CHUNK)
    padded = jnp.pad(x, [(0, -batch % size), (0, 0), (0, 0), (0, 0)])
    return padded.reshape(-1, size, *x.shape[1:])


_conv_on_cpu.defvjp(_forward, _backward)
