"""The best scales for given codes, in closed form, and rounding again with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qcompiler.quant.solvers.coupled import better_groups, coupled_rows
from qcompiler.quant.solvers.problem import Float64, LayerProblem, Solution, better_rows, block_sums
from qcompiler.quant.solvers.scales import round_to_levels

ROUNDS = 8
SWEEPS = 3
TURNS = 50
"""Of the scales of a row's blocks; far fewer are needed until they have settled."""

SETTLED = 1e-6
"""Scales that moved by no more than this share have settled."""


def refit_scale(problem: LayerProblem, solution: Solution) -> Solution:
    """Return the same codes with the scale s = (q H w) / (q H q) of every row; no row gets worse.

    A row whose codes are all 0, or whose best scale is not positive, keeps its scale. A scale below the floor
    becomes the floor, which is the best of those allowed, because the error is a parabola in s.

    The scales of a row's blocks are a small problem of least squares: with q_k the codes of block k, 0 elsewhere, they
    solve sum over l of (q_k H q_l) s_l = q_k H w. Each takes its minimum in turn, given the others, until none moves.

    Source: Kim et al., "TurboBoA" (2026), scale refinement with an identity row factor; Jeon et al.,
    "GENIE" (2023) learns the same scale. Differs: several scales in a row.
    """
    power, wanted = _block_moments(problem, solution)
    blocks = wanted.shape[2]
    own, others = np.einsum("grkk->grk", power).copy(), power * (1 - np.eye(blocks))
    scale = solution.scale.reshape(wanted.shape).copy()
    for _ in range(TURNS if blocks > 1 else 1):
        before = scale.copy()
        for block in range(blocks):
            left = wanted[:, :, block] - (others[:, :, block] * scale).sum(2)
            useful = (own[:, :, block] > 0) & (left > 0)
            best = np.where(useful, left / np.where(useful, own[:, :, block], 1.0), scale[:, :, block])
            scale[:, :, block] = np.maximum(best, problem.floor)
        if np.allclose(before, scale, rtol=SETTLED, atol=0):
            break
    return replace(solution, scale=scale.reshape(solution.scale.shape))


def _block_moments(problem: LayerProblem, solution: Solution) -> tuple[Float64, Float64]:
    """Return q_k H q_l and q_k H w of every row, shapes (groups, rows, blocks, blocks) and (groups, rows, blocks)."""
    codes = solution.codes.astype(np.float64)
    size = solution.block_size or codes.shape[2]
    powers, wanted = [], []
    for first in range(0, codes.shape[2], size):
        part = slice(first, first + size)
        product = codes[:, :, part] @ problem.gram[:, part]
        powers.append(block_sums(product * codes, size))
        wanted.append((product * problem.weight).sum(2))
    return np.stack(powers, axis=2), np.stack(wanted, axis=2)


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
    scale = solution.scale.copy()
    if not coupled.all():
        scale[~coupled] = refit_scale(problem, solution).scale[~coupled]
    start = replace(solution, scale=scale)
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
    return replace(solution, scale=scale.reshape(solution.scale.shape))


def alternate(problem: LayerProblem, solution: Solution, rounds: int = ROUNDS) -> Solution:
    """Return codes and scales after refitting and nearest rounding in turns, while that lowers the error of a row."""
    best = refit_scale(problem, solution)
    for _ in range(rounds):
        codes = round_to_levels(problem.weight / best.steps(), problem.levels)
        again = better_rows(problem, best, refit_scale(problem, replace(best, codes=codes)))
        if np.array_equal(again.codes, best.codes):
            break
        best = again
    return best
