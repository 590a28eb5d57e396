"""The size/loss frontier: every allocation of bits that no other beats in both bytes and predicted loss."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.allocation import Allocation, Item, allocation_of

MAX_POINTS = 4096
"""Partial allocations that are carried from item to item; up to this many the frontier is complete."""


def frontier(items: Sequence[Item]) -> tuple[Allocation, ...]:
    """Return the allocations on the frontier, bytes rising and loss falling, both strictly.

    The partial allocations of the first k items that are not dominated are extended by the options of the next
    item, and pruned again. Above ``MAX_POINTS`` of them the best of each of as many equal stretches of bytes
    goes on; all points that a weighted sum of bytes and loss can find are added exactly (``supported``), so that
    thinning never moves the frontier's convex hull.

    Source: Nemhauser and Ullmann, "Discrete Dynamic Programming and Capital Allocation" (1969), section 4.
    """
    size, loss = np.zeros(1), np.zeros(1)
    taken: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for item in items:
        sizes = np.asarray([item.stored_bytes(b) for b in item.bits], np.float64)
        losses = np.asarray(item.loss, np.float64)
        every = (size[:, None] + sizes).reshape(-1), (loss[:, None] + losses).reshape(-1)
        kept = _thinned(*every, _undominated(*every))
        size, loss = every[0][kept], every[1][kept]
        taken.append((kept // len(item.bits), kept % len(item.bits)))
    points = [*_traced(items, taken, len(size)), *supported(items)]
    return _pareto(points)


def supported(items: Sequence[Item]) -> tuple[Allocation, ...]:
    """Return the allocations on the lower convex hull of bytes and loss, bytes rising.

    Each item walks along its own hull, and over all items the step with the most loss saved a byte comes first:
    the parametric sweep over the price of a byte.
    """
    current = [min(i.bits, key=lambda b, i=i: (i.stored_bytes(b), i.loss_at(b))) for i in items]  # type: ignore[misc]
    steps = sorted(
        (-gain, number, place, bits)
        for number, item in enumerate(items)
        for place, (gain, bits) in enumerate(_hull_steps(item))
    )
    found = [allocation_of(items, current)]
    for _, number, _, bits in steps:
        current[number] = bits
        found.append(allocation_of(items, current))
    return tuple(found)


def _hull_steps(item: Item) -> list[tuple[float, int]]:
    """Return (loss saved a byte, width) of every step along an item's hull, from its smallest width up."""
    options = sorted((item.stored_bytes(b), item.loss_at(b), b) for b in item.bits)
    hull = [options[0]]
    while True:
        size, loss, _ = hull[-1]
        better = [o for o in options if o[0] > size and o[1] < loss]
        if not better:
            break
        hull.append(max(better, key=lambda o: ((loss - o[1]) / (o[0] - size), o[0])))
    return [((a[1] - b[1]) / (b[0] - a[0]), b[2]) for a, b in itertools.pairwise(hull)]


def _undominated(size: NDArray[np.float64], loss: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of points that no other beats, bytes rising."""
    order = np.lexsort((loss, size))
    best = np.minimum.accumulate(loss[order])
    keep = np.concatenate(([True], loss[order][1:] < best[:-1]))
    return np.asarray(order[keep], np.int64)


def _thinned(size: NDArray[np.float64], loss: NDArray[np.float64], kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return at most ``MAX_POINTS`` of the kept points: both ends, and the least loss of every stretch of bytes."""
    if len(kept) <= MAX_POINTS:
        return kept
    low, high = size[kept[0]], size[kept[-1]]
    stretch = np.minimum(((size[kept] - low) / (high - low) * (MAX_POINTS - 1)).astype(np.int64), MAX_POINTS - 2)
    last = np.flatnonzero(np.diff(stretch, append=MAX_POINTS))  # losses fall with bytes: the last is the least
    return np.asarray(kept[np.union1d([0], last)], np.int64)


def _traced(
    items: Sequence[Item], taken: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], count: int
) -> list[Allocation]:
    """Return the allocation behind every point of the last stage, by walking back through the stages."""
    widths = np.zeros((count, len(items)), np.int64)
    rows = np.arange(count)
    for number in range(len(items) - 1, -1, -1):
        parents, options = taken[number]
        widths[:, number] = np.asarray(items[number].bits)[options[rows]]
        rows = parents[rows]
    return [allocation_of(items, [int(b) for b in row]) for row in widths]


def _pareto(points: Sequence[Allocation]) -> tuple[Allocation, ...]:
    found: list[Allocation] = []
    for point in sorted(points, key=lambda p: (p.stored_bytes, p.loss, p.bits)):
        if not found or point.loss < found[-1].loss:
            found.append(point)
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class BitSearch:
    """Everything one search for widths found out, so that another point can be taken without a new one.

    Attributes:
        items: the weights and their predicted losses.
        fixed_bytes: what of the file is no weight: graph, scales, biases.
        points: the frontier, bytes rising.
        chosen: the allocation that is planned.
        unit: what the loss is.
        correlation: rank correlation of predicted with measured loss, over ``checked`` runs; None if unknown.
        trials: runs that were measured, those included.
        needed_bytes: of the smallest file that would hold the floors on accuracy, by what was measured before the
            gate; None where that was not asked, or where no widths would.
    """

    items: tuple[Item, ...]
    fixed_bytes: int
    points: tuple[Allocation, ...]
    chosen: Allocation
    unit: str
    correlation: float | None = None
    checked: int = 0
    trials: int = 0
    needed_bytes: int | None = None

    def smallest_within(self, loss: float) -> Allocation | None:
        """Return the smallest allocation whose predicted loss is at most ``loss``; None if there is none."""
        return next((p for p in self.points if p.loss <= loss), None)

    def best_within(self, stored_bytes: float) -> Allocation | None:
        """Return the allocation of least loss with at most these bytes; None if there is none."""
        return next((p for p in reversed(self.points) if p.stored_bytes <= stored_bytes), None)

    def widths(self, allocation: Allocation) -> dict[str, int]:
        """Return name -> bits of an allocation."""
        return {item.name: bits for item, bits in zip(self.items, allocation.bits, strict=True)}
