"""Rounding with a border that moves with the magnitude."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.quant.levels import even_levels, nearest_level, uniform_levels
from qcompiler.quant.shifted import shifted_level

TABLES = {
    "uniform": uniform_levels(4),
    "even": even_levels(3),
    "fitted": np.asarray([-63, -20, -7, 0, 5, 30, 63], np.int8),
    "one bit": uniform_levels(1),
}
VALUES = np.linspace(-80, 80, 4001)

every_table = pytest.mark.parametrize("name", TABLES)


@every_table
def test_no_shift_is_the_nearest_level(name):
    values = VALUES * np.abs(TABLES[name]).max() / 63
    assert np.array_equal(shifted_level(values, TABLES[name], 0.0), nearest_level(values, TABLES[name]))
    between = values + 1e-3  # at no border
    assert np.array_equal(shifted_level(between, TABLES[name], 1e-9), nearest_level(between, TABLES[name]))


@every_table
@pytest.mark.parametrize("shift", [-0.3, 0.3])
def test_a_value_goes_to_one_of_its_neighbors(name, shift):
    levels = TABLES[name].astype(np.int64)
    values = VALUES * np.abs(levels).max() / 63
    found = shifted_level(values, TABLES[name], shift).astype(np.int64)
    inside = np.clip(values, levels[0], levels[-1])
    below = levels[np.clip(np.searchsorted(levels, inside, side="right") - 1, 0, None)]
    above = levels[np.clip(np.searchsorted(levels, inside), 0, len(levels) - 1)]
    assert ((found == below) | (found == above)).all()


def test_a_positive_shift_rounds_large_magnitudes_up_and_small_ones_down():
    levels = uniform_levels(4)  # -8 to 7, so that the largest magnitude is 8
    values = np.asarray([6.4, -6.6, 1.6, -1.6])
    assert nearest_level(values, levels).tolist() == [6, -7, 2, -2]
    assert shifted_level(values, levels, 0.3).tolist() == [7, -7, 1, -1]
    assert shifted_level(values, levels, -0.3).tolist() == [6, -6, 2, -2]


def test_between_the_levels_around_zero_the_border_stays():
    found = shifted_level(np.asarray([-0.4, -0.01, 0.01, 0.4]), even_levels(2), 0.4)
    assert found.tolist() == [-1, -1, 1, 1]
