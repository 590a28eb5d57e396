"""The decoder of the fixed-to-fixed code: a linear network over GF(2) behind shift registers.

Every stored byte makes ``outputs`` bits. The network sees the byte and the ``registers`` bytes before it, and every
output is the parity of some of their bits. Four codes are one network with different connections:

==========  =========  =====================================================================================
name        registers  connections
==========  =========  =====================================================================================
``8-0``     0          any bit of the byte
``8-1``     1          any bit of the byte and the one before
``8-2``     2          any bit of the byte and the two before
``1-12``    2          bits enter one by one; an output of the moment when one enters sees it and 12 before it
==========  =========  =====================================================================================

Source: Park et al., "Encoding Weights of Irregular Sparsity for Fixed-to-Fixed Model Compression", ICLR 2022,
section 3. Different here: the registers start with stored bytes, not with zeros, so that a stream can be cut
anywhere at the cost of these bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import QCompileError

REGISTERS = {"8-0": 0, "8-1": 1, "8-2": 2, "1-12": 2}
"""Name of a code -> bytes that its registers hold."""
TRELLIS = "1-12"
MEMORY = 12
"""Bits before the newest one that an output of the trellis code sees."""
SYMBOLS = 256
SYMBOL_BITS = 8
MAX_OUTPUTS = 1024
"""The most bits that one byte makes; more sparsity than 99.2 % is stored at this rate."""
SEED = 1
PARITY = np.bitwise_xor.reduce(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1), axis=1)
"""Sum of the bits of a byte modulo 2, uint8 of shape (256,)."""
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = (1 << 64) - 1


def outputs_for(sparsity: float) -> int:
    """Return how many bits a byte makes at the entropy rate: 8 / (1 - sparsity), rounded down, 8 to MAX_OUTPUTS.

    Source: Park et al., section 3: a block with n unpruned, balanced bits takes at least n bits.
    """
    kept = 1.0 - sparsity
    if kept * MAX_OUTPUTS <= SYMBOL_BITS:
        return MAX_OUTPUTS
    return max(SYMBOL_BITS, int(SYMBOL_BITS / kept + 1e-9))


@dataclass(frozen=True, eq=False)
class XorNetwork:
    """A linear network over GF(2) behind shift registers; what decodes.

    Attributes:
        registers: bytes before the newest one that it sees, 0 to 3.
        rows: uint32 of shape (outputs,): bit ``8 * j + i`` of row ``r`` connects output ``r`` to bit ``i`` of the byte
            ``j`` places before the newest.
    """

    registers: int
    rows: NDArray[np.uint32]

    @property
    def outputs(self) -> int:
        """Return how many bits one byte makes."""
        return self.rows.size

    @cached_property
    def tables(self) -> NDArray[np.uint8]:
        """Return what each byte contributes, uint8 0 or 1 of shape (registers + 1, 256, outputs); newest first."""
        shifts = np.uint32(SYMBOL_BITS) * np.arange(self.registers + 1, dtype=np.uint32)
        masks = (self.rows[None, :] >> shifts[:, None]) & np.uint32(SYMBOLS - 1)
        seen = np.arange(SYMBOLS, dtype=np.uint32)[None, :, None] & masks[:, None, :]
        return np.asarray(PARITY[seen])

    def matrix(self) -> NDArray[np.uint8]:
        """Return the network as a matrix over GF(2): uint8 0 or 1 of shape (outputs, 8 * (registers + 1)).

        The block of outputs at byte ``t`` is this matrix times the bits of bytes ``t``, ``t - 1`` and so on, each
        byte with its lowest bit first, modulo 2.
        """
        places = np.arange(SYMBOL_BITS * (self.registers + 1), dtype=np.uint32)
        return ((self.rows[:, None] >> places) & np.uint32(1)).astype(np.uint8)

    def decode(self, symbols: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the bits that streams of bytes make.

        Args:
            symbols: uint8 of shape (..., registers + blocks): what the registers start with, oldest first, then a
                byte per block.

        Returns:
            uint8 0 or 1 of shape (..., blocks, outputs).

        Raises:
            QCompileError: a stream is shorter than the registers.
        """
        blocks = symbols.shape[-1] - self.registers
        if blocks < 0:
            raise QCompileError(f"a stream has {symbols.shape[-1]} bytes, fewer than the {self.registers} of registers")
        bits = np.zeros((*symbols.shape[:-1], blocks, self.outputs), np.uint8)
        for lag, table in enumerate(self.tables):
            start = self.registers - lag
            bits ^= table[symbols[..., start : start + blocks]]
        return bits


