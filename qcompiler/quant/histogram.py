"""Streaming statistics of activations: one pass, memory independent of the number of samples.

A histogram starts on the range of the first sample. When a later value falls outside, the grid doubles its
width by adding neighboring bins in pairs, so counts are never re-read and never lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 2048
MAX_VALUES = 1 << 15
"""Values of one tensor and sample that enter the histogram; minimum and maximum use them all."""
MAX_POSITIONS = 1 << 10
"""Positions of one channel and sample that enter its mean and power."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorStatistics:
    """What was observed of one activation.

    Attributes:
        low / high: exact minimum and maximum.
        grid: real values of the histogram's left and right edge.
        counts: int64, shape (NUM_BINS,).
        zeros: share (0 to 1) of values that are exactly zero.
        channel_mean / channel_power: float64, shape (channels,): mean of x and of x^2 per index of the channel
            axis (see ``StreamingStatistics``); empty where the number of channels varies between samples.
        channel_peak: float64, shape (channels,): largest absolute value.
        samples: how many samples were seen.
    """

    low: float
    high: float
    grid: tuple[float, float]
    counts: NDArray[np.int64]
    zeros: float
    channel_mean: NDArray[np.float64]
    channel_power: NDArray[np.float64]
    channel_peak: NDArray[np.float64]
    samples: int


class StreamingStatistics:
    """Accumulates one activation sample by sample.

    Args:
        channel_axis: which axis holds the channels; None means axis 1 of images and volumes (rank 4 and more),
            the last axis of everything else. Axis 1 it is for one-dimensional convolutions.
    """

    def __init__(self, channel_axis: int | None = None) -> None:
        self._channel_axis = channel_axis
        self._channels_vary = False
        self.low, self.high = np.inf, -np.inf
        self.samples = 0
        self._left, self._width = 0.0, 0.0
        self._counts = np.zeros(NUM_BINS, np.int64)
        self._zeros, self._seen, self._rows = 0, 0, 0
        self._sum = self._power = self._peak = np.zeros(0)

    def add(self, values: NDArray[np.floating]) -> None:
        """Take in one sample; non-finite values are refused by the caller."""
        if values.size == 0:
            return
        table = _by_channel(values, self._channel_axis)
        lows, highs = table.min((0, 2)), table.max((0, 2))
        low, high = float(lows.min()), float(highs.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.samples += 1
        self._add_channels(table, np.maximum(highs, -lows).astype(np.float64))
        flat = values.reshape(-1)
        if flat.size > MAX_VALUES:
            # An odd stride walks through all positions of power-of-two shaped maps.
            flat = flat[:: (flat.size // MAX_VALUES) | 1]
        self._fit_grid(low, high)
        index = ((flat - np.float32(self._left)) * np.float32(NUM_BINS / self._width)).astype(np.int32)
        np.clip(index, 0, NUM_BINS - 1, out=index)
        self._counts += np.bincount(index, minlength=NUM_BINS)
        self._zeros += int(flat.size - np.count_nonzero(flat))
        self._seen += flat.size

    def result(self) -> TensorStatistics:
        """Return what was observed so far."""
        rows = max(self._rows, 1)
        return TensorStatistics(
            low=self.low,
            high=self.high,
            grid=(self._left, self._left + self._width),
            counts=self._counts.copy(),
            zeros=self._zeros / max(self._seen, 1),
            channel_mean=self._sum / rows,
            channel_power=self._power / rows,
            channel_peak=self._peak,
            samples=self.samples,
        )

    def _add_channels(self, table: NDArray[np.floating], peak: NDArray[np.float64]) -> None:
        few = table[:, :, :: table.shape[2] // MAX_POSITIONS | 1] if table.shape[2] > MAX_POSITIONS else table
        few = np.ascontiguousarray(few, np.float64)
        total, power = few.sum((0, 2)), np.einsum("ncp,ncp->c", few, few)
        if self._sum.size not in (0, total.size):
            self._channels_vary = True
            self._sum = self._power = self._peak = np.zeros(0)
        if self._channels_vary:
            return
        if self._sum.size == 0:
            self._sum = self._power = self._peak = np.zeros(total.shape)
        self._sum, self._power = self._sum + total, self._power + power
        self._peak = np.maximum(self._peak, peak)
        self._rows += few.shape[0] * few.shape[2]

    def _fit_grid(self, low: float, high: float) -> None:
        if self._width == 0.0:
            span = max(high - low, abs(high) * 1e-6, 1e-30)
            self._left, self._width = low, span * (1 + 1e-6)
        while low < self._left:
            self._double(leftwards=True)
        while high > self._left + self._width:
            self._double(leftwards=False)

    def _double(self, *, leftwards: bool) -> None:
        merged = self._counts.reshape(-1, 2).sum(1)
        half = NUM_BINS // 2
        self._counts = np.zeros(NUM_BINS, np.int64)
        if leftwards:
            self._counts[half:] = merged
            self._left -= self._width
        else:
            self._counts[:half] = merged
        self._width *= 2


def _by_channel(values: NDArray[np.floating], axis: int | None) -> NDArray[np.floating]:
    """Return an activation as (what is before the channels, channels, what is behind them)."""
    if values.ndim == 0:
        return values.reshape(1, 1, 1)
    if axis is None or axis >= values.ndim:
        axis = 1 if values.ndim >= 4 else values.ndim - 1
    return values.reshape(int(np.prod(values.shape[:axis])), values.shape[axis], -1)
