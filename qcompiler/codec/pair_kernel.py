"""The cheapest stream of the ``8-2`` code: 65536 states, 16.8 million transitions a block.

As in ``byte_kernel``, with one more symbol in the registers. For every middle symbol the search is the same but for
the outputs that it turns, so middle symbols lie side by side in vectors, and a turned output exchanges two halves of
the field in its sweep. Costs are kept for all blocks; the way back looks for the symbols that explain them.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from qcompiler.codec.byte_kernel import SYMBOLS, contributions, distances, turned
from qcompiler.codec.jit import compiled

_U8: TypeAlias = NDArray[np.uint8]
_U32: TypeAlias = NDArray[np.uint32]
_U64: TypeAlias = NDArray[np.uint64]
_Ints: TypeAlias = NDArray[np.int64]
SWEPT = 13
"""The most unpruned outputs of a block that are swept: 2**13 costs for each of 256 middle symbols."""
MAX_OUTPUTS = 72
"""The most unpruned outputs of a block: more make costs that do not fit in a byte. Others are left to corrections."""
ONES = np.asarray([bin(number).count("1") for number in range(SYMBOLS)], np.uint8)
"""How many bits of a byte are 1, uint8 of shape (256,)."""
_SHIFT_1, _SHIFT_2, _SHIFT_4 = np.uint64(8), np.uint64(16), np.uint64(32)
_KEPT_1, _KEPT_2, _KEPT_4 = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF), np.uint64(0xFFFFFFFF)
_FAR, _ONE, _ALL = np.uint8(220), np.uint8(1), np.uint8(255)


@compiled
def _sweep(field: _U8, turns: _Ints, outputs: int) -> None:
    """Let costs be the smallest of any place plus its distance, and exchange what each middle symbol turns."""
    swap = np.empty(SYMBOLS, np.uint8)
    for output in range(outputs):
        for middle in range(SYMBOLS):
            swap[middle] = _ALL if turns[middle] >> output & 1 else np.uint8(0)
        run = SYMBOLS << output
        for begin in range(0, SYMBOLS << outputs, 2 * run):
            for row in range(begin, begin + run, SYMBOLS):
                lower, upper = field[row : row + SYMBOLS], field[row + run : row + run + SYMBOLS]
                for middle in range(SYMBOLS):
                    low, high = lower[middle], upper[middle]
                    first, second = min(low, np.uint8(high + _ONE)), min(high, np.uint8(low + _ONE))
                    change = (first ^ second) & swap[middle]
                    lower[middle] = first ^ change
                    upper[middle] = second ^ change


@compiled
def _step_swept(costs: _U8, new: _U8, places: _Ints, wanted: int, outputs: int, field: _U8) -> None:
    """Write the costs by new and middle symbol behind a block with few unpruned outputs."""
    field[: SYMBOLS << outputs] = _FAR
    for symbol in range(SYMBOLS):
        row = places[2, symbol] * SYMBOLS
        target, source = field[row : row + SYMBOLS], costs[symbol]
        for middle in range(SYMBOLS):
            target[middle] = min(target[middle], source[middle])
    _sweep(field, places[1], outputs)
    for symbol in range(SYMBOLS):
        row = (places[0, symbol] ^ wanted) * SYMBOLS
        new[symbol] = field[row : row + SYMBOLS]


@compiled
def _step_compared(costs: _U8, new: _U8, places: _U8, wanted: _U8) -> None:
    """Write the costs by new and middle symbol behind a block with many unpruned outputs.

    ``places`` is uint8 of shape (groups, 3, 256): what symbols turn, by groups of 8 outputs; ``wanted`` (groups,).
    """
    groups = places.shape[0]
    counts = np.empty((groups, SYMBOLS, SYMBOLS), np.uint8)
    for group in range(groups):
        for turn in range(SYMBOLS):
            for middle in range(SYMBOLS):
                counts[group, turn, middle] = ONES[turn ^ int(places[group, 1, middle])]
    total = np.empty(SYMBOLS, np.uint8)
    for symbol in range(SYMBOLS):
        best = new[symbol]
        best[:] = _ALL
        for old in range(SYMBOLS):
            turn = int(places[0, 0, symbol] ^ wanted[0] ^ places[0, 2, old])
            source, row = costs[old], counts[0, turn]
            if groups == 2:
                other = counts[1, int(places[1, 0, symbol] ^ wanted[1] ^ places[1, 2, old])]
                for middle in range(SYMBOLS):
                    best[middle] = min(best[middle], np.uint8(source[middle] + row[middle] + other[middle]))
                continue
            for middle in range(SYMBOLS):
                total[middle] = source[middle] + row[middle]
            for group in range(1, groups):
                other = counts[group, int(places[group, 0, symbol] ^ wanted[group] ^ places[group, 2, old])]
                for middle in range(SYMBOLS):
                    total[middle] += other[middle]
            for middle in range(SYMBOLS):
                best[middle] = min(best[middle], total[middle])


@compiled
def _exchange(first: np.uint64, second: np.uint64, shift: np.uint64, kept: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Exchange the upper parts of one word with the lower parts of another."""
    change = ((first >> shift) ^ second) & kept
    return first ^ (change << shift), second ^ change


