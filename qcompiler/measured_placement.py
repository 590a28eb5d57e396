"""-O2: measure every node in float and in integers, cut where that is predicted to be fastest, keep what wins."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompiler.data import Dataset, Subset
from qcompiler.lowering import alignable, aligned_channels, with_aligned_channels, without_idle_channels
from qcompiler.min_cut import FLOAT, INTEGER, BoundaryCost, Cut, Splitter, node_signature
from qcompiler.model.save import save_model
from qcompiler.node_costs import by_node, calibrated, completed, crossing_cost
from qcompiler.records import Metric, PassReport
from qcompiler.repair import pinned_to_integers, reverted
from qcompiler.runtime.gate_process import GateFindings, GateJob, RunTimes, run_gate, write_samples
from qcompiler.runtime.latency_db import Conditions, LatencyDatabase, NodeLatency
from qcompiler.runtime.machine import machine_name
from qcompiler.runtime.sessions import runtime_version
from qcompiler.state import Context, State

NAME = "measured-placement"
PROFILE_RUNS = 30
LATENCY_SECONDS = 1.0
FEW_PROCESSES, MANY_PROCESSES = 2, 5
CLEARLY_SLOWER = 1.05
"""A ratio above this is not measured a second time."""
MIN_WIN = 0.01
"""A split must be faster than the all-integer one by this share: ratios of minima repeat to half of it."""
MAX_LOSS_DB = 0.1
"""A faster split may cost this much quality: fewer rounded values rarely make an answer worse, but they can."""
BOUNDARY_FACTORS = (1.0, 0.5, 2.0, 4.0)
BOUNDARY_KEY = ("boundary", "conversion")
FIXED_KEY = ("run", "fixed")
SIDES = {"original": FLOAT, "result": INTEGER}

Costs = dict[tuple[str, str], NodeLatency]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """Node latencies by (node name, side), and the cost of a boundary."""

    costs: Costs
    boundary: BoundaryCost
    reused: int
    fixed_us: float = 0.0
    """What a run takes beside its nodes."""
    runs: Mapping[str, RunTimes] = field(default_factory=dict)
    """Side -> whole runs of the model without the profiler; empty where all nodes were known."""


def place_by_measurement(
    state: State, context: Context, samples: Dataset, lower: Callable[[State], ir.Model]
) -> tuple[State, PassReport]:
    """Return the state with the fastest split between integers and float that was found, and what was measured.

    Args:
        state: a completely planned state.
        context: of the compilation; its target must execute on this machine.
        samples: the first sample is what is timed.
        lower: writes a planned state into a graph.
    """
    with tempfile.TemporaryDirectory(prefix="qcompile-place-") as name:
        folder = Path(name)
        write_samples(Subset(samples, (0,)), folder)
        base, integer, metrics = _aligned(state, context, folder, lower)
        measured = _measure(base, context, folder, integer)
        cuts = _candidates(base, measured, pinned_to_integers(base.model, context.recipe.rules))
        metrics += _predictions(cuts[0], measured)
        best, best_ratio, kept = base, 1.0 - MIN_WIN, None
        for number, cut in enumerate(c for c in cuts if c.to_float):
            context.progress("measuring splits", number, len(cuts))
            split = reverted(base, context, frozenset(cut.to_float), NAME)
            split = replace(split, plan=without_idle_channels(split.plan))
            written = _saved(lower(split), folder / f"split{number}.onnx")
            ratio, reached_us = _ratio(integer, written, folder, context)
            metrics += _outcome(number + 1, cut, ratio, reached_us, measured.fixed_us)
            if ratio < best_ratio and _keeps_quality(split, base, context):
                best, best_ratio, kept = split, ratio, (number + 1, cut)
    if kept is None:
        note = "no split is predicted to be faster" if not any(c.to_float for c in cuts) else "no split was faster"
        report = _report(metrics, f"{note}; everything that can stays in integers")
    else:
        metrics += _savings(*kept, best_ratio)
        count = sum(NAME in n.decided_by for n in best.plan.nodes.values())
        report = _report(metrics, f"{count} nodes stay in float")
    return best, replace(report, changed=best is not state)


def _keeps_quality(split: State, base: State, context: Context) -> bool:
    """Return True if a split answers as well as all integers do on the acceptance samples, where there are any."""
    trial = context.trial
    return trial is None or trial(split) >= trial(base) - MAX_LOSS_DB


def _aligned(
    state: State, context: Context, folder: Path, lower: Callable[[State], ir.Model]
) -> tuple[State, Path, list[Metric]]:
    """Return the state whose convolutions read channels by fours, if that is faster, with its file."""
    plain = _saved(lower(state), folder / "integer.onnx")
    names = alignable(state.model, state.plan)
    if not names:
        return state, plain, []
    context.progress("measuring aligned channels", 0, 1)
    plan = state.plan
    for name, channels in names.items():
        plan = with_aligned_channels(plan, name, channels)
    aligned = replace(state, plan=plan)
    written = _saved(lower(aligned), folder / "aligned.onnx")
    ratio, _ = _ratio(plain, written, folder, context)
    metrics = [Metric("measured latency ratio with aligned channels", ratio, "of all integers, latency")]
    return (aligned, written, metrics) if ratio < 1.0 - MIN_WIN else (state, plain, metrics)


def _candidates(state: State, measured: Measured, pinned: frozenset[str] = frozenset()) -> list[Cut]:
    """Return the cuts for boundaries of the measured cost and of others: the profile sees no cache misses."""
    found: list[Cut] = []
    for factor in BOUNDARY_FACTORS:
        boundary = replace(measured.boundary, per_element_us=measured.boundary.per_element_us * factor)
        to_float = Splitter(state, measured.costs, boundary, pinned).cut().to_float
        if to_float not in [c.to_float for c in found]:
            found.append(Splitter(state, measured.costs, measured.boundary, pinned).of(to_float))
    return found


def _report(metrics: list[Metric], note: str) -> PassReport:
    return PassReport(name=NAME, changed=False, metrics=tuple(metrics), notes=(note,))


def _predictions(cut: Cut, measured: Measured) -> list[Metric]:
    found = [
        Metric("predicted latency of the split", cut.predicted_us + measured.fixed_us, "us"),
        Metric("predicted latency in integers", cut.all_integer_us + measured.fixed_us, "us"),
        Metric("predicted latency in float", cut.all_float_us + measured.fixed_us, "us"),
        Metric("latencies reused from the database", float(measured.reused), "nodes, latency"),
    ]
    for side, run in measured.runs.items():
        found.append(Metric(f"measured latency in {side}, fastest run", run.min_us, "us"))
        found.append(Metric(f"measured latency in {side}, median run", run.median_us, "us"))
    return found


def _saved(model: ir.Model, path: Path) -> Path:
    save_model(model, path)
    return path


def _measure(state: State, context: Context, folder: Path, integer: Path) -> Measured:
    """Return the latency of every movable node on both sides, from the database or from a profile."""
    database, conditions = LatencyDatabase(), _conditions(context)
    signatures = {n.name or "": _signature(n, state) for n in state.model.graph}
    wanted = [(s, side) for s in signatures.values() for side in (INTEGER, FLOAT)]
    known = database.read([*wanted, BOUNDARY_KEY, FIXED_KEY], conditions)
    if all(key in known for key in (*wanted, BOUNDARY_KEY, FIXED_KEY)):
        costs = {(n, side): known[s, side] for n, s in signatures.items() for side in (INTEGER, FLOAT)}
        least, rate = known[BOUNDARY_KEY].min_us, known[BOUNDARY_KEY].typical_us
        boundary = BoundaryCost(per_element_us=rate, least_us=least)
        fixed = known[FIXED_KEY].typical_us
        return Measured(costs=costs, boundary=boundary, reused=len(signatures), fixed_us=fixed)
    original = _saved(state.model, folder / "float.onnx")
    found = _run("profile", original, integer, folder, context)
    profiles = {kind: calibrated(nodes, found.runs[kind]) for kind, nodes in found.nodes.items()}
    costs = {}
    for kind, side in SIDES.items():
        times = completed(by_node(profiles.get(kind, []), state.model), signatures)
        costs |= {(name, side): latency for name, latency in times.items()}
    boundary = crossing_cost(profiles.values())
    fixed = min((run.fixed_us for run in found.runs.values()), default=0.0)
    kept = {(signatures[n], side): value for (n, side), value in costs.items()}
    kept[BOUNDARY_KEY] = NodeLatency(boundary.least_us, boundary.per_element_us)
    kept[FIXED_KEY] = NodeLatency(fixed, fixed)
    if len(profiles) == len(SIDES):
        database.write(kept, conditions)
    runs = {side: found.runs[kind] for kind, side in SIDES.items() if kind in found.runs}
    return Measured(costs=costs, boundary=boundary, reused=0, fixed_us=fixed, runs=runs)


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


def _ratio(integer: Path, split: Path, folder: Path, context: Context) -> tuple[float, float]:
    """Return the latency of a split over that of the all-integer model, and in microseconds.

    Every process gives the ratio of the fastest runs, interleaved: what else the machine does only makes runs
    slower. Where a process happens to put its tensors in memory makes a difference of its own, so there are
    several, and the ratio is a cautious one, see ``cautious_ratio``. What was measured of two files is kept, so
    that the same question gets the same answer.
    """
    database, conditions = LatencyDatabase(), _conditions(context)
    key = (_digest(integer, split), "ratio")
    known = database.read([key], conditions).get(key)
    if known is not None:
        return known.typical_us, known.min_us
    ratios: list[float] = []
    reached_us = float("inf")
    while not _is_clear(ratios):
        findings = _run("latency", integer, split, folder, context)
        if findings.failure or not findings.blocks:
            return float("inf"), 0.0
        first, second = (min(t for block in findings.blocks for t in block[which]) for which in (0, 1))
        ratios.append(second / first)
        reached_us = min(reached_us, second * 1e3)
    ratio = cautious_ratio(ratios)
    database.write({key: NodeLatency(reached_us, ratio)}, conditions)
    return ratio, reached_us


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


def _outcome(number: int, cut: Cut, ratio: float, reached_us: float, fixed_us: float) -> list[Metric]:
    """Return what was measured of a split, and how far the prediction was off."""
    found = [Metric(f"measured latency ratio of split {number}", ratio, "of all integers, latency")]
    if reached_us > 0:
        predicted = cut.predicted_us + fixed_us
        off = 100.0 * (predicted / reached_us - 1.0)
        found.append(Metric(f"predicted latency of split {number}", predicted, "us"))
        found.append(Metric(f"measured latency of split {number}", reached_us, "us"))
        found.append(Metric(f"predicted latency of split {number} is off by", off, "%"))
    return found


def _savings(number: int, cut: Cut, ratio: float) -> list[Metric]:
    """Return what the split that is kept saves, of the all-integer latency: predicted and measured."""
    predicted = 100.0 * (1.0 - cut.predicted_us / cut.all_integer_us) if cut.all_integer_us > 0 else 0.0
    return [
        Metric("kept split, by latency", float(number), ""),
        Metric("predicted latency saved by the split", predicted, "%"),
        Metric("measured latency saved by the split", 100.0 * (1.0 - ratio), "%"),
    ]
