"""What a number of bits costs a weight: the error that rounding to it leaves in the layer's output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.grid import SMALLEST_SCALE, Float32

RATIOS = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6, 0.5, 0.4)
"""Clips that are tried, as shares of each row's largest magnitude: narrow grids gain from cutting more off."""
MAX_WEIGHTS = 1 << 18
"""Of larger weights, evenly spread rows tell the error."""


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """Rows on a grid of few bits.

    Attributes:
        values: float32, shape (rows, weights per row): the rows as the grid holds them.
        error: float64, shape (rows,): sum of squared errors, each times its importance.
    """

    values: Float32
    error: NDArray[np.float64]


def round_rows(rows: Float32, importance: Float32 | None, num_bits: int) -> Rounded:
    """Return rows rounded to the nearest levels, with the better of two kinds of levels and the best clip a row.

    The levels are consecutive integers, or odd integers around 0; the kind is chosen for the whole weight, the
    clip for every row.

    Args:
        rows: float32, shape (rows, weights per row).
        importance: float32, shape (weights per row,) or (rows, weights per row): variance of the input that
            each weight multiplies; None weighs all alike.
        num_bits: 1 to 8.
    """
    weight = np.float32(1) if importance is None else importance
    kinds = [_best_clip(rows, weight, num_bits, even=even) for even in (False, True) if even or num_bits > 1]
    return min(kinds, key=lambda kind: float(kind.error.sum()))


def _best_clip(rows: Float32, weight: Float32 | np.float32, num_bits: int, *, even: bool) -> Rounded:
    top = 2**num_bits - 1 if even else 2 ** (num_bits - 1) - 1
    peak = np.abs(rows).max(1, initial=0.0)
    full: Float32 = np.asarray(np.maximum(np.where(peak > 0, peak / top, 1.0), SMALLEST_SCALE), np.float32)
    best = np.zeros_like(rows)
    least = np.full(len(rows), np.inf)
    for ratio in RATIOS if num_bits < 8 else RATIOS[:1]:
        step = (full * np.float32(ratio))[:, None]
        codes = rows / step
        if even:
            codes = np.clip(2 * np.floor(codes / 2) + 1, -top, top)
        else:
            codes = np.clip(np.rint(codes), -top - (1 if num_bits < 8 else 0), top)
        values = (codes * step).astype(np.float32)
        error = np.asarray(np.sum(np.square(rows - values) * weight, axis=1, dtype=np.float64))
        better = error < least
        best[better], least[better] = values[better], error[better]
    return Rounded(best, least)


def width_errors(rows: Float32, importance: Float32 | None, widths: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the share of the output's variance that rounding to each width leaves as error, float64 (widths,).

    0 for a weight of nothing but zeros. Narrower widths never have less error than wider ones.

    Args:
        rows: float32, shape (rows, weights per row).
        importance: as for ``round_rows``.
        widths: rising.
    """
    step = max(1, -(-rows.size // MAX_WEIGHTS))
    part = rows[::step]
    weight = importance[::step] if importance is not None and importance.ndim == 2 else importance
    power = float(np.sum(np.square(part) * (np.float32(1) if weight is None else weight), dtype=np.float64))
    if power <= 0.0:
        return np.zeros(len(widths))
    errors = [float(round_rows(part, weight, bits).error.sum()) / power for bits in widths]
    return np.asarray(np.maximum.accumulate(errors[::-1])[::-1], np.float64)


def rank_correlation(first: NDArray[np.floating], second: NDArray[np.floating]) -> float | None:
    """Return Spearman's rank correlation of two series (-1 to 1), ties sharing their mean rank.

    None for fewer than three pairs, and where a series is constant.
    """
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)
