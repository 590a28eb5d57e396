"""Channel factors that balance the noise of quantized activations against the noise of quantized weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
LEVELS = 255.0
MARGIN = 1.25
"""Room above a channel's observed peak, so that unseen samples rarely widen the tensor's range."""


def balanced_factors(peak: Float64, power: Float64, weight_energy: Float64, weight_noise: Float64) -> Float64:
    """Return the factor s of each channel, in (0, 1]: the activation is divided by s, the next weights multiplied.

    One scale serves all channels of an activation, so a channel whose peak is small is rounded as coarsely as
    the largest one. Dividing it by s < 1 uses more of the grid, but then the next layer's weights of that
    channel shrink while their rounding step stays. With step d of the activation, the output noise is

        weight_energy * (d s)^2 / 12  +  weight_noise * power / s^2 / 12

    whose minimum is at s^4 = weight_noise * power / (weight_energy * d^2). It is clamped so that no channel
    grows beyond the largest one.

    Args:
        peak: float64, shape (channels,): largest magnitude of each channel.
        power: float64, shape (channels,): mean square of each channel.
        weight_energy: float64, shape (channels,): sum of squares of the next layer's weights of each channel.
        weight_noise: float64, shape (channels,): sum over the same weights of their squared rounding step;
            0 where the step shrinks with the weights, as in depthwise convolutions.

    Returns:
        float64, shape (channels,).

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019),
    section 4.1, for the transformation. Differs: the factors minimize the sum of both noises for
    per-channel weight scales, where the paper equalizes per-tensor weight ranges.
    """
    largest = float(peak.max()) if peak.size else 0.0
    if largest <= 0.0:
        return np.ones_like(peak)
    step = largest / LEVELS
    with np.errstate(divide="ignore", invalid="ignore"):
        best = (weight_noise * power / (weight_energy * step**2)) ** 0.25
    best = np.where(np.isfinite(best), best, 1.0)
    lowest = np.minimum(MARGIN * peak / largest, 1.0)
    # A channel that is never active, or whose weights are zero, has nothing to gain.
    idle = (peak <= 0.0) | (weight_energy <= 0.0)
    return np.where(idle, 1.0, np.clip(best, np.maximum(lowest, 2.0**-8), 1.0))
