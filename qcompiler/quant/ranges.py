"""From a histogram to the range that an activation grid covers: min-max, percentile, entropy, MSE-optimal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.histogram import TensorStatistics

Range = tuple[float, float]
Transfer = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""What the network makes of a value before anything else reads it, such as SiLU."""
PERCENTILE = 99.99
CANDIDATES = 96


def minmax_range(statistics: TensorStatistics, levels: int, transfer: Transfer | None = None) -> Range:
    """Return the observed minimum and maximum."""
    return statistics.low, statistics.high


def percentile_range(statistics: TensorStatistics, levels: int, transfer: Transfer | None = None) -> Range:
    """Return the central range that holds ``PERCENTILE`` percent of the observed values."""
    edges = _edges(statistics)
    share = np.cumsum(statistics.counts) / max(int(statistics.counts.sum()), 1)
    tail = (1.0 - PERCENTILE / 100.0) / 2.0
    first = int(np.searchsorted(share, tail, side="right"))
    last = int(np.searchsorted(share, 1.0 - tail, side="left"))
    low, high = edges[first], edges[min(last + 1, len(edges) - 1)]
    return max(float(low), statistics.low), min(float(high), statistics.high)


def silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return x * sigmoid(x)."""
    return np.asarray(x / (1.0 + np.exp(-np.clip(x, -60.0, 60.0))))


def mse_range(statistics: TensorStatistics, levels: int, transfer: Transfer | None = None) -> Range:
    """Return the range with the least expected squared error of a grid with ``levels`` codes.

    Expected error = clipping error of the histogram outside the range + step^2 / 12 for the values inside
    that are not exactly zero (0 is always a code). Low and high end are searched in turn. With a transfer
    function, both errors are those behind it: what SiLU flattens anyway costs nothing to cut off.
    """
    centers, weight = _centers(statistics)
    through = transfer if transfer is not None else _unchanged
    exact = through(centers)
    reach = max(float(np.ptp(centers)) * 1e-4, 1e-12)
    slope = (through(centers + reach) - through(centers - reach)) / (2.0 * reach)
    live = (1.0 - statistics.zeros) * float(np.square(slope) @ weight)
    low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)

    def error(bounds: Range) -> float:
        clipped = np.square(through(np.clip(centers, *bounds)) - exact) @ weight
        step = (bounds[1] - bounds[0]) / (levels - 1)
        return float(clipped + live * step**2 / 12.0)

    best = (low, high)
    shrink = np.linspace(1.0, 0.0 if transfer is not None else 0.2, CANDIDATES)
    for _ in range(2):
        best = min([best, *((best[0], high * s) for s in shrink if high * s > best[0])], key=error)
        best = min([best, *((low * s, best[1]) for s in shrink if low * s < best[1])], key=error)
    return best


def _unchanged(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x


def entropy_range(statistics: TensorStatistics, levels: int, transfer: Transfer | None = None) -> Range:
    """Return the range whose quantized histogram has the least Kullback-Leibler divergence from the observed one.

    Source: Migacz, "8-bit inference with TensorRT" (2017). Differs: the range shrinks towards zero from both
    observed ends in proportion, so that one-sided activations stay one-sided; exact zeros do not count, because
    they have a code of their own in every grid.
    """
    centers, weight = _centers(statistics)
    edges = _edges(statistics)
    at_zero = int(np.clip(np.searchsorted(edges, 0.0, side="right") - 1, 0, len(weight) - 1))
    weight[at_zero] = max(weight[at_zero] - statistics.zeros, 0.0)
    weight /= max(weight.sum(), 1e-30)
    low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
    best, best_divergence = (low, high), np.inf
    for shrink in np.linspace(1.0, 0.2, CANDIDATES):
        a, b = low * shrink, high * shrink
        first = int(np.clip(np.searchsorted(edges, a, side="right") - 1, 0, len(centers) - 1))
        last = int(np.clip(np.searchsorted(edges, b, side="left"), first + 1, len(centers)))
        if last - first < levels:
            break
        divergence = _divergence(weight, first, last, levels)
        if divergence < best_divergence:
            best, best_divergence = (float(a), float(b)), divergence
    return best


def _divergence(weight: NDArray[np.float64], first: int, last: int, levels: int) -> float:
    reference = weight[first:last].copy()
    reference[0] += weight[:first].sum()
    reference[-1] += weight[last:].sum()
    inside = weight[first:last]
    group = np.arange(last - first) * levels // (last - first)
    present = inside > 0
    total = np.bincount(group, weights=inside, minlength=levels)
    members = np.bincount(group, weights=present.astype(np.float64), minlength=levels)
    spread = np.where(present, (total / np.maximum(members, 1.0))[group], 0.0)
    mass = spread.sum()
    if mass <= 0:
        return float("inf")
    live = (reference > 0) & (spread > 0)
    lost = reference[(reference > 0) & (spread <= 0)].sum()
    p, q = reference[live], spread[live] / mass
    # Mass that the quantized histogram cannot hold is charged at the smallest share it does hold.
    return float(np.sum(p * np.log(p / q)) + lost * np.log(max(lost, 1e-12) / q.min()) if live.any() else np.inf)


def _edges(statistics: TensorStatistics) -> NDArray[np.float64]:
    return np.linspace(*statistics.grid, len(statistics.counts) + 1)


def _centers(statistics: TensorStatistics) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    edges = _edges(statistics)
    total = max(int(statistics.counts.sum()), 1)
    centers = np.clip((edges[:-1] + edges[1:]) / 2.0, statistics.low, statistics.high)
    return centers, statistics.counts / total


RANGE_METHODS: dict[str, Callable[[TensorStatistics, int, Transfer | None], Range]] = {
    "minmax": minmax_range,
    "percentile": percentile_range,
    "entropy": entropy_range,
    "mse": mse_range,
}
"""Calibration methods by name; each takes (statistics, number of codes, transfer); only MSE looks at the last."""
