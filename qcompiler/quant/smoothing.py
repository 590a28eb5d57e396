"""Factors that move range from the channels of an activation into the weights behind it, and what they gain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.grid import Float32, affine_grid, dequantize, power_ratio_db, quantize
from qcompiler.quant.levels import quantize_to_levels, uniform_levels
from qcompiler.quant.weights import absmax_scale, level_search_scale

ALPHAS = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Shares of the range that may go to the weights."""
U8 = (0, 255)
BYTE_BITS = 8


def smoothing_factors(peak: NDArray[np.float64], weight_peak: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Return what to divide each channel of an activation by, and to multiply its rows of weights by.

    Factors have a geometric mean of 1; channels that are never active, or that no weight reads, keep theirs at 1.

    Args:
        peak: float64, shape (channels,): largest magnitude of each channel.
        weight_peak: float64, shape (channels,): largest magnitude of the weights that read it.
        alpha: share of the range that goes to the weights, 0 to 1.

    Source: Xiao et al., "SmoothQuant" (2023), equation 4. Differs: the mean of the factors is taken out, which changes
    nothing of the product and keeps the weights in their range.
    """
    used = (peak > 0) & (weight_peak > 0)
    factors = np.ones(peak.shape)
    factors[used] = peak[used] ** alpha / weight_peak[used] ** (1 - alpha)
    factors[used] /= np.exp(np.log(factors[used]).mean()) if used.any() else 1.0
    return factors


def product_level(
    samples: Sequence[Float32], weights: Sequence[Float32], factors: NDArray[np.float64] | None, num_bits: int
) -> float:
    """Return the SQNR in dB of products whose operands are rounded, over all samples and weights.

    Activations get 8-bit codes with one grid per sample, weights symmetric codes with a scale per output.

    Args:
        samples: float32, each (rows, channels).
        weights: float32, each (channels, outputs).
        factors: float64, shape (channels,): what activations are divided by and weights multiplied by; None is 1.
        num_bits: width of the weights.
    """
    divided = np.ones(weights[0].shape[0], np.float32) if factors is None else factors.astype(np.float32)
    rounded = [_rounded_weight(np.asarray(w * divided[:, None], np.float32), num_bits) for w in weights]
    signal = noise = 0.0
    for sample in samples:
        moved = _rounded_data(np.asarray(sample / divided, np.float32))
        for weight, coded in zip(weights, rounded, strict=True):
            exact = sample.astype(np.float64) @ weight
            signal += float(np.sum(exact**2))
            noise += float(np.sum((exact - moved.astype(np.float64) @ coded) ** 2))
    level = power_ratio_db(signal, noise)
    return 200.0 if level is None else level


def _rounded_data(data: Float32) -> Float32:
    scale, zero = affine_grid(float(data.min(initial=0.0)), float(data.max(initial=0.0)), U8)
    grid = np.asarray(scale, np.float32), np.asarray(zero, np.int32)
    return dequantize(quantize(data, *grid, U8, None), *grid, None)


def _rounded_weight(weight: Float32, num_bits: int) -> Float32:
    rows = np.ascontiguousarray(weight.T)
    if num_bits >= BYTE_BITS:
        scale, top = absmax_scale(rows, 127), 127
        codes: NDArray[np.integer] = quantize(weight, scale, np.zeros(scale.shape, np.int32), (-top, top), 1)
    else:
        levels = uniform_levels(num_bits)
        scale, _ = level_search_scale(rows, None, levels)
        codes = quantize_to_levels(weight, scale, levels, 1)
    return dequantize(codes, scale, np.zeros(scale.shape, np.int32), 1)
