"""What a number of bits costs a weight."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.quant.width_error import MAX_WEIGHTS, rank_correlation, round_rows, width_errors

WIDTHS = (1, 2, 3, 4, 5, 6, 8)


@pytest.fixture
def rows():
    return np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32)


@pytest.mark.parametrize("bits", WIDTHS)
def test_each_row_takes_few_values_and_the_error_is_what_is_left(rows, bits):
    importance = np.linspace(0.1, 3, 50).astype(np.float32)
    found = round_rows(rows, importance, bits)
    assert all(len(np.unique(row)) <= 2**bits for row in found.values)
    assert found.error == pytest.approx(np.sum((rows - found.values) ** 2 * importance, axis=1), rel=1e-5)


def test_one_bit_keeps_the_sign(rows):
    assert (np.sign(round_rows(rows, None, 1).values) == np.sign(rows)).all()


def test_narrow_rows_are_clipped(rows):
    kept = np.abs(round_rows(rows, None, 3).values).max(1) / np.abs(rows).max(1)
    assert kept.min() < 0.85


def test_importance_moves_the_clip():
    rows = np.asarray([[1.0, 0.31, -0.32, 0.29, 0.3, -0.3]], np.float32)
    heavy = np.asarray([1000, 1, 1, 1, 1, 1], np.float32)
    near = [abs(round_rows(rows, importance, 2).values[0, 0] - 1) for importance in (heavy, 1 / heavy)]
    assert near[0] < near[1]


def test_errors_fall_with_the_width_about_fourfold_a_bit(rows):
    errors = width_errors(rows, None, WIDTHS)
    assert (np.diff(errors) <= 0).all()
    assert 2 < errors[3] / errors[4] < 7
    assert 0 < errors[-1] < 1e-3 < errors[0] < 1


def test_a_dead_weight_has_no_error():
    assert not width_errors(np.zeros((2, 3), np.float32), None, WIDTHS).any()


def test_large_weights_are_judged_by_some_rows(rows):
    large = np.tile(rows, (MAX_WEIGHTS // rows.size * 3, 1))
    assert width_errors(large, None, (4,)) == pytest.approx(width_errors(rows, None, (4,)), rel=0.2)
    importance = np.ones_like(large)
    assert width_errors(large, importance, (4,)) == pytest.approx(width_errors(large, None, (4,)))


def test_rank_correlation():
    assert rank_correlation(np.arange(5.0), np.arange(5.0) ** 3) == pytest.approx(1)
    assert rank_correlation(np.arange(5.0), -np.arange(5.0)) == pytest.approx(-1)
    assert rank_correlation(np.arange(2.0), np.arange(2.0)) is None
    assert rank_correlation(np.arange(5.0), np.ones(5)) is None
