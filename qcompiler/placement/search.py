"""The search for a split: measure nodes on both sides, cut where that is predicted to cost least, keep what wins."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from qcompiler.data import Dataset, Subset
from qcompiler.lowering import alignable, with_aligned_channels, without_idle_channels
from qcompiler.model.save import save_model
from qcompiler.placement.cut import Cut, Splitter
from qcompiler.placement.meter import Measured, Meter
from qcompiler.records import Metric, PassReport
from qcompiler.repair.regions import pinned_to_integers, reverted
from qcompiler.runtime.gate_process import write_samples
from qcompiler.state import Context, State

MAX_LOSS_DB = 0.1
"""A cheaper split may cost this much quality: fewer rounded values rarely make an answer worse, but they can."""
HOPELESS = 1.2
"""A split predicted at more than so many times the all-integer model is not tried: predictions are closer."""


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
        trials = _Trials(context, lower, meter, folder)
        base, integer, metrics = _aligned(state, trials)
        measured = meter.measure(base, integer, folder)
        cuts = _candidates(base, measured, meter, pinned_to_integers(base.model, context.recipe.rules))
        metrics += _predictions(cuts[0], measured, meter)
        best, best_ratio, kept = base, 1.0 - meter.min_win, None
        for number, cut in enumerate(c for c in cuts if c.to_float):
            context.progress("measuring splits", number, len(cuts))
            split = reverted(base, context, frozenset(cut.to_float), meter.name)
            split = replace(split, plan=without_idle_channels(split.plan))
            ratio, reached = meter.ratio(integer, trials.write(split, f"split{number}.onnx"), folder)
            metrics += _outcome(number + 1, measured.fixed + cut.predicted, (ratio, reached), meter)
            if ratio < best_ratio and _keeps_quality(split, base, context):
                best, best_ratio, kept = split, ratio, (number + 1, cut)
    if kept is None:
        note = "no split was cheaper" if any(c.to_float for c in cuts) else "no split is predicted to be cheaper"
        report = _report(metrics, f"{note}, in {meter.quantity}; everything that can stays in integers", meter)
    else:
        metrics += _savings(*kept, best_ratio, meter)
        count = sum(meter.name in n.decided_by for n in best.plan.nodes.values())
        report = _report(metrics, f"{count} nodes stay in float", meter)
    return best, replace(report, changed=best is not state)


@dataclass(frozen=True, slots=True)
class _Trials:
    """Writes candidates into files."""

    context: Context
    lower: Callable[[State], ir.Model]
    meter: Meter
    folder: Path

    def write(self, state: State, name: str) -> Path:
        path = self.folder / name
        save_model(self.lower(state), path)
        return path


def _keeps_quality(split: State, base: State, context: Context) -> bool:
    """Return True if a split answers as well as all integers do on the acceptance samples, where there are any."""
    trial = context.trial
    return trial is None or trial(split) >= trial(base) - MAX_LOSS_DB


def _aligned(state: State, trials: _Trials) -> tuple[State, Path, list[Metric]]:
    """Return the state whose convolutions read channels by fours, if that is cheaper, with its file."""
    meter, plain = trials.meter, trials.write(state, "integer.onnx")
    names = alignable(state.model, state.plan)
    if not names or not meter.aligns:
        return state, plain, []
    trials.context.progress("measuring aligned channels", 0, 1)
    plan = state.plan
    for name, channels in names.items():
        plan = with_aligned_channels(plan, name, channels)
    aligned = replace(state, plan=plan)
    written = trials.write(aligned, "aligned.onnx")
    ratio, _ = meter.ratio(plain, written, trials.folder)
    metrics = [Metric(f"measured {meter.quantity} ratio with aligned channels", ratio, _of_integers(meter))]
    return (aligned, written, metrics) if ratio < 1.0 - meter.min_win else (state, plain, metrics)


def _candidates(state: State, measured: Measured, meter: Meter, pinned: frozenset[str] = frozenset()) -> list[Cut]:
    """Return the different cuts for boundaries of the measured cost and of the multiples that the meter names."""
    found: list[Cut] = []
    as_measured = Splitter(state, measured.costs, measured.boundary, pinned)
    limit = HOPELESS * as_measured.predict(frozenset())
    for factor in meter.boundary_factors:
        boundary = measured.boundary.times(factor)
        cut = as_measured.of(Splitter(state, measured.costs, boundary, pinned).cut().to_float)
        if cut.predicted <= limit and cut.to_float not in [c.to_float for c in found]:
            found.append(cut)
    return found or [as_measured.of(())]


def _report(metrics: list[Metric], note: str, meter: Meter) -> PassReport:
    return PassReport(name=meter.name, changed=False, metrics=tuple(metrics), notes=(note,))


def _predictions(cut: Cut, measured: Measured, meter: Meter) -> list[Metric]:
    return [
        Metric(f"predicted {meter.quantity} of the split", measured.fixed + cut.predicted, meter.unit),
        Metric(f"predicted {meter.quantity} in integers", measured.fixed + cut.all_integer, meter.unit),
        Metric(f"predicted {meter.quantity} in float", measured.fixed + cut.all_float, meter.unit),
        *measured.metrics,
    ]


def _outcome(number: int, predicted: float, outcome: tuple[float, float], meter: Meter) -> list[Metric]:
    """Return what was measured of a split, and how far the prediction was off; nothing if it did not run."""
    ratio, reached = outcome
    if not math.isfinite(ratio):
        return []
    found = [Metric(f"measured {meter.quantity} ratio of split {number}", ratio, _of_integers(meter))]
    if reached > 0:
        off = 100.0 * (predicted / reached - 1.0)
        found.append(Metric(f"predicted {meter.quantity} of split {number}", predicted, meter.unit))
        found.append(Metric(f"measured {meter.quantity} of split {number}", reached, meter.unit))
        found.append(Metric(f"predicted {meter.quantity} of split {number} is off by", off, "%"))
    return found


def _savings(number: int, cut: Cut, ratio: float, meter: Meter) -> list[Metric]:
    """Return what the split that is kept saves, of the all-integer cost: predicted and measured."""
    predicted = 100.0 * (1.0 - cut.predicted / cut.all_integer) if cut.all_integer > 0 else 0.0
    return [
        Metric(f"kept split, by {meter.quantity}", float(number), ""),
        Metric(f"predicted {meter.quantity} saved by the split", predicted, "%"),
        Metric(f"measured {meter.quantity} saved by the split", 100.0 * (1.0 - ratio), "%"),
    ]


def _of_integers(meter: Meter) -> str:
    return f"of all integers, {meter.quantity}"
