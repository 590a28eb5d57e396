"""The tensor processor (HTP) of Snapdragon chips, through ONNX Runtime's QNN provider and its simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.protocols import OpRule
from qcompiler.runtime.ort_cpu import compute_row, light_row, move_row
from qcompiler.runtime.table_target import TableTarget

RULES: tuple[OpRule, ...] = (
    compute_row("Conv", "Conv"),
    compute_row("Gemm", "Gemm"),
    compute_row("MatMul", "MatMul"),
    light_row("Add", "Add", "two computed inputs"),
    light_row("Mul", "Mul", "two computed inputs"),
    light_row("Concat", "Concat"),
    light_row("AveragePool", "AveragePool"),
    light_row("GlobalAveragePool", "GlobalAveragePool"),
    light_row("Sigmoid", "Sigmoid"),
    light_row("LeakyRelu", "LeakyRelu"),
    *(move_row(op) for op in ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice")),
    move_row("Gather"),
    move_row("Resize", "nearest"),
    move_row("Pad", "constant zero"),
)
"""What the provider was seen to run on quantized data without the processor's help, outputs quantized too."""

FLOAT_REASONS: dict[str, str] = {
    "Softmax": "quantized Softmax loses small probabilities; the HTP computes it in 16-bit floats",
}


@dataclass(frozen=True)
class Qnn(TableTarget):
    """8-bit QDQ in which the layers' outputs are quantized too, and the same as a context binary."""

    name: ClassVar[str] = "qnn"
    summary: ClassVar[str] = "Snapdragon HTP (ONNX Runtime QNN), u8 activations, s8 weights, static shapes"
    runtime_name: ClassVar[str] = "qnn"
    table: ClassVar[tuple[OpRule, ...]] = RULES
    float_reasons: ClassVar[Mapping[str, str]] = FLOAT_REASONS
    files: ClassVar[tuple[str, ...]] = ("model_ctx.onnx",)
    """The context binary loads on the device without compiling there."""
