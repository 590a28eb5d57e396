"""The reference meaning of a uniform grid: what QuantizeLinear and DequantizeLinear compute."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]

SMALLEST_SCALE = 2.0**-63
"""Scales are at least this, so that the product of two is still a normal float32 number."""

NO_SIGNAL_DB = -200.0
"""The level of a result that has nothing in common with the reference."""


def affine_grid(low: float, high: float, codes: tuple[int, int]) -> tuple[np.float32, int]:
    """Return (scale, zero point) of the grid that covers [low, high] and represents 0 exactly.

    The range is widened to include 0, because zero padding, ReLU and masks need an exact 0. A range of nothing
    but 0 gets scale 1: a smaller one would take the bias of the next layer beyond 32 bits.

    Args:
        low: smallest real value to cover.
        high: largest real value to cover.
        codes: smallest and largest integer code.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    first, last = codes
    if low == high:
        return np.float32(1), first
    scale = np.float32(max((high - low) / (last - first), SMALLEST_SCALE))
    zero_point = int(np.clip(np.rint(first - low / float(scale)), first, last))
    return scale, zero_point


def covered_range(scale: float, zero_point: int, codes: tuple[int, int]) -> tuple[float, float]:
    """Return the smallest and largest real value that a grid represents."""
    return (codes[0] - zero_point) * float(scale), (codes[1] - zero_point) * float(scale)


def along(values: NDArray[Any], axis: int | None, rank: int) -> NDArray[Any]:
    """Return per-channel values of shape (channels,) reshaped to broadcast along ``axis`` of a rank.

    Values that have that rank already, one for every element, are returned as they are.
    """
    if axis is None or values.ndim == 0 or values.ndim == rank > 1:
        return values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def spread(values: NDArray[Any], axis: int | None, block_size: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return values per block of a matrix, repeated for every element.

    Args:
        values: shape (channels, blocks).
        axis: channel axis of the matrix, 0 or 1; blocks lie along the other one, the last may be cut short.
        block_size: elements of a block.
        shape: of the matrix.
    """
    rows = np.repeat(values, block_size, axis=1)[:, : shape[1 - (axis or 0)]]
    return np.ascontiguousarray(rows if axis == 0 else rows.T)


def quantize(values: Float32, scale: Float32, zero_point: Int32, codes: tuple[int, int], axis: int | None) -> Int32:
    """Return the nearest codes (half to even), as ONNX QuantizeLinear gives them.

    Args:
        values: float32, any shape.
        scale: float32, shape () or (channels,), or that of ``values``.
        zero_point: int32, same shape as ``scale``.
        codes: smallest and largest code.
        axis: channel axis, or None.
    """
    step, zero = along(scale, axis, values.ndim), along(zero_point, axis, values.ndim)
    rounded = np.rint(values / step) + zero
    return np.asarray(np.clip(rounded, codes[0], codes[1]), np.int32)


def dequantize(codes: NDArray[np.integer], scale: Float32, zero_point: Int32, axis: int | None) -> Float32:
    """Return ``(codes - zero_point) * scale`` in float32, as ONNX DequantizeLinear gives it."""
    step, zero = along(scale, axis, codes.ndim), along(zero_point, axis, codes.ndim)
    return np.asarray((codes.astype(np.int32) - zero).astype(np.float32) * step, np.float32)


def power_ratio_db(signal: float, error: float) -> float | None:
    """Return 10 log10(signal / error) in dB; None without error, NO_SIGNAL_DB without signal or for NaN."""
    if error <= 0.0:
        return None
    ratio = signal / error
    return max(float(10.0 * np.log10(ratio)), NO_SIGNAL_DB) if ratio > 0.0 else NO_SIGNAL_DB
