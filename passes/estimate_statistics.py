"""estimate-statistics: activation statistics without data, from what BatchNorm knows about its channels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.model.bounds import clip_limits
from qcompiler.model.edit import constant_of
from qcompiler.model.weights import has_row_bias, scales_operands
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.gaussian import (
    average_moments,
    clip_moments,
    linear_moments,
    mixture_statistics,
    sum_moments,
)
from qcompiler.records import Metric, PassReport
from qcompiler.state import ChannelMoments, Context, Fact, State

SAME = frozenset({"MaxPool", "Identity", "Dropout", "Slice", "Resize", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Operators whose output keeps the moments of its channels, closely enough for a range."""


@dataclass(frozen=True, slots=True)
class EstimateStatistics:
    """Propagates per-channel Gaussian moments from BatchNorm through the network.

    A layer without BatchNorm gets moments from its input's, if those are known, with channels taken as
    independent. Nothing is known about the model's own input, so the first layer stays in float.

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019),
    section 4.2.1 (moments behind a ReLU). Differs: the moments also give the activation ranges.
    """

    name: ClassVar[str] = "estimate-statistics"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.MOMENTS})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.RANGES})

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with estimated statistics of every value whose moments are known."""
        known = dict(state.moments)
        for node in state.model.graph:
            name = node.outputs[0].name or "" if node.outputs else ""
            if name and name not in known:
                found = _propagate(node, known)
                if found is not None:
                    known[name] = found
        cuts = _cuts(state.model.graph)
        statistics = {n: mixture_statistics(m.mean, m.std, *cuts.get(n, (-np.inf, np.inf))) for n, m in known.items()}
        metrics = (Metric("estimated", len(statistics), "activations"),)
        note = () if statistics else ("the model holds no BatchNorm statistics: only weights can be compressed",)
        report = PassReport(name=self.name, changed=bool(statistics), metrics=metrics, notes=note)
        return PassResult(replace(state, statistics={**state.statistics, **statistics}), report)


def _cuts(graph: ir.Graph) -> dict[str, tuple[float, float]]:
    """Return where the values behind rectifiers are cut."""
    found = {}
    for node in graph:
        if node.op_type == "Relu":
            found[node.outputs[0].name or ""] = (0.0, np.inf)
        elif node.op_type == "Clip":
            found[node.outputs[0].name or ""] = clip_limits(node)
    return found


def _propagate(node: ir.Node, known: dict[str, ChannelMoments]) -> ChannelMoments | None:
    """Return the moments behind a node, None if they do not follow from those before it."""
    inputs = [known.get(v.name or "") if v is not None else None for v in node.inputs]
    first = inputs[0] if inputs else None
    if node.op_type == "Add" and len(inputs) == 2 and inputs[1] is not None and first is not None:
        if inputs[1].mean.size != first.mean.size:
            return None
        return _moments(sum_moments((first.mean, first.std), (inputs[1].mean, inputs[1].std)))
    if node.op_type == "Concat":
        parts = [m for m in inputs if m is not None]
        axis = node.attributes.get("axis")
        if len(parts) != len(inputs) or axis is None or axis.as_int() != 1:
            return None
        return ChannelMoments(np.concatenate([m.mean for m in parts]), np.concatenate([m.std for m in parts]))
    if first is None:
        return None
    if node.op_type == "Relu":
        return _moments(clip_moments(first.mean, first.std, 0.0, np.inf))
    if node.op_type == "Clip":
        return _moments(clip_moments(first.mean, first.std, *clip_limits(node)))
    if node.op_type in ("AveragePool", "GlobalAveragePool"):
        return _moments(average_moments(first.mean, first.std))
    if node.op_type == "Pad":
        return _padded(node, first)
    if node.op_type in SAME:
        return first if _channels(node.outputs[0]) in (None, first.mean.size) else None
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        return _linear(node, first)
    return None


def _channels(value: ir.Value) -> int | None:
    size = value.shape[1] if value.shape is not None and len(value.shape) > 1 else None
    return size if isinstance(size, int) else None


def _padded(node: ir.Node, first: ChannelMoments) -> ChannelMoments | None:
    """Return the moments behind a Pad; new channels are constant zero."""
    pads = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    total = _channels(node.outputs[0])
    if pads is None or total is None or pads.size < 4:
        return None
    before = int(pads.reshape(-1)[1])
    after = total - before - first.mean.size
    if min(before, after) < 0:
        return None
    return ChannelMoments(mean=np.pad(first.mean, (before, after)), std=np.pad(first.std, (before, after)))


def _linear(node: ir.Node, first: ChannelMoments) -> ChannelMoments | None:
    """Return the moments behind a Conv, or behind a matrix product with the channels in its columns."""
    weight, data = constant_of(node.inputs[1]), node.inputs[0]
    bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if weight is None or data is None or scales_operands(node) or not has_row_bias(node):
        return None
    rows = np.asarray(weight, np.float64)
    if node.op_type != "Conv":
        if rows.ndim != 2 or data.shape is None or len(data.shape) != 2 or _flag(node, "transA"):
            return None
        rows = rows if _flag(node, "transB") else rows.T
    offset = np.zeros(rows.shape[0]) if bias is None else np.asarray(bias, np.float64).reshape(-1)
    groups = _flag(node, "group") or 1
    found = linear_moments(rows, offset, first.mean, first.std, groups)
    return None if found is None else _moments(found)


def _flag(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else 0


def _moments(found: tuple[NDArray[np.float64], NDArray[np.float64]]) -> ChannelMoments:
    return ChannelMoments(mean=found[0], std=found[1])
