"""What the report says about every layer: what was decided, what it cost, and the likely cause of its error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qcompiler.codec.bits import packed_bytes
from qcompiler.model.weights import (
    TOO_SMALL,
    channel_axis_of,
    is_float_constant,
    saved_bytes,
    weight_operands,
)
from qcompiler.plan import CompressionPlan, Precision, Role, TensorPlan
from qcompiler.quant.allocation import Allocation
from qcompiler.quant.histogram import TensorStatistics
from qcompiler.records import Frontier, FrontierPoint, IntegerShare, LayerReport, PassReport, Skip, TensorHistogram
from qcompiler.runtime.optimized import COMPUTE_OPS
from qcompiler.state import State

HISTOGRAM_BINS = 64
OUTLIER_RATIO = 4.0
UNEVEN_RATIO = 32.0
SATURATED_SHARE = 1e-3
FEW_SAMPLES = 16
INHERITED_DB = 1.5
COARSE_WEIGHTS_DB = 30.0


def layer_reports(state: State, levels: Mapping[str, float], share: IntegerShare | None) -> tuple[LayerReport, ...]:
    """Return one entry per node of the float graph, in graph order.

    Args:
        state: the float model with plan and statistics.
        levels: SQNR in dB of quantized values against the float model.
        share: what the runtime really runs in integers; None if that is not known.
    """
    counted: set[str] = set()
    return tuple(_layer(node, state, levels, share, counted) for node in state.model.graph.all_nodes())


def _layer(
    node: ir.Node,
    state: State,
    levels: Mapping[str, float],
    share: IntegerShare | None,
    counted: set[str],
) -> LayerReport:
    plan, name = state.plan, node.name or ""
    decision = plan.nodes.get(name)
    value = _carrier(node, plan)
    entry = plan.activation(value)
    statistics = state.statistics.get(value)
    weight = _weight(node, plan)
    before, after = _bytes(node, plan, counted)
    runs = None
    if share is not None and node.op_type in COMPUTE_OPS:
        runs = name not in share.float_nodes
    return LayerReport(
        name=name,
        op_type=node.op_type,
        output=node.outputs[0].name or "" if node.outputs else "",
        precision=str(decision.precision if decision is not None else Precision.FLOAT),
        runs_integer=runs,
        decided_by=_deciders(decision.decided_by if decision is not None else (), entry, weight),
        reason=decision.reason if decision is not None else "",
        bytes_before=before,
        bytes_after=after,
        sqnr_db=levels.get(value),
        weight_db=weight.error_db if weight is not None else None,
        clip=entry.clip if entry is not None else None,
        observed=(statistics.low, statistics.high) if statistics is not None else None,
        cause=_cause(node, value, state, levels),
        weight_bits=weight.spec.num_bits if weight is not None and weight.spec is not None else None,
        weight_reason=weight.reason if weight is not None else "",
    )


def _deciders(first: tuple[str, ...], *entries: TensorPlan | None) -> tuple[str, ...]:
    names = [*first, *(n for e in entries if e is not None for n in e.decided_by)]
    return tuple(dict.fromkeys(names))


def _carrier(node: ir.Node, plan: CompressionPlan) -> str:
    """Return the value that carries a node's grid: its output, or that of the activation fused into it."""
    if not node.outputs:
        return ""
    name = node.outputs[0].name or ""
    if plan.activation(name) is None:
        for use in node.outputs[0].uses():
            follower = plan.nodes.get(use.node.name or "")
            if follower is not None and follower.reason == f"fused into {node.name}":
                return use.node.outputs[0].name or ""
    return name


def _weight(node: ir.Node, plan: CompressionPlan) -> TensorPlan | None:
    for value in node.inputs:
        entry = plan.tensors.get(value.name or "") if value is not None else None
        if entry is not None and entry.role in (Role.WEIGHT, Role.TABLE):
            return entry
    return None


def _bytes(node: ir.Node, plan: CompressionPlan, counted: set[str]) -> tuple[int, int]:
    """Return bytes of a node's constants before and after; a shared constant counts at its first user."""
    before = after = 0
    for value in node.inputs:
        if value is None or value.const_value is None or (value.name or "") in counted:
            continue
        counted.add(value.name or "")
        size = value.const_value.nbytes
        before += size
        entry = plan.tensors.get(value.name or "")
        if entry is not None and entry.rows is not None:
            after += entry.rows.stored_bytes
        elif entry is None or entry.spec is None or entry.scale is None:
            after += size
        else:
            after += packed_bytes(value.const_value.size, entry.spec.num_bits) + entry.scale.nbytes
    return before, after


