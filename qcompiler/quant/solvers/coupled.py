"""Problems whose rows are coupled: the error tr(G E H E^T), and which of several answers has less of it.

Rows are the output channels of one head of attention (a group is a head). An error of the queries changes the logits
by E X times the keys, so that errors of two channels add up or cancel as far as those channels of the keys do: G is
the second moment of the keys. For the keys it is that of the queries, for the values W_O^T W_O of the head.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.solvers.problem import Float64, LayerProblem, Solution


def coupled_errors(weight: Float64, solution: Solution, gram: Float64, row_gram: Float64 | None) -> Float64:
    """Return tr(G E H E^T) of every group, float64 of shape (groups,).

    Args:
        weight: shape (groups, rows, inputs).
        solution: of the same shape.
        gram: H, shape (groups or 1, inputs, inputs).
        row_gram: G, shape (groups, rows, rows); None is the identity.
    """
    error = solution.weight() - weight
    coupled = error if row_gram is None else row_gram @ error
    return np.asarray(np.maximum(((error @ gram) * coupled).sum((1, 2)), 0.0))


def better_groups(problem: LayerProblem, *solutions: Solution) -> Solution:
    """Return for every group the solution with the least error; the first of equals."""
    errors = [coupled_errors(problem.weight, s, problem.gram, problem.row_gram) for s in solutions]
    best = np.stack(errors).argmin(0)
    codes, scale = solutions[0].codes.copy(), solutions[0].scale.copy()
    for number, solution in enumerate(solutions[1:], 1):
        won = best == number
        codes[won], scale[won] = solution.codes[won], solution.scale[won]
    return replace(solutions[0], codes=codes, scale=scale)


def coupled_rows(row_gram: Float64) -> NDArray[np.bool_]:
    """Return which rows of which group are coupled with others: bool, shape (groups, rows)."""
    others = row_gram != 0
    rows = np.arange(row_gram.shape[-1])
    others[:, rows, rows] = False
    return np.asarray(others.any(2))
