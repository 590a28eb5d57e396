"""Synthetic reports for tests: realistic figures, any number of layers, hostile names, every verdict."""

from __future__ import annotations

import dataclasses
from typing import Any

from qcompiler.recipe import Floors, Recipe
from qcompiler.records import (
    CompileReport,
    Floor,
    Frontier,
    FrontierPoint,
    LayerDamage,
    LayerReport,
    RepairStep,
    Search,
    SearchStage,
    Verdict,
)
from qcompiler.report.card import CardInputs, quantization_card
from tests.report.parts import (
    HOSTILE,
    MACHINE,
    json_values,
    layer_names,
    make_data,
    make_emulated,
    make_histogram,
    make_layer,
    make_model,
    make_passes,
    make_placing,
    make_plan,
    make_time,
    make_verdict,
)

__all__ = [
    "HOSTILE",
    "emulated_report",
    "failed_report",
    "make_report",
    "missed_report",
    "narrow_report",
    "placed_report",
    "searched_report",
    "unverified_report",
]


def make_report(layers: int = 27, *, hostile: bool = False, target: str = "arm:cortex-a76") -> CompileReport:
    """Return a report of a model with this many layers, verified on held-out samples, every floor held."""
    names = layer_names(layers, hostile=hostile)
    model, data, plan = make_model(len(names)), make_data(hostile=hostile), make_plan(names, target)
    recipe = Recipe(targets=(target,), data="imagenet.npz", labels="labels.npy", floors=Floors(max_drop=1.0))
    verdict, passes = make_verdict(names), make_passes(names, hostile=hostile)
    inputs = CardInputs(recipe=recipe, target=target, plan=plan, model=model, data=data, passes=passes, verdict=verdict)
    return CompileReport(
        versions={
            "numpy": "2.4.6",
            "onnx": "1.23.2",
            "onnxruntime": "1.31.1",
            "python": "3.11.7",
            "qcompiler": "0.1.0",
        },
        command=("qcompile", "squeezenet1.1.onnx", "--target", target, "--data", "imagenet.npz", "-o", "out"),
        recipe=json_values(recipe.to_json()),
        target=target,
        target_summary="Armv8.2-A with dot product, ONNX Runtime CPU, u8 activations, s8 weights per channel",
        model=model,
        data=data,
        passes=passes,
        layers=tuple(make_layer(i, name, names) for i, name in enumerate(names)),
        histograms=tuple(make_histogram(i, f"{name}_out") for i, name in enumerate(names[:120])),
        repairs=(
            RepairStep(
                action="return to float",
                layers=tuple(names[-2:-1]),
                outcome="agreement 96.1 % -> 97.7 %, kept",
            ),
            RepairStep(action="widen the clip", layers=tuple(names[1:3]), outcome="SQNR 31.9 dB -> 31.8 dB, undone"),
        ),
        verdict=verdict,
        choices={"conv9": "integer: 0.41x of float", "pool4": "float: integer was 1.20x"},
        card=quantization_card(inputs),
        layer_times=tuple(make_time(i, name, names) for i, name in enumerate(names)),
        stage_seconds={"load": 0.11, "pipeline": 2.9, "verify": 1.4, "write": 0.2},
        machine=MACHINE,
    )


def narrow_report(layers: int = 27, *, hostile: bool = False) -> CompileReport:
    """Return a report whose weights have 1 to 4 bits, with the layers that do most damage."""
    report = make_report(layers, hostile=hostile)
    narrow = tuple(dataclasses.replace(layer, weight_bits=1 + i % 4) for i, layer in enumerate(report.layers))
    point = FrontierPoint(file_bytes=22_000, mean_bits=2.984, loss=0.1)
    return dataclasses.replace(
        report,
        layers=narrow,
        frontier=Frontier(unit="nats", points=(point,), chosen=point),
        damages=tuple(_damage(layer) for layer in narrow[:6]),
    )


def _damage(layer: LayerReport) -> LayerDamage:
    bits = layer.weight_bits or 1
    return LayerDamage(name=layer.name, bits=bits, damage_db=6.1, cause="rounding of the weights", action="3 -> 4 bits")


