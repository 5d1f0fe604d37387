"""Sparse files: what is kept of a network and where it was, in a safetensors container.

A leaf is stored dense, or as the values that are not zero and the code of their places
(`_mask_code`), whichever is smaller. Tensor `i/name` has the values of the i-th leaf,
tensor `masks` all the codes one after the other, and the metadata, one string of JSON,
have the tree, what those tensors do not tell, and the SHA-256 of all but itself.
"""

import contextlib
import hashlib
import json
import math
import os
import stat
import uuid
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sparse_optax import _containers, _mask_code, _trees
from sparse_optax._mask_code import Block
from sparse_optax._trees import KeyPath, PyTree

_VERSION = 1
_METADATA = "sparse_optax"  # the one string, which so has one order of what is in it
_MASKS = "masks"
# The dtypes that the container has. Others are stored as their bytes.
_DTYPES = {
    **{"BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
}
_DIGEST = b'\\"sha256\\":\\"'  # as it is found in the metadata, before the digest
_ZEROS = b"0" * 64


def save_sparse(path: str | os.PathLike[str], params: PyTree) -> None:
    """Writes a tree of arrays to a file in which zeros take next to no space.

    Of each leaf the file has either all elements or those that are not zero, and where
    they were; whichever takes less. Where n weights of N are kept, without structure,
    that is about n times the size of one, and N H(n / N) / 8 bytes, H being the entropy
    in bits. What is read back has the same bits: signs of zeros and NaNs included. The
    file is a container of safetensors, without pickle. Of all that is stored there is
    a copy in memory for a while, and when it is read again two.

    Args:
        path: of the file, `~` for the home folder. A file that is there is replaced
            when the new one is complete, and not before, and its mode is kept.
        params: a tree of arrays of any dtypes, those of NumPy and random keys included,
            in dicts, lists, tuples, flax's `FrozenDict` and `State`; `None`, strings,
            `optax.MaskedNode()` and Python's booleans, integers and floats are kept as
            they are. Weak types are not kept, NumPy's scalars become arrays without
            axes, and its arrays get the machine's order of bytes. An optimizer's state
            is no such tree, but what `get_masks` returns is, if the params are:
            `{"params": params, "masks": get_masks(state)}` stores both, and `set_masks`
            puts them back.

    Raises:
        TypeError: if there is something else in the tree.
        ValueError: if not all of an array lies on devices of this process.
        OSError: if the file cannot be written; FileNotFoundError, if there is no such
            folder.
        ImportError: if safetensors is not there: `pip install 'sparse-optax[files]'`.

    Examples:
        >>> import os, tempfile
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> params = {"kernel": jnp.zeros((1000, 1000)).at[3, ::2].set(1.0)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "params.safetensors")
        ...     sparse_optax.save_sparse(path, params)
        ...     print(os.path.getsize(path) < 4_000, params["kernel"].nbytes)
        True 4000000
    """
    safetensors = _import_safetensors()
    path = Path(path).expanduser().resolve()  # through links, which stay
    tensors: dict[str, np.ndarray] = {}
    codes: list[np.ndarray] = []

    def store(key_path: KeyPath, leaf: Any) -> dict[str, Any]:
        name = _trees.leaf_name(key_path)
        description, array = _on_host(leaf, name)
        whole = array
        mask = _words(array.reshape(-1)) != 0
        blocks = _mask_code.encode(mask)
        size = sum(block.code.nbytes for block in blocks)
        if np.count_nonzero(mask) * array.itemsize + size < array.nbytes:
            array = array.reshape(-1)[mask]
            codes.extend(block.code for block in blocks)
            description["masks"] = [[b.bits, b.code.nbytes] for b in blocks]
        if array.dtype.name not in _DTYPES.values():
            description["dtype"] = array.dtype.name
            array = array.reshape(-1).view(np.uint8)
        if array.shape != whole.shape:
            description["shape"] = whole.shape
        tensors[f"{len(tensors)}/{name}"] = array
        return description

    tree = _containers.to_json(params, store)
    if codes:
        tensors[_MASKS] = np.concatenate(codes)
    # The digest comes first, and so before what might look like it.
    metadata = {"sha256": _ZEROS.decode(), "version": _VERSION, "tree": tree}
    text = json.dumps(metadata, separators=(",", ":"))

    data = safetensors.numpy.save(tensors, metadata={_METADATA: text})
    place, digest = _digest(data)

    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            if path.exists():
                os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
            file.write(data[:place])
            file.write(digest)
            file.write(memoryview(data)[place + len(digest) :])
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # which names the temporary file, if any
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def load_sparse(path: str | os.PathLike[str]) -> PyTree:
    """Reads a tree of arrays that `save_sparse` has written.

    Nothing is returned of a file that is not whole, or not as it was written: every
    byte of it is checked first.

    Args:
        path: of the file, `~` for the home folder.

    Returns:
        The tree, of the same containers, shapes, dtypes and bits. Arrays of JAX are on
        the default device, arrays of NumPy are NumPy's again.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut short, altered, or none of `save_sparse`; if it
            is of a later version; or if it has numbers of 64 bits of JAX, which needs
            `jax_enable_x64` for them.
        ImportError: if safetensors is not there, or flax for what is in the file.

    Examples:
        >>> import os, tempfile
        >>> import jax.numpy as jnp
        >>> import sparse_optax
        >>> params = {"kernel": jnp.array([0.0, -0.5, 0.0]), "bias": None}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "params.safetensors")
        ...     sparse_optax.save_sparse(path, params)
        ...     print(sparse_optax.load_sparse(path))
        {'kernel': Array([ 0. , -0.5,  0. ], dtype=float32), 'bias': None}
    """
    safetensors = _import_safetensors()
    data = Path(path).expanduser().read_bytes()
    place, digest = _digest(data)
    if data[place : place + len(digest)] != digest:
        raise ValueError(
            f"{path} cannot be read: it is damaged, incomplete, or not written by "
            "save_sparse."
        )
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = json.loads(header["__metadata__"][_METADATA])
    if metadata["version"] != _VERSION:
        raise ValueError(
            f"{path} has version {metadata['version']} of the format; this "
            f"sparse_optax reads version {_VERSION}."
        )
    tensors = {
        name.partition("/")[0]: (
            name.partition("/")[2],
            np.frombuffer(tensor["data"], jnp.dtype(_DTYPES[tensor["dtype"]])),
            tensor["shape"],
        )
        for name, tensor in safetensors.deserialize(data)
    }
    del data
    read = decoded = 0

    def load(description: dict[str, Any]) -> Any:
        nonlocal read, decoded
        name, values, shape = tensors.pop(str(read))
        read += 1
        if "dtype" in description:
            values = values.view(jnp.dtype(description["dtype"]))
        shape = description.get("shape", shape)
        if "masks" not in description:
            array = values.copy()  # in memory of its own, which may be written to
        else:
            codes, blocks = tensors[_MASKS][1], []
            for bits, size in description["masks"]:
                blocks.append(Block(bits, codes[decoded:][:size]))
                decoded += size
            array = np.zeros(math.prod(shape), values.dtype)
            array[_mask_code.decode(blocks, array.size)] = values
        return _off_host(array.reshape(shape), description, name, path)

    return _containers.from_json(metadata["tree"], load)


def _on_host(leaf: Any, name: str) -> tuple[dict[str, Any], np.ndarray]:
    """What kind of an array a leaf is, and its elements."""
    if isinstance(leaf, np.ndarray | np.generic) and not np.ma.isMaskedArray(leaf):
        if not _is_storable(leaf.dtype):
            raise TypeError(f"params at {name} has the dtype {leaf.dtype}.")
        native = leaf.dtype.newbyteorder("=")
        return {"numpy": True}, np.asarray(leaf, native, order="C")
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array):
        raise TypeError(f"params at {name} is no concrete array but {leaf!r:.80}.")
    if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        raise ValueError(
            f"params at {name} lies on devices of other processes too: "
            "`jax.experimental.multihost_utils.process_allgather` gets all of it."
        )
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        key_data = np.asarray(jax.random.key_data(leaf))
        return {"key": str(jax.random.key_impl(leaf))}, key_data
    return {}, np.asarray(leaf, order="C")