@dataclass(frozen=True)
class XorCode:
    """One code of the family, with the network that its seed draws.

    Attributes:
        name: a key of REGISTERS.
        outputs: bits that one stored byte makes, 1 to MAX_OUTPUTS.
        seed: of the connections.
    """

    name: str
    outputs: int
    seed: int = SEED

    def __post_init__(self) -> None:
        if self.name not in REGISTERS:
            raise QCompileError(f"there is no code '{self.name}'; codes are {', '.join(REGISTERS)}")
        if not 1 <= self.outputs <= MAX_OUTPUTS:
            raise QCompileError(f"a byte makes 1 to {MAX_OUTPUTS} bits, not {self.outputs}")

    @property
    def registers(self) -> int:
        """Return how many bytes before the newest one the network sees."""
        return REGISTERS[self.name]

    @cached_property
    def network(self) -> XorNetwork:
        """Return the network: the lowest bits of SplitMix64's numbers, what is not allowed cleared, no row of zeros."""
        rows, numbers = np.zeros(self.outputs, np.uint32), split_mix(self.seed)
        for row in range(self.outputs):
            while not rows[row]:
                rows[row] = next(numbers) & self._allowed(row)
        return XorNetwork(self.registers, rows)

    def phase(self, row: int) -> int:
        """Return after which bit of its byte an output of the trellis code is made, 0 to 7."""
        return row * SYMBOL_BITS // self.outputs

    @cached_property
    def taps(self) -> NDArray[np.int64]:
        """Return the connections of the trellis code by age: int64 (outputs,), bit ``k`` is that ``k`` bits before."""
        places = [[place_of(self.phase(row), lag) for lag in range(MEMORY + 1)] for row in range(self.outputs)]
        found = (self.network.rows.astype(np.int64)[:, None] >> np.asarray(places)) & 1
        return np.asarray((found << np.arange(MEMORY + 1)).sum(1))

    @cached_property
    def oldest_first(self) -> NDArray[np.int64]:
        """Return the same, the oldest bit first: int64 (outputs,), bit ``12 - k`` is that ``k`` bits before."""
        lags = np.arange(MEMORY + 1)
        return np.asarray(((self.taps[:, None] >> lags & 1) << (MEMORY - lags)).sum(1))

    def _allowed(self, row: int) -> int:
        """Return which bits an output may see."""
        if self.name != TRELLIS:
            return (1 << SYMBOL_BITS * (self.registers + 1)) - 1
        return sum(1 << place_of(self.phase(row), lag) for lag in range(MEMORY + 1))


def place_of(phase: int, lag: int) -> int:
    """Return where a row has the bit that entered ``lag`` bits before bit ``phase`` of the newest byte."""
    before, bit = divmod(phase - lag, SYMBOL_BITS)
    return -before * SYMBOL_BITS + bit


def split_mix(seed: int) -> Iterator[int]:
    """Yield the numbers of SplitMix64, 64 bits each, without end.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 17.
    """
    state = seed & _WORD
    while True:
        state = (state + _GOLDEN) & _WORD
        z = ((state ^ (state >> 30)) * _MIX_1) & _WORD
        z = ((z ^ (z >> 27)) * _MIX_2) & _WORD
        yield z ^ (z >> 31)
