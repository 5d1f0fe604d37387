"""Sparse files: trees of arrays without their zeros, in a safetensors container.

The container has three tensors of bytes. `about` is compressed JSON: the containers of
the tree (`_containers`) and a description of each leaf. `codes` has the codes of the
arrays (`_sparse_code`) one after another. The last 32 bytes are the SHA-256 of all
bytes before.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sparse_optax import _containers, _sparse_code, _trees
from sparse_optax._trees import PyTree

_VERSION = 2
_VERSION_1 = b'{"__metadata__":{"sparse_optax":"{'  # the start of its header
_DIGEST = 32  # bytes
_LAST = "~sha256"  # the container sorts arrays of bytes by name


def save_sparse(path: str | os.PathLike[str], tree: PyTree) -> None:
    """Writes a tree of arrays to a file that takes next to no space for zeros.

    If n of N elements are nonzero, at random positions, they take n times the size of
    one element and about N H(n / N) / 8 bytes, where H is the binary entropy. They take
    less if values or positions compress. The file of one array is at most 512 bytes
    larger than the file from `np.savez_compressed(file, values, np.packbits(mask))`.
    All bits are kept, including those of negative zeros and NaNs.

    Args:
        path: The file; `~` is the home folder. An existing file is replaced once the
            new one is complete. Its mode is kept.
        tree: Any pytree of JAX and NumPy arrays, random keys, strings, Python booleans,
            integers and floats, and functions, which are not stored. NumPy scalars
            become arrays; weakly typed arrays become strongly typed.

    Raises:
        TypeError: If `tree` has any other leaf.
        ValueError: If an array is deleted, or partly on devices of other processes.
        OSError: If the file cannot be written.
        ImportError: If safetensors is missing: `pip install safetensors`.

    Examples:
        >>> import os, tempfile
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> params = {"kernel": jnp.zeros((1000, 1000)).at[3, ::2].set(1.0)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "params.safetensors")
        ...     sparse_optax.save_sparse(path, params)
        ...     print(os.path.getsize(path) < 1_000, params["kernel"].nbytes)
        True 4000000
    """
    safetensors = _safetensors()
    path = Path(path).expanduser().resolve()  # a symbolic link stays one
    leaves, codes = [], []
    for form, leaf in _named_leaves(tree):
        about, array = _to_host(leaf, form)
        if array is not None:
            kind, code = _sparse_code.encode(array)
            about |= {"shape": array.shape, "dtype": array.dtype.name}
            about |= {"kind": kind, "bytes": len(code)}
            codes.append(code)
        leaves.append({"form": form, **about})
    containers = _containers.to_json(tree)
    about = {"version": _VERSION, "containers": containers, "leaves": leaves}
    tensors = {"about": zlib.compress(json.dumps(about).encode())}
    tensors |= {"codes": b"".join(codes), _LAST: bytes(_DIGEST)}
    arrays = {name: np.frombuffer(x, np.uint8) for name, x in tensors.items()}
    data = safetensors.save(arrays, {"sparse_optax": "save_sparse"})
    data = data[:-_DIGEST] + hashlib.sha256(data[:-_DIGEST]).digest()

    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            if path.exists():
                shutil.copymode(path, temporary)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # it names the temporary file, or no file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def load_sparse(path: str | os.PathLike[str], like: PyTree | None = None) -> PyTree:
    """Reads a tree of arrays that `save_sparse` wrote.

    Every byte is checked before anything is returned, and no code in it is run.

    Args:
        path: The file; `~` is the home folder.
        like: A tree with the same leaf names, and arrays or `jax.ShapeDtypeStruct` of
            the same shapes and dtypes. Not needed for trees of dicts, `OrderedDict`,
            lists, tuples, `None`, `optax.MaskedNode`, flax's `FrozenDict`, nnx's
            `State` and variables.

    Returns:
        The tree, with the same shapes, dtypes and bits. JAX arrays are on the default
        device; NumPy arrays stay NumPy arrays. Functions are those of `like`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is corrupted, incomplete, of another version or not
            written by `save_sparse`; if `like` is needed, or differs in a name, shape
            or dtype; or if JAX needs `jax_enable_x64` for a dtype.
        ImportError: If safetensors is missing, or flax if the file needs it.

    Examples:
        >>> import os, tempfile
        >>> import jax.numpy as jnp
        >>> import optax, sparse_optax
        >>> params = {"kernel": jnp.array([0.0, -0.5, 0.0])}
        >>> state = optax.sgd(0.1, momentum=0.9).init(params)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "checkpoint.safetensors")
        ...     sparse_optax.save_sparse(path, (params, state))
        ...     params, state = sparse_optax.load_sparse(path, like=(params, state))
        >>> params
        {'kernel': Array([ 0. , -0.5,  0. ], dtype=float32)}
    """
    safetensors = _safetensors()
    data = Path(path).expanduser().read_bytes()
    if data[8:].startswith(_VERSION_1):  # after the length of the header
        raise ValueError(f"{path} has version 1 of the format, not {_VERSION}.")
    if hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise ValueError(
            f"{path} is corrupted, incomplete or not written by save_sparse."
        )
    tensors = safetensors.load(data)
    about = json.loads(zlib.decompress(tensors["about"].tobytes()))
    if (version := about["version"]) != _VERSION:
        raise ValueError(f"{path} has version {version} of the format, not {_VERSION}.")
    forms = [leaf["form"] for leaf in about["leaves"]]
    wanted = [] if like is None else _named_leaves(like)
    others = forms if like is None else [form for form, _ in wanted]
    if forms != others:
        here = [form for form in forms if form not in others][:3]
        there = [form for form in others if form not in forms][:3]
        raise ValueError(
            f"{path} and `like` differ: the file has {here}, `like` has {there}."
        )
    leaves, codes = [], memoryview(tensors["codes"].data)
    for leaf in about["leaves"]:
        length = leaf.get("bytes", 0)
        leaves.append(_from_host(leaf, codes[:length]))
        codes = codes[length:]
    if like is None:
        arrays = (leaf for leaf in leaves if hasattr(leaf, "dtype"))
        return _containers.from_json(about["containers"], arrays)
    leaves = [x if callable(x) else y for (_, x), y in zip(wanted, leaves, strict=True)]
    return jax.tree.structure(like).unflatten(leaves)


def _safetensors() -> Any:
    try:
        from safetensors import numpy
    except ImportError as error:
        message = f"{error}: sparse files need it, `pip install safetensors`."
        raise ImportError(message) from error
    return numpy


def _named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """The leaves, each with its form: what must be the same in a file and in `like`."""

    def kind(leaf):
        if callable(leaf):
            return "function"
        is_array = hasattr(leaf, "dtype")
        return f"{leaf.dtype.name}{[*leaf.shape]}" if is_array else type(leaf).__name__

    with_path = jax.tree_util.tree_leaves_with_path(_trees.unbox(tree))
    return [(f"{_trees.leaf_name(path)}: {kind(x)}", x) for path, x in with_path]


def _to_host(leaf: Any, form: str) -> tuple[dict[str, Any], np.ndarray | None]:
    """A description of a leaf, and the elements of an array."""
    if type(leaf) in _containers.SCALARS or callable(leaf):
        return {"value": None if callable(leaf) else leaf}, None
    is_numpy = isinstance(leaf, np.ndarray | np.generic)
    if is_numpy and hasattr(jnp, leaf.dtype.name) and not np.ma.isMaskedArray(leaf):
        native = leaf.dtype.newbyteorder("=")
        return {"numpy": True}, np.asarray(leaf, native, order="C")
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array):
        raise TypeError(
            f"tree has {form}, which is not a concrete numeric array: {leaf!r:.80}."
        )
    if leaf.is_deleted():
        raise ValueError(f"tree has {form}, which is deleted: it was donated.")
    if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        raise ValueError(
            f"tree has {form}, which is partly on devices of other processes: "
            "`jax.experimental.multihost_utils.process_allgather` collects all parts."
        )
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(leaf))
        return {"key": str(jax.random.key_impl(leaf))}, data
    return {}, np.asarray(leaf, order="C")


def _from_host(about: dict[str, Any], code: memoryview) -> Any:
    """The leaf that has this description and code."""
    if "kind" not in about:
        return about["value"]
    dtype = jnp.dtype(about["dtype"])
    array = _sparse_code.decode(about["kind"], code, about["shape"], dtype)
    if "numpy" in about:
        return array
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"the file has {about['form']}: JAX needs `jax_enable_x64`.")
    leaf = jnp.asarray(array)
    return jax.random.wrap_key_data(leaf, impl=about["key"]) if "key" in about else leaf
