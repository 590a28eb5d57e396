"""The uniform grid: integers exactly, bounds on what rounding does, and ONNX Runtime as the judge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper

from qcompiler.quant.grid import (
    NO_SIGNAL_DB,
    SMALLEST_SCALE,
    affine_grid,
    covered_range,
    dequantize,
    power_ratio_db,
    quantize,
)
from tests.models import FLOAT, build, run
from tests.tolerances import half_step

U8, S8 = (0, 255), (-127, 127)
reals = st.floats(-1e6, 1e6, width=32)
steps = st.floats(2.0**-20, 2.0**10, width=32)


@given(reals, reals, st.sampled_from([(0, 255), (0, 15), (-128, 127)]))
def test_a_grid_covers_its_range_and_holds_zero(a, b, codes):
    low, high = min(a, b), max(a, b)
    scale, zero_point = affine_grid(low, high, codes)
    assert scale >= SMALLEST_SCALE
    assert codes[0] <= zero_point <= codes[1]
    first, last = covered_range(float(scale), zero_point, codes)
    slack = half_step(float(scale), max(abs(low), abs(high)))
    assert first <= min(low, 0.0) + slack
    assert last >= max(high, 0.0) - slack
    assert first <= 0.0 <= last


def test_grids_of_known_ranges():
    assert affine_grid(0.0, 255.0, U8) == (np.float32(1), 0)
    assert affine_grid(-1.0, 0.0, U8) == (np.float32(1 / 255), 255)
    assert affine_grid(-128.0, 127.0, U8) == (np.float32(1), 128)
    assert affine_grid(2.0, 4.0, U8) == (np.float32(4 / 255), 0), "the range is widened to hold 0"


@pytest.mark.parametrize("codes", [U8, (-128, 127)])
def test_a_range_of_nothing_but_zero_gets_scale_one(codes):
    assert affine_grid(0.0, 0.0, codes) == (np.float32(1), codes[0])


def test_a_tiny_range_keeps_products_of_scales_normal():
    scale, _ = affine_grid(0.0, 1e-30, U8)
    assert scale * scale >= np.finfo(np.float32).tiny


def test_codes_round_half_to_even_and_end_at_the_grid():
    values = np.array([-9.0, -1.5, -0.5, 0.5, 1.5, 2.5, 300.0], np.float32)
    codes = quantize(values, np.float32(1), np.int32(3), U8, None)
    assert codes.dtype == np.int32
    assert codes.tolist() == [0, 1, 3, 3, 5, 5, 255]


@given(st.integers(2, 8), steps, st.data())
def test_codes_survive_a_round_trip(bits, scale, data):
    codes = (0, 2**bits - 1)
    zero_point = np.int32(data.draw(st.integers(*codes)))
    every = np.arange(codes[0], codes[1] + 1, dtype=np.int32)
    real = dequantize(every, np.float32(scale), zero_point, None)
    assert np.array_equal(quantize(real, np.float32(scale), zero_point, codes, None), every)


@given(arrays(np.float32, st.integers(0, 40), elements=reals), steps, st.integers(0, 255))
def test_values_inside_the_grid_move_by_half_a_step_at_most(values, scale, zero_point):
    step, zero = np.float32(scale), np.int32(zero_point)
    low, high = covered_range(float(step), zero_point, U8)
    found = dequantize(quantize(values, step, zero, U8, None), step, zero, None)
    moved = np.abs(found.astype(np.float64) - np.clip(values.astype(np.float64), low, high))
    assert moved.max(initial=0.0) <= half_step(float(step), max(-low, high))


def test_half_a_step_is_not_kept_by_a_wrong_scale():
    values = np.linspace(-1, 1, 101, dtype=np.float32)
    scale, zero_point = affine_grid(-1.0, 1.0, U8)
    zero = np.int32(zero_point)
    wrong = dequantize(quantize(values, scale, zero, U8, None), np.float32(scale * 1.05), zero, None)
    assert np.abs(wrong - values).max() > half_step(float(scale), 1.0)


@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e3, 1e3, width=32)), st.integers(2, 7))
def test_another_bit_never_raises_the_error(values, bits):
    top = 2 ** (bits - 1) - 1
    scale = np.float32(1000.0 / top)
    coarse = dequantize(quantize(values, scale, np.int32(0), (-top, top), None), scale, np.int32(0), None)
    half = scale / np.float32(2)  # exact: every code of the coarse grid is twice a code of the fine one
    fine_codes = quantize(values, half, np.int32(0), (-2 * top - 1, 2 * top + 1), None)
    fine = dequantize(fine_codes, half, np.int32(0), None)
    assert np.all(np.abs(fine - values) <= np.abs(coarse - values))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_channels_are_quantized_one_by_one(axis):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 4, 5)).astype(np.float32)
    count = values.shape[axis]
    scale = rng.uniform(0.01, 0.1, count).astype(np.float32)
    zero = np.arange(count, dtype=np.int32)
    codes = quantize(values, scale, zero, S8, axis)
    for index in range(count):
        own = quantize(values.take(index, axis), scale[index], zero[index], S8, None)
        assert np.array_equal(codes.take(index, axis), own)
        real = dequantize(codes, scale, zero, axis).take(index, axis)
        assert np.array_equal(real, dequantize(own, scale[index], zero[index], None))


def test_a_scalar_has_one_code():
    assert quantize(np.asarray(0.26, np.float32), np.float32(0.1), np.int32(0), S8, None).tolist() == 3


# -- ONNX Runtime as the judge -----------------------------------------------------------------------


def runtime_codes(values, scale, zero_point, axis):
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    kind = TensorProto.UINT8 if zero_point.dtype == np.uint8 else TensorProto.INT8
    model = build(
        nodes,
        [("x", FLOAT, values.shape)],
        [("q", kind, values.shape), ("y", FLOAT, values.shape)],
        {"s": scale, "z": zero_point},
    )
    return run(model, {"x": values})


def cases():
    """Return (values, scale, zero point, axis) of a few grids, with ties and values far outside."""
    rng = np.random.default_rng(1)
    values = (rng.standard_normal((6, 5, 4)) * 3).astype(np.float32)
    values[0, 0] = np.array([0.5, 1.5, -0.5, -2.5], np.float32) * np.float32(0.25)  # ties
    values[0, 1] = [1e30, -1e30, 0.0, -0.0]
    yield values, np.float32(0.25), np.uint8(7), None
    yield values, np.float32(0.03), np.int8(0), None
    yield values, rng.uniform(0.01, 0.05, 5).astype(np.float32), np.zeros(5, np.int8), 1


@pytest.mark.parametrize("case", list(cases()), ids=["u8", "s8", "s8 per channel"])
def test_the_runtime_computes_the_same(case):
    values, scale, zero_point, axis = case
    info = np.iinfo(zero_point.dtype)
    codes = quantize(values, scale, zero_point.astype(np.int32), (info.min, info.max), axis)
    expected_codes, expected = runtime_codes(values, np.asarray(scale), np.asarray(zero_point), axis)
    assert np.array_equal(codes, expected_codes)
    assert np.array_equal(dequantize(codes, scale, zero_point.astype(np.int32), axis), expected)


def test_the_runtime_disagrees_with_a_wrong_zero_point_scale_or_axis():
    values, scale, zero_point, _ = list(cases())[2]
    square = values[:5, :, :1]
    expected, _ = runtime_codes(square, scale, zero_point, 1)
    whole = (-128, 127)
    zeros = zero_point.astype(np.int32)
    assert np.array_equal(quantize(square, scale, zeros, whole, 1), expected)
    assert not np.array_equal(quantize(square, scale, zeros, whole, 0), expected)
    assert not np.array_equal(quantize(square, scale, zeros + 1, whole, 1), expected)
    assert not np.array_equal(quantize(square, scale[::-1], zeros, whole, 1), expected)


# -- decibels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("signal", "error", "expected"), [(100.0, 1.0, 20.0), (1.0, 10.0, -10.0), (1.0, 1.0, 0.0)])
def test_power_ratios(signal, error, expected):
    assert power_ratio_db(signal, error) == pytest.approx(expected, abs=1e-12)


def test_the_ends_of_power_ratios():
    assert power_ratio_db(1.0, 0.0) is None
    assert power_ratio_db(0.0, 0.0) is None
    assert power_ratio_db(0.0, 1.0) == NO_SIGNAL_DB
    assert power_ratio_db(1.0, float("nan")) == NO_SIGNAL_DB
    assert power_ratio_db(1.0, float("inf")) == NO_SIGNAL_DB
    assert power_ratio_db(float("nan"), 1.0) == NO_SIGNAL_DB
