"""The frontier of bytes and predicted loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from qcompiler.quant import frontier as module
from qcompiler.quant.allocation import Budget, allocate, allocation_of
from qcompiler.quant.frontier import BitSearch, frontier, supported
from tests.quant.test_allocation import every, item, items


def plain(points):
    return [(p.stored_bytes, p.loss) for p in points]


def pareto(points):
    found = []
    for size, loss in sorted(plain(points)):
        if not found or loss < found[-1][1]:
            found.append((size, loss))
    return found


@settings(max_examples=60, deadline=None)
@given(items())
def test_every_point_that_no_other_beats(chosen):
    assert plain(frontier(chosen)) == pareto(every(chosen))


@settings(max_examples=40, deadline=None)
@given(items())
def test_points_are_what_their_widths_give(chosen):
    for point in frontier(chosen):
        assert point == allocation_of(chosen, point.bits)


def many(count=30):
    rng = np.random.default_rng(1)
    widths = (2, 3, 4, 6, 8)
    return [
        item(
            f"w{k}",
            weights=int(10 ** rng.uniform(2, 5)),
            bits=widths,
            loss=tuple(float(s * 4.0**-b * rng.uniform(0.7, 1.3)) for b in widths),
        )
        for k, s in enumerate(10 ** rng.uniform(-3, 0, count))
    ]


def test_a_thinned_frontier_keeps_its_hull_and_stays_close(monkeypatch):
    chosen = many()
    monkeypatch.setattr(module, "MAX_POINTS", 200)
    points = frontier(chosen)
    sizes, losses = np.asarray(plain(points)).T
    assert (np.diff(sizes) > 0).all()
    assert (np.diff(losses) < 0).all()
    hull = set(plain(supported(chosen)))
    assert all(any(a <= s and b <= loss for a, b in plain(points)) for s, loss in hull)
    for share in (0.3, 0.5, 0.8):
        limit = int(sizes[0] + share * (sizes[-1] - sizes[0]))
        exact = allocate(chosen, Budget(max_bytes=limit)).loss
        assert exact <= max(p.loss for p in points if p.stored_bytes <= limit)
        assert min(p.loss for p in points if p.stored_bytes <= limit) <= 1.05 * exact


def test_supported_points_are_optimal_for_their_bytes():
    chosen = many(8)
    for point in supported(chosen):
        assert allocate(chosen, Budget(max_bytes=point.stored_bytes)).loss == pytest.approx(point.loss, rel=1e-6)


def test_a_search_moves_along_its_points():
    chosen = [item("a"), item("b", loss=(3.0, 0.0))]
    points = frontier(chosen)
    search = BitSearch(items=tuple(chosen), fixed_bytes=0, points=points, chosen=points[0], unit="")
    assert plain(points) == [(250, 4.0), (1125, 1.0), (2000, 0.0)]
    assert search.smallest_within(1.0) is points[1]
    assert search.smallest_within(-1.0) is None
    assert search.best_within(1999) is points[1]
    assert search.best_within(249) is None
    assert search.widths(points[1]) == {"a": 1, "b": 8}
