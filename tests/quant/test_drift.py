from __future__ import annotations

import numpy as np
import pytest

from qcompiler.quant.solvers.drift import DriftAccumulator
from qcompiler.quant.solvers.problem import Solution

GROUPS, ROWS, INPUTS, COUNT = 2, 3, 5, 4000


@pytest.fixture(scope="module")
def columns():
    """Columns of a float model, and the same after a linear map and noise: shape (groups, positions, inputs)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((GROUPS, COUNT, INPUTS)) + rng.standard_normal((GROUPS, 1, INPUTS))
    mixed = x @ (np.eye(INPUTS) + 0.3 * rng.standard_normal((GROUPS, INPUTS, INPUTS)))
    return x, mixed + 0.1 * rng.standard_normal(x.shape) + 0.5


def moments(columns, *, centered):
    total = DriftAccumulator(GROUPS, INPUTS)
    for part in np.array_split(np.arange(COUNT), 23):
        total.add(columns[0][:, part], columns[1][:, part])
    return total.result(centered=centered)


@pytest.mark.parametrize("centered", [False, True])
def test_errors_are_those_of_the_columns(columns, centered):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((GROUPS, ROWS, INPUTS))
    solution = Solution(rng.integers(-3, 4, weight.shape).astype(np.int8), rng.random((GROUPS, ROWS)) + 0.1)
    found = moments(columns, centered=centered)
    gap = np.einsum("gri,gpi->grp", weight, columns[0]) - np.einsum("gri,gpi->grp", solution.weight(), columns[1])
    wanted = gap.var(2) if centered else np.square(gap).mean(2)
    np.testing.assert_allclose(found.error(weight, solution), wanted, rtol=1e-9)
    np.testing.assert_allclose(found.shift(weight, solution), gap.mean(2), rtol=1e-9)
    exact = np.einsum("gri,gpi->grp", weight, columns[0])
    power = (exact.var(2) if centered else np.square(exact).mean(2)).sum()
    assert found.power(weight) == pytest.approx(power)


def test_the_target_is_the_regression_on_what_is_found(columns):
    weight = np.random.default_rng(2).standard_normal((GROUPS, ROWS, INPUTS))
    found = moments(columns, centered=True)
    target = found.target(weight, 1e-9)
    for group in range(GROUPS):
        x, y = (c[group] - c[group].mean(0) for c in columns)
        best = np.linalg.lstsq(y, x @ weight[group].T, rcond=None)[0].T
        np.testing.assert_allclose(target[group], best, rtol=1e-5)


def test_the_more_it_is_drawn_the_nearer_the_target_is_to_the_weights(columns):
    weight = np.random.default_rng(3).standard_normal((GROUPS, ROWS, INPUTS))
    found = moments(columns, centered=False)
    away = [float(np.square(found.target(weight, share) - weight).sum()) for share in (0.01, 0.3, 10.0, np.inf)]
    assert away == sorted(away, reverse=True)
    assert away[0] > away[-1] == 0.0


def test_inputs_that_are_silent_leave_the_weights_as_they_are():
    total = DriftAccumulator(1, 2)
    total.add(np.zeros((1, 4, 2)), np.zeros((1, 4, 2)))
    weight = np.array([[[0.5, -2.0]]])
    np.testing.assert_allclose(total.result(centered=False).target(weight, 0.1), weight)
