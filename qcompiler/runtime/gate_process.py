"""Starting the gate's child process, and reading what it found as typed records."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.data import Dataset
from qcompiler.model.child import start_child, stop_child
from qcompiler.model.probe import shorten
from qcompiler.quant.grid import power_ratio_db
from qcompiler.records import LatencyComparison, LatencyProfile, OutputComparison, SessionLoad
from qcompiler.runtime.machine import machine_name

_CHILD = Path(__file__).with_name("_gate_child.py")
TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GateJob:
    """What the child is to run.

    Attributes:
        original / result: model files; None leaves one out.
        samples: folder of samples written by ``write_samples``.
        count: number of samples.
        stages: of "loads", "compare", "outputs", "latency" and "profile", in this order.
        latency_seconds: time for the latency stage.
        optimized: where to save the graph that really runs.
        save_outputs: file for the outputs of both models, for a user's metric.
        profile_runs: runs of the profile stage.
        runtime: where the result runs, and both models for latency.
        reference: where the original runs that the result is compared with.
    """

    original: Path | None
    result: Path | None
    samples: Path
    count: int
    threads: int
    stages: tuple[str, ...]
    latency_seconds: float = 1.0
    optimized: Path | None = None
    save_outputs: Path | None = None
    profile_runs: int = 10
    runtime: str = "onnxruntime"
    reference: str = "onnxruntime"


@dataclass(frozen=True, slots=True)
class ProfiledNode:
    """One node of the runtime's graph: microseconds of its fastest run and of the faster half on average.

    ``elements`` counts the elements of its first output.
    """

    name: str
    op_type: str
    min_us: float
    typical_us: float
    elements: int


@dataclass(frozen=True, slots=True)
class RunTimes:
    """Microseconds of whole runs without the profiler: the fastest, the median, and the fixed part of any run."""

    min_us: float
    median_us: float
    fixed_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFindings:
    """What the child found.

    Attributes:
        title: the runtime, with its version where that is not in the report anyway.
        untimed: why the original cannot be timed in the target's runtime.
        failure: "" if it got to the end.
        culprit: the model that failed, "original" or "result"; "" where it was neither, or is not known.
        sample: the sample that it failed on; None if it did not load.
    """

    outputs: tuple[dict[str, Any], ...] = ()
    blocks: tuple[Any, ...] = ()
    warmup: int = 0
    memory: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    loads: dict[str, SessionLoad] = field(default_factory=dict)
    nodes: dict[str, list[ProfiledNode]] = field(default_factory=dict)
    """"original" and "result" -> every node of the runtime's graph."""
    runs: dict[str, RunTimes] = field(default_factory=dict)
    """"original" and "result" -> what a run takes without the profiler, where nodes were profiled."""
    layers: tuple[tuple[tuple[str, ...], str, bool], ...] = ()
    """Names, operator and whether it runs in integers, of every node of a runtime that is not ONNX Runtime."""
    title: str = "ONNX Runtime"
    untimed: str = ""
    loaded: bool = False
    failure: str = ""
    culprit: str = ""
    sample: int | None = None


def write_samples(samples: Dataset, folder: Path) -> int:
    """Write samples where the child reads them, one file each, and return how many."""
    for index in range(len(samples)):
        feeds = {k: v.astype(str) if v.dtype == object else v for k, v in samples[index].items()}
        np.savez(folder / f"{index:05d}.npz", **feeds)  # type: ignore[arg-type]
    return len(samples)


def run_gate(job: GateJob, folder: Path) -> GateFindings:
    """Run a job in a child process and return what it found, a crash included.

    Args:
        job: what to run.
        folder: for the job file.
    """
    document = {
        "original": str(job.original) if job.original else None,
        "result": str(job.result) if job.result else None,
        "samples": str(job.samples),
        "count": job.count,
        "threads": job.threads,
        "stages": list(job.stages),
        "latency_seconds": job.latency_seconds,
        "optimized": str(job.optimized) if job.optimized else None,
        "profile_runs": job.profile_runs,
        "save_outputs": str(job.save_outputs) if job.save_outputs else None,
        "runtime": job.runtime,
        "reference": job.reference,
    }
    path = folder / "job.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    child = start_child(_CHILD, str(path))
    try:
        output, _ = child.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return GateFindings(failure=f"the model did not finish within {TIMEOUT_S:.0f} s")
    finally:
        stop_child(child)
    return _read(output, child.returncode or 0)


