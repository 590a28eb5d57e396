"""Candidates: what a weight, its bias or a group of activations could be instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.activation_grids import activation_limits, gridded
from qcompiler.layer_problems import PlannedWeight, row_floor
from qcompiler.lowering import weight_codes
from qcompiler.plan import CompressionPlan, Role, TensorPlan
from qcompiler.quant.grid import SMALLEST_SCALE, along, power_ratio_db
from qcompiler.quant.levels import Levels, uniform_levels
from qcompiler.quant.shifted import shifted_level
from qcompiler.state import State

EIGHT_BITS: Levels = np.arange(-127, 128, dtype=np.int8)

Float32 = NDArray[np.float32]


class WeightMoves:
    """The candidates of one weight: its scales times a factor, with its codes kept or rounded anew.

    Args:
        weight: the planned weight; its entry has a grid.
        state: for the smallest scales with which biases fit in 32 bits.
        decided_by: the pass that decides.

    Attributes:
        solved: its codes came from a solver, so that they are more than a rounding of the weight.
    """

    def __init__(self, weight: PlannedWeight, state: State, decided_by: str) -> None:
        self._weight, self._decided_by = weight, decided_by
        self.entry = weight.entry
        plain = EIGHT_BITS if weight.num_bits >= 8 else uniform_levels(weight.num_bits)
        self.levels = plain if self.entry.levels is None else self.entry.levels
        self.solved = self.entry.codes is not None
        self._codes = weight_codes(weight.array, self.entry)
        self._scale = np.asarray(self.entry.scale, np.float32)
        self._floor = weight.scale(row_floor(state, weight))

    def rounded(self, factor: float, shift: float = 0.0) -> TensorPlan:
        """Return the entry with its scales times a factor, rounded anew with a shift."""
        scale = self._scaled(self._scale * np.float32(factor))
        units = self._weight.array / along(scale, self._weight.axis, self._weight.array.ndim)
        codes = shifted_level(units, self.levels, shift)
        return self._made(codes, scale, f"rounded with its scales x {factor:.3f} and a shift of {shift:+.2f}")

    def rescaled(self, factor: float) -> TensorPlan:
        """Return the entry with its scales times a factor and its codes as they are."""
        scale = self._scaled(self._scale * np.float32(factor))
        return self._made(self._codes, scale, f"its scales x {factor:.3f}")

    def refitted(self) -> TensorPlan:
        """Return the entry with its codes, and for them the scales nearest to the float weight.

        These are <q, w> / <q, q> per channel.
        """
        codes, weight = (self._rows(a) for a in (self._codes, self._weight.array))
        power = np.square(codes).sum(1)
        fitted = (codes * weight).sum(1) / np.maximum(power, 1.0)
        flat = self._scale.reshape(-1)
        scale = np.where((power > 0) & (fitted > 0), fitted, flat).astype(np.float32)
        return self._made(self._codes, self._scaled(scale.reshape(self._scale.shape)), "its scales fitted to its codes")

    def _rows(self, array: NDArray[np.generic]) -> NDArray[np.float64]:
        axis = self._weight.axis
        moved = array.reshape(1, -1) if axis is None else np.moveaxis(array, axis, 0)
        return moved.reshape(len(moved), -1).astype(np.float64)

    def _scaled(self, scale: Float32) -> Float32:
        return np.maximum(np.maximum(scale, self._floor), np.float32(SMALLEST_SCALE)).astype(np.float32)

    def _made(self, codes: NDArray[np.int8], scale: Float32, what: str) -> TensorPlan:
        exact = self._weight.array.astype(np.float64)
        error = codes * along(scale, self._weight.axis, codes.ndim).astype(np.float64) - exact
        reach = float(scale.max()) * int(np.abs(self.levels.astype(np.int64)).max())
        return replace(
            self.entry,
            codes=codes,
            scale=scale,
            clip=(-reach, reach),
            error_db=power_ratio_db(float(np.square(exact).sum()), float(np.square(error).sum())),
            reason=f"{self.entry.reason}; by the loss: {what}" if self.entry.reason else f"by the loss: {what}",
            decided_by=(*self.entry.decided_by, self._decided_by),
        )


@dataclass(frozen=True, slots=True, eq=False)
class GroupMoves:
    """The candidates of activations that keep one grid: their range, narrowed or widened on either side.

    Attributes:
        entries: of the group, all with the same grid.
        limits: where fused activations cut; no grid reaches beyond.
        decided_by: the pass that decides.
    """

    entries: tuple[TensorPlan, ...]
    limits: tuple[float, float]
    decided_by: str

    @property
    def num_bits(self) -> int:
        """Width of the group's codes."""
        return min(e.spec.num_bits if e.spec is not None else 8 for e in self.entries)

    @property
    def step(self) -> float:
        """One code, in the values' own unit."""
        return float(np.asarray(self.entries[0].scale))

    @property
    def ends(self) -> tuple[float, float]:
        """The range that the group's grid covers."""
        first = self.entries[0]
        codes = first.spec.code_range if first.spec is not None else (0, 255)
        zero = int(np.asarray(first.zero_point))
        return (codes[0] - zero) * self.step, (codes[1] - zero) * self.step

    @property
    def two_sided(self) -> bool:
        """True if the range has negative and positive values."""
        low, high = self.ends
        return low < 0.0 < high

    def clipped(self, low: float, high: float) -> tuple[TensorPlan, ...]:
        """Return the group with the ends of its range times two factors; the zero point stays an integer."""
        ends = self.ends
        return self.covering(ends[0] * low, ends[1] * high, f"its range x {low:.3f} below and x {high:.3f} above")

    def covering(self, low: float, high: float, what: str) -> tuple[TensorPlan, ...]:
        """Return the group with the grid that covers a range, within the limits of fused activations."""
        low, high = max(low, self.limits[0]), min(high, self.limits[1])
        made = gridded(self.entries[0], low, high, self.limits, "", self.decided_by)
        return tuple(
            replace(
                entry,
                scale=made.scale,
                zero_point=made.zero_point,
                clip=made.clip,
                reason=f"{entry.reason}; by the loss: {what}" if entry.reason else f"by the loss: {what}",
                decided_by=(*entry.decided_by, self.decided_by),
            )
            for entry in self.entries
        )


def group_moves(model: ir.Model, plan: CompressionPlan, group: Sequence[str], decided_by: str) -> GroupMoves:
    """Return the candidates of a group of planned activations."""
    found = activation_limits(model)
    limits = [found.get(name, (-np.inf, np.inf)) for name in group]
    cut = max(low for low, _ in limits), min(high for _, high in limits)
    return GroupMoves(tuple(plan.tensors[name] for name in group), cut, decided_by)


def bias_entry(
    entries: Mapping[str, TensorPlan], node: str, correction: NDArray[np.float64], decided_by: str
) -> TensorPlan:
    """Return the entry of a node's bias correction, with a new correction, float64 of shape (channels,)."""
    name = f"{node}:bias"
    before = entries.get(name) or TensorPlan(name=name, role=Role.BIAS)
    return replace(
        before,
        correction=correction,
        reason="mean of the layer's output, on its quantized input",
        decided_by=(*before.decided_by, decided_by),
    )