def emulated_report(layers: int = 27, *, hostile: bool = False) -> CompileReport:
    """Return a report of a run that was also verified on two emulated boards."""
    report = make_report(layers, hostile=hostile)
    names = layer_names(layers, hostile=hostile)
    runs = (make_emulated(names), make_emulated(names, "cortex-a72", "widening"))
    return dataclasses.replace(report, verdict=dataclasses.replace(report.verdict, emulated=runs))


def placed_report(layers: int = 27, *, hostile: bool = False, kept: bool = True) -> CompileReport:
    """Return a report of a run at -O2 that timed two splits, and kept the second one or none."""
    report = make_report(layers, hostile=hostile)
    moved = {layer.name for layer in report.layers[:4]} if kept else set()
    made = tuple(
        dataclasses.replace(layer, decided_by=("place", "measured-placement")) if layer.name in moved else layer
        for layer in report.layers
    )
    aligned = {f"input channels of {report.layers[0].name}": "4"} if kept else {}
    placing = make_placing(kept=kept)
    passes, choices = (*report.passes, placing), {**report.choices, **aligned}
    return dataclasses.replace(report, layers=made, passes=passes, choices=choices)


def searched_report(ended: str = "complete", *, hostile: bool = False) -> CompileReport:
    """Return a report of a run that searched for better results, one of which it took."""
    report = make_report(27, hostile=hostile)
    name = layer_names(27, hostile=hostile)[0]
    stages = (
        SearchStage(name="first result", outcome="verified", after_db=21.25, seconds=12.5, reused=1),
        SearchStage(name="clip-search", outcome="better", before_db=21.25, after_db=24.75, seconds=300.0, reused=16),
        SearchStage(name=name, outcome="failed", before_db=24.75, seconds=1.5, detail=f"out of memory at {name}"),
    )
    return dataclasses.replace(report, search=Search(ended=ended, stages=stages, notes=("not run: fine-search",)))


def failed_report(**changes: Any) -> CompileReport:
    """Return a report whose file did not load."""
    report = make_report(9)
    verdict = Verdict(
        loaded=False,
        data="held-out samples",
        samples=0,
        file_bytes={"model.onnx": 1_300_000},
        failure="ONNX Runtime could not load model.onnx: QLinearConv (node 'conv1') has no scale",
        latency_unavailable="the model did not load",
    )
    return dataclasses.replace(report, verdict=verdict, layer_times=(), **changes)


def missed_report(layers: int = 27) -> CompileReport:
    """Return a report with two missed floors, one of them a latency."""
    report = make_report(layers)
    floors = tuple(
        dataclasses.replace(f, reached=0.9102, held=False, detail="worst output: logits") if f.unit == "share" else f
        for f in report.verdict.floors
    )
    slow = dataclasses.replace(floors[-1], reached=1.08, held=False)
    return dataclasses.replace(report, verdict=dataclasses.replace(report.verdict, floors=(*floors[:-1], slow)))


def unverified_report() -> CompileReport:
    """Return a report of a run without data, off target: synthetic inputs, no latency, no integer share."""
    report = make_report(12)
    verdict = dataclasses.replace(
        report.verdict,
        data="synthetic inputs",
        samples=16,
        metric=None,
        latency=None,
        latency_unavailable="this machine is not the target (x86-64, not ARM)",
        floors=(
            Floor(
                name="SQNR of 'logits'",
                limit=15.0,
                unit="dB",
                direction="at least",
                asked_by="default",
                reached=38.2,
                held=True,
            ),
            Floor(
                name="latency ratio",
                limit=1.02,
                unit="of the original",
                direction="at most",
                asked_by="default",
            ),
        ),
        memory_bytes={},
        loads={},
        integer=None,
        notes=("accuracy not verified: no data was given",),
    )
    return dataclasses.replace(
        report, verdict=verdict, data=None, histograms=(), layer_times=(), repairs=(), choices={}
    )
