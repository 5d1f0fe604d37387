"""Measures files of weights under random masks, and writes it into the README.

    python -m experiments storage

Sizes are compared with the information that values and random masks have, times with
those of `numpy.save` and `numpy.load`.
"""

import gzip
import io
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

import sparse_optax
from experiments.cost.settings import Storage
from experiments.cost.timing import seconds
from experiments.reporting.place import Place
from experiments.reporting.results import commit
from experiments.running.environment import environment
from experiments.running.export import dense_file

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
DTYPES = ("float32", "bfloat16")
COLUMNS = 1000


def matrix(size: int, sparsity: float, dtype: str) -> jax.Array:
    """Returns normal numbers, of which a random share is zero, exactly."""
    rng = np.random.default_rng(0)
    flat = rng.standard_normal(size, np.float32)
    # Of `partition`, which is much faster than a choice without replacement.
    order = np.argpartition(rng.random(size, np.float32), round(sparsity * size))
    flat[order[: round(sparsity * size)]] = 0
    return jnp.asarray(flat.reshape(-1, math.gcd(size, COLUMNS)), dtype)


def information(size: int, kept: int, itemsize: int) -> float:
    """Returns the bytes that values and a mask without structure have at the least."""
    share = kept / size
    shares = [p for p in (share, 1 - share) if p]
    entropy = -sum(p * math.log2(p) for p in shares)
    return kept * itemsize + size * entropy / 8


def file_sizes(weights: jax.Array, path: Path) -> dict[str, Any]:
    """Returns the sizes of files of the same weights, in bytes."""
    sparse_optax.save_sparse(path, {"kernel": weights})
    dense = dense_file({"kernel": weights})
    sizes = {
        "information": information(
            weights.size, int(jnp.count_nonzero(weights)), weights.dtype.itemsize
        ),
        "sparse": path.stat().st_size,
        "dense": len(dense),
        "gzipped": len(gzip.compress(dense, mtime=0)),
    }
    if weights.dtype == jnp.float32:  # SciPy has no other of these
        file = io.BytesIO()
        scipy.sparse.save_npz(file, scipy.sparse.csr_array(np.asarray(weights)))
        sizes["csr"] = len(file.getvalue())
    return sizes


def file_times(weights: jax.Array, folder: Path, turns: int) -> dict[str, float]:
    """Returns how long writing and reading take, in seconds and beside NumPy's."""
    sparse, dense = folder / "sparse", folder / "dense.npy"

    def save_dense() -> None:
        with dense.open("wb") as file:
            np.save(file, weights)
            file.flush()
            os.fsync(file.fileno())  # as the other does

    pairs = {
        "write": (
            lambda: sparse_optax.save_sparse(sparse, weights),
            save_dense,
        ),
        "read": (
            lambda: sparse_optax.load_sparse(sparse),
            lambda: jnp.asarray(np.load(dense)),
        ),
    }
    found = {}
    for name, functions in pairs.items():
        for function in functions:
            seconds(function)
        times = [[seconds(function) for function in functions] for _ in range(turns)]
        found[f"{name}_seconds"] = float(np.median([own for own, _ in times]))
        found[name] = float(np.median([own / other for own, other in times]))
    return found


def table(measured: list[dict[str, Any]]) -> str:
    """Returns Markdown tables of sizes and times, for each backend."""
    lines = []
    for one in measured:
        lines += [
            f"{one['size']:,} weights, in bytes; commit {commit(one)}:\n",
            "| sparsity, % | dtype | information | sparse file | of the information "
            "| dense | dense, gzipped | CSR, `save_npz` |",
            "| --- " * 8 + "|",
        ]
        for row in one["files"]:
            csr = f"{row['csr']:,}" if "csr" in row else "-"
            lines.append(
                f"| {100 * row['sparsity']:g} | {row['dtype']} "
                f"| {row['information']:,.0f} | {row['sparse']:,} "
                f"| {row['sparse'] / row['information']:.2f} | {row['dense']:,} "
                f"| {row['gzipped']:,} | {csr} |"
            )
        lines += [
            f"\n{one['large']:,} weights, float32, on {one['hardware']}:\n",
            "| sparsity, % | writing | in units of `numpy.save` | reading "
            "| in units of `numpy.load` |",
            "| --- " * 5 + "|",
        ]
        lines += [
            f"| {100 * row['sparsity']:g} | {row['write_seconds']:.1f} s "
            f"| {row['write']:.2f} | {row['read_seconds']:.1f} s | {row['read']:.2f} |"
            for row in one["times"]
        ]
    return "\n".join(lines) + "\n"


def storage(settings: Storage) -> None:
    """Measures, prints and stores, and writes all that is stored into the README."""
    place = Place("storage", settings.out)
    found = {**environment(), "size": settings.size, "large": settings.large}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found["files"] = [
            {
                "sparsity": sparsity,
                "dtype": dtype,
                **file_sizes(matrix(settings.size, sparsity, dtype), folder / "file"),
            }
            for dtype in DTYPES
            for sparsity in SPARSITIES
        ]
        found["times"] = [
            {
                "sparsity": sparsity,
                **file_times(
                    matrix(settings.large, sparsity, "float32"), folder, settings.turns
                ),
            }
            for sparsity in (0.5, 0.9, 0.99)
        ]
    print(table([found]))
    place.write(found, table)
