"""The smallest allocation of bits whose accuracy holds, by what is measured before the gate."""

from __future__ import annotations

from dataclasses import replace

from qcompiler.mixed_precision.widths import with_widths
from qcompiler.quant.allocation import Allocation
from qcompiler.quant.frontier import BitSearch
from qcompiler.state import Context, State

CANDIDATES = 48
"""Points of the frontier that a search by accuracy chooses from; bisection tries about six of them."""
BY = "allocate-bits"


def smallest_acceptable(search: BitSearch, state: State, context: Context) -> Allocation | None:
    """Return the smallest point of a frontier that would hold the floors on accuracy, by bisection.

    None stands for "not even the widest widths would", and for "there are no samples to judge by".

    Args:
        search: with the frontier.
        state: whose weights have no scales yet, or scales that do not count.
        context: of the compilation.
    """
    acceptable = context.acceptable
    if acceptable is None:
        return None

    def holds(point: Allocation) -> bool:
        return acceptable(at_widths(search, point, state))

    stride = max(1, -(-len(search.points) // CANDIDATES))
    points = [*search.points[::-1][::stride]][::-1]
    low, high = 0, len(points) - 1
    if not holds(points[high]):
        return None
    while low < high:
        middle = (low + high) // 2
        if holds(points[middle]):
            high = middle
        else:
            low = middle + 1
    return points[high]


def at_widths(search: BitSearch, point: Allocation, state: State) -> State:
    """Return a state whose weights have the widths of a point."""
    return replace(state, plan=with_widths(state.plan, search.widths(point), {}, BY))
