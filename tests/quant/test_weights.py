"""Scales and codes of weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.quant.grid import SMALLEST_SCALE
from qcompiler.quant.levels import even_levels, nearest_level, uniform_levels
from qcompiler.quant.rounding import balanced_codes
from qcompiler.quant.weights import (
    BIAS_CODES,
    absmax_scale,
    as_rows,
    bias_floor,
    clip_search_scale,
    input_importance,
    level_search_scale,
)
from tests.tolerances import FLOAT32_EPS, sum_rounding

TOP = 127
seeds = st.integers(0, 2**16)


def weighted_error(rows, scale, importance):
    step = scale[:, None].astype(np.float64)
    error = rows - np.clip(np.rint(rows / step), -TOP, TOP) * step
    return (np.square(error) * importance).sum(1)


def drawn(seed: int, channels: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_t(3, (channels, count)) * rng.uniform(0.01, 1, (channels, 1))).astype(np.float32)


# -- scales --------------------------------------------------------------------------------------------


def test_absmax_covers_every_row():
    rows = np.array([[1.27, -0.5], [0.0, -2.54], [0.0, 0.0], [1e-40, 0.0]], np.float32)
    scale = absmax_scale(rows, TOP)
    assert scale.dtype == np.float32
    np.testing.assert_allclose(scale[:2], [0.01, 0.02], rtol=FLOAT32_EPS)
    assert scale[2] == 1.0
    assert scale[3] == np.float32(SMALLEST_SCALE)


def test_a_row_without_weights_has_scale_one():
    assert absmax_scale(np.zeros((2, 0), np.float32), TOP).tolist() == [1.0, 1.0]


@given(seeds, st.integers(1, 4), st.integers(1, 40), st.booleans())
def test_clip_search_is_never_worse_than_absmax(seed, channels, count, weighed):
    rows = drawn(seed, channels, count)
    power = np.random.default_rng(seed + 1).uniform(0, 2, count).astype(np.float32) if weighed else None
    found = clip_search_scale(rows, power, TOP)
    full = absmax_scale(rows, TOP)
    assert np.all(found <= full)
    measure = np.ones(count) if power is None else power
    before, after = weighted_error(rows, full, measure), weighted_error(rows, found, measure)
    # The search sums float32 errors, each from three float32 operations on a row's values.
    room = sum_rounding(8, 1.0) * np.square(np.abs(rows).max(1)) * measure.sum()
    assert np.all(after <= before + room)


def test_clip_search_cuts_off_a_weight_that_does_not_count():
    rows = np.concatenate([np.linspace(-1, 1, 64), [1.4]]).astype(np.float32)[None]
    power = np.ones(65, np.float32)
    power[-1] = 0.0
    assert clip_search_scale(rows, power, TOP)[0] < 0.9 * absmax_scale(rows, TOP)[0]


def test_rows_follow_the_channel_axis():
    weight = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for axis in range(3):
        rows = as_rows(weight, axis)
        assert rows.shape == (weight.shape[axis], 24 // weight.shape[axis])
        assert np.array_equal(rows[1], weight.take(1, axis).reshape(-1))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_importance_is_the_power_of_the_input_behind_each_weight(groups):
    out, inputs, kernel = 8, 4, (3, 2)
    power = np.arange(1.0, inputs + 1)
    shape = (out, inputs // groups, *kernel)
    found = np.broadcast_to(input_importance(shape, 0, power, groups), (out, inputs // groups * 6)).reshape(shape)
    for channel in range(out):
        first = channel // (out // groups) * (inputs // groups)
        for tap in range(inputs // groups):
            assert np.all(found[channel, tap] == power[first + tap])


def test_importance_of_a_matrix():
    power = np.arange(5.0)
    for axis in (0, 1):
        assert np.array_equal(input_importance((5, 3) if axis else (3, 5), axis, power, 1), power)


@given(seeds, st.floats(0, 10), st.floats(0, 10))
def test_with_the_floor_every_bias_fits(seed, low, high):
    bias = np.random.default_rng(seed).normal(0, 100, 5).astype(np.float32)
    floor = bias_floor(bias, -low, high, 256)
    step = (low + high) / 255
    if step == 0:
        assert not floor.any()
    else:
        assert np.all(np.abs(bias) <= floor * max(step, SMALLEST_SCALE) * BIAS_CODES * (1 + 1e-9))


# -- rounding that keeps sums -----------------------------------------------------------------------------


@given(seeds, st.integers(1, 3), st.integers(1, 6), st.sampled_from([1, 4, 9]))
def test_errors_cancel_in_every_channel(seed, channels, inputs, kernel):
    rng = np.random.default_rng(seed)
    rows = rng.uniform(-100, 100, (channels, inputs * kernel)).astype(np.float32)
    codes = balanced_codes(rows, np.ones(channels, np.float32), kernel, TOP)
    assert codes.dtype == np.int8
    error = codes - rows.astype(np.float64)
    assert np.abs(error).max() <= 1.0, "no code moves by more than one step"
    room = sum_rounding(rows.shape[1], 100.0)
    assert np.all(np.abs(error.sum(1)) <= 0.5 + room)
    kernels = error.reshape(channels * inputs, kernel).sum(1)
    assert np.all(np.abs(kernels) <= 1.0 + room), "half a step, and one code that the channel moved"


@given(seeds, st.integers(1, 5), st.sampled_from([2, 4, 9]))
def test_errors_cancel_in_every_kernel(seed, channels, kernel):
    rng = np.random.default_rng(seed)
    rows = rng.uniform(-100, 100, (channels, kernel)).astype(np.float32)  # depthwise: one kernel a channel
    codes = balanced_codes(rows, np.ones(channels, np.float32), kernel, TOP)
    assert np.all(np.abs((codes - rows.astype(np.float64)).sum(1)) <= 0.5 + sum_rounding(kernel, 100.0))


def test_nearest_rounding_does_not_cancel():
    rows = np.full((1, 16), 0.4, np.float32)
    assert abs((np.rint(rows) - rows).sum()) > 6
    codes = balanced_codes(rows, np.ones(1, np.float32), 4, TOP)
    assert codes.sum() == 6
    assert [int(k.sum()) for k in codes.reshape(4, 4)].count(0) == 0, "every kernel got its share"


def test_no_code_leaves_the_grid():
    rows = np.array([[127.0, 130.0, 126.6, -127.0, -140.0]], np.float32)
    codes = balanced_codes(rows, np.ones(1, np.float32), 1, TOP)
    assert np.abs(codes.astype(int)).max() <= TOP


def test_exact_weights_stay_where_they_are():
    rows = np.arange(-8.0, 8.0, dtype=np.float32).reshape(2, 8)
    assert np.array_equal(balanced_codes(rows, np.ones(2, np.float32), 4, TOP), rows)


# -- a few levels --------------------------------------------------------------------------------------


def level_error(rows, scale, levels, importance=1.0):
    step = scale[:, None].astype(np.float64)
    return (np.square(rows - nearest_level(rows / step, levels) * step) * importance).sum(1)


TABLES = [make(width) for width in (1, 2, 3, 4, 7) for make in (uniform_levels, even_levels)]
CODEBOOK = np.asarray([-100, -31, -9, 0, 9, 31, 100], np.int8)


@given(seeds, st.sampled_from([*TABLES, CODEBOOK]))
def test_few_levels_are_scaled_to_less_error_than_the_range_gives(seed, levels):
    rows = drawn(seed, 4, 60)
    scale, error = level_search_scale(rows, None, levels)
    assert (scale > 0).all()
    full = np.maximum(rows.max(1) / levels[-1], rows.min(1) / levels[0]).astype(np.float32)
    assert (level_error(rows, scale, levels) <= level_error(rows, full, levels) * (1 + 1e-3)).all()
    assert np.allclose(error, level_error(rows, scale, levels), rtol=1e-3, atol=1e-12)


def test_one_bit_gets_the_mean_magnitude():
    """Of all scales the mean magnitude leaves the least squared error behind signs."""
    rows = drawn(3, 5, 400)
    scale, _ = level_search_scale(rows, None, uniform_levels(1))
    assert scale == pytest.approx(np.abs(rows).mean(1), rel=1e-4)


def test_weights_on_a_grid_of_few_levels_are_found_again():
    levels = uniform_levels(3)
    codes = np.random.default_rng(0).integers(-4, 4, (6, 200))
    true = np.asarray([0.5, 1, 2, 0.25, 3, 0.125], np.float32)
    rows = (codes * true[:, None]).astype(np.float32)
    scale, error = level_search_scale(rows, None, levels)
    assert scale == pytest.approx(true, rel=1e-5)
    assert error == pytest.approx(np.zeros(6), abs=1e-6)


@pytest.mark.parametrize("shape", [(40,), (3, 40)], ids=["shared", "per channel"])
def test_what_inputs_multiply_most_counts_most(shape, monkeypatch):
    from qcompiler.quant import weights

    rows = drawn(1, 3, 40)
    importance = np.random.default_rng(2).uniform(0.01, 10, shape).astype(np.float32)
    levels = uniform_levels(2)
    found, error = level_search_scale(rows, importance, levels)
    plain, _ = level_search_scale(rows, None, levels)
    assert level_error(rows, found, levels, importance).sum() < level_error(rows, plain, levels, importance).sum()
    monkeypatch.setattr(weights, "_CHUNK", 40)  # row by row
    again = level_search_scale(rows, importance, levels)
    assert np.array_equal(again[0], found)
    assert np.array_equal(again[1], error)


def test_rows_of_zeros_have_scale_1():
    scale, error = level_search_scale(np.zeros((2, 5), np.float32), None, uniform_levels(4))
    assert (scale.tolist(), error.tolist()) == ([1.0, 1.0], [0.0, 0.0])
