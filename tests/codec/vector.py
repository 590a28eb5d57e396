"""The test vector of docs/f2f-format.md: numbers that follow from a formula, so that other languages can make them."""

from __future__ import annotations

import numpy as np

COUNT, PLANES = 200, 3


def vector() -> np.ndarray:
    """Return uint8 of shape (200,): every number of 3 bits, three quarters of them 0."""
    index = np.arange(COUNT)
    return np.where(index * 7 % 31 < 8, 1 + index * 5 % 7, 0).astype(np.uint8)
