"""Small layers with correlated inputs for the tests of solvers, and slow, plain versions of what they compute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qcompiler.quant.gram import damped
from qcompiler.quant.levels import Levels
from qcompiler.quant.solvers.problem import LayerProblem, Solution, smallest_scales
from qcompiler.quant.solvers.scales import make_problem, search_scale

COLUMNS = 300


def toy_inputs(seed: int, groups: int, inputs: int) -> np.ndarray:
    """Return correlated columns with a mean, float64 of shape (groups, columns, inputs)."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((groups, inputs, inputs)) / np.sqrt(inputs) + 0.4 * np.eye(inputs)
    return rng.standard_normal((groups, COLUMNS, inputs)) @ mix + 0.2


def toy_problem(
    seed: int, levels: Levels, *, groups: int = 1, rows: int = 5, inputs: int = 18, kernel: int = 1
) -> LayerProblem:
    """Return a problem with heavy-tailed rows of different size."""
    rng = np.random.default_rng(seed + 1000)
    columns = toy_inputs(seed, groups, inputs)
    gram = damped(columns.transpose(0, 2, 1) @ columns / COLUMNS)
    weight = rng.standard_t(4, (groups, rows, inputs)) * rng.uniform(0.1, 1, (groups, rows, 1))
    return make_problem(weight, gram, levels, smallest_scales(weight), kernel=kernel)


def nearest_of(value: float, levels: Levels) -> int:
    """Return the level nearest to one value, the lower of two."""
    return int(min((abs(value - int(level)), int(level)) for level in levels)[1])


def plain_gptq(problem: LayerProblem, order: np.ndarray) -> np.ndarray:
    """Return GPTQ's codes for one group, the textbook way: the inverse Hessian shrinks after every column."""
    weight, left = problem.weight[0].copy(), list(order)
    codes = np.zeros(weight.shape, np.int8)
    while left:
        column = left[0]
        inverse = np.linalg.inv(problem.gram[0][np.ix_(left, left)])
        for row in range(len(weight)):
            scale = problem.scale[0, row]
            code = nearest_of(weight[row, column] / scale, problem.levels)
            codes[row, column] = code
            weight[row, left] -= (weight[row, column] - code * scale) / inverse[0, 0] * inverse[:, 0]
        left = left[1:]
    return codes


def errors(problem: LayerProblem, solution: Solution) -> np.ndarray:
    """Return the error of every row, by a loop over rows."""
    found = np.zeros(solution.scale.shape)
    for group, row in np.ndindex(found.shape):
        e = solution.codes[group, row] * solution.scale[group, row] - problem.weight[group, row]
        found[group, row] = e @ problem.gram[group] @ e
    return found


def toy_heads(seed: int, levels: Levels, *, heads: int = 2, rows: int = 6, inputs: int = 18, shared: bool = True):
    """Return a problem whose rows are coupled by heads, as queries are by the keys.

    Args:
        seed / levels / rows / inputs: as of ``toy_problem``.
        heads: groups.
        shared: all of them read the same input.
    """
    plain = toy_problem(seed, levels, groups=heads, rows=rows, inputs=inputs)
    keys = toy_inputs(seed + 500, heads, rows)
    gram = plain.gram[:1] if shared else plain.gram
    scale = search_scale(plain.weight, gram, levels, plain.floor)
    return replace(plain, gram=gram, scale=scale, row_gram=damped(keys.transpose(0, 2, 1) @ keys / COLUMNS))


def logit_errors(problem: LayerProblem, solution: Solution) -> np.ndarray:
    """Return tr(G E H E^T) of every group, by a loop over pairs of rows."""
    groups, rows, _ = problem.weight.shape
    found = np.zeros(groups)
    for group in range(groups):
        gram = problem.gram[min(group, len(problem.gram) - 1)]
        error = solution.weight()[group] - problem.weight[group]
        for one, other in np.ndindex(rows, rows):
            found[group] += problem.row_gram[group, one, other] * (error[one] @ gram @ error[other])
    return found
