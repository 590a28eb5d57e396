"""The gate: load what was written, run it, compare it, count what runs in integers, measure size and time.

Cheap checks come first, latency last. Everything runs in a child process: a runtime that crashes is a finding.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.data import Dataset
from qcompiler.errors import UsageError
from qcompiler.protocols import Target
from qcompiler.recipe import Floors
from qcompiler.records import Floor, IntegerShare, LayerTime, MetricComparison, OutputComparison, Verdict
from qcompiler.runtime.capture import does_not_run
from qcompiler.runtime.gate_process import (
    GateFindings,
    GateJob,
    latency_comparison,
    output_comparison,
    run_gate,
    write_samples,
)
from qcompiler.runtime.machine import architecture
from qcompiler.runtime.optimized import integer_share, node_times

MIN_SQNR_DB = 15.0
MIN_AGREEMENT = 0.90
MIN_SYNTHETIC_SQNR_DB = 3.0
"""Made-up inputs excite a network in ways that data never does: only a broken result falls below this."""
MAX_DROP_POINTS = 1.0
MAX_DROP_SAMPLES = 2
"""Default floors; why these, is in docs/decisions/0006."""
MAX_LATENCY_RATIO = 1.02
LATENCY_SECONDS = 0.8
LATENCY_RETRIES = 2
HOPELESS = 1.3
"""A ratio this far above the limit is no accident of one process."""
SMALLER = "file smaller than the original"
COMPANION_SAMPLES = 8
COMPANION_DB = 60.0
"""The same integers give the same outputs; float parts may be fused in another order."""
TOGETHER_BELOW_BYTES = 1 << 30
"""Above this the original and the result run one after the other."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GateInputs:
    """What the gate needs to know.

    Attributes:
        original: the file the user gave.
        original_bytes: its size with external data.
        float_model: the normalized float model.
        planned_model: the rewritten float model that was lowered; node names in the result are its.
        samples: verification samples, or synthetic inputs.
        real: the samples are the user's, and calibration never saw them.
        labels: int64, one per verification row; None without labels.
        metric: "auto", "top1", "sqnr", "cosine" or ``module:function``.
        classes: names of outputs that hold class scores.
        floors: as asked.
        threads: threads of both sessions.
        require_data: accuracy that was not verified on real samples is a missed floor.
        unchanged: the result is the original, so it need not be smaller.
    """

    original: Path
    original_bytes: int
    float_model: ir.Model
    planned_model: ir.Model
    samples: Dataset
    real: bool
    labels: NDArray[np.int64] | None
    metric: str
    classes: frozenset[str]
    floors: Floors
    threads: int
    target: Target
    require_data: bool = False
    unchanged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """The verdict, and where the time goes by original node (empty where latency was not measured)."""

    verdict: Verdict
    layer_times: tuple[LayerTime, ...] = ()


def verify(inputs: GateInputs, files: Mapping[str, int], result: Path) -> GateResult:
    """Return the verdict on a written model.

    Args:
        inputs: what to compare with.
        files: name -> bytes of every file that belongs to the result.
        result: the written ``model.onnx``.
    """
    together = inputs.original_bytes < TOGETHER_BELOW_BYTES
    with tempfile.TemporaryDirectory(prefix="qcompile-gate-") as name:
        folder = Path(name)
        count = write_samples(inputs.samples, folder)
        if together:
            findings, share, outputs = _run_together(inputs, result, folder, count)
        else:
            findings, share, outputs = _run_in_turn(inputs, result, folder, count)
        if findings.culprit == "original":
            raise does_not_run(inputs.samples.source, findings.sample or 0, findings.failure)
        metric = None if findings.failure else _metric(inputs, findings, folder / "outputs.npz")
        companions = {} if findings.failure else _companions(inputs, files, result, folder, count)
    verdict = _verdict(inputs, files, findings, share, outputs, metric)
    wrong = [f"{name} {problem}" for name, problem in companions.items() if problem]
    agree = tuple(f"{name} loads and gives the same outputs as {result.name}" for name, p in companions.items() if not p)
    verdict = replace(verdict, notes=(*verdict.notes, *agree), failure=verdict.failure or "; ".join(wrong))
    return GateResult(verdict=verdict, layer_times=node_times(findings.nodes, inputs.float_model, inputs.planned_model))


