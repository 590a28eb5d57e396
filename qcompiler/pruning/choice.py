"""Which sparsity a recipe asks for: a share, as many zeros as a file size needs, or as many as the floors bear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from qcompiler.errors import UsageError
from qcompiler.pruning.curves import Curves
from qcompiler.pruning.sizes import stored_bytes
from qcompiler.quant.allocation import kilobytes
from qcompiler.quant.sparsity import Curve, SparsitySearch, allocated
from qcompiler.sparsity import Sparsity
from qcompiler.state import Context, State

CANDIDATES = tuple(float(s) for s in np.round(np.arange(0.0, 0.96, 0.05), 2))
"""Sparsities that a search by accuracy chooses from; bisection tries about five of them."""
PRECISION = 1e-3
"""Of a sparsity that a file size asks for."""


TYPICAL = 0.6
"""Where ways to divide zeros over layers are compared if no share is asked for."""


def ways_to_divide(curves: Curves, asked: Sparsity) -> list[SparsitySearch]:
    """Return the ways in which zeros may be divided over layers: by each measured loss, and evenly."""
    even = asked.allocation == "uniform" or asked.pattern is not None
    found = [
        SparsitySearch(curves=own, shares={}, unit=unit, trials=curves.trials, uniform=even)
        for unit, own in curves.ways.items()
    ]
    return found[:1] if even else [*found, replace(found[0], uniform=True)]


def best_way(
    ways: Sequence[SparsitySearch], asked: Sparsity, loss: Callable[[SparsitySearch], float] | None
) -> SparsitySearch:
    """Return the way with the least loss at the share that is asked for, the first without anything to judge by.

    Args:
        ways: at least one.
        asked: by the recipe.
        loss: of a network that is pruned as a search says, on samples that no curve saw.
    """
    if loss is None or len(ways) == 1:
        return ways[0]
    share = TYPICAL if asked.share is None else asked.share
    return min(ways, key=lambda way: loss(at_sparsity(way, share)))


def chosen_search(
    search: SparsitySearch, asked: Sparsity, context: Context, pruned: Callable[[SparsitySearch], State]
) -> SparsitySearch:
    """Return the search with the sparsity that is asked for.

    Args:
        search: a way to divide zeros over layers.
        asked: by the recipe; not of share 0.
        context: with its limits and what judges by them.
        pruned: returns the state with the weights pruned as a search says.

    Raises:
        UsageError: it cannot be met, or accuracy is to be searched for without data.
    """
    limit = context.recipe.floors.max_size_bytes
    if asked.share is not None:
        found = at_sparsity(search, asked.share)
        _check_size(found, asked, limit, context, pruned)
        return found
    if limit is not None:
        return _smallest_within(search, limit, context, pruned)
    if context.acceptable is None:
        raise UsageError(
            "--sparsity auto needs samples to judge accuracy by, or --max-size: give --data, or a share such as 0.5"
        )
    return _sparsest(search, lambda s: context.acceptable is not None and context.acceptable(pruned(s)))


def at_sparsity(search: SparsitySearch, sparsity: float) -> SparsitySearch:
    """Return the search with another share of zeros over all weights.

    Raises:
        UsageError: what is prescribed for single layers does not allow it.
    """
    return replace(search, shares=allocated(search.curves, sparsity, uniform=search.uniform))


def _sparsest(search: SparsitySearch, holds: Callable[[SparsitySearch], bool]) -> SparsitySearch:
    """Return the sparsest candidate that holds, by bisection; none pruned at all if only that holds."""
    low, high = 0, len(CANDIDATES) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if holds(at_sparsity(search, CANDIDATES[middle])):
            low = middle
        else:
            high = middle - 1
    return at_sparsity(search, CANDIDATES[low])


def _smallest_within(
    search: SparsitySearch, limit: int, context: Context, pruned: Callable[[SparsitySearch], State]
) -> SparsitySearch:
    """Return the least sparsity whose file keeps to a limit."""
    fixed, form = _fixed_bytes(search, context, pruned), context.recipe.sparse_format

    def size(sparsity: float) -> int:
        return fixed + stored_bytes(search.curves, at_sparsity(search, sparsity).shares, form)

    low, high = 0.0, float(np.nextafter(_most(search.curves), 0.0))
    least = size(high)
    if least > limit:
        raise UsageError(
            f"--max-size {kilobytes(limit)} cannot be met by zeros: a sparsity of {100 * high:.2f} % takes "
            f"{kilobytes(least, up=True)} (of which graph, scales and biases {kilobytes(fixed, up=True)}); "
            "ask for at least that, or for fewer bits"
        )
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if size(middle) <= limit else (middle, high)
    return at_sparsity(search, high)


def _check_size(
    search: SparsitySearch,
    asked: Sparsity,
    limit: int | None,
    context: Context,
    pruned: Callable[[SparsitySearch], State],
) -> None:
    """Refuse a sparsity with which the file cannot keep to a limit that is asked for too."""
    if limit is None:
        return
    codes = stored_bytes(search.curves, search.shares, context.recipe.sparse_format)
    size = _fixed_bytes(search, context, pruned) + codes
    if size > limit:
        raise UsageError(
            f"--sparsity {asked} and --max-size {kilobytes(limit)} contradict each other: with these zeros the file "
            f"takes about {kilobytes(size, up=True)}; ask for --sparsity auto, or loosen one of them"
        )


def _fixed_bytes(search: SparsitySearch, context: Context, pruned: Callable[[SparsitySearch], State]) -> int:
    """Return what of the file is no code of these weights."""
    if context.size is None:
        return 0
    dense = replace(search, shares={c.name: 0.0 for c in search.curves})
    codes = sum(-(-c.bits * c.weights // 8) for c in search.curves)
    return max(context.size(pruned(dense)) - codes, 0)


def _most(curves: tuple[Curve, ...]) -> float:
    total = sum(c.weights for c in curves)
    return sum(c.weights * (c.highest if c.fixed is None else min(c.fixed, c.highest)) for c in curves) / total
