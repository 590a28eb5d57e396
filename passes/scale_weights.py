"""scale-weights: one scale per channel for every weight that is stored in integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import UsageError
from qcompiler.layer_problems import Use, scale_floor, weight_users
from qcompiler.model.edit import constant_of
from qcompiler.plan import QuantSpec, Role, TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.grid import dequantize, power_ratio_db, quantize, spread
from qcompiler.quant.levels import Levels, even_levels, quantize_to_levels, uniform_levels
from qcompiler.quant.rounding import balanced_codes
from qcompiler.quant.weights import (
    absmax_scale,
    as_blocks,
    as_rows,
    clip_search_scale,
    input_importance,
    level_search_scale,
)
from qcompiler.records import Metric, PassReport
from qcompiler.runtime.widths import looks_up_levels
from qcompiler.state import Context, Fact, State

LARGE = 1 << 22
"""Weights above this size get the plain scale, so that time and memory stay bounded."""

BYTE_BITS = 8


@dataclass(frozen=True, slots=True)
class ScaleWeights:
    """Chooses the scales of all planned weights.

    With ``search`` each channel's clip ratio minimizes the squared error of the layer's output, weighing every
    weight by the mean square of the input it multiplies (observed; all alike without statistics).

    Weights of fewer than 8 bits always get a search, of the scale and of the levels: integers around 0 or odd ones,
    whichever leaves less error in the whole tensor. Their codes are the nearest levels. Targets that do not look levels
    up get the symmetric integers around 0 that their types hold.

    With ``balanced`` rounding, codes of 8 bits are chosen so that their errors cancel within each kernel and channel,
    which keeps the mean of the output where a bias correction can only approximate it, or cannot without data.

    Attributes:
        search: search the clip; False covers the largest magnitude.
        rounding: "nearest" or "balanced".
    """

    name: ClassVar[str] = "scale-weights"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHT_SCALES})
    invalidates: ClassVar[frozenset[Fact]] = frozenset()
    search: bool = False
    rounding: str = "balanced"

    def __post_init__(self) -> None:
        if self.rounding not in ("nearest", "balanced"):
            raise UsageError(f"scale-weights: rounding {self.rounding!r} is neither nearest nor balanced")

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a scale for every planned weight."""
        users = weight_users(state.model)
        pending = [t for t in state.plan.tensors.values() if t.role is Role.WEIGHT and t.spec is not None]
        done: list[TensorPlan] = []
        for number, tensor in enumerate(pending):
            scaled = self._scaled(state, tensor, users[tensor.name], looks_up_levels(context.target))
            balanced = self.rounding == "balanced"
            done.append(_balanced(scaled, *users[tensor.name][0]) if balanced else scaled)
            context.progress("scaling weights", number + 1, len(pending))
        report = PassReport(
            name=self.name,
            changed=bool(done),
            options={"search": self.search, "rounding": self.rounding},
            metrics=(Metric("scaled", len(done), "weights"),),
        )
        return PassResult(replace(state, plan=state.plan.with_tensors(*done)), report)

    def _scaled(self, state: State, tensor: TensorPlan, uses: Sequence[Use], any_level: bool) -> TensorPlan:
        node, index = uses[0]
        array = constant_of(node.inputs[index])
        spec = tensor.spec
        if array is None or spec is None:
            return tensor
        weight = np.asarray(array, np.float32)
        rows = weight.reshape(1, -1) if spec.axis is None else as_rows(weight, spec.axis)
        channels = len(rows)
        searched = weight.size <= LARGE and (self.search or spec.num_bits < BYTE_BITS)
        importance = self._importance(state, node, weight.shape, spec) if searched else None
        if spec.block_size is not None:
            rows, importance = as_blocks(rows, importance, spec.block_size)
        levels, reason = None, "clip search on the layer's output error" if searched else "largest magnitude"
        if spec.num_bits < BYTE_BITS:
            choices = _level_choices(spec, any_level)
            scale, levels, reason = _few_levels(rows, importance, choices)
        elif searched:
            scale = clip_search_scale(rows, importance, spec.code_range[1])
        else:
            scale = absmax_scale(rows, spec.code_range[1])
        if spec.block_size is not None:
            scale, reason = scale.reshape(channels, -1), f"{reason}, for every block of {spec.block_size}"
        elif (scale < (floor := scale_floor(state, uses, scale.size))).any():
            scale = np.maximum(scale, floor).astype(np.float32)
            reason += ", raised where the bias would not fit in 32 bits"
        scale = scale if spec.axis is not None else scale.reshape(())
        first, last = spec.code_range if levels is None else (int(levels[0]), int(levels[-1]))
        return replace(
            tensor,
            scale=scale,
            zero_point=np.zeros(scale.shape, np.int32),
            levels=levels,
            codes=None,
            sparsity=None,
            clip=(float(scale.max()) * first, float(scale.max()) * last),
            error_db=weight_error_db(weight, scale, spec, levels) if weight.size <= LARGE else None,
            reason=reason,
            decided_by=(*tensor.decided_by, self.name),
        )

    def _importance(
        self, state: State, node: ir.Node, shape: tuple[int, ...], spec: QuantSpec
    ) -> NDArray[np.float32] | None:
        value = node.inputs[0]
        statistics = state.statistics.get(value.name or "") if value is not None else None
        if statistics is None or spec.axis is None or node.op_type not in ("Conv", "Gemm", "MatMul"):
            return None
        attribute = node.attributes.get("group")
        groups = attribute.as_int() if attribute is not None else 1
        inputs = shape[1] * groups if node.op_type == "Conv" else shape[1 - spec.axis]
        power = statistics.channel_power
        if power.size != inputs or (node.op_type != "Conv" and len(shape) != 2):
            return None
        # A channel that was never active on the samples still keeps a little weight.
        floor = 1e-3 * float(power.mean()) + 1e-30
        return input_importance(shape, spec.axis, np.maximum(power, floor), groups)


