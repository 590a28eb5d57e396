"""Levels fitted to a weight: a codebook of int8 values that all rows share, each times its own scale."""

from __future__ import annotations

import numpy as np

from qcompiler.quant.levels import Levels
from qcompiler.quant.solvers.problem import Float64, LayerProblem, Solution

TOP = 63
"""Largest magnitude of a fitted level: two products with unsigned 8-bit activations still fit in 16 bits."""

ROUNDS = 20


def fitted_levels(weight: Float64, importance: Float64, count: int, rounds: int = ROUNDS) -> Levels:
    """Return about ``count`` sorted int8 values near which normalized weights lie, by weighted k-means (Lloyd-Max).

    Rows are normalized by their largest magnitude. Starting points are the quantiles of the cube root of the
    density, which is where k-means ends for many levels. Levels that fall on the same integer are one.

    Args:
        weight: float64, shape (groups, rows, inputs).
        importance: broadcasts to the weight: the diagonal of H.
        count: levels wanted, at least 1.
        rounds: of k-means.

    Source: Lloyd, "Least squares quantization in PCM" (1982); Panter and Dite (1951) for the starting points.
    """
    peak = np.abs(weight).max(2, keepdims=True)
    unit = np.where(peak > 0, peak, 1.0)
    values = (weight / unit).reshape(-1)
    mass = np.broadcast_to(importance * np.square(unit), weight.shape).reshape(-1)
    order = np.argsort(values, kind="stable")
    values, mass = values[order], mass[order]
    mass = mass if mass.sum() > 0 else np.ones_like(mass)
    centers = _start(values, mass, count)
    weights, moments = (np.concatenate([[0.0], np.cumsum(a)]) for a in (mass, mass * values))
    for _ in range(rounds):
        cuts = np.concatenate([[0], np.searchsorted(values, (centers[1:] + centers[:-1]) / 2), [values.size]])
        total, moment = np.diff(weights[cuts]), np.diff(moments[cuts])
        centers = np.sort(np.where(total > 0, moment / np.where(total > 0, total, 1.0), centers))
    return as_levels(centers)


def as_levels(centers: Float64) -> Levels:
    """Return values as distinct sorted int8 levels, the largest magnitude being ``TOP``."""
    peak = float(np.abs(centers).max(initial=0.0))
    scaled = centers * (TOP / peak) if peak > 0 else centers
    return np.unique(np.rint(scaled)).astype(np.int8)


def _start(values: Float64, mass: Float64, count: int) -> Float64:
    """Return ``count`` starting points, spread by the cube root of the weighted density."""
    bins = 256
    edges = np.linspace(values[0], values[-1], bins + 1)
    density, _ = np.histogram(values, edges, weights=mass)
    share = np.concatenate([[0.0], np.cumsum(np.cbrt(density))])
    wanted = (np.arange(count) + 0.5) / count * share[-1]
    return np.asarray(np.interp(wanted, share, edges), np.float64)


def refit_levels(problem: LayerProblem, solution: Solution) -> Levels:
    """Return the levels with the least tr(E H E^T) for given assignments and scales, rounded to int8.

    With t the table and A_r the one-hot assignment of row r, the error is quadratic in t: its minimum solves
    (sum_r s_r^2 A_r^T H A_r) t = sum_r s_r A_r^T H w_r. Levels that nothing takes stay where they are.

    Args:
        problem: the layer.
        solution: its codes are levels of the problem.
    """
    levels = problem.levels
    count = len(levels)
    number, steps = np.searchsorted(levels, solution.codes), solution.steps()
    matrix, target = np.zeros((count, count)), np.zeros(count)
    for group in range(problem.weight.shape[0]):
        product = problem.weight[group] @ problem.gram[group]
        for row, chosen in enumerate(number[group]):
            scale = steps[group, row]
            hot = np.zeros((len(chosen), count))
            hot[np.arange(len(chosen)), chosen] = scale
            matrix += hot.T @ (problem.gram[group] @ hot)
            target += product[row] @ hot
    used = np.diag(matrix) > 0
    table = levels.astype(np.float64)
    solved, *_ = np.linalg.lstsq(matrix[np.ix_(used, used)], target[used] - matrix[np.ix_(used, ~used)] @ table[~used])
    table[used] = solved
    return as_levels(np.sort(table))


def level_scale(levels: Levels, before: Levels, scale: Float64) -> Float64:
    """Return scales that keep the reach of a table when another table takes its place."""
    reach = float(np.abs(before.astype(np.int64)).max()) / max(float(np.abs(levels.astype(np.int64)).max()), 1.0)
    return np.asarray(scale * reach)