def _run_together(
    inputs: GateInputs, result: Path, folder: Path, count: int
) -> tuple[GateFindings, IntegerShare | None, tuple[OutputComparison, ...]]:
    stages = ("compare", "latency", "profile") if inputs.target.executes_here else ("compare",)
    job = GateJob(
        original=inputs.original,
        result=result,
        samples=folder,
        count=count,
        threads=inputs.threads,
        stages=stages,
        latency_seconds=LATENCY_SECONDS,
        optimized=folder / "optimized.onnx",
        save_outputs=folder / "outputs.npz" if ":" in inputs.metric else None,
    )
    findings = _timed_again(run_gate(job, folder), job, inputs, folder)
    optimized = folder / "optimized.onnx"
    share = integer_share(optimized, inputs.planned_model) if optimized.exists() else None
    return _checked(findings), share, _outputs(inputs, findings)


def _companions(
    inputs: GateInputs, files: Mapping[str, int], result: Path, folder: Path, count: int
) -> dict[str, str]:
    """Return file name -> problem ("" if there is none) of every runnable file beside the model."""
    found: dict[str, str] = {}
    for name in (n for n in files if n.endswith(".ort")):
        job = GateJob(
            original=result,
            result=result.with_name(name),
            samples=folder,
            count=min(count, COMPANION_SAMPLES),
            threads=inputs.threads,
            stages=("compare",),
        )
        findings = _checked(run_gate(job, folder))
        levels = [output_comparison(o, classes=False).sqnr_db for o in findings.outputs]
        worst = min((v for v in levels if v is not None), default=None)
        found[name] = findings.failure and f"does not run: {findings.failure}"
        if not found[name] and worst is not None and worst < COMPANION_DB:
            found[name] = f"differs from {result.name}: {worst:.1f} dB, at least {COMPANION_DB:.0f} dB expected"
    return found


def _timed_again(findings: GateFindings, job: GateJob, inputs: GateInputs, folder: Path) -> GateFindings:
    """Return findings whose latency was measured again in new processes where it was above the limit.

    Where memory lands and which state the processor is in differ between processes by more than the limit
    allows; the fastest run that each model was seen to reach is what counts.
    """
    limit = inputs.floors.max_latency_ratio or MAX_LATENCY_RATIO
    for _ in range(LATENCY_RETRIES):
        if findings.failure or not findings.blocks:
            return findings
        found = latency_comparison(findings.blocks, warmup=findings.warmup, threads=inputs.threads)
        if found.ratio_min <= limit or found.ratio_min > limit * HOPELESS:
            return findings
        again = run_gate(replace(job, stages=("latency",)), folder)
        findings = replace(findings, blocks=(*findings.blocks, *again.blocks))
    return findings


def _run_in_turn(
    inputs: GateInputs, result: Path, folder: Path, count: int
) -> tuple[GateFindings, IntegerShare | None, tuple[OutputComparison, ...]]:
    """Run original and result one after the other, and compare the outputs they left on disk."""
    from qcompiler.runtime._gate_child import Comparison

    found: list[GateFindings] = []
    for kind, model in (("original", inputs.original), ("result", result)):
        job = GateJob(
            original=model if kind == "original" else None,
            result=model if kind == "result" else None,
            samples=folder,
            count=count,
            threads=inputs.threads,
            stages=("outputs",),
        )
        found.append(run_gate(job, folder))
        if found[-1].failure:
            why = f"the {kind} does not run: {found[-1].failure}"
            return replace(found[-1], failure=why), None, ()
    comparisons: dict[str, Comparison] = {}
    for index in range(count):
        with np.load(folder / f"original-{index:05d}.npz") as a, np.load(folder / f"result-{index:05d}.npz") as b:
            for name in a.files:
                comparisons.setdefault(name, Comparison(name)).add(a[name], b[name])
    merged = GateFindings(
        outputs=tuple(c.result() for c in comparisons.values()),
        memory={**found[0].memory, **found[1].memory},
        seconds={**found[0].seconds, **found[1].seconds},
        loaded=True,
    )
    return _checked(merged), None, _outputs(inputs, merged)


