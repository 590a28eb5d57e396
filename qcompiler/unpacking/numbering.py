"""Codes as numbers from 0 on, where number 0 is code 0, and what they say of planes of bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.codec.bits import BYTE_BITS
from qcompiler.errors import QCompileError
from qcompiler.quant.levels import Levels


@dataclass(frozen=True, slots=True, eq=False)
class Numbering:
    """Numbers of codes.

    Attributes:
        num_bits: width of a number, 1 to 8.
        levels: int8 of shape (at most 2**num_bits,): the code of each number; that of number 0 is 0.
    """

    num_bits: int
    levels: Levels

    def numbers(self, codes: NDArray[np.int8]) -> NDArray[np.uint8]:
        """Return the numbers of codes, uint8 of their shape.

        Raises:
            QCompileError: a code is none of the levels.
        """
        table, known = np.zeros(1 << BYTE_BITS, np.uint8), np.zeros(1 << BYTE_BITS, np.bool_)
        places = self.levels.view(np.uint8)
        table[places], known[places] = np.arange(self.levels.size), True
        found = np.ascontiguousarray(codes).view(np.uint8)
        if not known[found].all():
            raise QCompileError("a pruned weight has a code that is none of its levels")
        return table[found]

    def every_level(self) -> Levels:
        """Return the code of every number of ``num_bits`` bits; unused ones repeat the last."""
        return np.pad(self.levels, (0, (1 << self.num_bits) - self.levels.size), mode="edge")


def numbering(num_bits: int, levels: Levels | None) -> Numbering:
    """Return how the codes of a weight are numbered: from 0 upwards, and the negative ones behind.

    With all levels of a width these are the lowest bits of the codes.

    Args:
        num_bits: width of the codes, 1 to 8.
        levels: sorted int8, the codes that there are; None for all of 8 bits.

    Raises:
        QCompileError: 0 is no level, so that a pruned weight has no code.
    """
    if levels is None:
        return Numbering(BYTE_BITS, np.arange(1 << BYTE_BITS, dtype=np.uint8).view(np.int8))
    zero = np.flatnonzero(levels == 0)
    if not zero.size:
        raise QCompileError("a pruned weight has no level 0")
    return Numbering(num_bits, np.roll(levels, -int(zero[0])))
