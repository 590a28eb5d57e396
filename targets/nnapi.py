"""Android's NNAPI through ONNX Runtime as a table to lint against, from the provider's sources. Not executed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from qcompiler.protocols import OpRule
from qcompiler.runtime.ort_cpu import S8, compute_row, light_row, move_row
from qcompiler.runtime.table_target import TableTarget

RULES: tuple[OpRule, ...] = (
    compute_row("Conv", "CONV_2D"),
    replace(compute_row("Gemm", "FULLY_CONNECTED"), weights=(S8,)),
    replace(compute_row("MatMul", "FULLY_CONNECTED"), weights=(S8,)),
    light_row("Add", "ADD", "two computed inputs"),
    light_row("Mul", "MUL", "two computed inputs"),
    light_row("Concat", "CONCATENATION"),
    light_row("AveragePool", "AVERAGE_POOL_2D"),
    move_row("MaxPool"),
    move_row("Reshape"),
    move_row("Transpose"),
    move_row("Resize", "nearest"),
)
"""Node groups that the provider takes with unsigned 8-bit activations; scales per channel for Conv only."""

NO_GROUP = "ONNX Runtime's NNAPI provider takes it in float only"
FLOAT_REASONS = dict.fromkeys(
    ("GlobalAveragePool", "Sigmoid", "LeakyRelu", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Pad"), NO_GROUP
)


@dataclass(frozen=True)
class Nnapi(TableTarget):
    """QDQ node groups with u8 activations. A table, nothing is run."""

    name: ClassVar[str] = "nnapi"
    summary: ClassVar[str] = "Android NNAPI (ONNX Runtime), a table for 'qcompile lint' only; not executed here"
    runtime_name: ClassVar[str] = ""
    table: ClassVar[tuple[OpRule, ...]] = RULES
    float_reasons: ClassVar[Mapping[str, str]] = FLOAT_REASONS
    lowering: ClassVar[tuple[str, ...]] = ()
