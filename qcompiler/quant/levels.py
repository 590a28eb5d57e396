"""Levels: the integers that a weight of few bits may take. Any int8 values do, for the file holds their numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import QCompileError
from qcompiler.quant.grid import along

Levels = NDArray[np.int8]
"""Sorted int8 values of shape (at most 2**bits,); a weight is a level times the scale of its channel."""


def uniform_levels(num_bits: int) -> Levels:
    """Return the integers of two's complement, from -2**(bits-1) to 2**(bits-1) - 1; -1 and 1 for a single bit.

    Raises:
        QCompileError: the width is not 1 to 7; 8-bit weights need no levels.
    """
    if not 1 <= num_bits <= 7:
        raise QCompileError(f"levels are for weights of 1 to 7 bits, got {num_bits}")
    if num_bits == 1:
        return np.asarray([-1, 1], np.int8)
    return np.arange(-(2 ** (num_bits - 1)), 2 ** (num_bits - 1), dtype=np.int8)


def even_levels(num_bits: int) -> Levels:
    """Return 2**bits odd integers around 0, such as -3, -1, 1, 3: a symmetric grid that wastes no level on 0."""
    count = len(uniform_levels(num_bits))
    return np.arange(1 - count, count, 2, dtype=np.int64).astype(np.int8)


def nearest_level(values: NDArray[np.floating], levels: Levels) -> NDArray[np.int8]:
    """Return the level nearest to each value, the lower one of two that are as near.

    Args:
        values: floating, any shape, in units of the scale.
        levels: sorted, at least one.
    """
    middle = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    return np.asarray(levels[np.searchsorted(middle, values)], np.int8)


def quantize_to_levels(
    weight: NDArray[np.floating], scale: NDArray[np.float32], levels: Levels, axis: int | None
) -> NDArray[np.int8]:
    """Return the nearest levels of a weight.

    Args:
        weight: floating, any shape.
        scale: float32, shape () or (channels,).
        levels: sorted levels.
        axis: channel axis of ``weight``, or None.
    """
    return nearest_level(weight / along(scale, axis, weight.ndim), levels)