@compiled
def _transpose(source: _U64, target: _U64) -> None:
    """Write costs by new and middle symbol as costs by the middle and the old symbol of the next step.

    Both are bytes of shape (256, 256), seen as words of 8 of shape (256, 32). Squares of 8 x 8 bytes are turned in
    three exchanges of bytes, pairs and fours.
    """
    for row in range(SYMBOLS // 8):
        for column in range(SYMBOLS // 8):
            top, left = 8 * row, 8 * column
            a, b, c, d = source[top, column], source[top + 1, column], source[top + 2, column], source[top + 3, column]
            top += 4
            e, f, g, h = source[top, column], source[top + 1, column], source[top + 2, column], source[top + 3, column]
            a, b = _exchange(a, b, _SHIFT_1, _KEPT_1)
            c, d = _exchange(c, d, _SHIFT_1, _KEPT_1)
            e, f = _exchange(e, f, _SHIFT_1, _KEPT_1)
            g, h = _exchange(g, h, _SHIFT_1, _KEPT_1)
            a, c = _exchange(a, c, _SHIFT_2, _KEPT_2)
            b, d = _exchange(b, d, _SHIFT_2, _KEPT_2)
            e, g = _exchange(e, g, _SHIFT_2, _KEPT_2)
            f, h = _exchange(f, h, _SHIFT_2, _KEPT_2)
            a, e = _exchange(a, e, _SHIFT_4, _KEPT_4)
            b, f = _exchange(b, f, _SHIFT_4, _KEPT_4)
            c, g = _exchange(c, g, _SHIFT_4, _KEPT_4)
            d, h = _exchange(d, h, _SHIFT_4, _KEPT_4)
            target[left, row], target[left + 1, row], target[left + 2, row], target[left + 3, row] = a, b, c, d
            left += 4
            target[left, row], target[left + 1, row], target[left + 2, row], target[left + 3, row] = e, f, g, h


@compiled
def _lower(costs: _U8) -> None:
    """Take the smallest cost from all of them."""
    flat = costs.reshape(-1)
    least = _ALL
    for k in range(flat.size):
        least = min(least, flat[k])
    if least:
        for k in range(flat.size):
            flat[k] -= least


@compiled
def _number(wanted: _U8) -> int:
    found = 0
    for output in range(len(wanted)):
        found |= int(wanted[output]) << output
    return found


@compiled
def _step(costs: _U8, new: _U8, rows: _U32, wanted: _U8, field: _U8) -> None:
    """Write the costs by new and middle symbol behind one block; ``rows`` are its unpruned outputs."""
    outputs = len(rows)
    places = np.empty((3, SYMBOLS), np.int64)
    if outputs <= SWEPT:
        for lag in range(3):
            contributions(rows, 0, outputs, lag, places[lag])
        _step_swept(costs, new, places, _number(wanted), outputs, field)
        return
    groups = (outputs + 7) // 8
    by_group, wanted_by_group = np.empty((groups, 3, SYMBOLS), np.uint8), np.empty(groups, np.uint8)
    for group in range(groups):
        first, last = 8 * group, min(8 * group + 8, outputs)
        for lag in range(3):
            contributions(rows, first, last, lag, places[lag])
            by_group[group, lag] = places[lag].astype(np.uint8)
        wanted_by_group[group] = _number(wanted[first:last])
    _step_compared(costs, new, by_group, wanted_by_group)


@compiled
def encode_triples(starts: _Ints, rows: _U32, bits: _U8, history: _U8, symbols: _U8) -> None:
    """Write the cheapest stream of one plane in ``8-2``; of equal ways back the smallest symbols.

    Args:
        starts: int64 of shape (blocks + 1,): where the unpruned outputs of each block begin; at most MAX_OUTPUTS
            each.
        rows: uint32 of shape (outputs,): connections of each unpruned output.
        bits: uint8 0 or 1 of shape (outputs,): what they are to be.
        history: uint8 of shape (blocks + 1, 256, 256), filled with the cost by the two symbols before each block.
        symbols: uint8 of shape (2 + blocks,), filled.
    """
    blocks = len(starts) - 1
    field, new = np.empty(SYMBOLS << SWEPT, np.uint8), np.empty((SYMBOLS, SYMBOLS), np.uint8)
    history[0] = 0
    for t in range(blocks):
        first, last = starts[t], starts[t + 1]
        _step(history[t], new, rows[first:last], bits[first:last], field)
        _lower(new)
        _transpose(new.view(np.uint64), history[t + 1].view(np.uint64))
    best = np.argmin(history[blocks])
    symbols[blocks], symbols[blocks + 1] = best // SYMBOLS, best % SYMBOLS
    found = np.empty(SYMBOLS, np.uint16)
    for t in range(blocks - 1, -1, -1):
        first, last = starts[t], starts[t + 1]
        wanted = bits[first:last].copy()
        turned(rows, first, last, 0, symbols[t + 2], wanted)
        turned(rows, first, last, 1, symbols[t + 1], wanted)
        found[:] = history[t, :, symbols[t + 1]]
        distances(rows, wanted, first, last, 2, found)
        symbols[t] = np.argmin(found)
