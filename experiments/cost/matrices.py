"""LeNets as products with matrices of every kind: dense, sparse and compacted.

The transposed matrices of a network multiply activations whose columns are examples, or
their pixels, because sparse matrices are best stored by rows. A convolution is a
product with the patches of its input.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental import sparse

import sparse_optax
from experiments.cost import onnx_rivals
from experiments.networks.functional import Variables
from experiments.records import Row

COMPACTED, ONNX = "compacted", "ONNX Runtime"


class Layer(NamedTuple):
    """A layer that multiplies its input by a matrix of any kind."""

    matrix: Any  # `[outputs, inputs]`, of patches for a convolution
    bias: Any  # `[outputs, 1]`
    window: int | None  # of a convolution, which is followed by 2x2 max pooling
    inputs: np.ndarray | None  # indices that the matrix reads, or None for all

    def __call__(self, x: Any, xp: Any) -> Any:
        """Returns the output, examples last, before the activation."""
        if self.window is None:
            if x.ndim > 2:  # of a convolution, whose channels come last in the matrix
                x = x.transpose(1, 2, 0, 3)
            x = x.reshape(-1, x.shape[-1])
            if self.inputs is not None:
                x = x[self.inputs]
            return self.matrix @ x + self.bias
        rows, columns = (size - self.window + 1 for size in x.shape[1:3])
        patches = xp.concatenate(
            [
                x[:, i : i + rows, j : j + columns]
                for i in range(self.window)
                for j in range(self.window)
            ]
        )
        y = self.matrix @ patches.reshape(len(patches), -1) + self.bias
        return y.reshape(-1, rows // 2, 2, columns // 2, 2, x.shape[-1]).max((2, 4))


def logits(layers: list[Layer], images: Any, white: int, xp: Any) -> Any:
    """Returns logits `[B, K]` of uint8 `[B, H, W, C]`, with NumPy or JAX as `xp`."""
    x = images.transpose(3, 1, 2, 0).astype(xp.float32) / white
    for layer in layers[:-1]:
        x = xp.maximum(layer(x, xp), 0)
    return layers[-1](x, xp).T


def layers_of(params: dict[str, Any], inputs: np.ndarray | None = None) -> list[Layer]:
    """Returns the layers of a network; the first reads only the given inputs."""
    layers = []
    for name in sorted(params):
        kernel, bias = (np.asarray(params[name][part]) for part in ("kernel", "bias"))
        matrix = np.ascontiguousarray(kernel.reshape(-1, kernel.shape[-1]).T)
        window = kernel.shape[0] if kernel.ndim == 4 else None
        layers.append(Layer(matrix, bias[:, None], window, None if layers else inputs))
    return layers


def compacted_layers(compacted: sparse_optax.Compacted) -> list[Layer]:
    params = compacted.params.params
    first = min(params)
    inputs = None
    if params[first]["kernel"].ndim == 2:
        inputs = compacted.kept.get(f"params/{first}/kernel", {}).get(0)
    return layers_of(params, inputs)


def has_matrices(run: Row) -> bool:
    """Returns whether sparse matrices are measured too: for unstructured LeNets."""
    return run["network"].startswith("lenet") and run["structure"] == "unstructured"


def variants(
    network: Variables,
    compacted: sparse_optax.Compacted,
    white: int,
    images: np.ndarray,
) -> dict[str, Callable[[], Any]]:
    """Returns functions that compute the logits of uint8 images, by name.

    Arrays are arguments of compiled functions, because XLA might fold constants.
    """
    layers, smaller = layers_of(network.params), compacted_layers(compacted)
    on_device = jnp.asarray(images)

    def by_jax(
        layers: list[Layer], convert: Callable[[np.ndarray], Any]
    ) -> Callable[[], Any]:
        arrays = [(convert(x.matrix), jnp.asarray(x.bias)) for x in layers]

        @jax.jit
        def compute(arrays, images):
            own = [
                layer._replace(matrix=matrix, bias=bias)
                for layer, (matrix, bias) in zip(layers, arrays, strict=True)
            ]
            return logits(own, images, white, jnp)

        return lambda: compute(arrays, on_device)

    def by_numpy(
        layers: list[Layer], convert: Callable[[np.ndarray], Any]
    ) -> Callable[[], Any]:
        own = [x._replace(matrix=convert(x.matrix)) for x in layers]
        return lambda: logits(own, images, white, np)

    found = {
        "JAX, dense": by_jax(layers, jnp.asarray),
        "JAX, BCOO": by_jax(layers, to_bcoo),
        "JAX, BCSR": by_jax(layers, sparse.BCSR.fromdense),
        "NumPy, dense": by_numpy(layers, np.asarray),
        "SciPy, CSR": by_numpy(layers, scipy.sparse.csr_array),
        f"{COMPACTED}, BCSR": by_jax(smaller, sparse.BCSR.fromdense),
        f"{COMPACTED}, NumPy": by_numpy(smaller, np.asarray),
    }
    if onnx_rivals.available():
        for name, own in {ONNX: layers, f"{COMPACTED}, {ONNX}": smaller}.items():
            found[name] = onnx_rivals.make_logits(own, white, images)
    return found


def to_bcoo(matrix: np.ndarray) -> Any:
    return sparse_optax.to_bcoo({"m": matrix}, None)["m"]
