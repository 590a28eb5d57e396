"""Coordinate descent: every code in turn takes the level with the least error, all others fixed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.gram import Float64
from qcompiler.quant.solvers.coupled import better_groups, coupled_errors
from qcompiler.quant.solvers.gptq import Gptq
from qcompiler.quant.solvers.problem import LayerProblem, Solution, better_rows
from qcompiler.quant.solvers.refit import refit_scale
from qcompiler.quant.solvers.scales import round_to_levels

SWEEPS = 20
TURNS = 3
"""Sweeps over rows that are coupled."""

LITTLE = 1e-3
"""A sweep that lowers the error by less than this share is the last."""

NOISE = 1e-9
"""A move must lower the error by more than this, in units of one step of its code; less is rounding noise."""


@dataclass(frozen=True, slots=True)
class Descent:
    """GPTQ, then cyclic coordinate descent over the codes with refitted scales, until little is gained.

    Attributes:
        sweeps: over all columns at most.

    Source: Behdin et al., "QuantEase" (2023). Differs: any table of levels, and scales are refitted
    between sweeps.
    """

    name: ClassVar[str] = "descent"
    sweeps: int = SWEEPS

    def solve(self, problem: LayerProblem, seed: int = 0) -> Solution:
        """Return codes and scales; the seed is not used."""
        return polish(problem, Gptq().solve(problem), sweeps=self.sweeps)

    def cost(self, problem: LayerProblem) -> float:
        """Return about how many multiply-accumulates it takes."""
        groups, rows, inputs = problem.weight.shape
        return Gptq().cost(problem) + float(self.sweeps * groups * rows * inputs**2)


def polish(
    problem: LayerProblem,
    solution: Solution,
    *,
    sweeps: int = SWEEPS,
    block: int = 64,
    kept: NDArray[np.bool_] | None = None,
) -> Solution:
    """Return a solution at which hardly any single code can move for the better; no row gets worse.

    Args:
        problem: the layer.
        solution: where to start.
        sweeps: over all columns at most, each followed by a refit of the scales.
        block: columns whose moves are passed on to the others at once; only a matter of speed.
        kept: shape (groups, rows, inputs); where False, codes stay as they are. None lets all move.
    """
    search = _Search(problem, solution, block, kept)
    search.refit()
    for _ in range(sweeps):
        before = search.error()
        if not search.sweep():
            break
        search.refit()
        if search.error() >= before * (1 - LITTLE):
            break
    return better_rows(problem, solution, search.solution())


def descend(problem: LayerProblem, solution: Solution, sweeps: int = TURNS) -> Solution:
    """Return codes and scales after coordinate descent on tr(G E H E^T); the error of no group rises.

    With all other rows fixed, the error of row j is that of a plain row whose weights are
    w_j - sum over i of G_ji e_i / G_jj: what the others do wrong already is part of what it is to make up for. Rows
    of all groups therefore take turns in plain coordinate descent.

    Args:
        problem: the layer.
        solution: where to start.
        sweeps: over all rows at most.
    """
    row_gram = problem.row_gram
    if row_gram is None:
        return polish(problem, solution)
    codes, scale = solution.codes.copy(), solution.scale.copy()
    error = solution.weight() - problem.weight
    last = float(coupled_errors(problem.weight, solution, problem.gram, row_gram).sum())
    for _ in range(sweeps):
        for row in range(problem.weight.shape[1]):
            here = slice(row, row + 1)
            share = row_gram[:, here] / row_gram[:, here, here]
            share[:, :, row] = 0.0
            alone = replace(
                problem,
                weight=problem.weight[:, here] - share @ error,
                scale=scale[:, here],
                floor=problem.floor[:, here],
                row_gram=None,
            )
            better = polish(alone, replace(solution, codes=codes[:, here], scale=scale[:, here]), sweeps=1)
            codes[:, here], scale[:, here] = better.codes, better.scale
            error[:, here] = better.weight() - problem.weight[:, here]
        found = replace(solution, codes=codes, scale=scale)
        now = float(coupled_errors(problem.weight, found, problem.gram, row_gram).sum())
        if now >= last * (1 - LITTLE):
            break
        last = now
    return better_groups(problem, solution, replace(solution, codes=codes, scale=scale))


class _Search:
    """Codes with what a move changes, columns first: all arrays are of shape (groups, inputs, rows).

    A weight is s r q: s is the scale of its row's first block, r that of its own block as a share of it (1 where rows
    have one scale), q its code. With P = H (r q)^T and T = H W^T the error's slope along code j is s^2 r (P - T / s)_j,
    a parabola whose minimum lies at q_j - (P - T / s)_j / (r H_jj); the level nearest to it is the best one.
    """

    def __init__(
        self, problem: LayerProblem, solution: Solution, block: int, kept: NDArray[np.bool_] | None = None
    ) -> None:
        self._problem, self._block = problem, block
        self._kept = None if kept is None else np.ascontiguousarray(kept.transpose(0, 2, 1))
        self._weight = np.ascontiguousarray(problem.weight.transpose(0, 2, 1))
        self._codes = np.ascontiguousarray(solution.codes.transpose(0, 2, 1)).astype(np.float64)
        self._target = problem.gram @ self._weight
        self._power = (self._weight * self._target).sum(1)
        self._take(solution)

    def _take(self, solution: Solution) -> None:
        """Go on with the scales of a solution whose codes are these."""
        self._start, steps = solution, solution.steps()
        self._scale = steps[:, :, 0].copy()
        shares = np.ascontiguousarray((steps / steps[:, :, :1]).transpose(0, 2, 1))
        self._shares = np.broadcast_to(shares, self._codes.shape)
        self._product = self._problem.gram @ (self._codes * self._shares)

    def solution(self) -> Solution:
        """Return what was reached."""
        codes = np.ascontiguousarray(self._codes.transpose(0, 2, 1)).astype(np.int8)
        return replace(self._start, codes=codes, scale=self._start.scale if self._start.block_size else self._scale)

    def _parts(self) -> tuple[Float64, Float64]:
        """Return u H u^T and u H w^T of every row, with u = r q."""
        values = self._codes * self._shares
        return (values * self._product).sum(1), (values * self._target).sum(1)

    def error(self) -> float:
        """Return tr(E H E^T), from the products that are kept."""
        square, linear = self._parts()
        return float((self._scale**2 * square - 2 * self._scale * linear + self._power).sum())

    def refit(self) -> None:
        """Give every row the best scale for its codes, as ``refit_scale`` does; those of blocks change the products."""
        if self._start.block_size:
            self._take(refit_scale(self._problem, self.solution()))
            return
        square, linear = self._parts()
        useful = (square > 0) & (linear > 0)
        best = np.where(useful, linear / np.where(useful, square, 1.0), self._scale)
        self._scale = np.maximum(best, self._problem.floor)

    def sweep(self) -> bool:
        """Move every code once, in order, to its best level; return whether any moved."""
        gram, inputs, moved = self._problem.gram, self._codes.shape[1], False
        for first in range(0, inputs, self._block):
            last = min(first + self._block, inputs)
            moves = self._sweep_block(first, last)
            if moves.any():
                self._product += gram[:, :, first:last] @ moves
                moved = True
        return moved

    def _sweep_block(self, first: int, last: int) -> Float64:
        """Move the codes of some columns and return by how much r q changed, shape (groups, columns, rows)."""
        gram, levels = self._problem.gram, self._problem.levels
        inner = self._product[:, first:last].copy()
        moves = np.zeros_like(inner)
        for column in range(first, last):
            here, share = column - first, self._shares[:, column]
            curvature = gram[:, column, column, None]
            step = np.where(curvature > 0, curvature, 1.0) * np.square(share)
            code = self._codes[:, column]
            slope = (inner[:, here] - self._target[:, column] / self._scale) * share
            move = round_to_levels(code - slope / step, levels) - code
            gain = -move * (2.0 * slope + move * step)
            move[(gain <= NOISE * step) | (curvature <= 0)] = 0.0
            if self._kept is not None:
                move *= self._kept[:, column]
            if move.any():
                self._codes[:, column] += move
                moves[:, here] = move * share
                inner[:, here + 1 :] += gram[:, first + here + 1 : last, column, None] * moves[:, here, None]
        return moves
