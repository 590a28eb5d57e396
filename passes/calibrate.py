"""calibrate: turn observed statistics into one grid per activation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.errors import UsageError
from qcompiler.model.bounds import clip_limits
from qcompiler.model.regions import shared_scale_groups
from qcompiler.plan import CompressionPlan, NodePlan, Precision, Role, TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.grid import affine_grid, covered_range
from qcompiler.quant.ranges import RANGE_METHODS, silu
from qcompiler.records import Metric, PassReport, Skip
from qcompiler.state import Context, Fact, State

BEST = "best"
SEARCHED = tuple(RANGE_METHODS)
RUNNERS_UP = 2
"""Methods beside the best one that are tried again on every stretch."""
STRETCHES = 8
TYPICAL_NODES = 160
"""Networks of more nodes are searched in fewer stretches, because every trial takes longer."""
MIN_GAIN_DB = 0.05
MANY_STEPS = 256


@dataclass(frozen=True, slots=True)
class Calibrate:
    """Chooses the range of every planned activation, and its scale and zero point.

    Values that only move data (MaxPool, Reshape, ...) take the grid of their input.

    Attributes:
        method: "minmax", "percentile", "entropy" or "mse"; "best" takes the one of them whose trial run comes
            closest to the float model on the acceptance samples ("mse" where there is no trial, "minmax"
            without data), and then tries the next best again on one stretch of the network at a time.
    """

    name: ClassVar[str] = "calibrate"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT, Fact.STATISTICS})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.RANGES})
    invalidates: ClassVar[frozenset[Fact]] = frozenset()
    method: str = "best"

    def __post_init__(self) -> None:
        if self.method not in (*RANGE_METHODS, BEST):
            raise UsageError(f"calibrate: method {self.method!r} is none of {', '.join((*RANGE_METHODS, BEST))}")

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a scale for every activation that was observed."""
        names = [t.name for t in state.plan.tensors.values() if t.role is Role.ACTIVATION]
        unseen = frozenset(n for n in names if n not in state.statistics)
        skipped = tuple(Skip(n, "never observed: no sample reached it") for n in names if n in unseen)
        state = replace(state, plan=_without(state, unseen))
        grids = _Grids(state, self.name)
        metrics = [Metric("calibrated", len(names) - len(unseen), "activations")]
        if self.method != BEST:
            chosen = dict.fromkeys(grids.names, self.method)
        elif context.trial is None or not grids.names:
            # Estimated statistics have no tails that could be cut off.
            chosen = dict.fromkeys(grids.names, "minmax" if context.calibration is None else "mse")
        else:
            chosen, trials = _search(grids, state, context)
            metrics += trials
        counts = [Metric(f"{m} ranges", sum(v == m for v in chosen.values()), "activations") for m in RANGE_METHODS]
        report = PassReport(
            name=self.name,
            changed=bool(chosen),
            options={"method": self.method},
            metrics=(*metrics, *(c for c in counts if c.value)),
            skipped=skipped,
        )
        return PassResult(replace(state, plan=grids.plan(chosen)), report)


def _without(state: State, values: frozenset[str]) -> CompressionPlan:
    """Return the plan without grids for these values; the nodes that read or make them compute in float."""
    demoted = []
    for node in state.model.graph if values else ():
        decision = state.plan.nodes.get(node.name or "")
        inputs = [v.name or "" for v in node.inputs if v is not None]
        fused = [u.node.outputs[0] for v in node.outputs for u in v.uses() if u.node.op_type in ("Relu", "Clip")]
        touched = values.intersection([*inputs, *(v.name or "" for v in (*node.outputs, *fused))])
        if decision is None or not touched or decision.precision not in (Precision.INTEGER, Precision.MOVE):
            continue
        stored = any(n in state.plan.tensors and state.plan.tensors[n].role is Role.WEIGHT for n in inputs)
        precision = Precision.WEIGHT_ONLY if stored else Precision.FLOAT
        reason = f"'{min(touched)}' was never observed"
        demoted.append(replace(decision, precision=precision, reason=reason))
    return state.plan.without_tensors(values).with_nodes(*demoted)


class _Grids:
    """The grid of every activation under every method, made once and combined at will."""

    def __init__(self, state: State, decided_by: str) -> None:
        self._state, self._decided_by = state, decided_by
        self._limits = activation_limits(state.model)
        self._transfers = silu_values(state.model)
        self._made: dict[tuple[str, str], TensorPlan] = {}
        order = {v.name: i for i, v in enumerate(v for n in state.model.graph for v in n.outputs)}
        activations = [t.name for t in state.plan.tensors.values() if t.role is Role.ACTIVATION]
        self.names = sorted(activations, key=lambda name: order.get(name, -1))

    def plan(self, chosen: Mapping[str, str]) -> CompressionPlan:
        """Return the plan in which every activation has the grid of its chosen method."""
        planned = {name: self._grid(name, method) for name, method in chosen.items()}
        planned.update(shared_grids(self._state.model, self._state.plan.nodes, planned))
        return self._state.plan.with_tensors(*planned.values())

    def _grid(self, name: str, method: str) -> TensorPlan:
        if (name, method) not in self._made:
            tensor = self._state.plan.tensors[name]
            first, last = tensor.spec.code_range if tensor.spec is not None else (0, 255)
            transfer = silu if name in self._transfers else None
            low, high = RANGE_METHODS[method](self._state.statistics[name], last - first + 1, transfer)
            limits = self._limits.get(name)
            self._made[name, method] = gridded(tensor, low, high, limits, f"{method} range", self._decided_by)
        return self._made[name, method]


def _search(grids: _Grids, state: State, context: Context) -> tuple[dict[str, str], list[Metric]]:
    """Return the method of every activation by coordinate descent over stretches of the network."""
    trial = context.trial
    if trial is None:
        return dict.fromkeys(grids.names, "mse"), []

    def level(chosen: Mapping[str, str]) -> float:
        return trial(replace(state, plan=grids.plan(chosen), facts=state.facts | {Fact.RANGES}))

    whole = {m: level(dict.fromkeys(grids.names, m)) for m in SEARCHED}
    best = max(SEARCHED, key=lambda m: whole[m])
    metrics = [Metric(f"trial {m}", value, "dB") for m, value in whole.items()]
    chosen, reached = dict.fromkeys(grids.names, best), whole[best]
    others = sorted((m for m in SEARCHED if m != best), key=lambda m: -whole[m])[:RUNNERS_UP]
    count = min(max(STRETCHES * TYPICAL_NODES // len(state.plan.nodes), 1), STRETCHES, len(grids.names))
    stretches = np.array_split(np.asarray(grids.names, dtype=object), count)
    for number, stretch in enumerate(stretches):
        context.progress("searching ranges", number, len(stretches))
        for method in others:
            candidate = {**chosen, **dict.fromkeys(stretch, method)}
            found = level(candidate)
            if found > reached + MIN_GAIN_DB:
                chosen, reached = candidate, found
    return chosen, [*metrics, Metric("trial of the mixture", reached, "dB")]


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


def silu_values(model: ir.Model) -> frozenset[str]:
    """Return the values that are read by nothing but ``x * sigmoid(x)``."""
    found = set()
    for node in model.graph:
        value = node.inputs[0] if node.op_type == "Sigmoid" else None
        gate = node.outputs[0]
        if value is None or value.is_graph_output() or gate.is_graph_output() or len(gate.uses()) != 1:
            continue
        product = next(iter(gate.uses())).node
        if product.op_type == "Mul" and {u.node for u in value.uses()} == {node, product}:
            found.add(value.name or "")
    return frozenset(found)


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
