"""How many rows and candidates fit into the time: measured once, before a search."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qcompiler.executor.batching import row_count, rows_of
from qcompiler.executor.binding import Binding
from qcompiler.executor.setup import SearchSetup
from qcompiler.search.units import Unit

PROBE_ROWS = 4
OVERHEAD = 1.3
"""Over the steps behind a stop: confirming, joining candidates, the values before a stop."""
ROWS = (1024, 512, 256, 128, 64, 32, 16)
"""Rows that a candidate may be measured on; so few choices that a small change of speed changes none of them."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How finely a tensor is searched.

    Attributes:
        factors: of scales and ranges, without 1.
        shifts: of rounding, without 0.
        refined: try the neighbors of the best pair at half the distance.
        anew: also round weights anew whose codes came from a solver.
        wide: also search the ranges of activations of 8 bits and more.
    """

    name: str
    factors: tuple[float, ...]
    shifts: tuple[float, ...]
    refined: bool
    anew: bool
    wide: bool

    def candidates(self, unit: Unit) -> int:
        """Return about how many candidates a stop has: scales, rounding, neighbors and bias; ranges of its group."""
        near = 8 if self.refined else 0
        rounds = len(self.factors) * (2 if self.anew else 1)
        weight = rounds + len(self.shifts) + near + 3
        group = 2 * len(self.factors) + near if self.wide or unit.narrow else 0
        return (weight if unit.weight is not None else 0) + (group if unit.group else 0)


_SHIFTS = tuple(round(0.05 * n, 2) for n in range(-6, 7) if n)

_FINE = (0.6, 0.7, 0.76, 0.82, 0.87, 0.91, 0.95, 0.98, 1.02, 1.05, 1.09, 1.14, 1.2, 1.3)
_MEDIUM = (0.75, 0.85, 0.92, 0.97, 1.03, 1.08, 1.16)

GRIDS = (
    Grid("fine", _FINE, _SHIFTS, refined=True, anew=True, wide=True),
    Grid("medium", _MEDIUM, (-0.2, -0.1, 0.1, 0.2), refined=True, anew=True, wide=True),
    Grid("coarse", (0.85, 0.94, 1.06), (-0.15, 0.15), refined=False, anew=False, wide=True),
    Grid("sparse", (0.94, 1.06), (), refined=False, anew=False, wide=False),
)
"""From the finest on."""

ORDER = ((0, 256), (1, 128), (1, 64), (2, 64), (2, 32), (3, 32), (3, 16))
"""Pairs of a grid and the rows it needs at least, best first."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What was chosen: the grid, and how many rows a candidate is measured on."""

    grid: Grid
    rows: int


def step_seconds(setup: SearchSetup, binding: Binding) -> list[float]:
    """Return the seconds that every step takes on one row, the quicker of two runs.

    Args:
        setup: executor and samples.
        binding: with what the steps run.
    """
    rows = min(PROBE_ROWS if setup.axes is not None else 1, row_count(setup.samples))
    runs = [_timed(setup, binding, rows) for _ in range(2)]
    return [min(pair) / rows for pair in zip(*runs, strict=True)]


def _timed(setup: SearchSetup, binding: Binding, rows: int) -> list[float]:
    executor, live = setup.executor, rows_of(setup.samples, slice(0, rows))
    found = []
    with torch.no_grad():
        for step in range(len(executor.steps)):
            started = time.perf_counter()
            names = executor.live_before(step + 1, setup.loss.outputs)
            live = executor.run(live, names, binding=binding, start=step, stop=step + 1)
            if executor.device.type == "cuda":
                torch.cuda.synchronize()
            found.append(time.perf_counter() - started)
    return found


def choose_pace(units: Sequence[Unit], steps: Sequence[float], rows: int, seconds: float) -> Pace:
    """Return the finest grid, and for it the most rows, with which a search fits into a time.

    Args:
        units: the stops of the search.
        steps: seconds of every step on one row.
        rows: how many there are to search on.
        seconds: for the whole search; if nothing fits, the least is chosen, and the clock ends the search.
    """
    behind = [sum(steps[unit.step :]) for unit in units]
    for index, least in ORDER:
        grid = GRIDS[index]
        each = OVERHEAD * sum(grid.candidates(u) * s for u, s in zip(units, behind, strict=True))
        wanted = [r for r in ROWS if r >= least]
        for count in wanted:
            fitting = min(count, rows)
            if each * fitting <= seconds:
                return Pace(grid, fitting)
    return Pace(GRIDS[-1], min(ROWS[-1], rows))
