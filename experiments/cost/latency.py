"""Measures how fast pruned LeNets are: dense, sparse and compacted, on a few images.

The matrices of a network, transposed, multiply activations whose columns are examples,
or pixels of them: sparse ones are best stored by rows. A convolution is a product with
the patches of its input. Compacted networks are dense, and smaller: see `compaction`.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import tyro
from jax.experimental import sparse

import sparse_optax
from experiments.cost import onnx_rivals
from experiments.cost.measurement import Measurement, ratios, table
from experiments.data.images import FORMATS
from experiments.networks import NETWORKS
from experiments.networks.functional import Network, Variables, init_network
from experiments.pages.tables import markdown
from experiments.records import Row, RunFolder
from experiments.running import compaction
from experiments.running.environment import environment
from experiments.running.export import file_sizes, networks_of
from experiments.settings import ExperimentError, check, setting

BATCHES = (1, 256)
PRUNED_AT_ONCE = (0.8, 0.9, 0.95)
AS_TRAINED, COMPACTED, ONNX = "as it is trained", "compacted", "ONNX Runtime"


@dataclasses.dataclass(frozen=True)
class Settings(Measurement):
    """Measures how fast pruned LeNets are: dense, sparse and compacted."""

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
    if onnx_rivals.available():
        found["versions"]["onnxruntime"] = metadata.version("onnxruntime")
    else:
        print(f"{ONNX} is not measured: it needs onnx and onnxruntime installed.")
    for path in settings.runs:
        summary, dense, final = networks_of(RunFolder(path))
        name, dataset = summary["network"], summary["dataset"]
        if not name.startswith("lenet") or dataset not in FORMATS:
            raise ExperimentError(f"{path} holds no LeNet of a known data set.")
        networks = {x: pruned(dense, x) for x in PRUNED_AT_ONCE}
        for sparsity, network in (networks | {summary["sparsity"]: final}).items():
            run = {key: summary[key] for key in ("experiment", "config_id", "seed")}
            run |= {"network": name, "sparsity": sparsity, "trained": network is final}
            run["structure"] = summary.get("structure", "unstructured")
            run |= measure_network(name, dataset, network, settings.turns)
            found["runs"].append(run)
    print(show(found))
    return found


class Layer(NamedTuple):
    """A layer that multiplies its input by a matrix of any kind."""

    matrix: Any  # `[outputs, inputs]`, of patches for a convolution
    bias: Any  # `[outputs, 1]`
    window: int | None  # of a convolution, whose output is halved by a maximum
    inputs: np.ndarray | None  # that the matrix is for, or all of them

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


def logits(layers: list[Layer], images: Any, xp: Any) -> Any:
    """Returns the logits `[B, K]` of uint8 `[B, H, W, C]`, by NumPy or JAX as `xp`."""
    x = images.transpose(3, 1, 2, 0).astype(xp.float32) / 255
    for layer in layers[:-1]:
        x = xp.maximum(layer(x, xp), 0)
    return layers[-1](x, xp).T


def layers_of(params: dict[str, Any], inputs: np.ndarray | None = None) -> list[Layer]:
    """Returns the layers of a network, the first of which reads some of its inputs."""
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


def variants(
    functional: Network,
    network: Variables,
    compacted: sparse_optax.Compacted,
    images: np.ndarray,
) -> dict[str, Callable[[], Any]]:
    """Returns functions that compute the logits of uint8 images, by name.

    Arrays are arguments of what is compiled: XLA might fold constants.
    """
    layers, smaller = layers_of(network.params), compacted_layers(compacted)
    as_trained, apply = jax.jit(functional.logits), jax.jit(compacted.apply)
    variables, small, on_device = jax.tree.map(
        jnp.asarray, (network, compacted.params, images)
    )

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
            return logits(own, images, jnp)

        return lambda: compute(arrays, on_device)

    def by_numpy(
        layers: list[Layer], convert: Callable[[np.ndarray], Any]
    ) -> Callable[[], Any]:
        own = [x._replace(matrix=convert(x.matrix)) for x in layers]
        return lambda: logits(own, images, np)

    found = {
        AS_TRAINED: lambda: as_trained(variables, on_device),
        f"{AS_TRAINED}, again": lambda: as_trained(variables, on_device),
        "JAX, dense": by_jax(layers, jnp.asarray),
        "JAX, BCOO": by_jax(layers, to_bcoo),
        "JAX, BCSR": by_jax(layers, sparse.BCSR.fromdense),
        "NumPy, dense": by_numpy(layers, np.asarray),
        "SciPy, CSR": by_numpy(layers, scipy.sparse.csr_array),
        COMPACTED: lambda: apply(small, on_device),
        f"{COMPACTED}, BCSR": by_jax(smaller, sparse.BCSR.fromdense),
        f"{COMPACTED}, NumPy": by_numpy(smaller, np.asarray),
    }
    if onnx_rivals.available():
        for name, own in {ONNX: layers, f"{COMPACTED}, {ONNX}": smaller}.items():
            found[name] = onnx_rivals.make_logits(own, images)
    return found


def to_bcoo(matrix: np.ndarray) -> Any:
    return sparse_optax.to_bcoo({"m": matrix}, None)["m"]


def pruned(network: Variables, sparsity: float) -> Variables:
    params, _ = sparse_optax.one_shot(network.params, sparsity, mask=None)
    return network._replace(params=params)


make_network = functools.cache(init_network)  # its random numbers take a while


def compact(
    name: str, network: Variables, image_shape: tuple[int, int, int]
) -> tuple[Network, sparse_optax.Compacted]:
    functional, _ = make_network(NETWORKS[name], image_shape, 255, seed=0)
    image = np.random.default_rng(0).integers(0, 256, (1, *image_shape), np.uint8)
    return functional, sparse_optax.compact(functional.logits, network, image)


def measure_network(name: str, dataset: str, network: Variables, turns: int) -> Row:
    """Returns the time of each variant on each batch, relative to the first.

    Also the sizes of the network, of its files and of those that it has compacted.
    """
    shape, rows = FORMATS[dataset].shape, []
    functional, compacted = compact(name, network, shape)
    for batch in BATCHES:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (batch, *shape), np.uint8)
        functions = variants(functional, network, compacted, images)
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
    with tempfile.TemporaryDirectory() as folder:
        sizes = (
            file_sizes(Path(folder) / "file", tree._asdict())
            for tree in (network, compacted.params)
        )
        whole, smaller = sizes
    found = {"rows": rows, "compacted": compaction.sizes(compacted)}
    return found | {"bytes": whole, "compacted_bytes": smaller}


def show(found: Row) -> str:
    rows = [
        which(run)
        | {"batch": str(row["batch"])}
        | {name: f"{ratio:.2f}" for name, ratio in row["ratios"].items()}
        for run in found["runs"]
        for row in run["rows"]
    ]
    sizes = [
        which(run)
        | {
            "multiplications": f"{run['compacted']['before']['multiplications']:,}",
            COMPACTED: f"{run['compacted']['after']['multiplications']:,}",
            "bytes, dense": f"{run['bytes']['dense']:,}",
            "sparse": f"{run['bytes']['sparse']:,}",
            f"dense, {COMPACTED}": f"{run['compacted_bytes']['dense']:,}",
            f"sparse, {COMPACTED}": f"{run['compacted_bytes']['sparse']:,}",
        }
        for run in found["runs"]
        if COMPACTED in run  # older ones have none
    ]
    return table(found, rows) + (f"\n{markdown(sizes)}" if sizes else "")


def which(run: Row) -> dict[str, str]:
    """Returns what a network is, for the first columns of a table."""
    pruned = "in training" if run["trained"] else "at once"
    if run["trained"] and run.get("structure") == "units":
        pruned += ", units"
    return {
        "network": run["network"],
        "pruned": pruned,
        "sparsity, %": f"{100 * run['sparsity']:.2f}",
    }
