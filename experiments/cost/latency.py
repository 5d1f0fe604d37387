"""Measures how fast pruned networks are, dense and sparse, on one batch of images.

    python -m experiments latency RUN ...

The matrices of a network, transposed, multiply activations whose columns are examples,
or pixels of them: that is how sparse ones are best stored by rows. A convolution is a
product with the patches of its input. All that is not a product is the same for dense
and sparse matrices, of JAX and of NumPy; beside them stands the network as it is
trained, twice, so that one sees how far the numbers can be trusted.

Beside a run's sparse network stands its dense one, pruned at once: it is of no use, and
has its zeros elsewhere, but shows what sparsity does to the times.
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


class Layer(NamedTuple):
    """A layer that multiplies its input by a matrix, whatever that is stored as."""

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
    """Returns the layers of a LeNet, which their names have in order."""
    layers = []
    for name in sorted(params):
        kernel, bias = (np.asarray(params[name][part]) for part in ("kernel", "bias"))
        matrix = np.ascontiguousarray(kernel.reshape(-1, kernel.shape[-1]).T)
        window = kernel.shape[0] if kernel.ndim == 4 else None
        layers.append(Layer(matrix, bias[:, None], window))
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

    def with_matrices(convert: Callable[[np.ndarray], Any]) -> list[Layer]:
        return [layer._replace(matrix=convert(layer.matrix)) for layer in layers]

    def by_jax(convert: Callable[[np.ndarray], Any]):
        own = with_matrices(convert)
        matrices = [layer.matrix for layer in own]
        biases = [jnp.asarray(layer.bias) for layer in own]

        @jax.jit
        def compute(matrices, biases, images):
            parts = zip(own, matrices, biases, strict=True)
            return logits(
                [x._replace(matrix=m, bias=b) for x, m, b in parts], images, jnp
            )

        def make(images: np.ndarray) -> Callable[[], Any]:
            here = jnp.asarray(images)
            return lambda: compute(matrices, biases, here)

        return make

    def by_numpy(convert: Callable[[np.ndarray], Any]):
        own = with_matrices(convert)
        return lambda images: lambda: logits(own, images, np)

    def as_it_is(images: np.ndarray) -> Callable[[], Any]:
        variables, here = jax.tree.map(jnp.asarray, (network, images))
        return lambda: as_trained(variables, here)

    return {
        AS_TRAINED: as_it_is,
        f"{AS_TRAINED}, again": as_it_is,
        "JAX, dense": by_jax(jnp.asarray),
        "JAX, BCOO": by_jax(lambda m: sparse_optax.to_bcoo({"m": m}, None)["m"]),
        "JAX, BCSR": by_jax(sparse.BCSR.fromdense),
        "NumPy, dense": by_numpy(np.asarray),
        "SciPy, CSR": by_numpy(scipy.sparse.csr_array),
    }


def pruned(network: Variables, sparsity: float) -> Variables:
    """Returns a network without its smallest weights, as many as that."""
    state = sparse_optax.prune_by_magnitude(0.1, mask=None).init(network.params)
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
            f"| network | pruned | sparsity, % | batch | {' | '.join(variants)} |",
            "| --- " * (4 + len(variants)) + "|",
        ]
        for run in one["runs"]:
            for row in run["rows"]:
                cells = [f"{row['ratios'][variant]:.2f}" for variant in variants]
                how = "in training" if run["trained"] else "at once"
                lines.append(
                    f"| {run['network']} | {how} | {100 * run['sparsity']:.2f} "
                    f"| {row['batch']} | {' | '.join(cells)} |"
                )
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def latency(settings: Latency) -> None:
    """Measures, prints and stores, and writes all that is stored into the README."""
    place = Place("latency", settings.out)
    found: dict[str, Any] = {**environment(), "runs": []}
    for path in settings.runs:
        summary, dense, final = networks_of(RunFolder(path))
        name, dataset = summary["network"], summary["dataset"]
        if not name.startswith("lenet") or dataset not in SHAPES:
            raise ExperimentError(f"{path} holds no LeNet of a known data set.")
        networks = {x: pruned(dense, x) for x in PRUNED_AT_ONCE}
        networks[summary["sparsity"]] = final
        for sparsity, network in networks.items():
            found["runs"].append(
                {
                    **{
                        key: summary[key] for key in ("experiment", "config_id", "seed")
                    },
                    "network": name,
                    "sparsity": sparsity,
                    "trained": network is final,
                    "rows": measure(name, dataset, network, settings.turns),
                }
            )
    print(table([found]))
    place.write(found, table)
