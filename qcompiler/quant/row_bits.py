"""How many bits every row of a table gets: from how often it is read, and from what each bit gains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UsageError

UNSEEN_SHARE = 0.3
"""Share of all readings that is spread over rows by their neighbourhood, as text of another kind would read them."""
TEMPER = 0.7
"""Power of a row's share: 1 trusts the counts alone, 0 not at all."""
_BINS = 40
_RATIO_STEPS = 60

Counts = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class RowAllocation:
    """Bits for every row.

    Attributes:
        bits: uint8, shape (rows,).
        loss: importance times error, summed over rows.
        row_bytes: of planes and scales, without what the table costs in any case.
        bound: no allocation of at most so many bytes loses less than this; equal to ``loss`` if it is the best.
        sizes: rows of every cluster, the most bits first; empty where rows were chosen one by one.
    """

    bits: NDArray[np.uint8]
    loss: float
    row_bytes: int
    bound: float = 0.0
    sizes: tuple[int, ...] = ()


def smoothed_counts(counts: Counts, unseen: float = UNSEEN_SHARE) -> Counts:
    """Return the share of readings of every row, with some for rows that were never read.

    A part ``unseen`` of all readings is given to rows by the mean count of the rows around them. Vocabularies are
    mostly sorted by frequency, and then this is a frequency that counts of little text do not have; where they are
    not sorted, the part is the same for all.

    Args:
        counts: float64, shape (rows,), at least 0.
        unseen: from 0 to 1.

    Returns:
        float64, shape (rows,), sum 1.
    """
    rows = counts.size
    edges = np.unique(np.linspace(0, rows, min(_BINS, rows) + 1).round().astype(np.int64))
    sums = np.add.reduceat(counts, edges[:-1])
    # One very frequent row says little about its neighbours.
    peaks = np.maximum.reduceat(counts, edges[:-1])
    means = (sums - peaks) / np.maximum(np.diff(edges) - 1, 1) + 1e-3
    around = np.interp(np.arange(rows), (edges[:-1] + edges[1:] - 1) / 2, np.log(means))
    spread = np.exp(around - around.max())
    total = counts.sum()
    seen = counts / total if total > 0 else spread / spread.sum()
    return np.asarray((1 - unseen) * seen + unseen * spread / spread.sum())


def row_importance(share: Counts, power: Counts, readings: Counts, temper: float = TEMPER) -> Counts:
    """Return what one unit of error in a row costs, up to a factor.

    Frequent rows are function words, which matter less each time: how the measured power falls with the share is
    fitted by a straight line in logarithms, and applied to every row, also to those that were not measured.

    Args:
        share: float64, shape (rows,): how often every row is read.
        power: float64, shape (rows,): squared gradients at the readings of a row, summed.
        readings: float64, shape (rows,): how many readings were measured.
        temper: power of the share.
    """
    weight = share**temper
    measured = (readings > 0) & (power > 0)
    if np.count_nonzero(measured) < 3:
        return np.asarray(weight / weight.max())
    each = np.log(power[measured] / readings[measured])
    with np.errstate(divide="ignore"):
        spread = np.log(share[measured])
    slope, level = np.polyfit(spread, each, 1, w=np.sqrt(readings[measured])) if np.ptp(spread) > 0 else (0.0, 0.0)
    importance = weight * np.exp(np.clip(slope, -1.0, 0.0) * np.log(np.maximum(share, 1e-30)) + level)
    return np.asarray(importance / importance.max())


def best_bits(losses: Counts, row_bytes: NDArray[np.int64], first: int, budget: int) -> RowAllocation:
    """Return the allocation that loses least within a budget.

    The losses of a row are replaced by their lower convex hull, and steps along the hulls are taken in the order of
    what they gain per byte. That is the optimum of the linear relaxation, and differs from the best allocation by
    less than one step, the first that no longer fits; ``bound`` holds that.

    Args:
        losses: float64, shape (rows, widths): importance times error at every width, falling.
        row_bytes: int64, shape (widths,): bytes of a row at every width, rising.
        first: the width of the first column, in bits; columns follow each other.
        budget: bytes of all rows.

    Raises:
        UsageError: the smallest width of all rows does not fit.
    """
    rows = len(losses)
    least = rows * int(row_bytes[0])
    if least > budget:
        raise UsageError(f"rows of {first} bits take {least} bytes, more than {budget}; allow more bytes or fewer bits")
    steps = [_hull(losses, row_bytes)]
    owners, gains, costs = (np.concatenate([part[i] for part in steps]) for i in range(3))
    order = np.lexsort((owners, -gains))
    spent = least + np.cumsum(costs[order])
    taken = int(np.searchsorted(spent, budget, side="right"))
    ends = _ends(owners[order[:taken]], costs[order[:taken]], rows)
    column = np.searchsorted(row_bytes, row_bytes[0] + ends)
    loss = float(losses[np.arange(rows), column].sum())
    bytes_ = int(row_bytes[column].sum())
    bound = loss - (gains[order[taken]] * (budget - bytes_) if taken < len(order) else 0.0)
    return RowAllocation((column + first).astype(np.uint8), loss, bytes_, bound=float(min(bound, loss)))


