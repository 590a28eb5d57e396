"""Coordinate descent: every code in turn takes the level with the least error, all others fixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qcompiler.quant.gram import Float64
from qcompiler.quant.solvers.gptq import Gptq
from qcompiler.quant.solvers.problem import LayerProblem, Solution, better_rows
from qcompiler.quant.solvers.refit import refit_scale
from qcompiler.quant.solvers.scales import round_to_levels

SMALL_GAIN = 1e-9
"""A move must lower the error of its row by more than this share of it; less is rounding noise."""


@dataclass(frozen=True, slots=True)
class Descent:
    """GPTQ, then cyclic coordinate descent over the codes with refitted scales, until nothing moves.

    Attributes:
        sweeps: over all columns at most.
        block: columns whose moves are passed on to the others at once.

    Source: Behdin et al., "QuantEase" (2023), section 3. Differs: any table of levels, and scales are refitted
    between sweeps.
    """

    name: ClassVar[str] = "descent"
    sweeps: int = 20
    block: int = 64

    def solve(self, problem: LayerProblem, seed: int = 0) -> Solution:
        """Return codes and scales; the seed is not used."""
        return polish(problem, Gptq().solve(problem), sweeps=self.sweeps, block=self.block)

    def cost(self, problem: LayerProblem) -> float:
        """Return about how many multiply-accumulates it takes."""
        groups, rows, inputs = problem.weight.shape
        return Gptq().cost(problem) + float(self.sweeps * groups * rows * inputs**2)


def polish(problem: LayerProblem, solution: Solution, *, sweeps: int = 20, block: int = 64) -> Solution:
    """Return a solution at which no single code can move for the better; no row gets worse.

    Args:
        problem: the layer.
        solution: where to start.
        sweeps: over all columns at most, each followed by a refit of the scales.
        block: columns whose moves are passed on to the others at once; only a matter of speed.
    """
    best = refit_scale(problem, solution)
    for _ in range(sweeps):
        swept = refit_scale(problem, sweep(problem, best, block))
        again = better_rows(problem, best, swept)
        if np.array_equal(again.codes, best.codes):
            break
        best = again
    return best


def sweep(problem: LayerProblem, solution: Solution, block: int = 64) -> Solution:
    """Return the solution after every code was moved once, in order, to its best level.

    With g = (e H)_j the error of a row is a parabola in code j whose minimum is q_j - g / (s H_jj), so the nearest
    level to that is the best one.
    """
    codes, scale = solution.codes.astype(np.float64), solution.scale
    slope = (solution.weight() - problem.weight) @ problem.gram
    diagonal = np.einsum("gii->gi", problem.gram)
    inputs = codes.shape[2]
    for first in range(0, inputs, block):
        last = min(first + block, inputs)
        inner, moves = slope[:, :, first:last].copy(), np.zeros((*scale.shape, last - first))
        for column in range(first, last):
            move = _move(codes[:, :, column], inner[:, :, column - first], diagonal[:, None, column], scale, problem)
            codes[:, :, column] += move
            moves[:, :, column - first] = move * scale
            inner += moves[:, :, column - first, None] * problem.gram[:, None, column, first:last]
        slope += moves @ problem.gram[:, first:last, :]
    return Solution(codes.astype(np.int8), scale)


def _move(code: Float64, slope: Float64, curvature: Float64, scale: Float64, problem: LayerProblem) -> Float64:
    """Return by how much a column of codes moves, shape (groups, rows); 0 where nothing is gained."""
    step = np.where(curvature > 0, curvature, 1.0) * scale
    target = round_to_levels(code - slope / step, problem.levels)
    move = target - code
    gain = -move * (2.0 * slope + move * step)
    noise = SMALL_GAIN * np.abs(move) * step * (np.abs(code) + 1.0)
    return np.asarray(np.where((gain > noise) & (curvature > 0), move, 0.0))
