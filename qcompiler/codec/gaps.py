"""Rising positions as bytes: the distance from one to the next, and a byte of 0 for 255 places without one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STRIDE = 255
"""Places that a byte of 0 passes over."""


def pack_gaps(positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return rising positions from 0 on as bytes: 1 is the next place, 0 passes over 255 places that hold nothing."""
    gaps = np.diff(positions, prepend=-1)
    passed = (gaps - 1) // STRIDE
    ends = np.cumsum(passed + 1) - 1
    packed = np.zeros(int(ends[-1]) + 1 if ends.size else 0, np.uint8)
    packed[ends] = gaps - passed * STRIDE
    return packed


def unpack_gaps(packed: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the positions that ``pack_gaps`` stored, int64."""
    steps = np.where(packed == 0, STRIDE, packed.astype(np.int64))
    return np.asarray(np.cumsum(steps)[packed > 0] - 1)


def gap_bytes(positions: int, places: int) -> float:
    """Return about how many bytes positions take that lie evenly among so many places."""
    return positions + places / STRIDE if positions else 0.0
