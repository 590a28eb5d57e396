"""Weights of a fraction of a bit: a few stored bits make more weight bits, by a fixed linear network over GF(2).

Every ``INPUTS`` stored bits make ``outputs`` weight bits: the stored bits themselves, and behind them sums of about
half of these modulo 2. What is stored is found by training (``qcompiler.training.xor``); nothing is masked and
nothing is corrected, so the rate is exactly ``INPUTS / outputs``.

Source: Lee et al. 2020, FleXOR: Trainable Fractional Quantization (arXiv:2009.04126), section 3. Different here: the
network is systematic with dense sums, where FleXOR draws two connections for every output. As a code that is better:
at 0.8 bit the nearest code word leaves 0.42 of the power of Gaussian weights, with two random connections 0.51 to
0.58, and with a whole bit 0.36. And the stored bits can be read off the weight bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qcompiler.codec.bits import BYTE_BITS
from qcompiler.codec.xor_code import XorNetwork, split_mix
from qcompiler.errors import QCompileError

INPUTS = 12
"""Stored bits of a slice: so few that the nearest code word is found by trying all."""
MAX_OUTPUTS = 120
SEED = 2
_GROUP = 2
"""Slices that are whole bytes together."""
_BYTES = _GROUP * INPUTS // BYTE_BITS
_AT_ONCE = 1 << 11
"""Slices whose code words are compared at a time: 32 MiB of costs."""
_NAME = re.compile(rf"xor {INPUTS}/(\d+)")
LEAST_BITS, MOST_BITS = INPUTS / MAX_OUTPUTS, 1.0

_Bits = NDArray[np.uint8]


@dataclass(frozen=True)
class XorRate:
    """A rate, with the network that belongs to it.

    Attributes:
        outputs: weight bits that INPUTS stored bits make, INPUTS to MAX_OUTPUTS.
    """

    outputs: int

    def __post_init__(self) -> None:
        if not INPUTS <= self.outputs <= MAX_OUTPUTS:
            raise QCompileError(f"{INPUTS} stored bits make {INPUTS} to {MAX_OUTPUTS} weight bits, not {self.outputs}")

    @classmethod
    def of_bits(cls, bits: float) -> XorRate:
        """Return the rate nearest to some stored bits a weight.

        Raises:
            QCompileError: there is no such rate.
        """
        if not LEAST_BITS <= bits <= MOST_BITS:
            raise QCompileError(
                f"weights behind an XOR network have {LEAST_BITS:g} to {MOST_BITS:g} bits, not {bits:g}"
            )
        return cls(round(INPUTS / bits))

    @classmethod
    def named(cls, encoding: str | None) -> XorRate | None:
        """Return the rate that the plan of a weight names, None if it names none."""
        found = _NAME.fullmatch(encoding or "")
        return cls(int(found[1])) if found else None

    @property
    def name(self) -> str:
        """Return what a plan calls it, such as ``xor 12/15``."""
        return f"xor {INPUTS}/{self.outputs}"

    @property
    def bits(self) -> float:
        """Return the stored bits a weight."""
        return INPUTS / self.outputs

    @cached_property
    def sums(self) -> _Bits:
        """Return which stored bits each further output sums: uint8 0 or 1 of shape (outputs - INPUTS, INPUTS).

        Rows are the lowest bits of SplitMix64's numbers, without those of fewer than two bits and repetitions.
        """
        rows: dict[int, None] = {}
        for number in split_mix(SEED):
            if len(rows) == self.outputs - INPUTS:
                break
            row = number & ((1 << INPUTS) - 1)
            if row.bit_count() > 1:
                rows[row] = None
        places = np.arange(INPUTS)
        return ((np.fromiter(rows, np.int64, len(rows))[:, None] >> places) & 1).astype(np.uint8)

    @property
    def matrix(self) -> _Bits:
        """Return the network of a slice: uint8 0 or 1 of shape (outputs, INPUTS)."""
        return np.concatenate([np.eye(INPUTS, dtype=np.uint8), self.sums])

    @cached_property
    def network(self) -> XorNetwork:
        """Return the network of two slices, which take three bytes: what decodes a row of ``streams``."""
        slices = self.matrix.astype(np.uint32) @ (np.uint32(1) << np.arange(INPUTS, dtype=np.uint32))
        return XorNetwork(_BYTES - 1, np.concatenate([slices << np.uint32(k * INPUTS) for k in range(_GROUP)]))

    @cached_property
    def words(self) -> _Bits:
        """Return the weight bits of all code words: uint8 0 or 1 of shape (2**INPUTS, outputs)."""
        stored = (np.arange(1 << INPUTS)[:, None] >> np.arange(INPUTS)) & 1
        return ((stored @ self.matrix.T.astype(np.int64)) & 1).astype(np.uint8)

    def slices(self, count: int) -> int:
        """Return how many slices a tensor of ``count`` weights takes; of whole bytes, so an even number."""
        return _GROUP * -(-count // (_GROUP * self.outputs))

    def sliced(self, flat: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return numbers, one a weight, by slice: float32 (slices, outputs), 0 behind the last."""
        room = np.zeros(self.slices(flat.size) * self.outputs, np.float32)
        room[: flat.size] = flat
        return room.reshape(-1, self.outputs)

    def nearest(self, costs: NDArray[np.float32]) -> _Bits:
        """Return the stored bits that cost least: uint8 0 or 1 of shape (slices, INPUTS).

        Args:
            costs: float32 of shape (slices, outputs): what it costs if a weight bit is 1 instead of 0.
        """
        best = np.concatenate([found.argmin(1) for found in self._word_costs(costs)])
        return ((best[:, None] >> np.arange(INPUTS)) & 1).astype(np.uint8)

    def margins(self, costs: NDArray[np.float32], stored: _Bits) -> NDArray[np.float32]:
        """Return how much more the best word with each stored bit turned costs: float32 of the shape of ``stored``.

        Below 0 where such a word costs less.

        Args:
            costs: as ``nearest`` takes them.
            stored: uint8 0 or 1 of shape (slices, INPUTS).
        """
        margins, first = np.empty(stored.shape, np.float32), 0
        for found in self._word_costs(costs):
            part = slice(first, first + len(found))
            now = found[np.arange(len(found)), stored[part] @ (1 << np.arange(INPUTS))]
            for place in range(INPUTS):
                by_bit = found.reshape(len(found), -1, 2, 1 << place).min((1, 3))
                margins[part, place] = by_bit[np.arange(len(found)), 1 - stored[part, place]] - now
            first = part.stop
        return margins

    def _word_costs(self, costs: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Yield what every word costs, float32 of shape (slices, 2**INPUTS), for some slices after the other."""
        words = self.words.T.astype(np.float32)
        for first in range(0, len(costs), _AT_ONCE):
            yield costs[first : first + _AT_ONCE] @ words

    def bits_of(self, stored: _Bits, count: int) -> _Bits:
        """Return the weight bits that stored bits of shape (slices, INPUTS) make: uint8 0 or 1 of shape (count,)."""
        return self.decode(self.streams(stored), count)

    def stored_bits(self, bits: _Bits) -> _Bits | None:
        """Return the stored bits of shape (slices, INPUTS) that make weight bits, None if none do.

        Args:
            bits: uint8 0 or 1 of shape (count,).
        """
        stored = self.sliced(bits.astype(np.float32))[:, :INPUTS].astype(np.uint8)
        return stored if np.array_equal(self.bits_of(stored, bits.size), bits) else None

    def streams(self, stored: _Bits) -> _Bits:
        """Return stored bits of shape (slices, INPUTS) as bytes: uint8 of shape (slices / 2, 3), oldest first."""
        groups = stored.reshape(-1, _GROUP * INPUTS)
        return np.ascontiguousarray(np.packbits(groups, axis=1, bitorder="little")[:, ::-1])

    def decode(self, streams: _Bits, count: int) -> _Bits:
        """Return the weight bits that ``streams`` make: uint8 0 or 1 of shape (count,)."""
        return self.network.decode(streams).reshape(-1)[:count]
