"""Scales and codes of weights: per channel, with a clip search on the error the layer's inputs make of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.grid import SMALLEST_SCALE, Float32
from qcompiler.quant.levels import Levels, nearest_level

CLIP_RATIOS = np.linspace(1.0, 0.7, 31)

BIAS_CODES = 2.0**24
"""Largest code that a bias may get: 7 bits below int32, for grids that cover less than what was observed."""
FINE_BIAS_CODES = 2.0**28
"""The same where the input has 16 bits, whose fine steps take up 8 bits of the bias: 3 bits below int32."""
FINE_LEVELS = 2**8


def absmax_scale(rows: Float32, top: int) -> Float32:
    """Return the scale that covers each row exactly.

    Args:
        rows: float32, shape (channels, weights per channel).
        top: largest code of the symmetric grid.

    Returns:
        float32, shape (channels,). A row of zeros gets scale 1.
    """
    peak = np.abs(rows).max(1) if rows.shape[1] else np.zeros(len(rows), np.float32)
    scale = np.where(peak > 0, peak / np.float32(top), np.float32(1))
    return np.maximum(scale, np.float32(SMALLEST_SCALE)).astype(np.float32)


def clip_search_scale(rows: Float32, importance: Float32 | None, top: int) -> Float32:
    """Return the per-channel scale with the least weighted squared rounding and clipping error.

    Every clip ratio in ``CLIP_RATIOS`` times the row's largest magnitude is tried.

    Args:
        rows: float32, shape (channels, weights per channel).
        importance: float32, shape (weights per channel,) or (channels, weights per channel): mean square of
            the input that each weight multiplies; None weighs all alike.
        top: largest code of the symmetric grid.

    Returns:
        float32, shape (channels,).
    """
    full = absmax_scale(rows, top)
    weight = np.float32(1) if importance is None else importance
    best, best_error = full, np.full(len(rows), np.inf)
    for ratio in CLIP_RATIOS:
        scale = full * np.float32(ratio)
        step = scale[:, None]
        error = rows - np.clip(np.rint(rows / step), -top, top) * step
        total = np.sum(np.square(error) * weight, axis=1, dtype=np.float64)
        better = total < best_error * (1 - 1e-6)
        best, best_error = np.where(better, scale, best), np.where(better, total, best_error)
    return np.maximum(best, np.float32(SMALLEST_SCALE)).astype(np.float32)


LEVEL_RATIOS = np.geomspace(1.0, 0.12, 16)
"""Shares of the range that a few levels cover at first: of a bell curve, one bit covers a fifth at its best."""
LEVEL_ROUNDS = 3
_CHUNK = 1 << 20


def level_search_scale(
    rows: Float32, importance: Float32 | None, levels: Levels
) -> tuple[Float32, NDArray[np.float64]]:
    """Return the per-channel scale with the least weighted squared error of the nearest levels, and that error.

    From every share of a row's range in ``LEVEL_RATIOS``, nearest levels and the scale that is best for them in the
    sense of least squares follow each other for a few rounds.

    Args:
        rows: float32, shape (channels, weights per channel).
        importance: float32, shape (weights per channel,) or (channels, weights per channel), or None: see
            ``clip_search_scale``.
        levels: sorted int8, with a positive one.

    Returns:
        float32 scales and float64 errors, both of shape (channels,). A row of zeros gets scale 1.

    Source: Lloyd, "Least Squares Quantization in PCM" (1982), section III. Differs: the levels keep their proportions,
    only their common scale moves.
    """
    scale, error = np.ones(len(rows), np.float32), np.zeros(len(rows))
    step = max(1, _CHUNK // max(rows.shape[1], 1))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        shared = importance is None or importance.ndim == 1
        weight = np.float32(1) if importance is None else importance if shared else importance[part]
        scale[part], error[part] = _level_search(rows[part], weight, levels)
    return scale, error


def _level_search(rows: Float32, weight: Float32 | np.float32, levels: Levels) -> tuple[Float32, NDArray[np.float64]]:
    """Return what ``level_search_scale`` returns, for a few rows at once."""
    top, bottom = float(levels[-1]), float(levels[0])
    full = np.maximum(rows.max(1, initial=0.0) / top, rows.min(1, initial=0.0) / min(bottom, -1.0))
    full = np.where(full > 0, full, 1.0)
    best, least = full, np.full(len(rows), np.inf)
    for ratio in LEVEL_RATIOS:
        scale = full * ratio
        for _ in range(LEVEL_ROUNDS):
            scale = np.maximum(scale, SMALLEST_SCALE)
            near = _nearest(rows / scale[:, None].astype(np.float32), levels)
            error = np.sum(
                weight * np.square(rows - near * scale[:, None].astype(np.float32)), axis=1, dtype=np.float64
            )
            better = error < least * (1 - 1e-6)
            best, least = np.where(better, scale, best), np.where(better, error, least)
            own = np.sum(weight * near * near, axis=1, dtype=np.float64)
            fitted = np.sum(weight * near * rows, axis=1, dtype=np.float64) / np.where(own > 0, own, 1.0)
            scale = np.where(fitted > 0, fitted, scale)
    return np.maximum(best, SMALLEST_SCALE).astype(np.float32), least


def _nearest(values: Float32, levels: Levels) -> Float32:
    """Return the nearest level of each value as float32; quick where levels stand at equal distances."""
    steps = np.diff(levels.astype(np.int16))
    if not steps.size or (steps != steps[0]).any():
        return nearest_level(values, levels).astype(np.float32)
    first, step = np.float32(levels[0]), np.float32(steps[0])
    return np.asarray(np.clip(np.rint((values - first) / step), 0, steps.size) * step + first, np.float32)


def bias_floor(bias: NDArray[np.floating], low: float, high: float, levels: int) -> NDArray[np.float64]:
    """Return the smallest scale of each channel's weights with which the channel's bias fits in 32 bits.

    Integer kernels add the bias as int32 codes of scale (input scale * weight scale). A channel of tiny weights
    and an ordinary bias, as training leaves behind, would need more bits, and its bias would be cut off.

    Args:
        bias: floating, shape (channels,).
        low: smallest value of the layer's input.
        high: largest value of the layer's input.
        levels: codes of the input's grid.

    Returns:
        float64, shape (channels,); 0 where the input is nothing but 0.
    """
    step = (max(high, 0.0) - min(low, 0.0)) / (levels - 1)
    if step <= 0.0:
        return np.zeros(bias.shape)
    codes = BIAS_CODES if levels <= FINE_LEVELS else FINE_BIAS_CODES
    return np.abs(np.asarray(bias, np.float64)) / (max(step, SMALLEST_SCALE) * codes)


def as_rows(weight: Float32, axis: int) -> Float32:
    """Return a weight with its channel axis first and the rest flattened, shape (channels, weights per channel)."""
    return np.ascontiguousarray(np.moveaxis(weight, axis, 0)).reshape(weight.shape[axis], -1)


def as_blocks(rows: Float32, importance: Float32 | None, size: int) -> tuple[Float32, Float32 | None]:
    """Return rows cut into blocks, each a row of its own, and their importance; zeros fill the last block of a row.

    Args:
        rows: float32, shape (channels, weights per channel).
        importance: float32, shape (weights per channel,) or that of ``rows``, or None.
        size: weights of a block.

    Returns:
        float32 of shape (channels * blocks, size); the importance has that shape too.
    """
    missing = -rows.shape[1] % size
    blocks = np.pad(rows, ((0, 0), (0, missing))).reshape(-1, size)
    if importance is None:
        return blocks, None
    full = np.broadcast_to(importance, rows.shape)
    return blocks, np.pad(full, ((0, 0), (0, missing))).reshape(-1, size)


def input_importance(weight_shape: tuple[int, ...], axis: int, power: NDArray[np.float64], groups: int) -> Float32:
    """Return the mean square of the input behind each weight, in the order of ``as_rows``.

    Args:
        weight_shape: shape of a Conv weight (out, in / groups, *kernel) or a MatMul or Gemm weight (rank 2).
        axis: channel axis of the weight.
        power: float64, shape (input channels,): mean square of each input channel.
        groups: groups of the convolution; 1 otherwise.

    Returns:
        float32, shape (weights per channel,) or (channels, weights per channel) for grouped convolutions.
    """
    if len(weight_shape) == 2:
        return power.astype(np.float32)
    kernel = int(np.prod(weight_shape[2:]))
    per_group = np.repeat(power.reshape(groups, -1), kernel, axis=1).astype(np.float32)
    if groups == 1:
        return np.asarray(per_group[0])
    return np.repeat(per_group, weight_shape[0] // groups, axis=0)
