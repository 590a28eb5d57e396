"""Measuring a model, or two side by side, on this machine."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from qcompiler.data import Dataset, Subset, input_specs, open_dataset, synthetic_inputs
from qcompiler.errors import ModelError, UsageError
from qcompiler.model.read import read_source, to_ir
from qcompiler.recipe import ImagePreprocessing
from qcompiler.records import LatencyComparison, LatencyProfile
from qcompiler.runtime.gate_process import (
    GateFindings,
    GateJob,
    latency_comparison,
    latency_profile,
    run_gate,
    write_samples,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """How to measure.

    Attributes:
        data: samples as ``open_dataset`` takes them, the first is run; None generates one.
        threads: threads of the session.
        seconds: time to spend on the measurement.
        seed: of the generated sample.
    """

    data: str | None = None
    threads: int = 1
    seconds: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.threads < 1 or not 0 < self.seconds <= 3600:
            raise UsageError(
                f"threads is {self.threads}, seconds {self.seconds}; give 1 or more, and up to 3600 seconds"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileResult:
    """What was measured.

    Attributes:
        model / other: the model files; ``other`` is None if one model was measured.
        source: where the sample comes from.
        profile: latency of ``model``.
        comparison: ``model`` as the result against ``other`` as the original; None without ``other``.
    """

    model: Path
    other: Path | None
    source: str
    profile: LatencyProfile
    comparison: LatencyComparison | None = None


def profile_model(model: Path, other: Path | None = None, options: ProfileOptions | None = None) -> ProfileResult:
    """Measure a model in a process of its own; with ``other``, both in turns, so that both see the same load.

    Args:
        model: a model file, or a result folder.
        other: what to compare with, the same inputs; a model file or a result folder.
        options: how to measure.

    Raises:
        ModelError: a model cannot be read or does not run.
        DataError: the data does not fit the model.
    """
    options = options or ProfileOptions()
    model = _model_file(model)
    other = None if other is None else _model_file(other)
    sample = _one_sample(model, options)
    with tempfile.TemporaryDirectory(prefix="qcompile-profile-") as name:
        folder = Path(name)
        job = GateJob(
            original=other,
            result=model,
            samples=folder,
            count=write_samples(sample, folder),
            threads=options.threads,
            stages=("latency",),
            latency_seconds=options.seconds,
        )
        findings = run_gate(job, folder)
    if findings.failure:
        which = f"{model} or {other}" if other else str(model)
        raise ModelError(f"{which} does not run: {findings.failure.rstrip('.')}; check the file and the data")
    return _result(model, other, sample.source, findings, options.threads)


def _result(model: Path, other: Path | None, source: str, findings: GateFindings, threads: int) -> ProfileResult:
    warmup = findings.warmup
    if other is None:
        times = [time for block in findings.blocks for time in block[0]]
        profile = latency_profile(times, warmup=warmup, threads=threads)
        return ProfileResult(model=model, other=None, source=source, profile=profile)
    comparison = latency_comparison(findings.blocks, warmup=warmup, threads=threads)
    return ProfileResult(model=model, other=other, source=source, profile=comparison.result, comparison=comparison)


def _model_file(path: Path) -> Path:
    """Return the model of a result folder, or the file itself."""
    if not path.is_dir():
        return path
    if not (path / "model.onnx").is_file():
        raise ModelError(f"{path} holds no model.onnx; give a model file or a folder that qcompile wrote")
    return path / "model.onnx"


def _one_sample(model: Path, options: ProfileOptions) -> Dataset:
    specs = input_specs(to_ir(read_source(model)))
    if options.data is None:
        return synthetic_inputs(specs, 1, options.seed)
    return Subset(open_dataset(options.data, specs, ImagePreprocessing()), (0,))
