"""The encoder for whole layers: compiled, one task for every part of a plane that can be encoded by itself."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.codec import jit, reference_encoder
from qcompiler.codec.block_care import Care, crowded, starts_of
from qcompiler.codec.byte_kernel import encode_alone, encode_pairs
from qcompiler.codec.pair_kernel import MAX_OUTPUTS, encode_triples
from qcompiler.codec.trellis_kernel import LARGEST_COST, PLANES, WORDS, backward, best_state, forward
from qcompiler.codec.xor_code import MEMORY, SYMBOL_BITS, SYMBOLS, TRELLIS, XorCode

LONGEST = {"8-0": 1024, "8-1": 2048, "8-2": 1024, "1-12": 1024}
"""Name of a code -> most blocks of a segment: what a search remembers of them takes at most 64 MiB and a plane."""
WHOLE = frozenset({"8-0", "8-1"})
"""Codes whose planes are searched side by side; the others are searched plane by plane."""


def encode(code: XorCode, care: Care) -> NDArray[np.uint8]:
    """Return the streams of all planes that match the most outputs: the bytes of ``reference_encoder.encode``.

    A block of ``8-2`` with more than 72 unpruned outputs, or 13 steps of ``1-12`` with so many that costs need
    more than 5 bits, are matched as if the last of these outputs were open; corrections make up for them.

    Returns:
        uint8 of shape (planes, registers + blocks).
    """
    if not jit.AVAILABLE:
        return reference_encoder.encode(code, care)
    symbols = np.zeros((care.planes, code.registers + care.blocks), np.uint8)
    rows, starts = code.network.rows[care.row], care.starts
    if code.name == "8-0":
        encode_alone(starts, rows, np.ascontiguousarray(care.bits), symbols)
    elif code.name == "8-1":
        history = _scratch((care.blocks + 1, SYMBOLS, care.planes), np.uint16)
        encode_pairs(starts, rows, np.ascontiguousarray(care.bits), history, symbols)
    elif code.name == TRELLIS:
        for plane in range(care.planes):
            symbols[plane] = _trellis(code, care, plane)
    else:
        _triples(code, care.without(crowded(care.block, 1, MAX_OUTPUTS)), symbols)
    return symbols


def _triples(code: XorCode, care: Care, symbols: NDArray[np.uint8]) -> None:
    rows, starts = code.network.rows[care.row], care.starts
    history = _scratch((care.blocks + 1, SYMBOLS, SYMBOLS), np.uint8)
    for plane in range(care.planes):
        encode_triples(starts, rows, np.ascontiguousarray(care.bits[:, plane]), history, symbols[plane])


def _trellis(code: XorCode, care: Care, plane: int) -> NDArray[np.uint8]:
    symbols, over = _searched(code, care, plane)
    if over:
        steps = _steps(code, care)
        symbols, _ = _searched(code, care.without(crowded(steps, MEMORY + 1, LARGEST_COST)), plane)
    return symbols


def _searched(code: XorCode, care: Care, plane: int) -> tuple[NDArray[np.uint8], bool]:
    """Return the stream of one plane, and True if costs had no room."""
    steps = care.blocks * SYMBOL_BITS
    starts = starts_of(_steps(code, care), steps)
    costs, way = np.zeros(PLANES * WORDS, np.uint64), _scratch((steps, WORDS), np.uint64)
    _, over = forward(starts, code.oldest_first[care.row], np.ascontiguousarray(care.bits[:, plane]), costs, way)
    bits = np.empty(MEMORY + steps, np.uint8)
    backward(way, best_state(costs, steps), bits)
    unused = np.zeros(code.registers * SYMBOL_BITS - MEMORY, np.uint8)
    return np.packbits(np.concatenate([unused, bits]), bitorder="little"), over


def _steps(code: XorCode, care: Care) -> NDArray[np.int64]:
    """Return after which bit of the stream each unpruned output is made."""
    return np.asarray(care.block * SYMBOL_BITS + care.row * SYMBOL_BITS // code.outputs)


class _Memory(threading.local):
    """What this thread has searched in, used again: fresh pages cost as much as the search itself."""

    array: NDArray[np.uint8] = np.empty(0, np.uint8)


_MEMORY = _Memory()


def _scratch(shape: tuple[int, ...], dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """Return an array with any content, which lasts until this thread asks for the next one."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if _MEMORY.array.size < size:
        _MEMORY.array = np.empty(size, np.uint8)
    return _MEMORY.array[:size].view(dtype).reshape(shape)
