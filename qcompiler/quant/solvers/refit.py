"""The best scales for given codes, in closed form, and rounding again with them."""

from __future__ import annotations

import numpy as np

from qcompiler.quant.solvers.coupled import better_groups, coupled_rows
from qcompiler.quant.solvers.problem import Float64, LayerProblem, Solution, better_rows
from qcompiler.quant.solvers.scales import round_to_levels

ROUNDS = 8
SWEEPS = 3


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


def refine_scale(problem: LayerProblem, solution: Solution, sweeps: int = SWEEPS) -> Solution:
    """Return the same codes with better scales; the error of no group rises.

    The error is a parabola in the scale of a row (or of a block of it): with c the codes, 0 outside the block, its
    slope is (G E H)_j c and its curvature G_jj c H c^T. Rows take their minima in turn, bounded by the floor. Rows
    without a partner take the closed form of ``refit_scale``, which is the same minimum.

    Source: Kim et al., "TurboBoA" (2026), scale refinement with frozen integers; from the published description, the
    closed form derived here. Differs: several sweeps, block scales, a floor, and a row whose best scale is not
    positive keeps its own.
    """
    row_gram = problem.row_gram
    if row_gram is None:
        row_gram = np.broadcast_to(
            np.eye(solution.codes.shape[1]), (len(problem.weight), *solution.codes.shape[1:2] * 2)
        )
    coupled = coupled_rows(row_gram)
    start = solution
    if solution.scale.ndim == 2 and not coupled.all():
        alone = refit_scale(problem, solution).scale
        start = Solution(solution.codes, np.where(coupled, solution.scale, alone))
        if not coupled.any():
            return start
    found = start
    for _ in range(sweeps):
        before, found = found, _swept(problem, row_gram, found)
        if np.allclose(before.scale, found.scale, rtol=1e-6, atol=0):
            break
    return better_groups(problem, start, found)


def _swept(problem: LayerProblem, row_gram: Float64, solution: Solution) -> Solution:
    """Return better scales after every row took its best one in turn."""
    groups, rows, inputs = solution.codes.shape
    scale = solution.scale.reshape(groups, rows, -1).copy()
    blocks = scale.shape[2]
    length = solution.block_size or inputs
    slope = row_gram @ ((solution.weight() - problem.weight) @ problem.gram)
    for row in range(rows):
        for block in range(blocks):
            part = slice(block * length, min((block + 1) * length, inputs))
            codes = solution.codes[:, row, part].astype(np.float64)
            product = (codes[:, None, :] @ problem.gram[:, part])[:, 0]
            curvature = row_gram[:, row, row] * (product[:, part] * codes).sum(1)
            useful = curvature > 0
            wanted = scale[:, row, block] - (slope[:, row, part] * codes).sum(1) / np.where(useful, curvature, 1.0)
            floor = problem.floor[:, row]
            best = np.where(useful & (wanted > 0), np.maximum(wanted, floor), scale[:, row, block])
            slope += row_gram[:, :, row, None] * ((best - scale[:, row, block])[:, None] * product)[:, None, :]
            scale[:, row, block] = best
    return Solution(solution.codes, scale.reshape(solution.scale.shape), solution.block_size)


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
