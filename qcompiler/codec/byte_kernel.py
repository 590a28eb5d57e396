"""The cheapest stream of the codes whose symbols are bytes: one step for every block of outputs.

A step looks for the smallest ``cost(c) + distance`` over the symbol ``c`` that leaves the registers, for 256 new
symbols. The distance is a Hamming distance of as many bits as the block has unpruned
outputs, few on average: all costs are laid out by the bits that ``c`` contributes to these outputs, and one sweep
per output, ``G(y) = min(G(y), G(y with that bit turned) + 1)``, replaces 256 comparisons for every result. Blocks
with many unpruned outputs are compared one by one.

Planes of a tensor lie side by side, so that vectors hold them.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from qcompiler.codec.jit import compiled
from qcompiler.codec.xor_code import PARITY

_U8: TypeAlias = NDArray[np.uint8]
_U16: TypeAlias = NDArray[np.uint16]
_U32: TypeAlias = NDArray[np.uint32]
_Ints: TypeAlias = NDArray[np.int64]
SYMBOLS = 256
SWEPT = 15
"""The most unpruned outputs of a block of ``8-1`` that are swept: 2**15 costs for each plane."""
PARITY_OF_AND = PARITY[np.arange(SYMBOLS)[:, None] & np.arange(SYMBOLS)[None, :]].astype(np.uint16)
"""Parity of ``mask & symbol``, uint16 of shape (256, 256)."""
FAR = 0x3FFF
_ONE = np.uint16(1)


@compiled
def contributions(rows: _U32, first: int, last: int, lag: int, found: _Ints) -> None:
    """Write which unpruned outputs of a block a symbol turns, as a number, for all 256 symbols of one lag."""
    found[0] = 0
    for bit in range(8):
        place = np.uint32(8 * lag + bit)
        column = 0
        for output in range(first, last):
            column |= int((rows[output] >> place) & np.uint32(1)) << (output - first)
        for symbol in range(1 << bit):
            found[(1 << bit) + symbol] = found[symbol] ^ column


@compiled
def distances(rows: _U32, wanted: _U8, first: int, last: int, lag: int, found: _U16) -> None:
    """Add to 256 numbers how many outputs each symbol of one lag leaves wrong, if the others turn ``wanted``."""
    for output in range(first, last):
        mask = int((rows[output] >> np.uint32(8 * lag)) & np.uint32(255))
        bit = np.uint16(wanted[output - first])
        for symbol in range(SYMBOLS):
            found[symbol] += PARITY_OF_AND[mask, symbol] ^ bit


@compiled
def turned(rows: _U32, first: int, last: int, lag: int, symbol: int, wanted: _U8) -> None:
    """Turn the wanted outputs by what one symbol contributes."""
    for output in range(first, last):
        mask = int((rows[output] >> np.uint32(8 * lag)) & np.uint32(255))
        wanted[output - first] ^= np.uint8(PARITY_OF_AND[mask, symbol])


@compiled
def encode_alone(starts: _Ints, rows: _U32, bits: _U8, symbols: _U8) -> None:
    """Write the best symbol of every block of ``8-0``; of equal ones the smallest.

    Args:
        starts: int64 of shape (blocks + 1,): where the unpruned outputs of each block begin.
        rows: uint32 of shape (outputs,): connections of each unpruned output.
        bits: uint8 0 or 1 of shape (outputs, planes): what they are to be.
        symbols: uint8 of shape (planes, blocks), filled.
    """
    found = np.empty(SYMBOLS, np.uint16)
    for block in range(len(starts) - 1):
        first, last = starts[block], starts[block + 1]
        for plane in range(symbols.shape[0]):
            found[:] = 0
            distances(rows, bits[first:last, plane], first, last, 0, found)
            symbols[plane, block] = np.argmin(found)


@compiled
def _sweep(costs: _U16, outputs: int, planes: int) -> None:
    """Let the cost at every place be the smallest of any place plus its Hamming distance; in place, plane by plane."""
    for output in range(outputs):
        run = planes << output
        for begin in range(0, planes << outputs, 2 * run):
            lower, upper = costs[begin : begin + run], costs[begin + run : begin + 2 * run]
            for k in range(run):
                low, high = lower[k], upper[k]
                lower[k] = min(low, np.uint16(high + _ONE))
                upper[k] = min(high, np.uint16(low + _ONE))


@compiled
def _step_swept(costs: _U16, new: _U16, block: tuple[int, int, int], rows: _U32, bits: _U8, field: _U16) -> None:
    """Write the costs behind a block with few unpruned outputs."""
    first, last, planes = block
    count = last - first
    places, targets = np.empty(SYMBOLS, np.int64), np.empty(SYMBOLS, np.int64)
    contributions(rows, first, last, 1, places)
    contributions(rows, first, last, 0, targets)
    field[: planes << count] = np.uint16(FAR)
    for symbol in range(SYMBOLS):
        for plane in range(planes):
            k = places[symbol] * planes + plane
            field[k] = min(field[k], costs[symbol, plane])
    _sweep(field, count, planes)
    for plane in range(planes):
        wanted = 0
        for output in range(first, last):
            wanted |= int(bits[output, plane]) << (output - first)
        for symbol in range(SYMBOLS):
            new[symbol, plane] = field[(targets[symbol] ^ wanted) * planes + plane]


@compiled
def _step_compared(costs: _U16, new: _U16, block: tuple[int, int, int], rows: _U32, bits: _U8) -> None:
    """Write the costs behind a block with many unpruned outputs."""
    first, last, planes = block
    found, wanted = np.empty(SYMBOLS, np.uint16), np.empty(last - first, np.uint8)
    column = np.empty(SYMBOLS, np.uint16)
    for plane in range(planes):
        column[:] = costs[:, plane]
        for symbol in range(SYMBOLS):
            wanted[:] = bits[first:last, plane]
            turned(rows, first, last, 0, symbol, wanted)
            found[:] = column
            distances(rows, wanted, first, last, 1, found)
            new[symbol, plane] = found.min()


@compiled
def encode_pairs(starts: _Ints, rows: _U32, bits: _U8, history: _U16, symbols: _U8) -> None:
    """Write the cheapest streams of ``8-1``; of equal ways back the smallest symbols.

    Args:
        starts: int64 of shape (blocks + 1,): where the unpruned outputs of each block begin.
        rows: uint32 of shape (outputs,): connections of each unpruned output.
        bits: uint8 0 or 1 of shape (outputs, planes): what they are to be.
        history: uint16 of shape (blocks + 1, 256, planes), filled with the cost of every symbol before each block.
        symbols: uint8 of shape (planes, 1 + blocks), filled.
    """
    blocks, planes = len(starts) - 1, symbols.shape[0]
    field = np.empty(planes << SWEPT, np.uint16)
    history[0] = 0
    for t in range(blocks):
        block = (starts[t], starts[t + 1], planes)
        if block[1] - block[0] <= SWEPT:
            _step_swept(history[t], history[t + 1], block, rows, bits, field)
        else:
            _step_compared(history[t], history[t + 1], block, rows, bits)
        for plane in range(planes):
            least = history[t + 1, :, plane].min()
            for symbol in range(SYMBOLS):
                history[t + 1, symbol, plane] -= least
    found = np.empty(SYMBOLS, np.uint16)
    for plane in range(planes):
        symbol = int(np.argmin(history[blocks, :, plane]))
        symbols[plane, blocks] = symbol
        for t in range(blocks - 1, -1, -1):
            first, last = starts[t], starts[t + 1]
            wanted = bits[first:last, plane].copy()
            turned(rows, first, last, 0, symbol, wanted)
            found[:] = history[t, :, plane]
            distances(rows, wanted, first, last, 1, found)
            symbol = int(np.argmin(found))
            symbols[plane, t] = symbol
