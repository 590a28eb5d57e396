"""The cheapest path through the 4096 states of the ``1-12`` code, 64 states to a machine word.

A cost is kept as bit planes: word ``w`` of plane ``p`` holds bit ``p`` of the costs of states ``64 w`` to
``64 w + 63``. Adding a mismatch, comparing and choosing are then a few logical operations on whole words, which the
compiler runs on vectors, and the comparisons are what the way back needs: a bit per state and step.

Where a state's bits are: the newest one is bit 11 of the state's number. A step takes the oldest bit out of place
``step % 11`` and puts the newest one there, and the bit that enters goes to place 11; no word is ever shuffled.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from qcompiler.codec.jit import compiled
from qcompiler.codec.xor_code import MEMORY

_U64: TypeAlias = NDArray[np.uint64]
WORDS, HALF = 64, 32
RING = MEMORY - 1
"""Places that all bits but the newest go through."""
_RING_BITS = (1 << RING) - 1
PLANES = 5
LARGEST_COST = (1 << PLANES) - 1
"""A state costs at most so much more than the cheapest: as many as there are unpruned outputs in 13 steps."""
_Planes: TypeAlias = tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]
_Turned: TypeAlias = tuple[np.uint64, np.uint64]
"""All ones where the newest, and where the oldest bit turns a mismatch round."""
_ALL, _NONE = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0)
_ONE = np.uint64(1)


def _lane_patterns() -> _U64:
    """Return for each mask of 6 bits the parity of ``lane & mask``, lane by lane of a word: uint64 of shape (64,)."""
    lanes = np.arange(64)
    bits = np.asarray([[bin(lane & mask).count("1") & 1 for lane in lanes] for mask in range(64)], np.uint8)
    return np.packbits(bits, axis=1, bitorder="little").view("<u8").astype(np.uint64)[:, 0]


def _word_patterns() -> _U64:
    """Return for each mask of 5 bits the parity of ``word & mask`` as 0 or all ones: uint64 of shape (32, 32)."""
    parity = [[bin(word & mask).count("1") & 1 for word in range(HALF)] for mask in range(HALF)]
    return np.asarray(parity, np.uint64) * _ALL


LANES, WORD_MASKS = _lane_patterns(), _word_patterns()
PLACES = np.asarray([sum(1 << x for x in range(64) if not x >> bit & 1) for bit in range(6)], np.uint64)
"""Lanes whose number has a 0 at bit ``bit``."""


@compiled
def _split_words(costs: _U64, run: int, sums: _U64) -> None:
    for p in range(PLANES):
        for first in range(0, HALF, 2 * run):
            for w in range(run):
                sums[p * HALF + first + w] = costs[p * WORDS + first + w]
                sums[(PLANES + p) * HALF + first + w] = costs[p * WORDS + first + run + w]
                sums[p * HALF + first + run + w] = costs[p * WORDS + HALF + first + w]
                sums[(PLANES + p) * HALF + first + run + w] = costs[p * WORDS + HALF + first + run + w]


@compiled
def _split(costs: _U64, place: int, sums: _U64) -> None:
    """Sort the costs of all states by the oldest bit, and put the newest bit where it was."""
    if place < 6:
        kept, shift = PLACES[place], np.uint64(1 << place)
        for p in range(PLANES):
            for w in range(HALF):
                first, second = costs[p * WORDS + w], costs[p * WORDS + HALF + w]
                sums[p * HALF + w] = (first & kept) | ((second & kept) << shift)
                sums[(PLANES + p) * HALF + w] = ((first >> shift) & kept) | (second & ~kept)
    elif place == 6:  # numbers that the compiler knows: it moves vectors then
        _split_words(costs, 1, sums)
    elif place == 7:
        _split_words(costs, 2, sums)
    elif place == 8:
        _split_words(costs, 4, sums)
    elif place == 9:
        _split_words(costs, 8, sums)
    else:
        _split_words(costs, 16, sums)


@compiled
def _plus(costs: _Planes, carry: np.uint64) -> tuple[_Planes, np.uint64]:
    """Return the planes of costs plus 0 or 1 in every lane, and the lanes that did not have room."""
    c0, c1, c2, c3, c4 = costs
    k1 = c0 & carry
    k2 = c1 & k1
    k3 = c2 & k2
    k4 = c3 & k3
    return (c0 ^ carry, c1 ^ k1, c2 ^ k2, c3 ^ k3, c4 ^ k4), c4 & k4


@compiled
def _smaller(first: _Planes, second: _Planes) -> tuple[_Planes, np.uint64]:
    """Return the planes of the smaller cost of every lane, and where it is the second; equal costs take the first."""
    a0, a1, a2, a3, a4 = first
    b0, b1, b2, b3, b4 = second
    x0, x1, x2, x3, x4 = a0 ^ b0, a1 ^ b1, a2 ^ b2, a3 ^ b3, a4 ^ b4
    less = x0 & a0
    less = (x1 & a1) | (~x1 & less)
    less = (x2 & a2) | (~x2 & less)
    less = (x3 & a3) | (~x3 & less)
    less = (x4 & a4) | (~x4 & less)
    return (a0 ^ (x0 & less), a1 ^ (x1 & less), a2 ^ (x2 & less), a3 ^ (x3 & less), a4 ^ (x4 & less)), less


@compiled
def _load(costs: _U64, row: int, w: int) -> _Planes:
    w += row * PLANES * HALF
    return costs[w], costs[w + HALF], costs[w + 2 * HALF], costs[w + 3 * HALF], costs[w + 4 * HALF]


@compiled
def _store(costs: _U64, row: int, w: int, found: _Planes) -> None:
    w += row * PLANES * HALF
    costs[w], costs[w + HALF], costs[w + 2 * HALF], costs[w + 3 * HALF], costs[w + 4 * HALF] = found


@compiled
def _keep(costs: _U64, w: int, found: _Planes) -> None:
    costs[w], costs[w + WORDS], costs[w + 2 * WORDS], costs[w + 3 * WORDS], costs[w + 4 * WORDS] = found


@compiled
def _add(sums: _U64, sources: int, words: _U64, lanes: np.uint64, turned: _Turned) -> np.uint64:
    """Add the mismatches of one output to the costs by (newest bit, oldest bit), and return what had no room.

    ``sources`` is 2 where costs by oldest bit are read, which are the same for both newest bits, else 4.
    """
    newest, oldest = turned
    over, shared = np.uint64(0), sources == 2
    for w in range(HALF):
        x = words[w] ^ lanes
        c00, c01 = _load(sums, 0, w), _load(sums, 1, w)
        c10 = c00 if shared else _load(sums, 2, w)
        c11 = c01 if shared else _load(sums, 3, w)
        c00, k00 = _plus(c00, x)
        c01, k01 = _plus(c01, x ^ oldest)
        c10, k10 = _plus(c10, x ^ newest)
        c11, k11 = _plus(c11, x ^ newest ^ oldest)
        over |= k00 | k01 | k10 | k11
        _store(sums, 0, w, c00)
        _store(sums, 1, w, c01)
        _store(sums, 2, w, c10)
        _store(sums, 3, w, c11)
    return over


@compiled
def _add_and_choose(
    sums: _U64, sources: int, pattern: tuple[_U64, np.uint64, _Turned], costs: _U64, way: _U64
) -> np.uint64:
    """Add the mismatches of the last output of a step, and choose the oldest bit of every way."""
    words, lanes, (newest, oldest) = pattern
    over, shared = np.uint64(0), sources == 2
    for w in range(HALF):
        x = words[w] ^ lanes
        c00, c01 = _load(sums, 0, w), _load(sums, 1, w)
        c10 = c00 if shared else _load(sums, 2, w)
        c11 = c01 if shared else _load(sums, 3, w)
        c00, k00 = _plus(c00, x)
        c01, k01 = _plus(c01, x ^ oldest)
        c10, k10 = _plus(c10, x ^ newest)
        c11, k11 = _plus(c11, x ^ newest ^ oldest)
        over |= k00 | k01 | k10 | k11
        best, less = _smaller(c00, c01)
        _keep(costs, w, best)
        way[w] = less
        best, less = _smaller(c10, c11)
        _keep(costs, w + HALF, best)
        way[w + HALF] = less
    return over


@compiled
def _choose(sums: _U64, costs: _U64, way: _U64) -> None:
    """Choose the oldest bit of every way in a step without outputs: both newest bits cost the same."""
    for w in range(HALF):
        best, less = _smaller(_load(sums, 0, w), _load(sums, 1, w))
        _keep(costs, w, best)
        _keep(costs, w + HALF, best)
        way[w] = less
        way[w + HALF] = less


@compiled
def _lower(costs: _U64) -> bool:
    """Take 1 from all costs if none is 0, and return whether that was done."""
    every = _ALL
    for w in range(WORDS):
        v = w + 2 * WORDS
        every &= costs[w] | costs[w + WORDS] | costs[v] | costs[v + WORDS] | costs[v + 2 * WORDS]
    if every != _ALL:
        return False
    for w in range(WORDS):
        borrow = _ALL
        for p in range(PLANES):
            value = costs[p * WORDS + w]
            costs[p * WORDS + w] = value ^ borrow
            borrow &= ~value
    return True


@compiled
def _pattern(tap: int, bit: int, step: int) -> tuple[_U64, np.uint64, _Turned]:
    """Return which pairs of states mismatch an output, and what the newest and the oldest bit do to that."""
    ring, turn = tap >> 1 & _RING_BITS, (step + 1) % RING
    mask = (ring << turn | ring >> (RING - turn)) & _RING_BITS
    lanes = LANES[mask & 63]
    newest, oldest = (_ALL if tap >> MEMORY & 1 else _NONE), (_ALL if tap & 1 else _NONE)
    return WORD_MASKS[mask >> 6], (~lanes if bit else lanes), (newest, oldest)


@compiled
def forward(
    starts: NDArray[np.int64], taps: NDArray[np.int64], bits: NDArray[np.uint8], costs: _U64, way: _U64
) -> tuple[int, bool]:
    """Find the cheapest way into every state, step by step, from any state at the start.

    Args:
        starts: int64 of shape (steps + 1,): where the unpruned outputs of each step begin.
        taps: int64 of shape (outputs,): bit ``12 - lag`` connects to the bit that entered ``lag`` steps before.
        bits: uint8 0 or 1 of shape (outputs,): what the outputs are to be.
        costs: uint64 zeros of shape (5 * 64,), plane by plane; after it, what the cheapest way into
            every state mismatches.
        way: uint64 of shape (steps, 64), filled with the oldest bits of the cheapest ways.

    Returns:
        Mismatches to be added to all ``costs``, and True if some cost had no room, so that nothing holds.
    """
    lowered, over = 0, np.uint64(0)
    sums = np.empty(4 * PLANES * HALF, np.uint64)
    for step in range(len(starts) - 1):
        _split(costs, step % RING, sums)
        first, last = starts[step], starts[step + 1]
        if first == last:
            _choose(sums, costs, way[step])
            continue
        sources = 2
        for output in range(first, last - 1):
            words, lanes, turned = _pattern(taps[output], bits[output], step)
            over |= _add(sums, sources, words, lanes, turned)
            sources = 4
        pattern = _pattern(taps[last - 1], bits[last - 1], step)
        over |= _add_and_choose(sums, sources, pattern, costs, way[step])
        while _lower(costs):
            lowered += 1
    return lowered, over != _NONE


@compiled
def cost_of(costs: _U64, state: int) -> int:
    """Return the cost of one state by its number."""
    found = 0
    for p in range(PLANES):
        found |= int((costs[p * WORDS + (state >> 6)] >> np.uint64(state & 63)) & _ONE) << p
    return found


@compiled
def best_state(costs: _U64, steps: int) -> int:
    """Return the cheapest state; of equal ones the one whose bits, the newest lowest, make the smallest number."""
    best, least = 0, 1 << 60
    for order in range(1 << MEMORY):
        state = (order & 1) << RING
        for age in range(1, MEMORY):
            state |= (order >> age & 1) << ((steps - age) % RING)
        cost = cost_of(costs, state)
        if cost < least:
            best, least = state, cost
    return best


@compiled
def backward(way: _U64, state: int, bits: NDArray[np.uint8]) -> None:
    """Write the bits of the cheapest way into a state.

    Args:
        way: as ``forward`` filled it.
        state: the last state, by its number.
        bits: uint8 of shape (12 + steps,), filled with what the registers start with, then with a bit per step.
    """
    steps = way.shape[0]
    for step in range(steps - 1, -1, -1):
        place = step % RING
        bits[MEMORY + step] = state >> RING
        oldest = int((way[step, state >> 6] >> np.uint64(state & 63)) & _ONE)
        newest = state >> place & 1
        state = (state & ~(1 << place) & ~(1 << RING)) | oldest << place | newest << RING
    bits[MEMORY - 1] = state >> RING
    for time in range(-MEMORY, -1):
        bits[MEMORY + time] = state >> ((time + 1) % RING) & 1
