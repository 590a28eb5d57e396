"""Start points of a joint search: for every tensor the clip with the least error in an Lp norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.executor.batching import Axes, row_count, rows_of
from qcompiler.executor.executor import Tensors, TorchExecutor
from qcompiler.plan import TensorPlan
from qcompiler.quant.grid import along, dequantize, quantize
from qcompiler.search.moves import GroupMoves, WeightMoves

NORMS = tuple(float(p) for p in np.linspace(2.0, 4.0, 10))
"""The values of p."""
RATIOS = tuple(float(r) for r in np.geomspace(0.25, 1.0, 33))
"""Clips of activations, as shares of the observed range."""
FACTORS = tuple(float(f) for f in np.geomspace(0.5, 1.5, 33))
"""Clips of weights, as factors of the planned scales."""
VALUES = 1 << 14
"""Values of each activation that stand for all."""
ROWS = 32
ROWS_AT_ONCE = 8

Float64 = NDArray[np.float64]


def float_values(
    executor: TorchExecutor, samples: Tensors, axes: Axes | None, names: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """Return about 16,384 evenly spread values of some activations in the float model, over at most 32 rows."""
    count = min(row_count(samples), ROWS)
    size = ROWS_AT_ONCE if axes is not None else 1
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    with torch.no_grad():
        for first in range(0, count, size):
            rows = slice(first, min(first + size, count))
            found = executor.run(rows_of(samples, rows), tuple(names))
            room = max(VALUES * (rows.stop - first) // count, 1)
            for name, kept in parts.items():
                flat = found[name].reshape(-1).float()
                kept.append(flat[:: max(flat.numel() // room, 1)].cpu().numpy())
    return {name: np.concatenate(kept) for name, kept in parts.items()}


def best_ranges(moves: GroupMoves, values: NDArray[np.float32]) -> list[tuple[TensorPlan, ...]]:
    """Return for every p the grid of a group that minimizes mean |Q(x) - x|^p.

    Args:
        moves: of the group.
        values: of its members in the float model.
    """
    low, high = float(values.min()), float(values.max())
    made = [moves.covering(low * r, high * r, f"its observed range x {r:.3f}") for r in RATIOS]
    errors = [_grid_error(entries[0], values) for entries in made]
    return [made[i] for i in _least(errors)]


def _grid_error(entry: TensorPlan, values: NDArray[np.float32]) -> Float64:
    codes = entry.spec.code_range if entry.spec is not None else (0, 255)
    scale, zero = np.asarray(entry.scale, np.float32), np.asarray(entry.zero_point, np.int32)
    rounded = dequantize(quantize(values, scale, zero, codes, None), scale, zero, None)
    return np.abs(rounded.astype(np.float64) - values).reshape(-1)


def best_factors(moves: WeightMoves, weight: NDArray[np.float32]) -> list[TensorPlan]:
    """Return for every p the entry of a weight, its scales times one factor, that minimizes mean |Q(w) - w|^p."""
    made = [moves.rounded(f) for f in FACTORS]
    axis = moves.entry.spec.axis if moves.entry.spec is not None else None
    errors = []
    for entry in made:
        codes, scale = np.asarray(entry.codes), np.asarray(entry.scale)
        rounded = codes * along(scale, axis, codes.ndim).astype(np.float64)
        errors.append(np.abs(rounded - weight).reshape(-1))
    return [made[i] for i in _least(errors)]


def _least(errors: Sequence[Float64]) -> list[int]:
    """Return for every p which error is the least in that norm."""
    top = max(float(e.max(initial=0.0)) for e in errors) or 1.0
    return [int(np.argmin([np.power(e / top, p).mean() for e in errors])) for p in NORMS]


def stationary_norm(losses: Sequence[float]) -> float | None:
    """Return where a parabola through the losses of all p has its minimum; None if it has none between 2 and 4.

    Args:
        losses: one per value of p, finite.

    Source: Nahshan et al. 2021, Loss Aware Post-training Quantization (arXiv:1911.07190), quadratic approximation.
    Differs: the parabola must open upward and its minimum lie in the range, else nothing is interpolated.
    """
    if not np.isfinite(losses).all():
        return None
    bend, slope, _ = np.polyfit(NORMS, losses, 2)
    if not bend > 0.0:
        return None
    found = float(-slope / (2.0 * bend))
    return found if NORMS[0] <= found <= NORMS[-1] else None


def between(norm: float) -> Mapping[int, float]:
    """Return the two values of p next to a norm, as index -> weight; the weights sum to 1."""
    position = float(np.interp(norm, NORMS, np.arange(len(NORMS))))
    low = min(int(position), len(NORMS) - 2)
    return {low: 1.0 - (position - low), low + 1: position - low}
