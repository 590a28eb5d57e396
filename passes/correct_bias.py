"""correct-bias: take back the shift of each channel's mean that rounding its weights causes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.lowering import weight_codes
from qcompiler.model.edit import constant_of
from qcompiler.model.weights import channel_axis_of, has_row_bias, scales_operands
from qcompiler.plan import Precision, Role, TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.grid import dequantize
from qcompiler.records import Metric, PassReport, Skip
from qcompiler.state import Context, Fact, State


@dataclass(frozen=True, slots=True)
class CorrectBias:
    """Plans a bias correction of -(W_q - W) E[x] for every layer whose weights are rounded.

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019),
    section 4.2. Differs: E[x] is observed, and padding is treated as if it had the channel's mean.
    """

    name: ClassVar[str] = "correct-bias"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS, Fact.WEIGHT_SCALES})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a correction for every Conv and Gemm with rounded weights whose input was observed.

        A correction that another pass decided stays: a search that moves biases knows more than their means.
        """
        done: list[TensorPlan] = []
        skipped: list[Skip] = []
        for node in state.model.graph:
            decision = state.plan.nodes.get(node.name or "")
            if decision is None or decision.precision not in (Precision.INTEGER, Precision.WEIGHT_ONLY):
                continue
            if node.op_type not in ("Conv", "Gemm"):
                continue
            planned = state.plan.tensors.get(f"{node.name}:bias")
            if planned is not None and planned.decided_by[-1:] != (self.name,):
                skipped.append(Skip(node.name or "", f"its bias was decided by {', '.join(planned.decided_by)}"))
                continue
            shift = mean_shift(state, node)
            if shift is None:
                skipped.append(Skip(node.name or "", "the mean of its input channels is not known"))
                continue
            done.append(
                TensorPlan(
                    name=f"{node.name}:bias",
                    role=Role.BIAS,
                    correction=-shift,
                    decided_by=(self.name,),
                    reason="mean error of the rounded weights",
                )
            )
        report = PassReport(
            name=self.name,
            changed=bool(done),
            metrics=(Metric("corrected", len(done), "layers"),),
            skipped=tuple(skipped),
        )
        return PassResult(replace(state, plan=state.plan.with_tensors(*done)), report)


def mean_shift(state: State, node: ir.Node) -> NDArray[np.float64] | None:
    """Return E[(W_q - W) x] of a Conv or Gemm, float64 of shape (output channels,), or None if E[x] is unknown."""
    transposed = node.attributes.get("transA")
    if scales_operands(node) or not has_row_bias(node) or (transposed is not None and transposed.as_int()):
        return None
    data, value = node.inputs[0], node.inputs[1]
    weight = constant_of(value)
    entry = state.plan.tensors.get(value.name or "") if value is not None else None
    statistics = state.statistics.get(data.name or "") if data is not None else None
    if weight is None or entry is None or entry.scale is None or entry.zero_point is None or statistics is None:
        return None
    axis = entry.spec.axis if entry.spec is not None else None
    rounded = dequantize(weight_codes(weight, entry), entry.scale, entry.zero_point, axis)
    error = rounded.astype(np.float64) - weight
    mean = statistics.channel_mean
    if node.op_type == "Gemm":
        rows = error if channel_axis_of(node, 1) == 0 else error.T
        return rows @ mean if rows.shape[1] == mean.size else None
    attribute = node.attributes.get("group")
    groups = attribute.as_int() if attribute is not None else 1
    taps = error.reshape(error.shape[0], error.shape[1], -1).sum(2)
    if taps.shape[1] * groups != mean.size:
        return None
    per_group = np.repeat(mean.reshape(groups, -1), error.shape[0] // groups, axis=0)
    return np.asarray((taps * per_group).sum(1))
