"""The floors of the gate: their defaults, and which of them a verdict holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qcompiler.recipe import Floors
from qcompiler.records import Floor, MetricComparison, OutputComparison, Verdict

MIN_SQNR_DB = 15.0
MIN_SYNTHETIC_SQNR_DB = 3.0
"""Made-up inputs excite a network in ways that data never does: only a broken result falls below this."""
MIN_AGREEMENT = 0.90
MAX_DROP_POINTS = 1.0
MAX_DROP_SAMPLES = 2
"""Default floors; why these, is in docs/decisions/0006."""
MAX_LATENCY_RATIO = 1.02
SMALLER = "file smaller than the original"
LATENCY = "latency ratio"


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorInputs:
    """What decides which floors there are.

    Attributes:
        asked: the limits the user gave.
        real: the samples are the user's, and calibration never saw them.
        require_data: accuracy that was not verified on real samples is a missed floor.
        unchanged: the result is the original, so it need not be smaller.
        executes_here: this machine is the target, so that latency counts.
        original_bytes / model_bytes: file sizes with external data.
    """

    asked: Floors
    real: bool
    require_data: bool
    unchanged: bool
    executes_here: bool
    original_bytes: int
    model_bytes: int


def check_floors(inputs: FloorInputs, verdict: Verdict) -> tuple[Floor, ...]:
    """Return every floor that applies, with what was reached."""
    asked = inputs.asked
    found: list[Floor] = []
    if asked.max_size_bytes is not None:
        found.append(_at_most("file size", asked.max_size_bytes, inputs.model_bytes, "bytes", user=True))
    if not inputs.unchanged:
        found.append(_at_most(SMALLER, inputs.original_bytes - 1, inputs.model_bytes, "bytes", user=False))
    if inputs.require_data:
        found.append(_at_least("accuracy verified on real samples", 1, float(inputs.real), "share", user=True))
    if not verdict.failure and verdict.loaded:
        found += _quality_floors(inputs, verdict)
    ratio = verdict.latency.ratio_min if verdict.latency is not None else None
    limit = asked.max_latency_ratio
    if limit is not None or inputs.executes_here:
        wanted = MAX_LATENCY_RATIO if limit is None else limit
        floor = _at_most(LATENCY, wanted, ratio, "of the original", user=limit is not None)
        found.append(replace(floor, detail=verdict.latency_unavailable))
    return tuple(found)


def _quality_floors(inputs: FloorInputs, verdict: Verdict) -> list[Floor]:
    found = _metric_floors(inputs.asked, verdict.metric)
    scored = verdict.metric is not None and verdict.metric.name == "top1"
    for output in verdict.outputs:
        found += _output_floors(inputs, output, scored=scored)
    if inputs.asked.min_agreement is not None and all(o.agreement is None for o in verdict.outputs):
        floor = _at_least("agreement", inputs.asked.min_agreement, None, "share", user=True)
        found.append(replace(floor, detail="no output holds class scores"))
    return found


def _metric_floors(asked: Floors, metric: MetricComparison | None) -> list[Floor]:
    """Return the floor on the loss of the metric: asked for, or the default where the metric is top-1."""
    if metric is None:
        if asked.max_drop is None:
            return []
        floor = _at_most("loss of the metric", asked.max_drop, None, "points", user=True)
        return [replace(floor, detail="there is no metric: give --labels or --metric")]
    if metric.name != "top1" and asked.max_drop is None:
        return []
    points = max(MAX_DROP_POINTS, 100.0 * MAX_DROP_SAMPLES / max(metric.samples, 1))
    limit = points if asked.max_drop is None else asked.max_drop
    unit = "points" if metric.name == "top1" else ""
    drop = metric.original - metric.result
    return [_at_most(f"loss of {metric.name}", limit, drop, unit, user=asked.max_drop is not None)]


def _output_floors(inputs: FloorInputs, output: OutputComparison, *, scored: bool) -> list[Floor]:
    """Return the floors on one output: agreement for class scores, SQNR for everything else.

    Args:
        inputs: what decides which floors there are.
        output: the comparison.
        scored: labels judge the class scores, so that their agreement need not.
    """
    asked, found = inputs.asked, []
    classes = output.agreement is not None and inputs.real
    if output.agreement is not None and (asked.min_agreement is not None or (classes and not scored)):
        limit = MIN_AGREEMENT if asked.min_agreement is None else asked.min_agreement
        user = asked.min_agreement is not None
        found.append(_at_least(f"agreement of '{output.name}'", limit, output.agreement, "share", user=user))
    if asked.min_sqnr_db is not None or not classes:
        default = MIN_SQNR_DB if inputs.real else MIN_SYNTHETIC_SQNR_DB
        limit = default if asked.min_sqnr_db is None else asked.min_sqnr_db
        level = np.inf if output.sqnr_db is None else output.sqnr_db
        user = asked.min_sqnr_db is not None
        found.append(_at_least(f"SQNR of '{output.name}'", limit, level, "dB", user=user))
    return found


def _at_most(name: str, limit: float, reached: float | None, unit: str, *, user: bool) -> Floor:
    held = None if reached is None else bool(reached <= limit)
    return Floor(
        name=name,
        limit=float(limit),
        unit=unit,
        direction="at most",
        asked_by="user" if user else "default",
        reached=None if reached is None else float(reached),
        held=held,
    )


def _at_least(name: str, limit: float, reached: float | None, unit: str, *, user: bool) -> Floor:
    floor = _at_most(name, limit, reached, unit, user=user)
    return replace(floor, direction="at least", held=None if reached is None else bool(reached >= limit))
