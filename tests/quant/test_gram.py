"""Gram matrices: sums in chunks, centering, damping, factors."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.errors import QCompileError
from qcompiler.quant.gram import CHUNK, GramAccumulator, damped, dead_inputs, inverse_factor, is_singular
from tests.quant.solver_toys import COLUMNS, toy_inputs
from tests.tolerances import FLOAT64_EPS

MANY = 1e4 * FLOAT64_EPS
"""Room for sums of a few thousand products in another order."""


def accumulated(columns, chunk=50):
    sums = GramAccumulator(columns.shape[0], columns.shape[2])
    for first in range(0, columns.shape[1], chunk):
        sums.add(columns[:, first : first + chunk])
    return sums.result()


def test_moments_are_those_of_all_columns():
    columns = toy_inputs(0, 2, 5)
    gram = accumulated(columns)
    assert gram.count == COLUMNS
    for group in range(2):
        second = sum(np.outer(x, x) for x in columns[group]) / COLUMNS
        np.testing.assert_allclose(gram.second[group], second, rtol=MANY, atol=MANY)
        np.testing.assert_allclose(gram.mean[group], columns[group].mean(0), rtol=MANY, atol=MANY)
        covariance = np.cov(columns[group], rowvar=False, bias=True)
        np.testing.assert_allclose(gram.centered()[group], covariance, rtol=MANY, atol=MANY)


def test_columns_that_waited_for_others_count_once():
    columns = np.random.default_rng(0).standard_normal((2, 3 * CHUNK + 7, 4))
    second = columns.transpose(0, 2, 1) @ columns / columns.shape[1]
    for chunk in (13, CHUNK - 1, CHUNK, 2 * CHUNK):
        sums = GramAccumulator(2, 4)
        for first in range(0, columns.shape[1], chunk):
            sums.add(columns[:, first : first + chunk])
        for found in (sums.result(), sums.result()):
            assert found.count == columns.shape[1]
            np.testing.assert_allclose(found.second, second, rtol=MANY, atol=MANY)
            np.testing.assert_allclose(found.mean, columns.mean(1), rtol=MANY, atol=MANY)


def test_the_centered_error_is_what_a_bias_cannot_take_back():
    columns, error = toy_inputs(3, 1, 6)[0], np.random.default_rng(0).standard_normal(6)
    output = columns @ error
    found = error @ accumulated(columns[None]).centered()[0] @ error
    np.testing.assert_allclose(found, np.var(output), rtol=MANY)


def test_float32_columns_are_summed_in_float64():
    columns = np.full((1, 4096, 1), 0.1, np.float32)
    assert accumulated(columns, 4096).second[0, 0, 0] == pytest.approx(np.float64(np.float32(0.1)) ** 2, rel=1e-12)


def test_no_columns_is_an_error():
    with pytest.raises(QCompileError, match="no columns"):
        GramAccumulator(1, 3).result()


def test_damping_adds_one_percent_of_the_mean_diagonal_per_group():
    gram = np.stack([np.diag([1.0, 3.0]), np.zeros((2, 2))])
    np.testing.assert_allclose(damped(gram)[0], np.diag([1.02, 3.02]))
    np.testing.assert_array_equal(damped(gram)[1], np.eye(2))


def test_the_factor_is_of_the_inverse():
    gram = accumulated(toy_inputs(1, 3, 7)).second
    factor = inverse_factor(gram)
    assert (np.tril(factor, -1) == 0).all()
    np.testing.assert_allclose(
        factor.transpose(0, 2, 1) @ factor @ gram, np.broadcast_to(np.eye(7), gram.shape), atol=1e-9
    )


@pytest.mark.parametrize("gram", [np.zeros((1, 3, 3)), np.ones((1, 3, 3)), np.diag([1.0, 1.0, -0.05])[None]])
def test_a_matrix_that_is_not_positive_definite_is_damped_until_it_is(gram):
    factor = inverse_factor(gram)
    assert np.isfinite(factor).all()
    assert (np.einsum("gii->gi", factor) > 0).all()


def test_a_singular_matrix_and_its_dead_inputs_are_told_from_others():
    columns = np.random.default_rng(0).standard_normal((2, 40, 6))
    gram = columns.transpose(0, 2, 1) @ columns
    assert not is_singular(gram)
    assert not is_singular(gram * 1e-12)
    assert dead_inputs(gram) == 0
    alike = columns.copy()
    alike[1, :, 3] = 2 * alike[1, :, 0] - alike[1, :, 5]
    assert is_singular(alike.transpose(0, 2, 1) @ alike)
    assert dead_inputs(alike.transpose(0, 2, 1) @ alike) == 0
    silent = columns.copy()
    silent[1, :, [2, 4]] = 0.0
    assert is_singular(silent.transpose(0, 2, 1) @ silent)
    assert dead_inputs(silent.transpose(0, 2, 1) @ silent) == 2


def test_a_matrix_of_nan_is_an_error():
    with pytest.raises(QCompileError, match="not finite"):
        inverse_factor(np.full((1, 2, 2), np.nan))
