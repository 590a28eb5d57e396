"""Grids of activations: what the fused activation allows, and which values share one grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qcompiler.model.bounds import clip_limits
from qcompiler.model.regions import shared_scale_groups
from qcompiler.plan import CompressionPlan, NodePlan, Precision, TensorPlan
from qcompiler.quant.grid import affine_grid, covered_range

MANY_STEPS = 256


def gridded(
    tensor: TensorPlan,
    low: float,
    high: float,
    limits: tuple[float, float] | None,
    reason: str,
    decided_by: str,
) -> TensorPlan:
    """Return an activation entry with the grid that covers [low, high].

    Args:
        tensor: the entry; must have a spec.
        low: smallest value to cover.
        high: largest value to cover.
        limits: where the activation fused into the producer cuts. The grid must not reach beyond, or the
            runtime keeps the activation as a node of its own.
        reason: why this range.
        decided_by: the pass that decided.
    """
    codes = tensor.spec.code_range if tensor.spec is not None else (0, 255)
    scale, zero_point = affine_grid(low, high, codes)
    if limits is not None:
        scale, zero_point = _limited(scale, zero_point, codes, limits)
    return replace(
        tensor,
        scale=np.asarray(scale, np.float32),
        zero_point=np.asarray(zero_point, np.int32),
        clip=covered_range(float(scale), zero_point, codes),
        reason=reason,
        decided_by=(*tensor.decided_by, decided_by),
    )


def _limited(
    scale: np.float32, zero_point: int, codes: tuple[int, int], limits: tuple[float, float]
) -> tuple[np.float32, int]:
    """Return the grid, moved by a step and narrowed a little where it reaches beyond a limit."""
    for code, limit in zip(codes, limits, strict=True):
        steps = code - zero_point
        if steps * limit > 0.0 and abs(steps * float(scale)) > abs(limit) * (1.0 + 1.0 / MANY_STEPS):
            zero_point += 1 if steps > 0 else -1  # of few steps to the limit, narrowing would cost the other side
    for code, limit in zip(codes, limits, strict=True):
        scale = _within(scale, code - zero_point, limit)
    return scale, zero_point


def _within(scale: np.float32, steps: int, limit: float) -> np.float32:
    """Return the scale, or the largest smaller one with which so many steps from 0 do not go beyond a limit."""
    if steps * limit <= 0.0 or abs(steps * float(scale)) <= abs(limit):
        return scale
    fitting = np.float32(limit / steps)
    return fitting if abs(steps * float(fitting)) <= abs(limit) else np.nextafter(fitting, np.float32(0))


def activation_limits(model: ir.Model) -> dict[str, tuple[float, float]]:
    """Return (low, high) of every value that a Relu or a Clip with constant limits produces."""
    found: dict[str, tuple[float, float]] = {}
    for node in model.graph:
        name = node.outputs[0].name or ""
        if node.op_type == "Relu":
            found[name] = (0.0, np.inf)
        elif node.op_type == "Clip":
            found[name] = clip_limits(node)
    return found


def shared_grids(
    model: ir.Model, nodes: Mapping[str, NodePlan], planned: Mapping[str, TensorPlan]
) -> dict[str, TensorPlan]:
    """Return the entries of all values that take the grid of another one.

    What a data-moving node makes takes the grid of its input. What only a Concat reads takes the grid of the
    Concat's output: it would be rounded to that grid anyway, and equal grids are copied, not rescaled.
    """
    limits = activation_limits(model)
    order = {v.name: i for i, v in enumerate(v for n in model.graph for v in n.outputs)}
    joined = {n.outputs[0].name for n in model.graph if n.op_type == "Concat"}
    found: dict[str, TensorPlan] = {}
    for group in shared_scale_groups(_ties(model, nodes, planned)):
        members = sorted(group, key=lambda v: order.get(v.name, -1))
        owner = next((v for v in reversed(members) if v.name in joined), members[0])
        origin = planned[owner.name or ""]
        for value in members:
            low, high = limits.get(value.name or "", (-np.inf, np.inf))
            fits = origin.clip is not None and origin.clip[0] >= low and origin.clip[1] <= high
            if value is not owner and fits:
                found[value.name or ""] = _with_grid(planned[value.name or ""], origin)
    return found


def _ties(
    model: ir.Model, nodes: Mapping[str, NodePlan], planned: Mapping[str, TensorPlan]
) -> list[tuple[ir.Value, ir.Value]]:
    """Return the pairs of planned values that are to have one grid."""
    ties: list[tuple[ir.Value, ir.Value]] = []
    moved: set[ir.Value] = set()
    for node in model.graph:
        decision, result = nodes.get(node.name or ""), node.outputs[0]
        if decision is None or result.name not in planned:
            continue
        if decision.precision is Precision.MOVE:
            moved.add(result)
            sources = [node.inputs[0]]
        elif node.op_type == "Concat" and decision.precision is Precision.INTEGER:
            sources = [v for v in node.inputs if v is not None and v not in moved and len(v.uses()) == 1]
        else:
            continue
        ties += [(v, result) for v in sources if v is not None and v.name in planned]
    return ties


def _with_grid(entry: TensorPlan, origin: TensorPlan) -> TensorPlan:
    return replace(
        entry,
        scale=origin.scale,
        zero_point=origin.zero_point,
        clip=origin.clip,
        reason=f"shares the grid of '{origin.name}'",
    )


def grid_groups(model: ir.Model, plan: CompressionPlan) -> tuple[tuple[str, ...], ...]:
    """Return the names of planned activations in groups that must keep one grid, in the order they are made.

    Two values belong together if the runtime only moves one into the other and their grids are equal now. Values
    whose grids are equal by chance, as those of two Clip(0, 6) are, do not.
    """
    values = [*model.graph.inputs, *(v for n in model.graph for v in n.outputs)]
    planned = {v.name or "": e for v in values if (e := plan.activation(v.name or "")) is not None}
    gridded_entries = {name: e for name, e in planned.items() if e.scale is not None}
    ties = _ties(model, plan.nodes, gridded_entries)
    equal = [(a, b) for a, b in ties if same_grid(gridded_entries[a.name or ""], gridded_entries[b.name or ""])]
    owner = {v.name or "": v.name or "" for v in values}
    for group in shared_scale_groups(equal):
        owner.update({v.name or "": group[0].name or "" for v in group})
    groups: dict[str, list[str]] = {}
    for name in gridded_entries:
        groups.setdefault(owner[name], []).append(name)
    return tuple(tuple(names) for names in groups.values())


def same_grid(first: TensorPlan, second: TensorPlan) -> bool:
    """Return True if two entries have the same width, scale and zero point."""
    same = [np.array_equal(getattr(first, key), getattr(second, key)) for key in ("scale", "zero_point")]
    return first.spec == second.spec and all(same)