def _outputs(inputs: GateInputs, findings: GateFindings) -> tuple[OutputComparison, ...]:
    return tuple(output_comparison(o, classes=o["name"] in inputs.classes) for o in findings.outputs)


def _checked(findings: GateFindings) -> GateFindings:
    """Return findings in which a broken output is a failure."""
    for output in findings.outputs:
        if output["problem"] and not findings.failure:
            return replace(findings, failure=f"output '{output['name']}': {output['problem']}")
    return findings


def _verdict(
    inputs: GateInputs,
    files: Mapping[str, int],
    findings: GateFindings,
    share: IntegerShare | None,
    outputs: tuple[OutputComparison, ...],
    metric: MetricComparison | None,
) -> Verdict:
    here = inputs.target.executes_here
    latency = None
    if findings.blocks:
        latency = latency_comparison(findings.blocks, warmup=findings.warmup, threads=inputs.threads)
    unavailable = ""
    if not here:
        unavailable = f"this machine ({architecture()}) is not {inputs.target.full_name}; latency was not measured"
    elif latency is None:
        unavailable = findings.failure or "original and result are too large to run side by side"
    model_bytes = sum(size for name, size in files.items() if name.startswith("model.onnx"))
    verdict = Verdict(
        loaded=findings.loaded,
        data="held-out samples" if inputs.real else "synthetic inputs",
        samples=len(inputs.samples),
        outputs=outputs,
        metric=metric,
        integer=share,
        file_bytes={"original": inputs.original_bytes, **files},
        latency=latency,
        latency_unavailable=unavailable,
        memory_bytes=findings.memory,
        executed_on=f"ONNX Runtime on {architecture()}" + ("" if here else f", not executed on {inputs.target.name}"),
        notes=_notes(inputs, share),
        failure=findings.failure,
    )
    return replace(verdict, floors=_floors(inputs, verdict, model_bytes))


def _notes(inputs: GateInputs, share: IntegerShare | None) -> tuple[str, ...]:
    found = []
    if not inputs.real:
        found.append("accuracy not verified: no data was given, outputs were compared on synthetic inputs")
    if not inputs.target.executes_here:
        found.append(f"verified on {architecture()}, not executed on {inputs.target.name.upper()}")
    if share is None:
        found.append("the runtime's optimized graph was not read: the model is too large to write it out")
    return tuple(found)


# -- metric ----------------------------------------------------------------------------------------


def _metric(inputs: GateInputs, findings: GateFindings, saved: Path) -> MetricComparison | None:
    if ":" in inputs.metric:
        return _user_metric(inputs, saved)
    if inputs.metric == "cosine":
        worst = min((output_comparison(o, classes=False).cosine for o in findings.outputs), default=1.0)
        return MetricComparison(name="cosine", original=1.0, result=worst, samples=len(inputs.samples))
    if inputs.labels is None or inputs.metric not in ("auto", "top1"):
        return None
    for output in findings.outputs:
        expected, answered = (np.asarray(a) for a in output["answers"])
        truth = inputs.labels.reshape(-1)
        if output["name"] in inputs.classes and expected.shape == truth.shape:
            right, kept = expected == truth, answered == truth
            return MetricComparison(
                name="top1",
                original=100.0 * float(right.mean()),
                result=100.0 * float(kept.mean()),
                samples=int(truth.size),
                lost=int((right & ~kept).sum()),
                gained=int((~right & kept).sum()),
            )
    if inputs.metric == "top1":
        raise UsageError("metric top1 needs an output of class scores, shape (batch, classes); this model has none")
    return None