def fewest_bytes(losses: Counts, row_bytes: NDArray[np.int64], first: int, loss: float) -> RowAllocation:
    """Return the smallest allocation of which the loss is at most ``loss``, or the widest where none is.

    Found by bisection over the budget of ``best_bits``: to the byte.
    """
    low, high = losses.shape[0] * int(row_bytes[0]), losses.shape[0] * int(row_bytes[-1])
    while low < high:
        middle = (low + high) // 2
        if best_bits(losses, row_bytes, first, middle).loss <= loss:
            high = middle
        else:
            low = middle + 1
    return best_bits(losses, row_bytes, first, high)


def geometric_bits(
    importance: Counts, losses: Counts, row_bytes: NDArray[np.int64], first: int, budget: int
) -> RowAllocation:
    """Return clusters of rows whose sizes grow geometrically while their bits fall one by one.

    Rows are sorted by importance; of ``b`` clusters the ``i``-th holds ``rows * r**i / sum_k r**k`` rows. The ratio
    ``r`` is the smallest, of sixty between 1 / 16 and 4096, whose clusters fit the budget.

    Source: Chung et al., "Extremely Low Bit Transformer Quantization for On-Device Neural Machine Translation",
    Findings of EMNLP 2020, section 3.1. There ``r`` is given, and rows are sorted by frequency alone.

    Raises:
        UsageError: the smallest width of all rows does not fit.
    """
    rows, widths = losses.shape
    order = np.argsort(-importance, kind="stable")
    for ratio in np.geomspace(1 / 16, 4096, _RATIO_STEPS):
        sizes = cluster_sizes(rows, widths, float(ratio))
        column = np.empty(rows, np.int64)
        column[order] = np.repeat(np.arange(widths)[::-1], sizes)
        spent = int(row_bytes[column].sum())
        if spent <= budget:
            loss = float(losses[np.arange(rows), column].sum())
            return RowAllocation((column + first).astype(np.uint8), loss, spent, sizes=tuple(sizes.tolist()))
    return best_bits(losses[:, :1], row_bytes[:1], first, budget)


def cluster_sizes(rows: int, clusters: int, ratio: float) -> NDArray[np.int64]:
    """Return the sizes of geometric clusters, the smallest first for a ratio above 1: int64, they add up to rows."""
    ends = np.cumsum(ratio ** np.arange(clusters, dtype=np.float64))
    return np.asarray(np.diff(np.round(rows * ends / ends[-1]).astype(np.int64), prepend=0), np.int64)


def _hull(losses: Counts, row_bytes: NDArray[np.int64]) -> tuple[NDArray[np.int64], Counts, NDArray[np.int64]]:
    """Return the steps along the lower convex hull of every row: its row, its gain per byte, its bytes."""
    rows, widths = losses.shape
    place = np.zeros(rows, np.int64)
    owners, gains, costs = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros(0, np.int64)]
    for _ in range(widths - 1):
        here, at = losses[np.arange(rows), place][:, None], row_bytes[place][:, None]
        ahead = np.arange(widths)[None] > place[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = np.where(ahead, (here - losses) / np.where(ahead, row_bytes[None] - at, 1), -np.inf)
        # Of equally steep steps the longest: the hull has no points between.
        best = widths - 1 - np.argmax(slopes[:, ::-1], axis=1)
        going = np.flatnonzero((place < widths - 1) & (slopes[np.arange(rows), best] > 0))
        owners.append(going)
        gains.append(slopes[going, best[going]])
        costs.append(row_bytes[best[going]] - row_bytes[place[going]])
        place[going] = best[going]
    return np.concatenate(owners), np.concatenate(gains), np.concatenate(costs)


def _ends(owners: NDArray[np.int64], costs: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Return the bytes that every row's steps add to its smallest width."""
    return np.bincount(owners, costs, minlength=rows).astype(np.int64)