def _read(text: str, code: int) -> GateFindings:
    stages: dict[str, dict[str, Any]] = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "stage" in entry:  # a custom operator may print, too
            stages[entry["stage"]] = entry
    failure, failed = "", stages.get("failed", {})
    if failed:
        failure = shorten(str(failed["reason"]))
    elif code < 0:
        failure = f"the runtime crashed with signal {-code}"
    elif code:
        failure = f"the runtime ended with exit code {code}"
    load = stages.get("load", {})
    return GateFindings(
        outputs=tuple(stages.get("compare", {}).get("outputs", ())),
        blocks=tuple(stages.get("latency", {}).get("blocks", ())),
        warmup=int(stages.get("latency", {}).get("warmup", 0)),
        memory={k: int(v) for k, v in load.get("memory", {}).items()},
        seconds={k: float(v) for k, v in load.get("seconds", {}).items()},
        loads={
            k: SessionLoad(ms=float(v["seconds"]) * 1e3, peak_bytes=int(v["peak"]))
            for k, v in stages.get("loads", {}).items()
            if k != "stage"
        },
        nodes={k: [ProfiledNode(*row) for row in v] for k, v in stages.get("profile", {}).get("nodes", {}).items()},
        runs={k: RunTimes(*row) for k, row in stages.get("profile", {}).get("runs", {}).items()},
        layers=tuple((tuple(n), op, bool(i)) for n, op, i in stages.get("layers", {}).get("layers", ())),
        title=str(stages.get("layers", {}).get("title", "ONNX Runtime")),
        untimed=shorten(str(stages.get("untimed", {}).get("reason", ""))),
        loaded=bool(load),
        failure=failure,
        culprit=str(failed.get("culprit", "")),
        sample=failed.get("sample"),
    )


def output_comparison(found: dict[str, Any], *, classes: bool) -> OutputComparison:
    """Return one output's comparison from the child's sums.

    Args:
        found: what the child reported of the output.
        classes: the output holds class scores, so that the argmax means something.
    """
    expected, answered = found["answers"]
    agreement = float(np.mean(np.equal(expected, answered))) if classes and expected else None
    norm = float(np.sqrt(found["signal"] * found["own"]))
    different = not found["same"] and found["signal"] == 0.0 and found["error"] == 0.0
    return OutputComparison(
        name=found["name"],
        samples=int(found["samples"]),
        sqnr_db=-200.0 if different else power_ratio_db(found["signal"], found["error"]),
        cosine=float(found["dot"] / norm) if norm > 0 else float(found["same"]),
        max_abs=float(found["max_abs"]),
        agreement=agreement,
    )


def latency_comparison(blocks: Sequence[Any], *, warmup: int, threads: int) -> LatencyComparison:
    """Return the latency of the original and the result from interleaved blocks of run times in ms."""
    first, second = ([t for block in blocks for t in block[which]] for which in (0, 1))
    ratios = sorted(min(block[1]) / min(block[0]) for block in blocks)
    low, high = np.quantile(ratios, [0.1, 0.9])
    return LatencyComparison(
        original=latency_profile(first, warmup=warmup, threads=threads),
        result=latency_profile(second, warmup=warmup, threads=threads),
        ratio_min=min(second) / min(first),
        ratio_median=float(np.median(second) / np.median(first)),
        spread=float(high - low) / 2.0,
    )


def latency_profile(times_ms: Sequence[float], *, warmup: int, threads: int) -> LatencyProfile:
    """Return the profile of measured run times in ms."""
    return LatencyProfile(
        min_ms=min(times_ms),
        median_ms=float(np.median(times_ms)),
        p90_ms=float(np.quantile(times_ms, 0.9)),
        runs=len(times_ms),
        warmup=warmup,
        threads=threads,
        machine=machine_name(),
    )
