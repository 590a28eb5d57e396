"""The tensor processor (HTP) of Snapdragon chips, through ONNX Runtime's QNN provider and its simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from qcompiler.plan import QuantSpec
from qcompiler.protocols import OpRule
from qcompiler.runtime.ort_cpu import U8, compute_row, light_row, move_row
from qcompiler.runtime.table_target import TableTarget

U16 = QuantSpec(num_bits=16, signed=False)

BYTE_RULES: tuple[OpRule, ...] = (
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

RULES = tuple(replace(rule, activations=(U8, U16)) for rule in BYTE_RULES)
"""The same, each with 16-bit activations, too."""

FLOAT_REASONS: dict[str, str] = {
    "Softmax": "quantized Softmax loses small probabilities; the HTP computes it in 16-bit floats",
}


@dataclass(frozen=True)
class Qnn(TableTarget):
    """QDQ in which the layers' outputs are quantized too, and the same as a context binary.

    Activations are u8 or u16, weights s8 or INT4, in every combination.
    """

    name: ClassVar[str] = "qnn"
    summary: ClassVar[str] = "Snapdragon HTP (ONNX Runtime QNN), u8 or u16 activations, s8 or s4 weights, static shapes"
    runtime_name: ClassVar[str] = "qnn"
    table: ClassVar[tuple[OpRule, ...]] = RULES
    weight_bits: ClassVar[frozenset[int]] = frozenset({4, 8})
    activation_bits: ClassVar[frozenset[int]] = frozenset({8, 16})
    lowering: ClassVar[tuple[str, ...]] = (
        *("raise-opset", "insert-qdq", "insert-dynamic"),
        *("pack-weights", "pack-constants", "store-int4"),
    )
    """No pad-codes: the provider wants a Pad between DequantizeLinear and QuantizeLinear."""
    float_reasons: ClassVar[Mapping[str, str]] = FLOAT_REASONS
    files: ClassVar[tuple[str, ...]] = ("model_ctx.onnx",)
    """The context binary loads on the device without compiling there."""
