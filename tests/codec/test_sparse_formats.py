"""Masks, gaps and the sizes of the usual formats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.codec.sparse_formats import (
    from_bitmask,
    from_deltas,
    rival_bits,
    to_bitmask,
    to_deltas,
    zipped_bytes,
)
from qcompiler.errors import QCompileError
from tests.codec.test_fixed_to_fixed import sparse


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 3000),
    sparsity=st.sampled_from([0.0, 0.5, 0.9, 0.999, 1.0]),
    bits=st.integers(1, 8),
    seed=st.integers(0, 100),
)
def test_numbers_come_back_and_take_what_is_said(count, sparsity, bits, seed):
    numbers = sparse(count, sparsity, bits, seed)
    mask, deltas, sizes = to_bitmask(numbers, bits), to_deltas(numbers, bits), rival_bits(numbers, bits)
    assert np.array_equal(from_bitmask(mask, bits), numbers)
    assert np.array_equal(from_deltas(deltas, bits), numbers)
    assert 8 * mask.mask.size + 8 * mask.values.size - sizes["bitmask"] in range(15)
    assert 8 * deltas.gaps.size + 8 * deltas.values.size - sizes["delta"] in range(8)
    assert sizes["order-0 entropy"] <= sizes["coded mask"] + 1 <= sizes["bitmask"] + 2
    assert sizes["dense"] == count * bits


def test_sizes_by_hand():
    numbers = np.zeros((4, 100), np.uint8)
    numbers[0, 3] = numbers[1, 0] = numbers[1, 1] = numbers[3, 99] = 5
    found = rival_bits(numbers, 8)
    assert found["dense"] == 3200
    assert found["CSR"] == 4 * (8 + 16) + 32 * 5
    assert found["bitmask"] == 400 + 32
    assert found["delta"] == (4 + 1) * 16  # one gap of 298
    gaps = {7: (4 + 2) * 15, 6: (4 + 1 + 4) * 14, 8: (4 + 1) * 16, 9: 4 * 17}
    assert found["relative index"] == min(gaps.values())
    assert found["order-0 entropy"] == found["coded mask"] - 32 == 33


def test_what_zip_makes_of_zeros():
    assert zipped_bytes(np.zeros(10_000, np.uint8)) < 50
    noise = np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint8)
    assert 1000 <= zipped_bytes(noise[:500], noise[500:]) < 1050


def test_parts_that_do_not_fit_are_refused():
    numbers = sparse(100, 0.5)
    mask, deltas = to_bitmask(numbers, 8), to_deltas(numbers, 8)
    with pytest.raises(QCompileError, match="a mask of 13 bytes does not fit 80 numbers"):
        from_bitmask(replace(mask, count=80), 8)
    with pytest.raises(QCompileError, match="does not fit 3 values"):
        from_bitmask(replace(mask, kept=3), 8)
    with pytest.raises(QCompileError, match="a gap leads to number"):
        from_deltas(replace(deltas, count=50), 8)