def _user_metric(inputs: GateInputs, saved: Path) -> MetricComparison:
    function = load_metric(inputs.metric)
    values = []
    with np.load(saved, allow_pickle=False) as archive:
        for kind in ("original", "result"):
            outputs: dict[str, list[NDArray[Any]]] = {}
            for key in sorted(k for k in archive.files if k.startswith(kind)):
                outputs.setdefault(key.split("/", 2)[2], []).append(archive[key])
            values.append(float(function(outputs, inputs.labels)))
    return MetricComparison(name=inputs.metric, original=values[0], result=values[1], samples=len(inputs.samples))


def load_metric(spec: str) -> Callable[[dict[str, list[NDArray[Any]]], NDArray[np.int64] | None], float]:
    """Return the function behind ``module:function``; larger values of it are better.

    It is called with {output name: list of arrays, one per sample} and the labels (or None).

    Raises:
        UsageError: it cannot be imported or called.
    """
    module, _, name = spec.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"metric {spec!r} cannot be imported ({error}); give module:function") from error
    if not callable(function):
        raise UsageError(f"metric {spec!r} is no function")
    return cast("Callable[[dict[str, list[NDArray[Any]]], NDArray[np.int64] | None], float]", function)


# -- floors ------------------------------------------------------------------------------------------


def _floors(inputs: GateInputs, verdict: Verdict, model_bytes: int) -> tuple[Floor, ...]:
    asked = inputs.floors
    found: list[Floor] = []
    if asked.max_size_bytes is not None:
        found.append(_at_most("file size", asked.max_size_bytes, model_bytes, "bytes", user=True))
    if not inputs.unchanged:
        found.append(_at_most(SMALLER, inputs.original_bytes - 1, model_bytes, "bytes", user=False))
    if inputs.require_data:
        found.append(_at_least("accuracy verified on real samples", 1, float(inputs.real), "share", user=True))
    if not verdict.failure and verdict.loaded:
        found += _quality_floors(inputs, verdict)
    ratio = verdict.latency.ratio_min if verdict.latency is not None else None
    limit = asked.max_latency_ratio
    if limit is not None or inputs.target.executes_here:
        wanted = MAX_LATENCY_RATIO if limit is None else limit
        floor = _at_most("latency ratio", wanted, ratio, "of the original", user=limit is not None)
        found.append(replace(floor, detail=verdict.latency_unavailable))
    return tuple(found)


def _quality_floors(inputs: GateInputs, verdict: Verdict) -> list[Floor]:
    asked, found = inputs.floors, []
    metric = verdict.metric
    if metric is not None:
        points = max(MAX_DROP_POINTS, 100.0 * MAX_DROP_SAMPLES / max(metric.samples, 1))
        if metric.name == "top1" or asked.max_drop is not None:
            limit = points if asked.max_drop is None else asked.max_drop
            unit = "points" if metric.name == "top1" else metric.name
            drop = metric.original - metric.result
            found.append(_at_most(f"loss of {metric.name}", limit, drop, unit, user=asked.max_drop is not None))
    for output in verdict.outputs:
        scores = output.agreement is not None and inputs.real
        if scores and (metric is None or asked.min_agreement is not None):
            limit = MIN_AGREEMENT if asked.min_agreement is None else asked.min_agreement
            name = f"agreement of '{output.name}'"
            found.append(_at_least(name, limit, output.agreement, "share", user=asked.min_agreement is not None))
        level = output.sqnr_db if output.sqnr_db is not None else np.inf
        if asked.min_sqnr_db is not None or (metric is None and not scores):
            default = MIN_SQNR_DB if inputs.real else MIN_SYNTHETIC_SQNR_DB
            limit = default if asked.min_sqnr_db is None else asked.min_sqnr_db
            name = f"SQNR of '{output.name}'"
            found.append(_at_least(name, limit, level, "dB", user=asked.min_sqnr_db is not None))
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
