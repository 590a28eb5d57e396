"""The reference meaning of a uniform grid: what QuantizeLinear and DequantizeLinear compute."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]

SMALLEST_SCALE = float(np.finfo(np.float32).tiny) * 2.0**24
"""Scales below this make products of two scales subnormal."""


def affine_grid(low: float, high: float, codes: tuple[int, int]) -> tuple[np.float32, int]:
    """Return (scale, zero point) of the grid that covers [low, high] and represents 0 exactly.

    The range is widened to include 0, because zero padding, ReLU and masks need an exact 0.

    Args:
        low: smallest real value to cover.
        high: largest real value to cover.
        codes: smallest and largest integer code.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    first, last = codes
    scale = np.float32(max((high - low) / (last - first), SMALLEST_SCALE))
    zero_point = int(np.clip(np.rint(first - low / float(scale)), first, last))
    return scale, zero_point


def covered_range(scale: float, zero_point: int, codes: tuple[int, int]) -> tuple[float, float]:
    """Return the smallest and largest real value that a grid represents."""
    return (codes[0] - zero_point) * float(scale), (codes[1] - zero_point) * float(scale)


def along(values: NDArray[np.generic], axis: int | None, rank: int) -> NDArray[np.generic]:
    """Return per-channel values of shape (channels,) reshaped to broadcast along ``axis`` of a rank."""
    if axis is None or values.ndim == 0:
        return values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def quantize(values: Float32, scale: Float32, zero_point: Int32, codes: tuple[int, int], axis: int | None) -> Int32:
    """Return the nearest codes (half to even), as ONNX QuantizeLinear gives them.

    Args:
        values: float32, any shape.
        scale: float32, shape () or (channels,).
        zero_point: int32, same shape as ``scale``.
        codes: smallest and largest code.
        axis: channel axis, or None.
    """
    step, zero = along(scale, axis, values.ndim), along(zero_point, axis, values.ndim)
    rounded = np.rint(values / step) + zero
    return np.clip(rounded, codes[0], codes[1]).astype(np.int32)


def dequantize(codes: NDArray[np.integer], scale: Float32, zero_point: Int32, axis: int | None) -> Float32:
    """Return ``(codes - zero_point) * scale`` in float32, as ONNX DequantizeLinear gives it."""
    step, zero = along(scale, axis, codes.ndim), along(zero_point, axis, codes.ndim)
    return ((codes.astype(np.int32) - zero).astype(np.float32) * step).astype(np.float32)


def sqnr_db(reference: NDArray[np.floating], approximation: NDArray[np.floating]) -> float | None:
    """Return 10 log10(signal power / error power) in dB, or None when both are equal."""
    signal = float(np.sum(np.square(reference, dtype=np.float64)))
    error = float(np.sum(np.square(np.subtract(reference, approximation, dtype=np.float64))))
    return power_ratio_db(signal, error)


def power_ratio_db(signal: float, error: float) -> float | None:
    """Return 10 log10(signal / error), None without error, and at least -200 dB without signal."""
    if error <= 0.0:
        return None
    return float(10.0 * np.log10(max(signal / error, 1e-20)))
