"""Numbers of a few bits, stored one after the other without a gap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import QCompileError

BYTE_BITS = 8
_CHUNK = 1 << 20
"""Numbers packed at a time: whole bytes for every width, and temporary bits of 8 MiB."""


def packed_bytes(count: int, num_bits: int) -> int:
    """Return how many bytes ``count`` numbers of ``num_bits`` bits take: ceil(count * num_bits / 8)."""
    return -(-count * num_bits // BYTE_BITS)


def pack(numbers: NDArray[np.uint8], num_bits: int) -> NDArray[np.uint8]:
    """Return numbers as one stream of bits, the lowest bit of each number first.

    Bit ``b`` of the stream is bit ``b % 8`` of byte ``b // 8``, where bit 0 is the lowest. The last byte is filled
    with zeros.

    Args:
        numbers: uint8, any shape, each below ``2**num_bits``; read in C order.
        num_bits: width of a number, 1 to 8.

    Returns:
        uint8, shape (ceil(size * num_bits / 8),).

    Raises:
        QCompileError: a number does not fit in its bits, or the width is not 1 to 8.
    """
    _check_width(num_bits)
    flat = np.ascontiguousarray(numbers).reshape(-1)
    if flat.size and int(flat.max()) >> num_bits:
        raise QCompileError(f"the number {int(flat.max())} does not fit in {num_bits} bits")
    stream = np.empty(packed_bytes(flat.size, num_bits), np.uint8)
    for start in range(0, flat.size, _CHUNK):
        bits = np.unpackbits(flat[start : start + _CHUNK, None], axis=1, count=num_bits, bitorder="little")
        part = np.packbits(bits.reshape(-1), bitorder="little")
        first = start * num_bits // BYTE_BITS
        stream[first : first + part.size] = part
    return stream


def unpack(packed: NDArray[np.uint8], num_bits: int, count: int) -> NDArray[np.uint8]:
    """Return the numbers that ``pack`` stored.

    Args:
        packed: uint8, shape (ceil(count * num_bits / 8),).
        num_bits: width of a number, 1 to 8.
        count: how many numbers there are.

    Returns:
        uint8, shape (count,).

    Raises:
        QCompileError: the stream has another length, or the width is not 1 to 8.
    """
    _check_width(num_bits)
    if packed.shape != (packed_bytes(count, num_bits),):
        wanted = packed_bytes(count, num_bits)
        raise QCompileError(f"{count} numbers of {num_bits} bits take {wanted} bytes, not shape {packed.shape}")
    numbers = np.empty(count, np.uint8)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        first = start * num_bits // BYTE_BITS
        part = packed[first : first + packed_bytes(size, num_bits)]
        bits = np.unpackbits(part, count=size * num_bits, bitorder="little").reshape(size, num_bits)
        numbers[start : start + size] = np.packbits(bits, axis=1, bitorder="little")[:, 0]
    return numbers


def _check_width(num_bits: int) -> None:
    if not 1 <= num_bits <= BYTE_BITS:
        raise QCompileError(f"packed numbers have 1 to {BYTE_BITS} bits, not {num_bits}")
