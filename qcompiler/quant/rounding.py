"""Rounding that keeps sums: codes whose errors cancel within each kernel and each channel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.grid import Float32


def balanced_codes(rows: Float32, scale: Float32, kernel: int, top: int) -> NDArray[np.int8]:
    """Return codes of which some are rounded the other way, so that rounding errors cancel.

    Behind a rectifier activations have a positive mean, so the sum of a kernel's rounding errors shifts the
    output. First in every kernel, then in every channel, the codes whose error is largest in the direction of
    the sum are moved by one until the sum is at most half a step. The second round moves at most one code of a
    kernel, so a kernel's errors still sum to one step at most.

    Args:
        rows: float32, shape (channels, weights per channel); kernels are consecutive.
        scale: float32, shape (channels,).
        kernel: weights per kernel; 1 for matrix products.
        top: largest code.

    Returns:
        int8, same shape as ``rows``.

    Source: Guo et al., "SQuant: On-the-Fly Data-Free Quantization via Diagonal Hessian Approximation" (2022),
    section 3.
    """
    exact = rows / scale[:, None]
    codes = np.clip(np.rint(exact), -top, top)
    if kernel > 1:
        shape = (-1, kernel)
        codes = _cancel(exact.reshape(shape), codes.reshape(shape), 1, top).reshape(rows.shape)
    return _cancel(exact, codes, kernel, top).astype(np.int8)


def _cancel(exact: Float32, codes: Float32, kernel: int, top: int) -> Float32:
    """Return codes with the sum of errors of every row at most half a step; one code of a kernel moves at most."""
    error = codes - exact
    total = error.sum(1, keepdims=True)
    moves = np.rint(np.abs(total)).astype(np.int64)
    sign = np.sign(total)
    # A code that would leave the grid, or move away from its value by a whole step, is ranked last.
    gain = np.where((error * sign > 0) & (np.abs(codes - sign) <= top), error * sign, -1.0)
    if kernel > 1:
        gain = _one_per_kernel(gain, error * sign, kernel)
    order = np.argsort(-gain, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(error.shape[1]), error.shape), axis=1)
    moved = (rank < moves) & (gain > 0)
    return np.asarray(codes - sign * moved, np.float32)


def _one_per_kernel(gain: Float32, error: Float32, kernel: int) -> Float32:
    """Return gains in which only the best code of every kernel counts whose errors sum to more than nothing."""
    shape = (len(gain), -1, kernel)
    blocks = gain.reshape(shape)
    best = blocks.argmax(2)[..., None]
    helps = error.reshape(shape).sum(2, keepdims=True) > 0
    kept = np.full(blocks.shape, -1.0, np.float32)
    np.put_along_axis(kept, best, np.where(helps, np.take_along_axis(blocks, best, 2), -1.0), 2)
    return kept.reshape(gain.shape)
