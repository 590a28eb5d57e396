"""What every node costs on each side, and a value that crosses: from profiles, less what the profiler adds.

The runtime's profiler spends about two microseconds per node, which is more than many small nodes take. Runs
without it alternate with the profiled ones; the difference, spread evenly over the nodes, is what is taken off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import onnx_ir as ir

from qcompiler.placement.cut import CONVERSIONS, BoundaryCost
from qcompiler.runtime.gate_process import ProfiledNode, RunTimes
from qcompiler.runtime.latency_db import NodeLatency
from qcompiler.runtime.optimized import Origins

GRIDS = frozenset({"QuantizeLinear", "DequantizeLinear"})
NOTHING = NodeLatency(0.0, 0.0)


def calibrated(nodes: Sequence[ProfiledNode], run: RunTimes) -> list[ProfiledNode]:
    """Return profiled nodes whose times add up to a run without the profiler, less its fixed part.

    The same time is taken off every node; a node cannot take less than nothing, so what is left is scaled to the
    sum. Where the runs were faster under the profiler than without, all is scaled up instead.

    Args:
        nodes: of one model, as profiled.
        run: whole runs of the same model without the profiler, interleaved with the profiled ones.
    """
    target = max(0.0, run.min_us - run.fixed_us)
    total = sum(n.typical_us for n in nodes)
    if not nodes or total <= 0.0 or target <= 0.0:
        return list(nodes)
    off = max(0.0, (total - target) / len(nodes))
    left = [max(0.0, n.typical_us - off) for n in nodes]
    scale = target / sum(left) if sum(left) > 0.0 else 0.0
    return [
        replace(n, typical_us=us * scale, min_us=max(0.0, n.min_us - off) * scale)
        for n, us in zip(nodes, left, strict=True)
    ]


def by_node(profiled: Sequence[ProfiledNode], model: ir.Model) -> dict[str, NodeLatency]:
    """Return node name -> latency, with what the runtime runs for one node added up.

    A conversion to or from a grid is left out, and so is the change of layout beside it: where these stand
    depends on the split, and the boundary pays for them. Any other change of layout counts as part of the node
    that runs next, which needs it.

    Args:
        profiled: nodes of the runtime's graph in the order they run.
        model: the model whose nodes are looked for.
    """
    origins = Origins(model)
    found: dict[str, NodeLatency] = {}
    waiting = NOTHING
    for index, entry in enumerate(profiled):
        node = origins.find(entry.name)
        time = NodeLatency(entry.min_us, entry.typical_us)
        if entry.op_type in CONVERSIONS and (node is None or node.op_type != entry.op_type):
            if not _at_boundary(profiled, index):
                waiting = _sum(waiting, time)
            continue
        if node is not None:
            name = node.name or ""
            found[name] = _sum(_sum(found.get(name, NOTHING), time), waiting)
            waiting = NOTHING
    return found


def _at_boundary(profiled: Sequence[ProfiledNode], index: int) -> bool:
    around = (profiled[i].op_type for i in (index - 1, index, index + 1) if 0 <= i < len(profiled))
    return any(op in GRIDS for op in around)


def _sum(first: NodeLatency, second: NodeLatency) -> NodeLatency:
    return NodeLatency(first.min_us + second.min_us, first.typical_us + second.typical_us)


def crossing_cost(profiles: Iterable[Sequence[ProfiledNode]]) -> BoundaryCost:
    """Return what a value costs that crosses between the sides, from the calibrated profiles of both."""
    return boundary_cost([(n.op_type, n.typical_us, n.elements) for nodes in profiles for n in nodes])


def completed(costs: Mapping[str, NodeLatency], names: Iterable[str]) -> dict[str, NodeLatency]:
    """Return the costs with an entry of nothing for every node that the runtime fused away."""
    return {name: costs.get(name, NOTHING) for name in names}


def boundary_cost(profiles: Sequence[tuple[str, float, int]]) -> BoundaryCost:
    """Return what a conversion costs per element and at least, from profiled nodes.

    Args:
        profiles: (operator, microseconds, elements) of every node of the profiled models. A crossing pays for
            one quantization and one change of layout. Small conversions tell the least cost, large ones the rate.
    """
    rate = least = 0.0
    for kinds in (("QuantizeLinear", "DequantizeLinear"), ("Transpose", "ReorderInput", "ReorderOutput")):
        seen = [(us, size) for op, us, size in profiles if op in kinds and size > 0]
        large = [(us, size) for us, size in seen if size >= LARGE]
        small = [us for us, size in seen if size < LARGE]
        total = sum(size for _, size in large)
        rate += sum(us for us, _ in large) / total if total else DEFAULT_RATE_US
        least += median(small) if small else DEFAULT_LEAST_US
    return BoundaryCost(per_element=rate, least=least)


LARGE = 1 << 14
"""Elements from which the time of a conversion grows with its size."""
DEFAULT_RATE_US = 2e-4
"""Microseconds per element where no large conversion was profiled: about 5 GB of float a second."""
DEFAULT_LEAST_US = 0.5
