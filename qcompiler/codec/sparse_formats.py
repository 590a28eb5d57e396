"""Ways to store a tensor most of whose numbers are 0, and what each takes: for honest comparisons.

Sizes are whole bits of the content alone; a graph that decodes comes on top of them.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.codec.bits import pack, packed_bytes, unpack
from qcompiler.codec.gaps import STRIDE, pack_gaps, unpack_gaps
from qcompiler.errors import QCompileError

_U8 = NDArray[np.uint8]
DENSE, CSR, RELATIVE, BITMASK, CODED, DELTA, ENTROPY = (
    *("dense", "CSR", "relative index", "bitmask", "coded mask", "delta", "order-0 entropy"),
)
"""Numbers one after the other; compressed rows; gaps of the best width; a bit for every number; the same mask at its
entropy; gaps of 8 bits; what no code without context goes below."""
_ROW_BITS = 32
_NARROW_COLUMNS = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Bitmask:
    """A bit for every number, 1 where it is not 0, lowest bit first; and the numbers that are not 0, packed.

    Attributes:
        count: numbers in all.
        kept: numbers that are not 0.
    """

    count: int
    kept: int
    mask: _U8
    values: _U8


@dataclass(frozen=True, slots=True, eq=False)
class Deltas:
    """The gaps between numbers that are not 0, and these; where a gap passes over 255 places, the number is 0.

    Attributes:
        count: numbers in all.
    """

    count: int
    gaps: _U8
    values: _U8


def to_bitmask(numbers: _U8, num_bits: int) -> Bitmask:
    """Return numbers of 1 to 8 bits, any shape, as a mask and values."""
    flat = numbers.reshape(-1)
    kept = flat != 0
    return Bitmask(flat.size, int(kept.sum()), np.packbits(kept, bitorder="little"), pack(flat[kept], num_bits))


def from_bitmask(stored: Bitmask, num_bits: int) -> _U8:
    """Return the numbers that ``to_bitmask`` stored, uint8 of shape (count,).

    Raises:
        QCompileError: the parts do not fit each other.
    """
    if stored.mask.size != packed_bytes(stored.count, 1):
        raise QCompileError(f"a mask of {stored.mask.size} bytes does not fit {stored.count} numbers")
    kept = np.unpackbits(stored.mask, count=stored.count, bitorder="little").astype(np.bool_)
    if int(kept.sum()) != stored.kept:
        raise QCompileError(f"a mask of {int(kept.sum())} numbers does not fit {stored.kept} values")
    numbers = np.zeros(stored.count, np.uint8)
    numbers[kept] = unpack(stored.values, num_bits, stored.kept)
    return numbers


def to_deltas(numbers: _U8, num_bits: int) -> Deltas:
    """Return numbers of 1 to 8 bits, any shape, as gaps and values."""
    flat = numbers.reshape(-1)
    positions = np.flatnonzero(flat)
    gaps = pack_gaps(positions)
    values = np.zeros(gaps.size, np.uint8)
    values[gaps > 0] = flat[positions]
    return Deltas(flat.size, gaps, pack(values, num_bits))


def from_deltas(stored: Deltas, num_bits: int) -> _U8:
    """Return the numbers that ``to_deltas`` stored, uint8 of shape (count,).

    Raises:
        QCompileError: a gap leads behind the last number, or the parts do not fit each other.
    """
    values, positions = unpack(stored.values, num_bits, stored.gaps.size), unpack_gaps(stored.gaps)
    if positions.size and int(positions[-1]) >= stored.count:
        raise QCompileError(f"a gap leads to number {int(positions[-1])} of {stored.count}")
    numbers = np.zeros(stored.count, np.uint8)
    numbers[positions] = values[stored.gaps > 0]
    return numbers


def rival_bits(numbers: _U8, num_bits: int) -> dict[str, int]:
    """Return what the usual formats take for a tensor, in bits.

    Args:
        numbers: uint8, not empty, each below ``2**num_bits``; 0 is a pruned weight. Rows are along the first axis.
        num_bits: width of a number, 1 to 8.

    Source: Han et al., "Deep Compression", ICLR 2016, section 2 (relative index); Shannon's bound for the entropies.
    """
    flat = numbers.reshape(-1)
    positions = np.flatnonzero(flat)
    kept, rows = positions.size, numbers.shape[0] if numbers.ndim > 1 else 1
    columns = flat.size // rows
    index = 16 if columns <= _NARROW_COLUMNS else 32
    mask = _entropy(np.asarray([flat.size - kept, kept]))
    return {
        DENSE: flat.size * num_bits,
        CSR: kept * (num_bits + index) + _ROW_BITS * (rows + 1),
        RELATIVE: min(_relative_entries(positions, width) * (num_bits + width) for width in range(1, 17)),
        BITMASK: flat.size + kept * num_bits,
        CODED: math.ceil(mask) + kept * num_bits,
        DELTA: _relative_entries(positions, 8, STRIDE) * (num_bits + 8),
        ENTROPY: math.ceil(_entropy(np.bincount(flat, minlength=1))),
    }


def zipped_bytes(*parts: NDArray[np.generic]) -> int:
    """Return what arrays take together behind zlib at its default level, as in a package or a download."""
    packer = zlib.compressobj()
    return sum(len(packer.compress(np.ascontiguousarray(part).tobytes())) for part in parts) + len(packer.flush())


def _relative_entries(positions: NDArray[np.int64], width: int, stride: int = 0) -> int:
    """Return how many gaps are stored, with those that only pass over places: ``stride`` each, or all of a width."""
    passed = (np.diff(positions, prepend=-1) - 1) // (stride or 1 << width)
    return int(positions.size + passed.sum())


def _entropy(counts: NDArray[np.int64]) -> float:
    """Return the bits that symbols take at least, each coded by itself."""
    seen = counts[counts > 0].astype(np.float64)
    return float(seen @ (np.log2(seen.sum()) - np.log2(seen)))
