"""The code of an array in a sparse file: positions and values of nonzero elements.

Positions are packed bits, or the steps from each to the next, as the narrowest unsigned
integers: first the low bytes of all steps, then the next bytes. zlib compresses each of
these planes separately, since high bytes repeat and low bytes do not.
"""

import zlib

import numpy as np


def encode(array: np.ndarray) -> tuple[str, bytes]:
    """Returns how the positions are stored, and the code.

    Only elements whose bits are all zero count as zeros, so -0.0 and NaNs are kept.
    """
    words = _words(array)
    mask = (words != 0).any(axis=1)
    positions = {"bits": zlib.compress(np.packbits(mask).tobytes())}
    if 2 * np.count_nonzero(mask) < mask.size:  # otherwise bits are smaller
        steps = np.diff(np.flatnonzero(mask), prepend=-1)
        steps = steps.astype(np.min_scalar_type(steps.max(initial=0)))
        planes = steps.view(np.uint8).reshape(-1, steps.itemsize).T
        planes = (zlib.compress(plane.tobytes()) for plane in planes)
        positions[steps.dtype.name] = b"".join(planes)
    kind = min(positions, key=lambda kind: len(positions[kind]))
    values = words[mask].tobytes()
    return kind, positions[kind] + min(values, zlib.compress(values), key=len)


def decode(
    kind: str, code: memoryview, shape: list[int], dtype: np.dtype
) -> np.ndarray:
    """Returns the array that has this code."""
    array = np.zeros(shape, dtype)
    words = _words(array)
    planes = []
    for _ in range(1 if kind == "bits" else np.dtype(kind).itemsize):
        stream = zlib.decompressobj()
        planes.append(np.frombuffer(stream.decompress(code), np.uint8))
        code = memoryview(stream.unused_data)
    if kind == "bits":
        where = np.flatnonzero(np.unpackbits(planes[0], count=array.size))
    else:
        steps = np.stack(planes, axis=1).reshape(-1).view(kind)
        where = np.cumsum(steps, dtype=np.int64) - 1
    is_compressed = len(code) < len(where) * array.itemsize
    values = zlib.decompress(code) if is_compressed else code
    words[where] = np.frombuffer(values, words.dtype).reshape(-1, words.shape[1])
    return array


def _words(array: np.ndarray) -> np.ndarray:
    """A view of the array as integers of its bits: a row for each element."""
    size = min(array.itemsize, 8)
    return array.reshape(-1).view(f"u{size}").reshape(-1, array.itemsize // size)
