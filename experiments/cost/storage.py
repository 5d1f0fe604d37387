"""Measures files of weights with random masks.

Sizes are compared with the values plus the entropy of a random mask, and with
`numpy.savez_compressed`. Times are compared with `numpy.save` and `numpy.load`.
"""

import dataclasses
import io
import math
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

import sparse_optax
from experiments.cost.measurement import Measurement, seconds, table
from experiments.pages.tables import markdown
from experiments.records import Row
from experiments.running import figures
from experiments.running.environment import environment
from experiments.running.export import file_sizes
from experiments.settings import setting

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
DTYPES = ("float32", "bfloat16")
TIMED = 0.5, 0.9, 0.99  # sparsities
COLUMNS = 1000
DRAWN = {
    "sparse": "save_sparse",
    "savez": "numpy.savez_compressed, with the bits of the mask",
    "csr": "scipy.sparse.save_npz, CSR",
    "gzipped": "safetensors, gzipped",
}


@dataclasses.dataclass(frozen=True)
class Settings(Measurement):
    """Measures files with random masks: their sizes, and the times to write and read.

    It takes a minute or two on two cores, and a few GB of memory.
    """

    size: int = setting(1_000_000, "[10_000, inf)")
    """Number of weights for which file sizes are measured."""
    large: int = setting(100_000_000, "[1, inf)")
    """Number of weights for which writing and reading are timed."""
    turns: int = setting(5, "[1, inf)")
    """How often each comparison of times is repeated."""


def main(settings: Settings) -> None:
    settings.store("storage", lambda: measure(settings))


def measure(settings: Settings) -> Row:
    found: Row = {**environment(), "size": settings.size, "large": settings.large}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found["files"] = [
            {"sparsity": sparsity, "dtype": dtype}
            | sizes(matrix(settings.size, sparsity, dtype), folder / "file")
            for dtype in DTYPES
            for sparsity in SPARSITIES
        ]
        found["times"] = [
            {"sparsity": sparsity}
            | times(matrix(settings.large, sparsity, "float32"), folder, settings.turns)
            for sparsity in TIMED
        ]
    print(show(found))
    return found


def matrix(size: int, sparsity: float, dtype: str) -> jax.Array:
    """Returns normal numbers with zeros at random, of exactly this sparsity."""
    rng = np.random.default_rng(0)
    flat = rng.standard_normal(size, np.float32)
    # Partitioning is much faster than a choice without replacement.
    order = np.argpartition(rng.random(size, np.float32), round(sparsity * size))
    flat[order[: round(sparsity * size)]] = 0
    return jnp.asarray(flat.reshape(-1, math.gcd(size, COLUMNS)), dtype)


def information(size: int, kept: int, itemsize: int) -> float:
    """Returns the bytes of the uncompressed values plus the entropy of a mask."""
    share = kept / size
    shares = [p for p in (share, 1 - share) if p]
    entropy = -sum(p * math.log2(p) for p in shares)
    return kept * itemsize + size * entropy / 8


def sizes(weights: jax.Array, path: Path) -> Row:
    kept, itemsize = int(jnp.count_nonzero(weights)), weights.dtype.itemsize
    found: Row = {"information": information(weights.size, kept, itemsize)}
    found |= file_sizes(path, {"kernel": weights})
    array, file = np.asarray(weights), io.BytesIO()
    mask = array != 0
    np.savez_compressed(file, values=array[mask], mask=np.packbits(mask))
    found["savez"] = file.tell()
    if weights.dtype == jnp.float32:  # SciPy has no bfloat16
        file = io.BytesIO()
        scipy.sparse.save_npz(file, scipy.sparse.csr_array(array))
        found["csr"] = file.tell()
    return found


def times(weights: jax.Array, folder: Path, turns: int) -> Row:
    """Returns how long writing and reading take, in seconds and relative to NumPy."""
    sparse, dense = folder / "sparse", folder / "dense.npy"

    def save_dense() -> None:
        with dense.open("wb") as file:
            np.save(file, weights)
            file.flush()
            os.fsync(file.fileno())  # as `save_sparse` does

    pairs = {
        "write": (lambda: sparse_optax.save_sparse(sparse, weights), save_dense),
        "read": (
            lambda: sparse_optax.load_sparse(sparse),
            lambda: jnp.asarray(np.load(dense)),
        ),
    }
    found = {}
    for name, functions in pairs.items():
        both = [[seconds(function) for function in functions] for _ in range(turns + 1)]
        own, other = np.transpose(both[1:])  # the first writes and compiles
        found[f"{name}_seconds"] = float(np.median(own))
        found[name] = float(np.median(own / other))
    return found


def draw_and_show(folder: Path, found: Row) -> str:
    """Draws the sizes of files, and returns the figure and the tables."""
    name = f"storage-{found['backend']}"
    draw(found, folder / name)
    return f"![Sizes of files](figures/{name}.png)\n\n{show(found)}"


def draw(found: Row, path: Path) -> None:
    rows = [row for row in found["files"] if row["dtype"] == "float32"]
    with figures.figure(path, (5.2, 3.4)) as canvas:
        axes = canvas.add_subplot()
        for index, (name, label) in enumerate(DRAWN.items()):
            axes.plot(
                [1 - row["sparsity"] for row in rows],
                [row[name] / row["information"] for row in rows],
                marker="osD^v"[index],
                markersize=4,
                color=figures.COLOURS[index],
                label=label,
            )
        figures.sparsity_axis(axes, 1 - rows[-1]["sparsity"])
        axes.set_ylim(0, 3)
        axes.set_ylabel("bytes, relative to values and entropy")
        canvas.legend(loc="outside lower center", ncols=2)


def show(found: Row) -> str:
    files = [
        {
            "weights": f"{found['size']:,}",
            "sparsity, %": f"{100 * row['sparsity']:g}",
            "dtype": row["dtype"],
            "values and entropy": f"{row['information']:,.0f}",
            "sparse file": f"{row['sparse']:,}",
            "ratio": f"{row['sparse'] / row['information']:.2f}",
            "`savez_compressed`": f"{row['savez']:,}",
            "dense": f"{row['dense']:,}",
            "dense, gzipped": f"{row['gzipped']:,}",
            "CSR, `save_npz`": f"{row['csr']:,}" if "csr" in row else "-",
        }
        for row in found["files"]
    ]
    seconds = [
        {
            "weights": f"{found['large']:,}",
            "sparsity, %": f"{100 * row['sparsity']:g}",
            "writing": f"{row['write_seconds']:.1f} s",
            "in units of `numpy.save`": f"{row['write']:.2f}",
            "reading": f"{row['read_seconds']:.1f} s",
            "in units of `numpy.load`": f"{row['read']:.2f}",
        }
        for row in found["times"]
    ]
    return f"{table(found, files)}\n{markdown(seconds)}"