def _level_choices(spec: QuantSpec, any_level: bool) -> dict[str, Levels]:
    """Return the levels to choose from for a weight of few bits, by what to call them."""
    first, last = spec.code_range
    if spec.block_size is not None:
        return {"integers around 0": uniform_levels(spec.num_bits)}
    if not any_level and last > 0:
        return {"symmetric integers": np.arange(first, last + 1).astype(np.int8)}
    return {"integers around 0": uniform_levels(spec.num_bits), "odd integers": even_levels(spec.num_bits)}


def _few_levels(
    rows: NDArray[np.float32], importance: NDArray[np.float32] | None, choices: dict[str, Levels]
) -> tuple[NDArray[np.float32], Levels, str]:
    """Return the scales and levels of a weight that leave the least error, and why these."""
    found = {name: level_search_scale(rows, importance, levels) for name, levels in choices.items()}
    kind = min(found, key=lambda name: float(found[name][1].sum()))
    weighted = "the layer's output error" if importance is not None else "the error of the weights"
    return found[kind][0], choices[kind], f"levels: {kind}, with the scales that leave the least of {weighted}"


def _balanced(tensor: TensorPlan, node: ir.Node, index: int) -> TensorPlan:
    """Return the entry of a Conv's or Gemm's weight with codes whose errors cancel."""
    array, spec, scale = constant_of(node.inputs[index]), tensor.spec, tensor.scale
    if tensor.levels is not None:
        return tensor  # the errors of few levels are no longer small against a code
    if array is None or spec is None or scale is None or array.size > LARGE or spec.axis is None:
        return tensor
    if node.op_type not in ("Conv", "Gemm") or spec.block_size is not None:
        return tensor  # inputs of other products are centered: there is no shift to cancel
    weight = np.asarray(array, np.float32)
    kernel = int(np.prod(weight.shape[2:])) if node.op_type == "Conv" else 1
    rows = balanced_codes(as_rows(weight, spec.axis), scale, kernel, spec.code_range[1])
    moved = np.moveaxis(weight, spec.axis, 0)
    codes = np.ascontiguousarray(np.moveaxis(rows.reshape(moved.shape), 0, spec.axis))
    return replace(tensor, codes=codes, reason=f"{tensor.reason}; rounding errors cancel per kernel and channel")


def weight_error_db(
    weight: NDArray[np.float32], scale: NDArray[np.float32], spec: QuantSpec, levels: Levels | None = None
) -> float | None:
    """Return the SQNR of a weight on its grid, or on some levels of it, in dB; None if they hold it exactly."""
    if spec.block_size is not None:
        scale = spread(scale, spec.axis, spec.block_size, weight.shape)
    zero = np.zeros(scale.shape, np.int32)
    codes: NDArray[np.integer] = quantize(weight, scale, zero, spec.code_range, spec.axis)
    if levels is not None:
        codes = quantize_to_levels(weight, scale, levels, spec.axis)
    error = weight - dequantize(codes, scale, zero, spec.axis)
    signal, noise = (float(np.square(a, dtype=np.float64).sum()) for a in (weight, error))
    return power_ratio_db(signal, noise)
