"""-O2: measure every node in float and in integers, cut where that is predicted to cost least, keep what wins."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import onnx_ir as ir

from qcompiler.data import Dataset, Subset
from qcompiler.meters import Measured, Meter
from qcompiler.min_cut import (
    CONVERSIONS,
    FLOAT,
    INTEGER,
    LEAST_US,
    BoundaryCost,
    Cut,
    Splitter,
    boundary_cost,
    node_signature,
)
from qcompiler.model.save import save_model
from qcompiler.records import Metric, PassReport
from qcompiler.repair import reverted
from qcompiler.runtime.gate_process import (
    GateFindings,
    GateJob,
    ProfiledNode,
    latency_comparison,
    run_gate,
    write_samples,
)
from qcompiler.runtime.latency_db import Conditions, LatencyDatabase, NodeLatency
from qcompiler.runtime.machine import machine_name
from qcompiler.runtime.optimized import Origins
from qcompiler.runtime.sessions import runtime_version
from qcompiler.state import Context, State

NAME = "measured-placement"
PROFILE_RUNS = 30
LATENCY_SECONDS = 2.0
MIN_WIN = 0.01
"""A split must be faster than the all-integer one by this share: ratios of minima repeat to half of it."""
BOUNDARY_FACTORS = (1.0, 3.0)
HOPELESS = 1.2
"""A split predicted at more than so many times the all-integer model is not tried: predictions are closer."""
BOUNDARY_KEY = ("boundary", "conversion")


def place_by_measurement(
    state: State, context: Context, samples: Dataset, lower: Callable[[State], ir.Model], meter: Meter
) -> tuple[State, PassReport]:
    """Return the state with the cheapest split between integers and float that was found, and what was measured.

    Args:
        state: a completely planned state.
        context: of the compilation.
        samples: the first sample is what is run.
        lower: writes a planned state into a graph.
        meter: tells what nodes and whole models cost.
    """
    with tempfile.TemporaryDirectory(prefix="qcompile-place-") as name:
        folder = Path(name)
        write_samples(Subset(samples, (0,)), folder)
        integer = _saved(lower(state), folder / "integer.onnx")
        measured = meter.measure(state, integer, folder)
        cuts = _candidates(state, measured, meter)
        metrics = _predictions(cuts[0], measured, meter)
        best, best_ratio = state, 1.0 - meter.min_win
        for number, cut in enumerate(c for c in cuts if c.to_float):
            context.progress("measuring splits", number, len(cuts))
            split = reverted(state, context, frozenset(cut.to_float), meter.name)
            written = _saved(lower(split), folder / f"split{number}.onnx")
            ratio, reached = meter.ratio(integer, written, folder)
            metrics += _outcome(number + 1, measured.fixed + cut.predicted, (ratio, reached), meter)
            if ratio < best_ratio:
                best, best_ratio = split, ratio
    if best is state:
        note = "no split was cheaper" if any(c.to_float for c in cuts) else "no split is predicted to be cheaper"
        return state, _report(metrics, f"{note}, in {meter.quantity}; everything that can stays in integers", meter)
    count = sum(meter.name in n.decided_by for n in best.plan.nodes.values())
    return best, replace(_report(metrics, f"{count} nodes stay in float", meter), changed=True)


def _candidates(state: State, measured: Measured, meter: Meter) -> list[Cut]:
    """Return the different cuts for boundaries of the measured cost and of the multiples that the meter names."""
    found: list[Cut] = []
    as_measured = Splitter(state, measured.costs, measured.boundary)
    limit = HOPELESS * as_measured.predict(frozenset())
    for factor in meter.boundary_factors:
        cut = Splitter(state, measured.costs, measured.boundary.times(factor)).cut()
        hopeless = as_measured.predict(frozenset(cut.to_float)) > limit
        if not hopeless and cut.to_float not in [c.to_float for c in found]:
            found.append(cut)
    return found


def _report(metrics: list[Metric], note: str, meter: Meter) -> PassReport:
    return PassReport(name=meter.name, changed=False, metrics=tuple(metrics), notes=(note,))


def _predictions(cut: Cut, measured: Measured, meter: Meter) -> list[Metric]:
    return [
        Metric(f"predicted {meter.quantity} of the split", measured.fixed + cut.predicted, meter.unit),
        Metric(f"predicted {meter.quantity} in integers", measured.fixed + cut.all_integer, meter.unit),
        Metric(f"predicted {meter.quantity} in float", measured.fixed + cut.all_float, meter.unit),
        *measured.metrics,
    ]


def _saved(model: ir.Model, path: Path) -> Path:
    save_model(model, path)
    return path


def _measure(state: State, context: Context, folder: Path, integer: Path) -> Measured:
    """Return the latency of every movable node on both sides, from the database or from a profile."""
    database = LatencyDatabase()
    conditions = Conditions(context.recipe.threads, runtime_version(), machine_name())
    signatures = {n.name or "": node_signature(n) for n in state.model.graph}
    wanted = [(s, side) for s in signatures.values() for side in (INTEGER, FLOAT)]
    known = database.read([*wanted, BOUNDARY_KEY], conditions)
    if BOUNDARY_KEY in known and all(key in known for key in wanted):
        costs = {(n, side): known[s, side] for n, s in signatures.items() for side in (INTEGER, FLOAT)}
        boundary = BoundaryCost(per_element=known[BOUNDARY_KEY].typical_us, least=LEAST_US)
        return _measured(costs, boundary, reused=len(signatures))
    original = _saved(state.model, folder / "float.onnx")
    profiles = _profile(original, integer, folder, context)
    costs = {}
    for kind, side in (("original", FLOAT), ("result", INTEGER)):
        costs |= {(name, side): latency for name, latency in _by_node(profiles[kind], state.model).items()}
        for name in signatures:
            costs.setdefault((name, side), NodeLatency(0.0, 0.0))
    rows = [(n.op_type, n.typical_us, n.elements) for nodes in profiles.values() for n in nodes]
    boundary = boundary_cost(rows)
    kept = {(signatures[n], side): value for (n, side), value in costs.items()}
    kept[BOUNDARY_KEY] = NodeLatency(boundary.per_element, boundary.per_element)
    database.write(kept, conditions)
    totals = {side: sum(n.typical_us for n in profiles[k]) for k, side in (("original", FLOAT), ("result", INTEGER))}
    return _measured(costs, boundary, totals=totals)


def _measured(
    costs: Mapping[tuple[str, str], NodeLatency],
    boundary: BoundaryCost,
    *,
    reused: int = 0,
    totals: Mapping[str, float] = MappingProxyType({}),
) -> Measured:
    """Return typical latencies as costs; ``totals`` has the profiled time of the whole model on each side."""
    metrics = [Metric("latencies reused from the database", float(reused), "nodes, latency")]
    metrics += [Metric(f"profiled latency in {side}", total, "us") for side, total in totals.items()]
    typical = {key: latency.typical_us for key, latency in costs.items()}
    return Measured(costs=typical, boundary=boundary, reused=reused, metrics=tuple(metrics))


def _profile(original: Path, integer: Path, folder: Path, context: Context) -> dict[str, list[ProfiledNode]]:
    found = _run("profile", original, integer, folder, context).nodes
    return {"original": found.get("original", []), "result": found.get("result", [])}


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


def _by_node(profiled: list[ProfiledNode], model: ir.Model) -> dict[str, NodeLatency]:
    """Return node name -> latency, with what the runtime runs for one node added up.

    Conversions are left out: where they stand depends on the split, and the boundary pays for them.
    """
    origins = Origins(model)
    found: dict[str, NodeLatency] = {}
    for entry in profiled:
        node = origins.find(entry.name)
        if node is None or (entry.op_type in CONVERSIONS and node.op_type != entry.op_type):
            continue
        name = node.name or ""
        before = found.get(name, NodeLatency(0.0, 0.0))
        found[name] = NodeLatency(before.min_us + entry.min_us, before.typical_us + entry.typical_us)
    return found


def _ratio(integer: Path, split: Path, folder: Path, context: Context) -> tuple[float, float]:
    """Return the latency of a split over that of the all-integer model, interleaved, and in microseconds."""
    findings = _run("latency", integer, split, folder, context)
    if findings.failure or not findings.blocks:
        return float("inf"), 0.0
    found = latency_comparison(findings.blocks, warmup=findings.warmup, threads=context.recipe.threads)
    return found.ratio_min, found.result.min_ms * 1e3


def _outcome(number: int, predicted: float, outcome: tuple[float, float], meter: Meter) -> list[Metric]:
    """Return what was measured of a split, and how far the prediction was off; nothing if it did not run."""
    ratio, reached = outcome
    if not math.isfinite(ratio):
        return []
    found = [Metric(f"measured {meter.quantity} ratio of split {number}", ratio, f"of all integers, {meter.quantity}")]
    if reached > 0:
        off = 100.0 * (predicted / reached - 1.0)
        found.append(Metric(f"measured {meter.quantity} of split {number}", reached, meter.unit))
        found.append(Metric(f"predicted {meter.quantity} of split {number} is off by", off, "%"))
    return found


@dataclass(frozen=True, slots=True)
class LatencyMeter:
    """Latency on this machine, on which the target of the compilation must execute."""

    context: Context
    name: ClassVar[str] = NAME
    quantity: ClassVar[str] = "latency"
    unit: ClassVar[str] = "us"
    min_win: ClassVar[float] = MIN_WIN
    boundary_factors: ClassVar[tuple[float, ...]] = BOUNDARY_FACTORS

    def measure(self, state: State, integer: Path, folder: Path) -> Measured:
        """Return the latency of every node on both sides, from the database or from a profile."""
        return _measure(state, self.context, folder, integer)

    def ratio(self, integer: Path, split: Path, folder: Path) -> tuple[float, float]:
        """Return the latency of a split over that of the all-integer model, interleaved, and in microseconds."""
        return _ratio(integer, split, folder, self.context)
