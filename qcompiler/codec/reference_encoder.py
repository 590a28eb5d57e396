"""The encoder as the paper writes it, in NumPy: every state and every symbol of every block.

It is the oracle of the fast encoder, which writes the same bytes, and what encodes where numba is not installed.
Source: Park et al., ICLR 2022, section 3.3 (a Viterbi search over the states of the registers).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qcompiler.codec.block_care import Care, starts_of
from qcompiler.codec.xor_code import MEMORY, SYMBOL_BITS, SYMBOLS, TRELLIS, XorCode

_Array = NDArray[np.float32]
_STATES = 1 << MEMORY


def encode(code: XorCode, care: Care) -> NDArray[np.uint8]:
    """Return the streams of all planes that match the most outputs.

    Of equal ways the last symbols, and then every earlier one, are the smallest.

    Returns:
        uint8 of shape (planes, registers + blocks).
    """
    one = _encode_bits if code.name == TRELLIS else _encode_bytes
    found = [one(code, care, plane) for plane in range(care.planes)]
    return np.stack(found) if found else np.zeros((0, code.registers + care.blocks), np.uint8)


def _encode_bytes(code: XorCode, care: Care, plane: int) -> NDArray[np.uint8]:
    """Return the stream of one plane for a code whose symbols are bytes.

    Costs have an axis for each register, the oldest symbol first, and the smallest may be counted from anywhere.
    """
    starts, tables = care.starts, code.network.tables.astype(np.float32)
    costs = np.zeros((SYMBOLS,) * code.registers, np.float32)
    history = []
    for block in range(care.blocks):
        part = slice(starts[block], starts[block + 1])
        wanted, seen = care.bits[part, plane].astype(np.float32), tables[:, :, care.row[part]]
        total = _mismatches(seen, wanted) + costs[..., None]  # axes: oldest symbol to newest
        history.append(total)
        costs = total.min(axis=0) if code.registers else costs
    symbols = np.zeros(code.registers + care.blocks, np.uint8)
    if code.registers:
        symbols[care.blocks :] = np.unravel_index(int(np.argmin(costs)), costs.shape)
    for block in range(care.blocks - 1, -1, -1):
        known = tuple(symbols[block + 1 : block + 1 + code.registers])
        best = history[block][(slice(None), *known)] if code.registers else history[block]
        symbols[block] = int(np.argmin(best))
    return symbols


def _mismatches(seen: _Array, wanted: _Array) -> _Array:
    """Return the distance to what is wanted for every combination of symbols, oldest first."""
    sums = _xor(seen[0], wanted[None])  # the newest symbol turns what is wanted; then each older one
    for table in seen[1:-1]:
        sums = _xor(table[:, None], sums.reshape(1, *sums.shape) if sums.ndim == 2 else sums)
    flat = sums.reshape(math.prod(sums.shape[:-1]), wanted.size)
    if len(seen) == 1:
        return np.asarray(flat.sum(1))
    oldest = seen[-1]
    distance = oldest.sum(1)[:, None] + flat.sum(1)[None, :] - 2 * oldest @ flat.T
    return np.asarray(distance.reshape(SYMBOLS, *sums.shape[:-1]))


def _xor(first: _Array, second: _Array) -> _Array:
    return np.asarray(np.abs(first - second), np.float32)


def _encode_bits(code: XorCode, care: Care, plane: int) -> NDArray[np.uint8]:
    """Return the stream of one plane for the trellis code. Bit ``k`` of a state entered ``k`` bits before the last."""
    steps = care.blocks * SYMBOL_BITS
    phases = np.asarray([code.phase(row) for row in range(code.outputs)], np.int64)
    starts = starts_of(care.block * SYMBOL_BITS + phases[care.row], steps)
    windows = np.arange(2 * _STATES)
    before = [(np.arange(_STATES) >> 1) | (oldest << (MEMORY - 1)) for oldest in (0, 1)]
    costs, way = np.zeros(_STATES, np.int64), np.zeros((steps, _STATES), np.bool_)
    for step in range(steps):
        wrong = np.zeros(2 * _STATES, np.int64)
        for output in range(starts[step], starts[step + 1]):
            wrong += _parity(windows & code.taps[care.row[output]]) ^ int(care.bits[output, plane])
        first, second = costs[before[0]] + wrong[:_STATES], costs[before[1]] + wrong[_STATES:]
        way[step] = second < first
        costs = np.minimum(first, second)
    return _bytes_of(way, int(np.argmin(costs)), code.registers)


def _bytes_of(way: NDArray[np.bool_], state: int, registers: int) -> NDArray[np.uint8]:
    bits = np.zeros(registers * SYMBOL_BITS + len(way), np.uint8)
    for step in range(len(way) - 1, -1, -1):
        bits[registers * SYMBOL_BITS + step] = state & 1
        state = (state >> 1) | (int(way[step, state]) << (MEMORY - 1))
    for age in range(MEMORY):
        bits[registers * SYMBOL_BITS - 1 - age] = state >> age & 1
    return np.packbits(bits, bitorder="little")


def _parity(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    for shift in (8, 4, 2, 1):
        numbers = numbers ^ (numbers >> shift)
    return numbers & 1
