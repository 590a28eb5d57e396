"""The gate: load what was written, run it, compare it, count what runs in integers, measure size and time.

Cheap checks come first, latency last. Everything runs in a child process: a runtime that crashes is a finding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.data import Dataset
from qcompiler.gate.floors import MAX_LATENCY_RATIO, FloorInputs, check_floors
from qcompiler.gate.metrics import compare_metric
from qcompiler.protocols import Target
from qcompiler.recipe import Floors
from qcompiler.records import IntegerShare, LayerTime, MetricComparison, OutputComparison, Verdict
from qcompiler.runtime.available import runtime_of
from qcompiler.runtime.capture import does_not_run
from qcompiler.runtime.emulation.board import boards_for
from qcompiler.runtime.emulation.build import Emulator
from qcompiler.runtime.emulation.check import EmulationInputs, verify_emulated
from qcompiler.runtime.gate_process import (
    GateFindings,
    GateJob,
    latency_comparison,
    output_comparison,
    run_gate,
    write_samples,
)
from qcompiler.runtime.layer_share import layer_share
from qcompiler.runtime.machine import architecture
from qcompiler.runtime.optimized import integer_share, node_times
from qcompiler.runtime.storage import stored_bytes

LATENCY_SECONDS = 0.8
LATENCY_RETRIES = 2
HOPELESS = 1.3
"""A ratio this far above the limit is no accident of one process."""
COMPANION_SAMPLES = 8
LARGER = 1.1
NAMED_NODES = 3
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
        metric = None
        if not findings.failure:
            saved = folder / "outputs.npz"
            metric = compare_metric(inputs.metric, findings.outputs, inputs.classes, inputs.labels, saved)
        companions = {} if findings.failure else _companions(inputs, files, result, folder, count)
    verdict = _verdict(inputs, files, findings, share, outputs, metric)
    model_bytes = sum(size for name, size in files.items() if name.startswith("model.onnx"))
    if not verdict.failure:  # a file that no runtime loads may be no model at all
        verdict = replace(verdict, stored_bytes=stored_bytes(result, model_bytes))
    wrong = [f"{name} {problem}" for name, problem in companions.items() if problem]
    agree = tuple(_larger(files)) + tuple(
        f"{name} loads and gives the same outputs as {result.name}" for name, p in companions.items() if not p
    )
    verdict = replace(verdict, notes=(*verdict.notes, *agree), failure=verdict.failure or "; ".join(wrong))
    return GateResult(verdict=verdict, layer_times=node_times(findings.nodes, inputs.float_model, inputs.planned_model))


def on_boards(gate: GateResult, inputs: GateInputs, result: Path, emulator: Emulator) -> GateResult:
    """Return what the gate found with what emulated boards found added to it.

    Nothing is added where the target is no board, or where the result has failed already.

    Raises:
        RuntimeUnavailable: the original does not run on a board, or the emulation fails by itself.
    """
    if gate.verdict.failure or not boards_for(inputs.target.full_name):
        return gate
    job = EmulationInputs(
        target=inputs.target.full_name,
        original=inputs.original,
        result=result,
        float_model=inputs.float_model,
        planned_model=inputs.planned_model,
        samples=inputs.samples,
    )
    return replace(gate, verdict=verify_emulated(gate.verdict, job, emulator))


def _run_together(
    inputs: GateInputs, result: Path, folder: Path, count: int
) -> tuple[GateFindings, IntegerShare | None, tuple[OutputComparison, ...]]:
    stages = ("loads", "compare", "latency", "profile") if inputs.target.executes_here else ("loads", "compare")
    foreign = inputs.target.runtime_name != "onnxruntime"
    job = GateJob(
        original=inputs.original,
        result=result,
        samples=folder,
        count=count,
        threads=inputs.threads,
        stages=stages,
        latency_seconds=LATENCY_SECONDS,
        optimized=None if foreign else folder / "optimized.onnx",
        save_outputs=folder / "outputs.npz" if ":" in inputs.metric else None,
        runtime=inputs.target.runtime_name,
    )
    findings = _timed_again(run_gate(job, folder), job, inputs, folder)
    return _checked(findings), _share(findings, job.optimized, inputs.planned_model), _outputs(inputs, findings)


def _share(findings: GateFindings, optimized: Path | None, planned: ir.Model) -> IntegerShare | None:
    """Return what runs in integers by the graph that really runs; None where the runtime did not tell."""
    if findings.layers:
        return layer_share(findings.layers, planned)
    return integer_share(optimized, planned) if optimized is not None and optimized.exists() else None


def _companions(inputs: GateInputs, files: Mapping[str, int], result: Path, folder: Path, count: int) -> dict[str, str]:
    """Return file name -> problem ("" if there is none) of every runnable file beside the model."""
    found: dict[str, str] = {}
    for name in (n for n in files if n.endswith((".ort", "_ctx.onnx"))):
        job = GateJob(
            original=result,
            result=result.with_name(name),
            samples=folder,
            count=min(count, COMPANION_SAMPLES),
            threads=inputs.threads,
            stages=("compare",),
            runtime=inputs.target.runtime_name,
            reference=inputs.target.runtime_name,
        )
        findings = _checked(run_gate(job, folder))
        levels = [output_comparison(o, classes=False).sqnr_db for o in findings.outputs]
        worst = min((v for v in levels if v is not None), default=None)
        found[name] = findings.failure and f"does not run: {findings.failure}"
        if not found[name] and worst is not None and worst < COMPANION_DB:
            found[name] = f"differs from {result.name}: {worst:.1f} dB, at least {COMPANION_DB:.0f} dB expected"
    return found


def _larger(files: Mapping[str, int]) -> list[str]:
    """Return a note for every companion whose conversion lost what the model saved."""
    model = sum(size for name, size in files.items() if name.startswith("model.onnx"))
    return [
        f"{name} has {size:,} bytes, model.onnx {model:,} ({size / max(model, 1):.1f} times): the runtime's converter "
        "decodes weights that the model leaves for session load"
        for name, size in files.items()
        if name.endswith(".ort") and size > LARGER * model
    ]


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
            stages=("loads", "outputs"),
            runtime=inputs.target.runtime_name if kind == "result" else "onnxruntime",
        )
        found.append(run_gate(job, folder))
        if found[-1].failure:
            why = f"the {kind} does not run: {found[-1].failure}"
            return replace(found[-1], failure=why), None, ()
    comparisons: dict[str, Comparison] = {}
    for index in range(count):
        with (
            np.load(folder / f"original-{index:05d}.npz") as a,
            np.load(folder / f"result-{index:05d}.npz") as b,
        ):
            for name in a.files:
                comparisons.setdefault(name, Comparison(name)).add(a[name], b[name])
    merged = GateFindings(
        outputs=tuple(c.result() for c in comparisons.values()),
        memory={**found[0].memory, **found[1].memory},
        title=found[1].title,
        seconds={**found[0].seconds, **found[1].seconds},
        loads={**found[0].loads, **found[1].loads},
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
    latency = None
    if findings.blocks:
        latency = latency_comparison(findings.blocks, warmup=findings.warmup, threads=inputs.threads)
    elsewhere = "" if inputs.target.executes_here else f", not executed on {_hardware(inputs.target)}"
    verdict = Verdict(
        loaded=findings.loaded,
        data="held-out samples" if inputs.real else "synthetic inputs",
        samples=len(inputs.samples),
        outputs=outputs,
        metric=metric,
        integer=share,
        file_bytes={"original": inputs.original_bytes, **files},
        latency=latency,
        latency_unavailable="" if latency is not None else _why_no_latency(inputs, findings),
        memory_bytes=findings.memory,
        loads=findings.loads,
        executed_on=f"{findings.title} on {architecture()}{elsewhere}",
        notes=_notes(inputs, share),
        failure=findings.failure or _left_packed(share),
    )
    return replace(verdict, floors=check_floors(_conditions(inputs, files), verdict))


def _left_packed(share: IntegerShare | None) -> str:
    """Return what is wrong where the runtime would unpack weights at every run, "" where it does so once."""
    if share is None or not share.unfolded:
        return ""
    nodes = ", ".join(share.unfolded[:NAMED_NODES])
    return f"the runtime unpacks weights at every run: {len(share.unfolded)} nodes are left in its graph ({nodes})"


def _hardware(target: Target) -> str:
    return runtime_of(target).stands_for or target.name


def _why_no_latency(inputs: GateInputs, findings: GateFindings) -> str:
    if not inputs.target.executes_here:
        return f"this machine ({architecture()}) is not {inputs.target.full_name}"
    return findings.failure or findings.untimed or "original and result are too large to run side by side"


def _conditions(inputs: GateInputs, files: Mapping[str, int]) -> FloorInputs:
    return FloorInputs(
        asked=inputs.floors,
        real=inputs.real,
        require_data=inputs.require_data,
        unchanged=inputs.unchanged,
        executes_here=inputs.target.executes_here,
        original_bytes=inputs.original_bytes,
        model_bytes=sum(size for name, size in files.items() if name.startswith("model.onnx")),
    )


def _notes(inputs: GateInputs, share: IntegerShare | None) -> tuple[str, ...]:
    found = []
    if not inputs.real:
        found.append("accuracy not verified: no data was given, outputs were compared on synthetic inputs")
    if not inputs.target.executes_here:
        found.append(f"verified on {architecture()}, not executed on {_hardware(inputs.target).upper()}")
    if share is None:
        found.append("the runtime's optimized graph was not read: the model is too large to write it out")
    return tuple(found)