def _cause(node: ir.Node, value: str, state: State, levels: Mapping[str, float]) -> str:
    """Return the likely main reason for a layer's error, "" where there is little or nothing is known."""
    level = levels.get(value)
    if level is None:
        return ""
    names = [v.name or "" for v in node.inputs if v is not None]
    inputs = [levels[n] for n in names if n in levels]
    if inputs and min(inputs) < level + INHERITED_DB:
        return "inherited from the layers before"
    statistics, entry = state.statistics.get(value), state.plan.activation(value)
    if statistics is None or entry is None or entry.clip is None:
        return ""
    if statistics.low == statistics.high:
        return "constant activation"
    if clipped_share(statistics, entry.clip) > SATURATED_SHARE:
        return "saturation: the grid cuts off part of the values"
    if _outlier_ratio(statistics) > OUTLIER_RATIO:
        return "range outlier: few large values stretch the grid"
    peaks = statistics.channel_peak[statistics.channel_peak > 0]
    if peaks.size > 1 and peaks.max() / np.quantile(peaks, 0.1) > UNEVEN_RATIO:
        return "uneven channels share one grid"
    weight = _weight(node, state.plan)
    if weight is not None and weight.error_db is not None and weight.error_db < COARSE_WEIGHTS_DB:
        return "weight rounding"
    if statistics.samples == 0:
        return "range estimated without data"
    if statistics.samples < FEW_SAMPLES:
        return "few samples"
    return "activation rounding"


def clipped_share(statistics: TensorStatistics, clip: tuple[float, float]) -> float:
    """Return the share (0 to 1) of observed values outside a range."""
    edges = np.linspace(*statistics.grid, len(statistics.counts) + 1)
    width = edges[1] - edges[0]
    outside = (edges[1:] < clip[0] - width) | (edges[:-1] > clip[1] + width)
    return float(statistics.counts[outside].sum() / max(int(statistics.counts.sum()), 1))


def _outlier_ratio(statistics: TensorStatistics) -> float:
    """Return how much wider the observed range is than the range of 99.9 % of the values."""
    share = np.cumsum(statistics.counts) / max(int(statistics.counts.sum()), 1)
    edges = np.linspace(*statistics.grid, len(statistics.counts) + 1)
    low = edges[int(np.searchsorted(share, 0.0005, side="right"))]
    high = edges[min(int(np.searchsorted(share, 0.9995)) + 1, len(edges) - 1)]
    return float((statistics.high - statistics.low) / max(high - low, 1e-30))


MAX_FRONTIER = 160
"""Points of the size/loss frontier that a report holds."""


def frontier_report(state: State) -> Frontier | None:
    """Return the frontier that widths were chosen from, None where none was made."""
    search = state.bit_search
    if search is None:
        return None

    def point(found: Allocation) -> FrontierPoint:
        size = search.fixed_bytes + found.stored_bytes
        return FrontierPoint(file_bytes=size, mean_bits=round(found.mean_bits, 4), loss=float(f"{found.loss:.6g}"))

    count = min(MAX_FRONTIER, len(search.points))
    spread = np.unique(np.linspace(0, len(search.points) - 1, count).round().astype(int))
    return Frontier(
        points=tuple(point(search.points[i]) for i in spread),
        chosen=point(search.chosen),
        unit=search.unit,
        correlation=None if search.correlation is None else round(search.correlation, 4),
        checked=search.checked,
    )


def histograms(state: State) -> tuple[TensorHistogram, ...]:
    """Return a coarse histogram of every observed activation with its clip range, for the report."""
    found = []
    for name, statistics in state.statistics.items():
        entry = state.plan.activation(name)
        if entry is None:
            continue
        counts = statistics.counts.reshape(HISTOGRAM_BINS, -1).sum(1)
        found.append(
            TensorHistogram(
                name=name,
                low=statistics.grid[0],
                high=statistics.grid[1],
                counts=tuple(int(c) for c in counts),
                clip=entry.clip,
            )
        )
    return tuple(found)


def kept_constants(state: State, reports: Sequence[PassReport]) -> tuple[Skip, ...]:
    """Return every float constant that a plan leaves as it is, with the reason; weights come first."""
    weights: list[Skip] = []
    others: list[Skip] = []
    said = {s.tensor: s.reason for r in reports for s in r.skipped}
    for graph in state.model.graphs():
        for value in graph.initializers.values():
            name, users = value.name or "", list(value.uses())
            entry = state.plan.tensors.get(name)
            stored = entry is not None and (entry.scale is not None or entry.rows is not None)
            if not is_float_constant(value) or not users or stored:
                continue
            weight_use = next((u for u in users if u.idx in weight_operands(u.node)), None)
            if weight_use is None:
                output = "it is an output of the model"
                reason = output if value.is_graph_output() else _not_a_weight(users[0].node)
                others.append(Skip(name, reason))
            elif saved_bytes(value, channel_axis_of(weight_use.node, weight_use.idx)) <= 0:
                weights.append(Skip(name, TOO_SMALL))
            else:
                decision = state.plan.nodes.get(weight_use.node.name or "")
                reason = said.get(name, decision.reason if decision is not None else "")
                weights.append(Skip(name, reason))
    return (*weights, *others)


def _not_a_weight(user: ir.Node) -> str:
    if user.domain not in ("", "ai.onnx"):
        return f"{user.domain}:{user.op_type} is left alone"
    return f"{user.op_type} keeps it in float"
