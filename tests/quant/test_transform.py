"""Transforms of columns: what they save, that they decorrelate, and that their products are exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qcompiler.quant.row_bits import best_bits
from qcompiler.quant.transform import LARGEST, chance_gain, coding_gain, covariance, exact_words, integer_transform
from qcompiler.row_codes import RowKind, transform_bytes
from qcompiler.row_search import RowProblem, candidates, lost_share, with_transform

COLUMNS = 32


def correlated(rows=2000, columns=COLUMNS, falling=0.75):
    """Rows whose covariance has eigenvalues that fall geometrically, in directions of no column."""
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.standard_normal((columns, columns)))
    return (rng.standard_normal((rows, columns)) * falling ** (np.arange(columns) / 2) @ axes).astype(np.float32)


def metric_of(columns=COLUMNS):
    factor = np.random.default_rng(1).standard_normal((columns, columns))
    return factor @ factor.T / columns + np.eye(columns)


def problem(rows, **options):
    given = {"importance": np.ones(len(rows)), "metric": np.eye(rows.shape[1]), **options}
    return RowProblem(rows, **given)


def test_the_gain_is_the_ratio_of_means_of_eigenvalues():
    assert coding_gain(np.diag([4.0, 1.0])) == pytest.approx(0.5 * np.log2(2.5 / 2.0))
    assert coding_gain(3.0 * np.eye(5)) == pytest.approx(0.0, abs=1e-12)
    assert coding_gain(np.zeros((3, 3))) == 0.0


def test_the_gain_of_uncorrelated_columns_is_that_of_chance():
    rng = np.random.default_rng(6)
    for importance in (np.ones(400), np.where(np.arange(4000) < 400, 1.0, 1e-6)):
        rows = rng.standard_normal((len(importance), COLUMNS)).astype(np.float32)
        found = coding_gain(covariance(rows, importance))
        assert found == pytest.approx(chance_gain(importance, COLUMNS), rel=0.15)


def test_coefficients_are_uncorrelated_and_their_errors_cost_alike():
    rows, metric = correlated(), metric_of()
    moments = covariance(rows, np.ones(len(rows)))
    matrix = integer_transform(moments, metric, 8)
    assert matrix.dtype == np.int8
    assert np.abs(matrix).max() <= LARGEST
    inverse = np.linalg.inv(matrix.astype(np.float64))
    found, cost = inverse.T @ moments @ inverse, matrix @ metric @ matrix.T
    for square, limit in ((found, 0.2), (cost, 0.2)):
        sizes = np.sqrt(np.outer(np.diag(square), np.diag(square)))
        assert np.abs(square / sizes - np.eye(COLUMNS)).mean() < limit
    assert np.diag(cost).max() < 2 * np.diag(cost).min()
    groups = np.diag(found).reshape(-1, 8)
    assert groups.sum(1).max() < 3 * groups.sum(1).min()
    assert (groups.max(1) > 20 * groups.min(1)).all(), "every group has large coefficients and small ones"


def test_products_are_exact_in_any_order():
    rng = np.random.default_rng(2)
    transform = rng.integers(-LARGEST, LARGEST + 1, (COLUMNS, COLUMNS)).astype(np.int8)
    words = exact_words(rng.standard_normal((2, 256, 8)).astype(np.float32), transform)
    codes = rng.integers(0, 256, (2, 50, COLUMNS // 8))
    sums = (words[0][codes[0]] + words[1][codes[1]]).reshape(50, COLUMNS)
    exact = sums.astype(np.float64) @ transform
    for order in (np.arange(COLUMNS), rng.permutation(COLUMNS)):
        total = np.zeros((50, COLUMNS), np.float32)
        for column in order:
            total = total + sums[:, column, None] * transform[column].astype(np.float32)
        assert np.array_equal(total, exact)


def test_words_keep_almost_all_of_their_digits():
    words = np.random.default_rng(3).standard_normal((3, 256, 8)).astype(np.float32)
    found = exact_words(words, np.full((384, 384), LARGEST, np.int8))
    assert np.abs(found - words).max() < 1e-2
    assert not exact_words(np.zeros_like(words), np.ones((8, 8), np.int8)).any()


def test_rows_that_are_correlated_lose_less_in_as_many_bytes():
    plain = problem(correlated(), metric=metric_of())
    mixed = with_transform(plain)
    assert mixed.transform is not None
    found = {p.transform is None: candidates(p, 1, 2, lambda *_: None) for p in (plain, mixed)}
    budget = found[True].fixed_bytes() + 2000 * 8
    shares = {}
    for is_plain, table in found.items():
        allowed = budget - table.fixed_bytes()
        codes = table.codes(best_bits(table.losses, table.row_bytes, table.first, allowed).bits)
        assert codes.stored_bytes <= budget
        shares[is_plain] = lost_share(plain, codes)
    assert shares[False] < 0.75 * shares[True]


@pytest.mark.parametrize(
    "rows",
    [
        np.random.default_rng(4).standard_normal((2000, COLUMNS)).astype(np.float32),
        correlated(rows=40),
        correlated(columns=20),
        np.zeros((500, COLUMNS), np.float32),
    ],
    ids=["nothing correlated", "too few rows", "columns that fill no bytes", "zeros"],
)
def test_no_transform_where_it_would_not_pay(rows):
    assert with_transform(problem(rows)).transform is None


def test_signs_have_none():
    assert with_transform(replace(problem(correlated()), kind=RowKind.BINARY)).transform is None


def test_a_transform_takes_half_a_byte_a_number():
    assert transform_bytes(np.zeros((32, 32), np.int8)) == 512
    assert transform_bytes(None) == 0
