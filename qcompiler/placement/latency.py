"""The meter of a target that executes here: a split is judged by its latency on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.lowering import aligned_channels
from qcompiler.model.save import save_model
from qcompiler.placement.cut import FLOAT, INTEGER, BoundaryCost, node_signature
from qcompiler.placement.meter import Measured
from qcompiler.placement.node_times import by_node, calibrated, completed, crossing_cost
from qcompiler.records import Metric
from qcompiler.runtime.gate_process import GateFindings, GateJob, RunTimes, run_gate
from qcompiler.runtime.latency_db import Conditions, LatencyDatabase, NodeLatency
from qcompiler.runtime.machine import machine_name
from qcompiler.runtime.sessions import runtime_version
from qcompiler.state import Context, State

PROFILE_RUNS = 30
LATENCY_SECONDS = 1.0
FEW_PROCESSES, MANY_PROCESSES = 2, 5
CLEARLY_SLOWER = 1.05
"""A ratio above this is not measured a second time."""
MIN_WIN = 0.01
"""A split must be faster than the all-integer one by this share: ratios of minima repeat to half of it."""
BOUNDARY_FACTORS = (1.0, 0.5, 2.0, 4.0)
"""The profile sees no cache misses, so that boundaries of other costs are tried as well."""
BOUNDARY_KEY = ("boundary", "conversion")
FIXED_KEY = ("run", "fixed")
SIDES = {"original": FLOAT, "result": INTEGER}


@dataclass(frozen=True, slots=True)
class LatencyMeter:
    """Latency on this machine, on which the target of the compilation must execute."""

    context: Context
    name: ClassVar[str] = "measured-placement"
    quantity: ClassVar[str] = "latency"
    unit: ClassVar[str] = "us"
    min_win: ClassVar[float] = MIN_WIN
    boundary_factors: ClassVar[tuple[float, ...]] = BOUNDARY_FACTORS
    aligns: ClassVar[bool] = True

    def measure(self, state: State, integer: Path, folder: Path) -> Measured:
        """Return the latency of every node on both sides, from the database or from a profile."""
        database, conditions = LatencyDatabase(), _conditions(self.context)
        signatures = {n.name or "": _signature(n, state) for n in state.model.graph}
        wanted = [(s, side) for s in signatures.values() for side in (INTEGER, FLOAT)]
        known = database.read([*wanted, BOUNDARY_KEY, FIXED_KEY], conditions)
        if all(key in known for key in (*wanted, BOUNDARY_KEY, FIXED_KEY)):
            costs = {(n, side): known[s, side] for n, s in signatures.items() for side in (INTEGER, FLOAT)}
            boundary = BoundaryCost(per_element=known[BOUNDARY_KEY].typical_us, least=known[BOUNDARY_KEY].min_us)
            return _measured(costs, boundary, known[FIXED_KEY].typical_us, reused=len(signatures))
        original = folder / "float.onnx"
        save_model(state.model, original)
        found = _run("profile", original, integer, folder, self.context)
        profiles = {kind: calibrated(nodes, found.runs[kind]) for kind, nodes in found.nodes.items()}
        costs = {}
        for kind, side in SIDES.items():
            times = completed(by_node(profiles.get(kind, []), state.model), signatures)
            costs |= {(name, side): latency for name, latency in times.items()}
        boundary = crossing_cost(profiles.values())
        fixed = min((run.fixed_us for run in found.runs.values()), default=0.0)
        kept = {(signatures[n], side): value for (n, side), value in costs.items()}
        kept[BOUNDARY_KEY] = NodeLatency(boundary.least, boundary.per_element)
        kept[FIXED_KEY] = NodeLatency(fixed, fixed)
        if len(profiles) == len(SIDES):
            database.write(kept, conditions)
        runs = {side: found.runs[kind] for kind, side in SIDES.items() if kind in found.runs}
        return _measured(costs, boundary, fixed, runs=runs)

    def ratio(self, integer: Path, split: Path, folder: Path) -> tuple[float, float]:
        """Return the latency of a split over that of the all-integer model, and in microseconds.

        Every process gives the ratio of the fastest runs, interleaved: what else the machine does only makes runs
        slower. Where a process happens to put its tensors in memory makes a difference of its own, so there are
        several, and the ratio is a cautious one, see ``cautious_ratio``. What was measured of two files is kept, so
        that the same question gets the same answer.
        """
        database, conditions = LatencyDatabase(), _conditions(self.context)
        key = (_digest(integer, split), "ratio")
        known = database.read([key], conditions).get(key)
        if known is not None:
            return known.typical_us, known.min_us
        ratios: list[float] = []
        reached_us = float("inf")
        while not _is_clear(ratios):
            findings = _run("latency", integer, split, folder, self.context)
            if findings.failure or not findings.blocks:
                return float("inf"), 0.0
            first, second = (min(t for block in findings.blocks for t in block[which]) for which in (0, 1))
            ratios.append(second / first)
            reached_us = min(reached_us, second * 1e3)
        ratio = cautious_ratio(ratios)
        database.write({key: NodeLatency(reached_us, ratio)}, conditions)
        return ratio, reached_us


def _measured(
    costs: Mapping[tuple[str, str], NodeLatency],
    boundary: BoundaryCost,
    fixed: float,
    *,
    reused: int = 0,
    runs: Mapping[str, RunTimes] = MappingProxyType({}),
) -> Measured:
    """Return typical latencies as costs; ``runs`` are those of the whole model on each side, without the profiler."""
    metrics = [Metric("latencies reused from the database", float(reused), "nodes, latency")]
    for side, run in runs.items():
        metrics.append(Metric(f"measured latency in {side}, fastest run", run.min_us, "us"))
        metrics.append(Metric(f"measured latency in {side}, median run", run.median_us, "us"))
    typical = {key: latency.typical_us for key, latency in costs.items()}
    return Measured(costs=typical, boundary=boundary, fixed=fixed, reused=reused, metrics=tuple(metrics))


def _conditions(context: Context) -> Conditions:
    return Conditions(context.recipe.threads, runtime_version(), machine_name())


def _signature(node: ir.Node, state: State) -> str:
    channels = aligned_channels(state.plan, node.name or "")
    return node_signature(node) + (f" reads {channels} channels" if channels else "")


def _run(stage: str, first: Path, second: Path, folder: Path, context: Context) -> GateFindings:
    """Return what the gate's child finds out about two models in alternating runs."""
    job = GateJob(
        original=first,
        result=second,
        samples=folder,
        count=1,
        threads=context.recipe.threads,
        stages=(stage,),
        latency_seconds=LATENCY_SECONDS,
        profile_runs=PROFILE_RUNS,
    )
    return run_gate(job, folder)


def _is_clear(ratios: Sequence[float]) -> bool:
    """Return True if enough processes were heard: few where all agree by some margin, more where it is close."""
    if len(ratios) < FEW_PROCESSES:
        return bool(ratios) and ratios[0] > CLEARLY_SLOWER
    limit = 1.0 - MIN_WIN
    return max(ratios) < limit - MIN_WIN or min(ratios) > limit + MIN_WIN or len(ratios) >= MANY_PROCESSES


def cautious_ratio(ratios: Sequence[float]) -> float:
    """Return the upper quartile of the ratios that several processes measured; of two the larger one.

    A split is kept by this figure, so that noise rather loses a small gain than keeps a loss.
    """
    return float(np.quantile(ratios, 0.75, method="higher"))


def _digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()[:32]
