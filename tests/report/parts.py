"""The parts that synthetic reports are built from."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from qcompiler.counts import EmulatedOutput, EmulatedRun, InstructionCounts, NodeInstructions
from qcompiler.plan import CompressionPlan, NodePlan, Precision, QuantSpec, Role, TensorPlan
from qcompiler.records import (
    DataFacts,
    Floor,
    IntegerShare,
    LatencyComparison,
    LatencyProfile,
    LayerReport,
    LayerTime,
    Metric,
    MetricComparison,
    ModelFacts,
    OutputComparison,
    PassReport,
    SessionLoad,
    Skip,
    TensorHistogram,
    Verdict,
)

HOSTILE = "</script><img src=x onerror=alert(1)>"
MACHINE = "x86-64, 2 cores of AMD EPYC 9B14, Linux 6.1"
CAUSES = ("range outlier", "saturation", "per-tensor depthwise", "few samples")
FLOAT_REASONS = (
    "no integer compute follows; float keeps its precision",
    "a constant operand blocks the integer kernel",
)


def layer_names(count: int, *, hostile: bool = False) -> list[str]:
    """Return names as exporters write them; some try to break out of a page."""
    names = ["conv1", "relu1", "pool1"] if count >= 3 else ["conv1"][:count]
    blocks = ("squeeze/1x1", "expand/1x1", "expand/3x3", "concat")
    while len(names) < count:
        block, part = divmod(len(names) - 3, len(blocks))
        names.append(f"/features/fire{block + 2}/{blocks[part]}/Conv")
    if hostile:
        attacks = [
            HOSTILE,
            "[red]bold[/red] | `tick` \x1b[31m",
            "\u2028line\u2029separator\nbreak",
            "\"' onfocus=x <b>&amp;",
        ]
        names[1 : 1 + len(attacks)] = attacks
    return names[:count]


def make_model(nodes: int) -> ModelFacts:
    """Return the facts of a SqueezeNet-like model."""
    return ModelFacts(
        file_name="squeezenet1.1.onnx",
        sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        file_bytes=4_952_222,
        opset=17,
        ir_version=8,
        producer="pytorch 2.1.0",
        nodes=nodes,
        parameters=1_235_496,
        inputs=(("data", "float32", ("N", "3", "224", "224")),),
        outputs=(("logits", "float32", ("N", "1000")),),
        notes=("converted from opset 7 to 17",),
    )


def make_data(*, hostile: bool = False) -> DataFacts:
    """Return a split of 4000 samples."""
    return DataFacts(
        source=HOSTILE if hostile else "imagenet.npz",
        fingerprint="b5bb9d8014a0f9b1",
        samples=4000,
        calibration=tuple(range(0, 96)),
        acceptance=tuple(range(100, 132)),
        verification=tuple(range(200, 328)),
        labels="labels.npy",
        preprocessing="shorter side to 256, center crop 224x224, RGB, NCHW, mean 0.485 0.456 0.406",
    )


def op_type(index: int, name: str) -> str:
    """Return the operator of a layer."""
    for word, kind in (("relu", "Relu"), ("pool", "MaxPool"), ("concat", "Concat")):
        if word in name:
            return kind
    return "Softmax" if index % 23 == 22 else "Conv"


def is_float(index: int, names: list[str]) -> bool:
    """Return True for the layers that the synthetic plan leaves in float."""
    return len(names) > 3 and (index == len(names) - 1 or index % 11 == 10)


def make_plan(names: list[str], target: str) -> CompressionPlan:
    """Return a plan with 8-bit weights per channel, 8-bit activations and some layers in float."""
    weight, activation = QuantSpec(signed=True, symmetric=True, axis=0), QuantSpec()
    nodes, tensors = [], []
    for i, name in enumerate(names):
        kind, left = op_type(i, name), is_float(i, names)
        precision = Precision.FLOAT if left else Precision.MOVE if kind == "MaxPool" else Precision.INTEGER
        reason = FLOAT_REASONS[i % 2] if left else "integer kernel of the target"
        nodes.append(NodePlan(name=name, op_type=kind, precision=precision, reason=reason, decided_by=("place",)))
        if left:
            continue
        by = ("place", "calibrate")
        tensors.append(
            TensorPlan(name=f"{name}_out", role=Role.ACTIVATION, spec=activation, clip=(0.0, 6.0), decided_by=by)
        )
        if kind == "Conv":
            scale, by = np.full(64, 0.01, np.float32), ("place", "scale-weights")
            tensors.append(TensorPlan(name=f"{name}_w", role=Role.WEIGHT, spec=weight, scale=scale, decided_by=by))
            bias = np.zeros(64, np.float32)
            tensors.append(TensorPlan(name=f"{name}_b", role=Role.BIAS, correction=bias, decided_by=("correct-bias",)))
    return CompressionPlan(target=target).with_nodes(*nodes).with_tensors(*tensors)


def make_layer(index: int, name: str, names: list[str]) -> LayerReport:
    """Return what the report says about one layer."""
    random_ = random.Random(index)
    kind, left = op_type(index, name), is_float(index, names)
    before = random_.randrange(2_000, 300_000) if kind == "Conv" else 0
    sqnr = 46 - 16 * index / len(names) + random_.uniform(-4, 4)
    precision = "float" if left else "move" if kind == "MaxPool" else "integer"
    return LayerReport(
        name=name,
        op_type=kind,
        output=f"{name}_out",
        precision=precision,
        runs_integer=not left,
        decided_by=("place", "calibrate") if not left else ("place",),
        reason=FLOAT_REASONS[index % 2] if left else "integer kernel of the target",
        bytes_before=before,
        bytes_after=before if left else int(before / 3.9),
        sqnr_db=None if kind == "Softmax" else sqnr,
        weight_db=random_.uniform(38, 48) if kind == "Conv" and not left else None,
        clip=None if left else (0.0, random_.uniform(3, 40)),
        observed=(0.0, random_.uniform(5, 60)),
        cause=CAUSES[index % 4] if sqnr < 36 else "",
    )


def make_histogram(index: int, name: str) -> TensorHistogram:
    """Return a half-normal histogram with a few outliers."""
    high = 8.0 + index % 5
    counts = [int(60_000 * math.exp(-0.5 * (i / 12) ** 2)) + (3 if i in (50, 61, 63) else 0) for i in range(64)]
    return TensorHistogram(name=name, low=0.0, high=high, counts=tuple(counts), clip=(0.0, high * 0.7))


def make_time(index: int, name: str, names: list[str]) -> LayerTime:
    """Return the time of one layer; fused activations have none of their own."""
    random_ = random.Random(1000 + index)
    kind = op_type(index, name)
    before = random_.uniform(40, 900) if kind == "Conv" else random_.uniform(5, 60)
    after = None if kind == "Relu" else before * (1.0 if is_float(index, names) else random_.uniform(0.35, 0.6))
    return LayerTime(name=name, op_type=kind, before_us=before, after_us=after)


def make_passes(names: list[str], *, hostile: bool = False) -> tuple[PassReport, ...]:
    """Return the reports of the default passes."""
    left = [Skip(name, FLOAT_REASONS[i % 2]) for i, name in enumerate(names) if is_float(i, names)]
    note = HOSTILE if hostile else "2 ranges were widened to hold every value"
    return (
        PassReport(name="fold-batch-norm", changed=False, seconds=0.01),
        PassReport(
            name="equalize-channels",
            changed=True,
            metrics=(Metric("pairs", 9, ""),),
            skipped=(Skip("conv1", "Clip(0, 6) is not positively homogeneous"),),
            seconds=0.22,
        ),
        PassReport(
            name="place",
            changed=True,
            metrics=(Metric("integer", len(names) - len(left), "nodes"),),
            skipped=tuple(left),
            seconds=0.03,
        ),
        PassReport(
            name="calibrate",
            changed=True,
            options={"method": "mse", "bins": 2048, "pairs": [1, 2]},
            metrics=(Metric("ranges", 40, ""), Metric("capture", 812.5, "ms")),
            notes=(note,),
            seconds=1.9,
        ),
        PassReport(
            name="scale-weights",
            changed=True,
            options={"search": True},
            metrics=(Metric("mean weight error", 43.2, "dB"),),
            seconds=0.4,
        ),
        PassReport(name="correct-bias", changed=True, metrics=(Metric("biases", 26, ""),), seconds=0.2),
        PassReport(name="insert-qdq", changed=True, metrics=(Metric("nodes added", 93, ""),), seconds=0.05),
    )


def make_placing(*, kept: bool) -> PassReport:
    """Return what measured placement reports of two splits, of which the second one is kept, or none."""
    figures = [("measured latency ratio with aligned channels", 0.917, "of all integers, latency")]
    for number, predicted, measured, ratio in ((1, 640.0, 710.0, 1.004), (2, 655.0, 642.0, 0.911 if kept else 1.01)):
        figures += [
            (f"measured latency ratio of split {number}", ratio, "of all integers, latency"),
            (f"predicted latency of split {number}", predicted, "us"),
            (f"measured latency of split {number}", measured, "us"),
            (f"predicted latency of split {number} is off by", 100 * (predicted / measured - 1), "%"),
        ]
    if kept:
        figures += [("kept split, by latency", 2.0, ""), ("predicted latency saved by the split", 7.1, "%")]
        figures += [("measured latency saved by the split", 8.9, "%")]
    metrics = tuple(Metric(*figure) for figure in figures)
    return PassReport(name="measured-placement", changed=kept, metrics=metrics, seconds=9.0)


def make_verdict(names: list[str]) -> Verdict:
    """Return a verdict with every floor held."""
    left = tuple(name for i, name in enumerate(names) if is_float(i, names))
    compute = sum(op_type(i, n) == "Conv" for i, n in enumerate(names))
    return Verdict(
        loaded=True,
        data="held-out samples",
        samples=128,
        outputs=(
            OutputComparison(
                name="logits", samples=128, sqnr_db=33.74, cosine=0.99979, max_abs=1.872, agreement=0.9766
            ),
            OutputComparison(name="features", samples=128, sqnr_db=None, cosine=1.0, max_abs=0.0),
        ),
        metric=MetricComparison(name="top1", original=65.234375, result=64.84375, samples=128, lost=3, gained=2),
        floors=make_floors(),
        integer=IntegerShare(
            compute_nodes=compute,
            integer_nodes=compute - len(left),
            macs=352_000_000,
            integer_macs=348_000_000,
            float_nodes=left,
            runtime_ops={"QLinearConv": compute - len(left), "QLinearConcat": 8, "MaxPool": 3, "Softmax": 1},
        ),
        file_bytes={"original": 4_952_222, "model.onnx": 1_301_554, "model.ort": 1_402_880},
        latency=LatencyComparison(
            original=make_profile(12.31),
            result=make_profile(5.72),
            ratio_min=0.4647,
            ratio_median=0.4702,
            spread=0.012,
        ),
        memory_bytes={"original": 81_200_000, "result": 52_400_000},
        loads={
            "original": SessionLoad(ms=24.0, peak_bytes=35_200_000),
            "result": SessionLoad(ms=79.2, peak_bytes=23_600_000),
        },
        stored_bytes={"weights below 8 bits": 1_150_000, "graph": 100_000, "scales": 51_554, "float weights": 0},
        executed_on="ONNX Runtime on x86-64, not executed on arm",
        notes=("1 of 40 activations is constant; it stays in float",),
    )


def make_emulated(names: list[str], board: str = "cortex-a76", kernels: str = "dot") -> EmulatedRun:
    """Return a run on an emulated board: one output as here, one that differs in float rounding."""
    nodes = tuple(
        NodeInstructions(
            name=name,
            op_type=op_type(i, name),
            before=InstructionCounts(fmla=60_000 * (i + 1), other=20_000) if i else None,
            after=InstructionCounts(dot=15_000 * (i + 1), other=9_000),
        )
        for i, name in enumerate(names)
    )
    return EmulatedRun(
        board=board,
        kernels=kernels,
        samples=4,
        outputs=(
            EmulatedOutput(name="logits", agreement="float rounding", max_relative=3.1e-7),
            EmulatedOutput(name="features", agreement="identical", max_relative=0.0),
        ),
        float_nodes=tuple(names[-1:]),
        original=InstructionCounts(fmla=88_000_000, other=41_123_456),
        result=InstructionCounts(dot=22_000_000, other=30_654_321),
        spread=0.0003,
        nodes=nodes,
        versions={"qemu": "7.2.22", "onnxruntime": "1.31.1"},
        notes=("instructions of the original by node are not known: 9 readings of the clock do not fit 3 nodes",),
    )


def make_profile(milliseconds: float) -> LatencyProfile:
    """Return a latency profile around a minimum."""
    return LatencyProfile(
        min_ms=milliseconds,
        median_ms=milliseconds * 1.03,
        p90_ms=milliseconds * 1.1,
        runs=200,
        warmup=10,
        threads=1,
        machine=MACHINE,
    )


def make_floors() -> tuple[Floor, ...]:
    """Return the default floors, held."""
    return (
        Floor(
            name="loss of top1",
            limit=1.0,
            unit="points",
            direction="at most",
            asked_by="user",
            reached=0.390625,
            held=True,
        ),
        Floor(
            name="agreement of 'logits'",
            limit=0.97,
            unit="share",
            direction="at least",
            asked_by="default",
            reached=0.9766,
            held=True,
        ),
        Floor(
            name="file smaller than the original",
            limit=4_952_222,
            unit="bytes",
            direction="at most",
            asked_by="default",
            reached=1_301_554,
            held=True,
        ),
        Floor(
            name="latency ratio",
            limit=1.02,
            unit="of the original",
            direction="at most",
            asked_by="default",
            reached=0.4647,
            held=True,
            detail="minimum of 20 blocks",
        ),
    )


def json_values(value: Any) -> Any:
    """Return a value with tuples as lists, as JSON would give it back."""
    if isinstance(value, Mapping):
        return {k: json_values(v) for k, v in value.items()}
    return [json_values(v) for v in value] if isinstance(value, tuple | list) else value
