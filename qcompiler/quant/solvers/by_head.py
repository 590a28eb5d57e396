"""Layers whose rows belong to heads of attention: problems by head, and what an answer costs there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.gram import Float64, damped
from qcompiler.quant.levels import Levels
from qcompiler.quant.solvers.coupled import better_groups, coupled_errors
from qcompiler.quant.solvers.problem import LayerProblem, Solution, better_rows
from qcompiler.quant.solvers.scales import make_problem


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadRows:
    """Rows of a weight that are the queries, the keys or the values of attention.

    Attributes:
        role: "query", "key" or "value".
        rows: int64, shape (heads, size): which rows of the weight.
        gram / held: float64, shape (heads or 1, inputs, inputs): H on the samples that solvers see, and on those that
            decide.
        row_gram / held_rows: float64, shape (heads, size, size): G, likewise.
    """

    role: str
    rows: NDArray[np.int64]
    gram: Float64
    held: Float64
    row_gram: Float64
    held_rows: Float64

    def problem(self, weight: Float64, levels: Levels, floor: Float64, block_size: int = 0) -> LayerProblem:
        """Return the problem of these rows, a head a group, with searched scales to start from.

        Args:
            weight: of the whole layer, shape (1, rows, inputs).
            levels: sorted levels.
            floor: of the whole layer, shape (1, rows).
            block_size: inputs that share a scale; 0 is all of a row.
        """
        gram, part, smallest = damped(self.gram), weight[0][self.rows], floor[0][self.rows]
        return replace(
            make_problem(part, gram, levels, smallest, block_size=block_size), row_gram=damped(self.row_gram)
        )

    def of(self, solution: Solution) -> Solution:
        """Return these rows of a layer's solution, a head a group."""
        return replace(solution, codes=solution.codes[0][self.rows], scale=solution.scale[0][self.rows])

    def error(self, weight: Float64, solution: Solution) -> float:
        """Return tr(G E H E^T) on the samples that decide, as a share of tr(G W H W^T)."""
        part, own = weight[0][self.rows], self.of(solution)
        nothing = replace(own, codes=np.zeros_like(own.codes))
        error, power = (float(coupled_errors(part, s, self.held, self.held_rows).sum()) for s in (own, nothing))
        return error / power if power > 0 else 0.0


def scattered(whole: Solution, heads: Sequence[HeadRows], parts: Sequence[Solution]) -> Solution:
    """Return a layer's solution with the rows of its heads replaced."""
    codes, scale = whole.codes.copy(), whole.scale.copy()
    for head, part in zip(heads, parts, strict=True):
        codes[0][head.rows], scale[0][head.rows] = part.codes, part.scale
    return replace(whole, codes=codes, scale=scale)


def mixture(problem: LayerProblem, heads: Sequence[HeadRows], solutions: Sequence[Solution]) -> Solution:
    """Return the best of several solutions for every row that belongs to no head, and for every head as a whole."""
    parts = []
    for head in heads:
        own = head.problem(problem.weight, problem.levels, problem.floor, problem.block_size)
        parts.append(better_groups(own, *(head.of(s) for s in solutions)))
    return scattered(better_rows(problem, *solutions), heads, parts)


def without_head(rows: int, heads: Sequence[HeadRows]) -> NDArray[np.int64]:
    """Return which of so many rows belong to no head."""
    taken = [h.rows.reshape(-1) for h in heads]
    return np.setdiff1d(np.arange(rows), np.concatenate(taken) if taken else [])
