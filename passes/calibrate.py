"""calibrate: turn observed statistics into one grid per activation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.activation_grids import activation_limits, gridded, shared_grids
from qcompiler.errors import UsageError
from qcompiler.plan import CompressionPlan, Precision, Role, TensorPlan
from qcompiler.protocols import PassKind, PassResult
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
