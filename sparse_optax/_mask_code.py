"""A mask in few bits: the gaps between the weights that are kept, as packed symbols.

Of weights in a row, n that are pruned and then one that is kept are told by the number
n, the gap, in a symbol of b bits. The symbol of all ones is the escape: 2^b - 1 weights
that are pruned, and the gap goes on. With b = 1 this is the mask itself, bit by bit.
The b that makes the shortest code is chosen: for masks without structure that comes to
within a tenth of their entropy, from one weight in two kept to one in a million.
"""

from typing import NamedTuple

import numpy as np

_BLOCK = 1 << 22  # weights: coded apart, which bounds the memory that is needed
_MOST_BITS = 32
_SHORT = 1 << 12  # gaps below are counted by their length, the few above one by one


class Block(NamedTuple):
    """The code of as many weights as a block has, or are left."""

    bits: int  # of a symbol
    code: np.ndarray  # uint8


def encode(mask: np.ndarray) -> list[Block]:
    """The code of a vector of booleans."""
    starts = range(0, len(mask), _BLOCK)
    return [_encode(np.flatnonzero(mask[start:][:_BLOCK])) for start in starts]


def decode(blocks: list[Block], size: int) -> np.ndarray:
    """The vector of `size` booleans that was encoded.

    Raises:
        ValueError: if that is not what the blocks hold.
    """
    mask = np.zeros(size, bool)
    starts = range(0, size, _BLOCK)
    for start, block in zip(starts, blocks, strict=True):
        positions = _decode(block)
        within = mask[start:][:_BLOCK]
        if len(positions) and positions[-1] >= len(within):
            raise ValueError("the code of a mask is of a longer one")
        within[positions] = True
    return mask


def _encode(positions: np.ndarray) -> Block:
    # Without a sign, as a division is several times faster then.
    gaps = (np.diff(positions, prepend=-1) - 1).view(np.uint64)
    bits = _best_bits(gaps)
    escape = (1 << bits) - 1
    num_escapes = gaps // np.uint64(escape)
    ends = np.cumsum(num_escapes.view(np.int64) + 1)
    symbols = np.full(ends[-1] if len(ends) else 0, escape, np.uint32)
    symbols[ends - 1] = gaps - num_escapes * np.uint64(escape)
    planes = np.empty((len(symbols), bits), np.uint8)
    for bit in range(bits):
        planes[:, bit] = (symbols >> bit) & 1
    # What is left of the last byte is ones: escapes, with nothing kept behind them.
    fill = np.ones(-planes.size % 8, np.uint8)
    return Block(bits, np.packbits(np.append(planes, fill), bitorder="little"))


def _decode(block: Block) -> np.ndarray:
    """The positions of what is kept in a block."""
    bits, code = block
    escape = (1 << bits) - 1
    num_symbols = 8 * len(code) // bits
    planes = np.unpackbits(code, count=num_symbols * bits, bitorder="little")
    planes = planes.reshape(num_symbols, bits)
    symbols = np.zeros(num_symbols, np.int64)
    for bit in range(bits):
        symbols |= planes[:, bit].astype(np.int64) << bit
    is_kept = symbols < escape
    ends = np.cumsum(symbols + is_kept)  # past the kept weight, or past the escape
    return ends[is_kept] - 1


def _best_bits(gaps: np.ndarray) -> int:
    """The number of bits for which the code is shortest."""
    at_most = np.minimum(gaps, np.uint64(_SHORT)).view(np.int64)
    how_often = np.bincount(at_most, minlength=_SHORT)[:_SHORT]
    short, long = np.arange(_SHORT), gaps[gaps >= _SHORT]

    def code_length(bits: int) -> int:
        escape = (1 << bits) - 1
        of_short, of_long = how_often @ (short // escape), long // np.uint64(escape)
        return bits * (len(gaps) + int(of_short) + int(of_long.sum()))

    return min(range(1, _MOST_BITS + 1), key=code_length)
