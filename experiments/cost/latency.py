"""Measures how fast pruned networks are, dense and sparse, on one batch of images.

    python -m experiments latency RUN ...

Each of a network's matrices is multiplied as it is, as JAX's BCSR, or as SciPy's CSR.
A convolution is a product with the patches of its input, which all of them cut out in
the same way; the network as it is trained, and once more, are there to compare with.
Beside a run's sparse network stands its dense one, pruned at once: it is of no use, but
as fast as a good one of its sparsity would be.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental import sparse

import sparse_optax
from experiments.config import ExperimentError
from experiments.cost.settings import Latency
from experiments.cost.timing import ratios
from experiments.networks import NETWORKS
from experiments.networks.functional import Variables, init_network
from experiments.records import Row, RunFolder
from experiments.reporting.place import Place
from experiments.reporting.results import commit
from experiments.running.environment import environment
from experiments.running.export import networks_of

SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1)}
BATCHES = (1, 256)
PRUNED_AT_ONCE = (0.8, 0.9, 0.95)
AS_TRAINED = "as it is trained"
Images = Any  # `[B, H, W, C]`, of JAX or of NumPy


class Layer(NamedTuple):
    """A layer whose input is multiplied by a matrix, whatever that is stored as."""

    matrix: Any  # `[inputs, outputs]`, of patches for a convolution
    bias: Any
    window: int | None  # of a convolution, whose output is halved by a maximum

    def __call__(self, x: Images, multiply: Callable[[Any, Any], Any], xp: Any) -> Any:
        """Returns the output, before the activation."""
        if self.window is None:
            return multiply(x.reshape(len(x), -1), self.matrix) + self.bias
        rows, columns = (size - self.window + 1 for size in x.shape[1:3])
        patches = xp.concatenate(
            [
                x[:, i : i + rows, j : j + columns]
                for i in range(self.window)
                for j in range(self.window)
            ],
            axis=-1,
        )
        y = multiply(patches.reshape(-1, patches.shape[-1]), self.matrix) + self.bias
        return y.reshape(len(x), rows // 2, 2, columns // 2, 2, -1).max((2, 4))


def logits(
    layers: list[Layer], images: Images, multiply: Callable[[Any, Any], Any], xp: Any
) -> Any:
    """Returns the logits `[B, K]` of `images` in [0, 1], by NumPy or JAX as `xp`."""
    x = images
    for layer in layers[:-1]:
        x = xp.maximum(layer(x, multiply, xp), 0)
    return layers[-1](x, multiply, xp)


def layers_of(params: dict[str, Any]) -> list[Layer]:
    """Returns the layers of a LeNet, which their names have in order."""
    layers = []
    for name in sorted(params):
        kernel, bias = (np.asarray(params[name][part]) for part in ("kernel", "bias"))
        window = kernel.shape[0] if kernel.ndim == 4 else None
        layers.append(Layer(kernel.reshape(-1, kernel.shape[-1]), bias, window))
    return layers


def variants(
    name: str, dataset: str, network: Variables
) -> dict[str, Callable[[np.ndarray], Callable[[], Any]]]:
    """Returns by name what makes, of uint8 images, a function from nothing to logits.

    All arrays are arguments of what is compiled: as constants XLA might compute with
    them beforehand.
    """
    layers = layers_of(network.params)
    trained, _ = init_network(NETWORKS[name], SHAPES[dataset], 255, seed=0)
    as_trained = jax.jit(trained.logits)

    def jax_variant(convert: Callable[[Any], Any], multiply: Callable[[Any, Any], Any]):
        matrices = [convert(layer.matrix) for layer in layers]
        biases = [jnp.asarray(layer.bias) for layer in layers]

        @jax.jit
        def compute(matrices, biases, images):
            parts = zip(layers, matrices, biases, strict=True)
            own = [layer._replace(matrix=m, bias=b) for layer, m, b in parts]
            return logits(own, images.astype(jnp.float32) / 255, multiply, jnp)

        def make(images: np.ndarray) -> Callable[[], Any]:
            here = jnp.asarray(images)
            return lambda: compute(matrices, biases, here)

        return make

    def scipy_variant(images: np.ndarray) -> Callable[[], Any]:
        own = [
            layer._replace(matrix=scipy.sparse.csr_array(layer.matrix.T))
            for layer in layers
        ]
        return lambda: logits(
            own, images.astype(np.float32) / 255, lambda x, m: (m @ x.T).T, np
        )

    def network_variant(images: np.ndarray) -> Callable[[], Any]:
        variables, here = jax.tree.map(jnp.asarray, (network, images))
        return lambda: as_trained(variables, here)

    return {
        AS_TRAINED: network_variant,
        f"{AS_TRAINED}, again": network_variant,
        "dense, as products": jax_variant(jnp.asarray, lambda x, m: x @ m),
        "BCSR of JAX": jax_variant(
            lambda m: sparse.BCSR.fromdense(m.T), lambda x, m: (m @ x.T).T
        ),
        "CSR of SciPy": scipy_variant,
    }


def pruned(network: Variables, sparsity: float) -> Variables:
    """Returns a network without its smallest weights, as many as that."""
    state = sparse_optax.prune_by_magnitude(0.1).init(network.params)
    params, _ = sparse_optax.prune(network.params, state, sparsity=sparsity)
    return network._replace(params=params)


def repeated(function: Callable[[], Any]) -> Callable[[], None]:
    """Returns what calls a function some times, so that one finds its data near."""

    def call() -> None:
        for _ in range(10):
            jax.block_until_ready(function())

    return call


def measure(name: str, dataset: str, network: Variables, turns: int) -> list[Row]:
    """Returns for every batch how long each variant takes, in units of the first.

    Raises:
      ExperimentError: the variants do not agree.
    """
    rows = []
    for batch in BATCHES:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (batch, *SHAPES[dataset]), np.uint8)
        functions = {
            variant: make(images)
            for variant, make in variants(name, dataset, network).items()
        }
        wanted = np.asarray(functions[AS_TRAINED]())
        for variant, function in functions.items():
            if not np.allclose(function(), wanted, atol=1e-3, rtol=1e-3):
                raise ExperimentError(f"{variant} computes another network.")
        functions = {variant: repeated(f) for variant, f in functions.items()}
        reference = functions.pop(AS_TRAINED)
        rows.append({"batch": batch, "ratios": ratios(functions, reference, turns)})
    return rows


def table(measured: list[dict[str, Any]]) -> str:
    """Returns a Markdown table for each backend."""
    parts = []
    for one in measured:
        variants = list(one["runs"][0]["rows"][0]["ratios"])
        lines = [
            f"On {one['hardware']}, jax {one['versions']['jax']}, "
            f"commit {commit(one)}, in units of the time that the network takes "
            f"{AS_TRAINED}:\n",
            f"| network | sparsity, % | batch | {' | '.join(variants)} |",
            "| --- " * (3 + len(variants)) + "|",
        ]
        for run in one["runs"]:
            for row in run["rows"]:
                cells = [f"{row['ratios'][variant]:.2f}" for variant in variants]
                lines.append(
                    f"| {run['network']} | {100 * run['sparsity']:.2f} "
                    f"| {row['batch']} | {' | '.join(cells)} |"
                )
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def latency(settings: Latency) -> None:
    """Measures, prints and stores, and writes all that is stored into the README."""
    place = Place("latency", settings.out)
    found: dict[str, Any] = {**environment(), "runs": []}
    folders = [RunFolder(path) for path in settings.runs]
    summaries = [folder.summary() for folder in folders]
    for folder, summary in zip(folders, summaries, strict=True):
        if summary is None:
            raise ExperimentError(f"{folder.path} holds no finished run.")
        name, dataset = summary["network"], summary["dataset"]
        if not name.startswith("lenet"):
            raise ExperimentError(f"{folder.path} holds no LeNet.")
        dense, final = networks_of(folder, summary)
        networks = {x: pruned(dense, x) for x in PRUNED_AT_ONCE}
        networks[summary["sparsity"]] = final
        about = {key: summary[key] for key in ("experiment", "seed", "config_id")}
        for sparsity, network in networks.items():
            rows = measure(name, dataset, network, settings.turns)
            about |= {"network": name, "sparsity": sparsity, "rows": rows}
            found["runs"].append(dict(about))
    print(table([found]))
    place.write(found, table)