def _off_host(
    array: np.ndarray,
    kind: dict[str, Any],
    name: str,
    path: str | os.PathLike[str],
) -> Any:
    """The leaf, of its elements and of what `_on_host` said of it."""
    if kind.get("numpy"):
        return array
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"{path} has {array.dtype} at {name}, and JAX has that "
            "with `jax.config.update('jax_enable_x64', True)` only."
        )
    leaf = jnp.asarray(array)
    return jax.random.wrap_key_data(leaf, impl=kind["key"]) if "key" in kind else leaf


def _is_storable(dtype: np.dtype) -> bool:
    """Whether these are numbers that mean the same on every machine."""
    is_number = dtype.kind in "biufcV" and jnp.issubdtype(dtype, jnp.number)
    widest = 16 if dtype.kind == "c" else 8
    return dtype.kind == "b" or (is_number and dtype.itemsize <= widest)


def _words(values: np.ndarray) -> np.ndarray:
    """Integers that are zero where all bits of an element are."""
    if values.itemsize <= 8:
        return values.view(f"uint{8 * values.itemsize}")
    halves = values.view(np.uint64)
    return halves[::2] | halves[1::2]


def _digest(data: bytes) -> tuple[int, bytes]:
    """Where in a file its digest is, and what it should be.

    It is the SHA-256 of the file with zeros in place of the digest.
    """
    # Where there is none, some other bytes are taken for it, and prove to be wrong.
    place = data.find(_DIGEST) + len(_DIGEST)
    digest = hashlib.sha256(data[:place])
    digest.update(_ZEROS)
    digest.update(memoryview(data)[place + len(_ZEROS) :])
    return place, digest.hexdigest().encode()


def _import_safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "sparse files need safetensors: pip install 'sparse-optax[files]'"
        ) from error
    return safetensors
