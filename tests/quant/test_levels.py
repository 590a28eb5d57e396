from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qcompiler.errors import QCompileError
from qcompiler.quant.levels import even_levels, nearest_level, quantize_to_levels, uniform_levels


@pytest.mark.parametrize("bits", range(1, 8))
def test_levels_fill_their_bits(bits: int):
    for levels in (uniform_levels(bits), even_levels(bits)):
        assert levels.dtype == np.int8
        assert len(levels) == 2**bits
        assert (np.diff(levels.astype(int)) > 0).all()


def test_the_levels_of_two_bits():
    assert uniform_levels(2).tolist() == [-2, -1, 0, 1]
    assert even_levels(2).tolist() == [-3, -1, 1, 3]


@pytest.mark.parametrize("bits", [0, 8])
def test_other_widths_have_no_levels(bits: int):
    with pytest.raises(QCompileError, match="1 to 7"):
        uniform_levels(bits)


@given(arrays.arrays(np.float64, 20, elements=st.floats(-200, 200)), st.integers(1, 7))
def test_no_level_is_nearer(values, bits: int):
    levels = even_levels(bits)
    found = nearest_level(values, levels)
    assert np.array_equal(np.abs(found - values), np.abs(levels[None, :] - values[:, None]).min(1))


def test_a_weight_takes_the_scale_of_its_channel():
    weight = np.asarray([[1.0, 2.0], [1.0, 2.0]], np.float32)
    scale = np.asarray([1.0, 2.0], np.float32)
    assert quantize_to_levels(weight, scale, uniform_levels(3), 0).tolist() == [[1, 2], [0, 1]]
    assert quantize_to_levels(weight, scale, uniform_levels(3), 1).tolist() == [[1, 1], [1, 1]]
