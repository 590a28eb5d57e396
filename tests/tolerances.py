"""Every tolerance of the test suite that is more than equality, with the reason for its size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FLOAT32_EPS = float(np.finfo(np.float32).eps)
"""Spacing of float32 numbers around 1: one rounded operation is off by at most half of that, relatively."""

FLOAT64_EPS = float(np.finfo(np.float64).eps)
"""The same for float64: what is summed in it is exact for every purpose but equality."""

OUTPUT_STEPS = 1
"""Codes by which an integer kernel may differ from the same Q/DQ graph run node by node.

Both compute the same real number before the last rounding: one from exact integer sums and one float32 factor, the
other from a float32 sum of products. These differ by float32 rounding, far below a step, so the two results fall on
the same code or, where the number is within that rounding of a tie, on neighboring ones.
"""

SIGMAS = 6.0
"""Standard errors by which a mean over samples may miss the true mean: once in 5e8 draws, and seeds are fixed."""


def half_step(scale: float, largest: float = 0.0) -> float:
    """Return how far a dequantized value may be from a value inside the grid.

    Nearest rounding misses by half a step. Division, product and the sum with the zero point round in float32,
    each by half a unit in the last place of a number no larger than ``largest``.
    """
    return 0.5 * scale + 2.0 * FLOAT32_EPS * largest


def sum_rounding(terms: int, largest: float) -> float:
    """Return how far a float32 sum may be from the true one: each of its additions rounds a partial sum.

    Args:
        terms: how many numbers are added.
        largest: bound on the sum of their magnitudes.
    """
    return terms * FLOAT32_EPS * largest


def mean_of_samples(std: float, count: int) -> float:
    """Return how far the mean of independent samples may be from the true mean."""
    return SIGMAS * std / float(np.sqrt(count))


def std_of_samples(fourth_root: float, std: float, count: int) -> float:
    """Return how far the standard deviation of samples may be from the true one.

    The variance estimate has variance (m4 - std^4) / n, and d(std) = d(variance) / (2 std).

    Args:
        fourth_root: fourth root of the fourth central moment m4.
        std: the true standard deviation.
        count: number of samples.
    """
    spread = np.sqrt(max(fourth_root**4 - std**4, 0.0) / count)
    return float(SIGMAS * spread / (2.0 * max(std, 1e-12)))


def bin_width(edges: NDArray[np.float64]) -> float:
    """Return the width of a histogram's bins: a quantile read from it is right to within one bin."""
    return float(edges[1] - edges[0])


def folded(reference: NDArray[np.floating], terms: int) -> float:
    """Return how far the outputs of two float32 graphs may differ that multiply the same factors in another order.

    Args:
        reference: outputs of one of them.
        terms: products that are summed for one output, over all layers. Partial sums stay within a few times the
            largest output; 4 covers the cancellation in networks of these tests.
    """
    return sum_rounding(terms, 4.0 * float(np.abs(reference).max(initial=1.0)))


HTP_SUM_UNITS = 1024
"""Units of (input scale * weight scale) by which the HTP's sums of 16-bit activations may be off.

Observed, not derived: the simulator's sums miss the exact ones by up to about 500 units, with 8-bit and with 4-bit
weights alike, as if the low 8 bits of partial sums were dropped. With 8-bit activations they are exact.
"""

SQNR_ROOM = 4.0
"""Factor between the error power of an output and the sum of its grids' shares.

The shares add up where the errors are independent and every layer passes signal and noise on alike. A rectifier may
halve the power of the signal and not that of the noise, and pooling averages signals of mean 0 away like noise: 6 dB.
"""
