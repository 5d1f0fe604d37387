"""Measures how fast pruned LeNets are, dense and sparse, on one batch of images.

The matrices of a network, transposed, multiply activations whose columns are examples,
or pixels of them: sparse ones are best stored by rows. A convolution is a product with
the patches of its input.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import tyro
from jax.experimental import sparse

import sparse_optax
from experiments.cost.measurement import Measurement, ratios, table
from experiments.networks import NETWORKS
from experiments.networks.functional import Variables, init_network
from experiments.records import Row, RunFolder
from experiments.running.environment import environment
from experiments.running.export import networks_of
from experiments.settings import ExperimentError, check, setting

SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1)}
BATCHES = (1, 256)
PRUNED_AT_ONCE = (0.8, 0.9, 0.95)
AS_TRAINED = "as it is trained"


@dataclasses.dataclass(frozen=True)
class Settings(Measurement):
    """Measures how fast pruned LeNets are, dense and sparse."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of finished runs."""
    turns: int = setting(21, "[1, inf)")
    """Number of comparisons of times."""

    def validate(self) -> None:
        super().validate()
        check("runs", self.runs, bool(self.runs), "one or more folders")


def main(settings: Settings) -> None:
    settings.store("latency", lambda: measure(settings))


def measure(settings: Settings) -> Row:
    """Returns the times of the networks of runs, as they are and pruned at once."""
    found: Row = {**environment(), "runs": []}
    for path in settings.runs:
        summary, dense, final = networks_of(RunFolder(path))
        name, dataset = summary["network"], summary["dataset"]
        if not name.startswith("lenet") or dataset not in SHAPES:
            raise ExperimentError(f"{path} holds no LeNet of a known data set.")
        networks = {x: pruned(dense, x) for x in PRUNED_AT_ONCE}
        for sparsity, network in (networks | {summary["sparsity"]: final}).items():
            run = {key: summary[key] for key in ("experiment", "config_id", "seed")}
            run |= {"network": name, "sparsity": sparsity, "trained": network is final}
            rows = measure_network(name, dataset, network, settings.turns)
            found["runs"].append(run | {"rows": rows})
    print(show(found))
    return found


class Layer(NamedTuple):
    """A layer that multiplies its input by a matrix of any kind."""

    matrix: Any  # `[outputs, inputs]`, of patches for a convolution
    bias: Any  # `[outputs, 1]`
    window: int | None  # of a convolution, whose output is halved by a maximum

    def __call__(self, x: Any, xp: Any) -> Any:
        """Returns the output, examples last, before the activation."""
        if self.window is None:
            if x.ndim > 2:  # of a convolution, whose channels come last in the matrix
                x = x.transpose(1, 2, 0, 3)
            return self.matrix @ x.reshape(-1, x.shape[-1]) + self.bias
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


def logits(layers: list[Layer], images: Any, xp: Any) -> Any:
    """Returns the logits `[B, K]` of uint8 `[B, H, W, C]`, by NumPy or JAX as `xp`."""
    x = images.transpose(3, 1, 2, 0).astype(xp.float32) / 255
    for layer in layers[:-1]:
        x = xp.maximum(layer(x, xp), 0)
    return layers[-1](x, xp).T


def layers_of(params: dict[str, Any]) -> list[Layer]:
    layers = []
    for name in sorted(params):
        kernel, bias = (np.asarray(params[name][part]) for part in ("kernel", "bias"))
        matrix = np.ascontiguousarray(kernel.reshape(-1, kernel.shape[-1]).T)
        window = kernel.shape[0] if kernel.ndim == 4 else None
        layers.append(Layer(matrix, bias[:, None], window))
    return layers


def variants(
    name: str, network: Variables, images: np.ndarray
) -> dict[str, Callable[[], Any]]:
    """Returns functions that compute the logits of uint8 images, by name.

    Arrays are arguments of what is compiled: XLA might fold constants.
    """
    layers = layers_of(network.params)
    windows = [layer.window for layer in layers]
    trained, _ = init_network(NETWORKS[name], images.shape[1:], 255, seed=0)
    as_trained = jax.jit(trained.logits)
    variables, on_device = jax.tree.map(jnp.asarray, (network, images))

    def by_jax(convert: Callable[[np.ndarray], Any]) -> Callable[[], Any]:
        arrays = [(convert(x.matrix), jnp.asarray(x.bias)) for x in layers]

        @jax.jit
        def compute(arrays, images):
            pairs = zip(arrays, windows, strict=True)
            own = [Layer(matrix, bias, window) for (matrix, bias), window in pairs]
            return logits(own, images, jnp)

        return lambda: compute(arrays, on_device)

    def by_numpy(convert: Callable[[np.ndarray], Any]) -> Callable[[], Any]:
        own = [x._replace(matrix=convert(x.matrix)) for x in layers]
        return lambda: logits(own, images, np)

    return {
        AS_TRAINED: lambda: as_trained(variables, on_device),
        f"{AS_TRAINED}, again": lambda: as_trained(variables, on_device),
        "JAX, dense": by_jax(jnp.asarray),
        "JAX, BCOO": by_jax(lambda m: sparse_optax.to_bcoo({"m": m}, None)["m"]),
        "JAX, BCSR": by_jax(sparse.BCSR.fromdense),
        "NumPy, dense": by_numpy(np.asarray),
        "SciPy, CSR": by_numpy(scipy.sparse.csr_array),
    }


def pruned(network: Variables, sparsity: float) -> Variables:
    params, _ = sparse_optax.one_shot(network.params, sparsity, mask=None)
    return network._replace(params=params)


def measure_network(
    name: str, dataset: str, network: Variables, turns: int
) -> list[Row]:
    """Returns the time of each variant on each batch, relative to the first."""
    rows = []
    for batch in BATCHES:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (batch, *SHAPES[dataset]), np.uint8)
        functions = variants(name, network, images)
        wanted = np.asarray(functions[AS_TRAINED]())
        for variant, function in functions.items():
            if not np.allclose(function(), wanted, atol=1e-3, rtol=1e-3):
                raise ExperimentError(f"{variant} computes another network.")
        functions = {
            # Ten times, so that caches are warm.
            variant: lambda f=f: [jax.block_until_ready(f()) for _ in range(10)]
            for variant, f in functions.items()
        }
        reference = functions.pop(AS_TRAINED)
        rows.append({"batch": batch, "ratios": ratios(functions, reference, turns)})
    return rows


def show(found: Row) -> str:
    rows = [
        {
            "network": run["network"],
            "pruned": "in training" if run["trained"] else "at once",
            "sparsity, %": f"{100 * run['sparsity']:.2f}",
            "batch": str(row["batch"]),
            **{name: f"{ratio:.2f}" for name, ratio in row["ratios"].items()},
        }
        for run in found["runs"]
        for row in run["rows"]
    ]
    return table(found, rows)
