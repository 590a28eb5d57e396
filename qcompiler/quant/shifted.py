"""Rounding to levels with a border that moves with the magnitude: one number biases large values up or down."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.levels import Levels, nearest_level


def shifted_level(values: NDArray[np.floating], levels: Levels, shift: float) -> NDArray[np.int8]:
    """Return one of the two neighboring levels of each value; a shift of 0 returns the nearest.

    A value of magnitude m, as a share of the largest level, is moved away from zero by shift * (2 m - 1) of the gap
    between its neighbors before it is rounded. So a positive shift rounds large values up and small ones down in
    magnitude. Between the two levels on either side of zero, where no level is the larger one, the border stays in
    the middle; values beyond the table take its ends.

    Args:
        values: floating, any shape, in units of the scale.
        levels: sorted, at least two.
        shift: between -0.5 and 0.5.

    Source: after Kim et al. 2021, Q-Rater (arXiv:2105.01868), whose exact formula was not at hand: this one is a
    reconstruction from its abstract, generalized to tables of levels.
    """
    if shift == 0.0:
        return nearest_level(values, levels)
    table = levels.astype(np.float64)
    below = np.clip(np.searchsorted(table, values, side="right") - 1, 0, len(table) - 2)
    low, high = table[below], table[below + 1]
    top = float(np.abs(table).max())
    magnitude = np.minimum(np.abs(values) / top, 1.0)
    outward = np.where(low >= 0.0, 1.0, np.where(high <= 0.0, -1.0, 0.0))
    moved = values + outward * shift * (2.0 * magnitude - 1.0) * (high - low)
    return nearest_level(np.clip(moved, low, high), levels)
