"""Activations as Gaussian channels: moments through layers, and the statistics of a mixture of channels."""

from __future__ import annotations

from math import erf

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.histogram import NUM_BINS, TensorStatistics

Float64 = NDArray[np.float64]
Moments = tuple[Float64, Float64]
"""Mean and standard deviation per channel, each of shape (channels,)."""

SIGMAS = 10.0
"""How far the estimated range reaches; trained networks have heavier tails than a Gaussian."""
AVERAGED_VALUES = 16.0
"""Values that an average pool takes as independent."""

_erf = np.vectorize(erf, otypes=[np.float64])


def normal_cdf(x: Float64) -> Float64:
    """Return the cumulative distribution of the standard normal, elementwise."""
    return np.asarray(0.5 * (1.0 + _erf(x / np.sqrt(2.0))))


def normal_pdf(x: Float64) -> Float64:
    """Return the density of the standard normal, elementwise."""
    return np.asarray(np.exp(-0.5 * np.square(x)) / np.sqrt(2.0 * np.pi))


def clip_moments(mean: Float64, std: Float64, low: float, high: float) -> Moments:
    """Return the moments of min(max(x, low), high) for Gaussian x.

    Args:
        mean: float64, shape (channels,).
        std: float64, shape (channels,).
        low: lower limit, may be -inf.
        high: upper limit, may be inf.
    """
    safe = np.maximum(std, 1e-12)
    a = np.clip((low - mean) / safe, -40, 40)
    b = np.clip((high - mean) / safe, -40, 40)
    below, above = normal_cdf(a), 1.0 - normal_cdf(b)
    inside = np.maximum(1.0 - below - above, 0.0)
    edge = normal_pdf(a) - normal_pdf(b)
    low_value = 0.0 if np.isinf(low) else low
    high_value = 0.0 if np.isinf(high) else high
    first = mean * inside + safe * edge + low_value * below + high_value * above
    inner = (mean**2 + safe**2) * inside + 2 * mean * safe * edge + safe**2 * (a * normal_pdf(a) - b * normal_pdf(b))
    second = inner + low_value**2 * below + high_value**2 * above
    return first, np.sqrt(np.maximum(second - first**2, 0.0))


def sum_moments(left: Moments, right: Moments) -> Moments:
    """Return the moments of the sum of two independent activations."""
    return left[0] + right[0], np.hypot(left[1], right[1])


def average_moments(mean: Float64, std: Float64) -> Moments:
    """Return the moments of a pooled average."""
    return mean, std / np.sqrt(AVERAGED_VALUES)


def linear_moments(weight: Float64, bias: Float64, mean: Float64, std: Float64, groups: int) -> Moments | None:
    """Return the moments behind a linear layer whose inputs are independent, None if the shapes do not fit.

    Args:
        weight: float64, shape (out, in / groups, ...).
        bias: float64, shape (out,).
        mean: float64, shape (in,).
        std: float64, shape (in,).
        groups: groups of the convolution.
    """
    taps = weight.reshape(weight.shape[0], weight.shape[1], -1)
    if taps.shape[1] * groups != mean.size or bias.size != taps.shape[0]:
        return None
    repeat = taps.shape[0] // groups
    means = np.repeat(mean.reshape(groups, -1), repeat, axis=0)
    variances = np.repeat(np.square(std).reshape(groups, -1), repeat, axis=0)
    first = (taps.sum(2) * means).sum(1) + bias
    return first, np.sqrt((np.square(taps).sum(2) * variances).sum(1))


def mixture_statistics(mean: Float64, std: Float64, low: float, high: float) -> TensorStatistics:
    """Return statistics of an activation whose channels are Gaussian, cut at [low, high].

    Args:
        mean: float64, shape (channels,).
        std: float64, shape (channels,).
        low: values are never below, may be -inf.
        high: values are never above, may be inf.
    """
    left = float(np.clip((mean - SIGMAS * std).min(), low, high))
    right = float(np.clip((mean + SIGMAS * std).max(), low, high))
    right = max(right, left + 1e-12)
    edges = np.linspace(left, right, NUM_BINS + 1)
    safe = np.maximum(std, 1e-12)
    share = np.zeros(NUM_BINS + 1)
    for m, s in zip(mean, safe, strict=True):
        share += normal_cdf((edges - m) / s)
    share /= max(mean.size, 1)
    counts = np.diff(share)
    zeros = float(share[0]) if low == 0.0 else 0.0
    counts[0] += share[0]
    counts[-1] += 1.0 - share[-1]
    power = mean**2 + std**2
    return TensorStatistics(
        low=left,
        high=right,
        grid=(left, right),
        counts=np.rint(counts * 1e6).astype(np.int64),
        zeros=zeros,
        channel_mean=mean,
        channel_power=power,
        channel_peak=np.abs(mean) + SIGMAS * std,
        samples=0,
    )
