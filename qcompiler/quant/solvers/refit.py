"""The best scales for given codes, in closed form, and rounding again with them."""

from __future__ import annotations

import numpy as np

from qcompiler.quant.solvers.problem import LayerProblem, Solution, better_rows
from qcompiler.quant.solvers.scales import round_to_levels

ROUNDS = 8


def refit_scale(problem: LayerProblem, solution: Solution) -> Solution:
    """Return the same codes with the scale s = (q H w) / (q H q) of every row; no row gets worse.

    A row whose codes are all 0, or whose best scale is not positive, keeps its scale. A scale below the floor
    becomes the floor, which is the best of those allowed, because the error is a parabola in s.

    Source: Kim et al., "TurboBoA" (2026), scale refinement with an identity row factor; Jeon et al.,
    "GENIE" (2023) learns the same scale.
    """
    codes = solution.codes.astype(np.float64)
    product = codes @ problem.gram
    power = (product * codes).sum(2)
    wanted = (product * problem.weight).sum(2)
    useful = (power > 0) & (wanted > 0)
    scale = np.where(useful, wanted / np.where(useful, power, 1.0), solution.scale)
    return Solution(solution.codes, np.maximum(scale, problem.floor))


def alternate(problem: LayerProblem, solution: Solution, rounds: int = ROUNDS) -> Solution:
    """Return codes and scales after refitting and nearest rounding in turns, while that lowers the error of a row."""
    best = refit_scale(problem, solution)
    for _ in range(rounds):
        codes = round_to_levels(problem.weight / best.scale[:, :, None], problem.levels)
        again = better_rows(problem, best, refit_scale(problem, Solution(codes, best.scale)))
        if np.array_equal(again.codes, best.codes):
            break
        best = again
    return best
