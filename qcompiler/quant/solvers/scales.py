"""Scales to start from: for every row, the clip ratio with the least error on the given levels."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.levels import Levels, nearest_level
from qcompiler.quant.solvers.problem import Float64, Int8, LayerProblem, Solution, in_blocks, row_errors

RATIOS = np.linspace(1.0, 0.25, 26)
SHORTLIST = 4
"""Ratios, the best by the diagonal of H, that are judged by the whole of H."""


def round_to_levels(values: NDArray[np.floating], levels: Levels) -> Int8:
    """Return the level nearest to each value, the lower of two; evenly spaced levels take a short cut.

    Args:
        values: any shape, in units of the scale.
        levels: sorted, at least one.
    """
    step, first, last = _spacing(levels.tobytes())
    if step == 0:
        return nearest_level(values, levels)
    if step == 1:
        return np.asarray(np.clip(np.ceil(values - 0.5), first, last)).astype(np.int8)
    number = np.ceil((values - first) * (1.0 / step) - 0.5)
    return np.asarray(np.clip(number * step + first, first, last)).astype(np.int8)


@functools.lru_cache(maxsize=64)
def _spacing(levels: bytes) -> tuple[int, int, int]:
    """Return (distance of evenly spaced levels or 0, first, last)."""
    values = np.frombuffer(levels, np.int8).astype(np.int64)
    gaps = np.diff(values)
    even = bool(gaps.size) and bool((gaps == gaps[0]).all())
    return int(gaps[0]) if even else 0, int(values[0]), int(values[-1])


def covering_scale(weight: Float64, levels: Levels, floor: Float64) -> Float64:
    """Return the scale with which the levels just cover every row, shape (groups, rows).

    Args:
        weight: shape (groups, rows, inputs).
        levels: sorted levels.
        floor: shape (groups, rows). A row of zeros gets scale 1.
    """
    low, high = float(levels[0]), float(levels[-1])
    above = weight.max(2, initial=0.0) / high if high > 0 else np.zeros(weight.shape[:2])
    below = weight.min(2, initial=0.0) / low if low < 0 else np.zeros(weight.shape[:2])
    scale = np.maximum(above, below)
    return np.maximum(np.where(scale > 0, scale, 1.0), floor)


def clip_errors(
    weight: Float64, importance: Float64, levels: Levels, scale: Float64, ratios: NDArray[np.float64] = RATIOS
) -> Float64:
    """Return the squared rounding error, weighted per input, of every clip ratio: shape (ratios, groups, rows).

    Args:
        weight: shape (groups, rows, inputs).
        importance: broadcasts to the weight: the diagonal of H.
        levels: sorted levels.
        scale: shape (groups, rows), of ratio 1.
        ratios: to try.
    """
    found = np.empty((len(ratios), *scale.shape))
    for number, ratio in enumerate(ratios):
        step = (scale * ratio)[:, :, None]
        error = round_to_levels(weight / step, levels) * step - weight
        found[number] = (np.square(error) * importance).sum(2)
    return found


def search_scale(weight: Float64, gram: Float64, levels: Levels, floor: Float64, block_size: int = 0) -> Float64:
    """Return the scale of every row with the least e H e^T after nearest rounding.

    All ratios are ranked by the diagonal of H; the best few are judged by the exact objective. Blocks of inputs are
    judged one by one, each by its own part of H.

    Args:
        weight: shape (groups, rows, inputs).
        gram: shape (groups, inputs, inputs).
        levels: sorted levels.
        floor: shape (groups, rows).
        block_size: inputs that share a scale; 0 is all of a row.

    Returns:
        float64, shape (groups, rows), or (groups, rows, blocks) where there is a block size.

    Source: Kim et al., "aespa" (2024). Differs: there a hundred ratios are all judged by the exact objective.
    """
    if block_size:
        return _search_blocks(weight, gram, levels, floor, block_size)
    full = covering_scale(weight, levels, floor)
    diagonal = np.einsum("gii->gi", gram)[:, None, :]
    ranked = np.argsort(clip_errors(weight, diagonal, levels, full), axis=0, kind="stable")[:SHORTLIST]
    best, best_error = full, np.full(full.shape, np.inf)
    for choice in ranked:
        scale = np.maximum(full * RATIOS[choice], floor)
        codes = round_to_levels(weight / scale[:, :, None], levels)
        error = row_errors(weight, Solution(codes, scale), gram)
        better = error < best_error
        best, best_error = np.where(better, scale, best), np.where(better, error, best_error)
    return best


def _search_blocks(weight: Float64, gram: Float64, levels: Levels, floor: Float64, size: int) -> Float64:
    """Return the scales of blocks, which are rows of problems of their own: a block of a group is a group there."""
    groups, rows, inputs = weight.shape
    blocks = -(-inputs // size)
    parts = in_blocks(weight, size).swapaxes(1, 2).reshape(-1, rows, size)
    own = np.zeros((len(gram), blocks, size, size))
    for block in range(blocks):
        part = slice(block * size, min((block + 1) * size, inputs))
        width = part.stop - part.start
        own[:, block, :width, :width] = gram[:, part, part]
    grams = np.broadcast_to(own, (groups, blocks, size, size)).reshape(-1, size, size)
    found = search_scale(parts, grams, levels, np.repeat(floor, blocks, axis=0))
    return np.ascontiguousarray(found.reshape(groups, blocks, rows).swapaxes(1, 2))


def diagonal_scale(weight: Float64, importance: Float64, levels: Levels, floor: Float64) -> Float64:
    """Return the scale of every row with the least weighted error of nearest rounding, shape (groups, rows).

    Args:
        weight: shape (groups, rows, inputs).
        importance: broadcasts to the weight; mean square of the input behind each.
        levels: sorted levels.
        floor: shape (groups, rows).
    """
    full = covering_scale(weight, levels, floor)
    ratio: Float64 = RATIOS[clip_errors(weight, importance, levels, full).argmin(0)]
    return np.asarray(np.maximum(full * ratio, floor), np.float64)


def make_problem(
    weight: Float64, gram: Float64, levels: Levels, floor: Float64, *, kernel: int = 1, block_size: int = 0
) -> LayerProblem:
    """Return the problem of a layer, with searched scales to start from; shapes as in ``LayerProblem``."""
    return LayerProblem(
        weight=weight,
        gram=gram,
        levels=levels,
        scale=search_scale(weight, gram, levels, floor, block_size),
        floor=floor,
        kernel=kernel,
        block_size=block_size,
    )
