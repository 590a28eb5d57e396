"""NVIDIA's TensorRT as a table to lint against: what its documentation says it runs in INT8. Not executed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.plan import QuantSpec
from qcompiler.protocols import OpRule
from qcompiler.runtime.ort_cpu import compute_row, light_row, move_row
from qcompiler.runtime.table_target import TableTarget

S8 = QuantSpec(num_bits=8, signed=True, symmetric=True)
"""TensorRT's grids are symmetric, those of activations too."""

RULES: tuple[OpRule, ...] = (
    compute_row("Conv", "Convolution", output=False, activations=S8),
    compute_row("Gemm", "MatrixMultiply", output=False, activations=S8),
    compute_row("MatMul", "MatrixMultiply", output=False, activations=S8),
    light_row("Add", "ElementWise", "two computed inputs", activations=S8),
    light_row("Concat", "Concatenation", activations=S8),
    light_row("AveragePool", "Pooling", activations=S8),
    light_row("GlobalAveragePool", "Pooling", activations=S8),
    *(move_row(op, activations=S8) for op in ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze")),
    *(move_row(op, activations=S8) for op in ("Transpose", "Slice", "Gather")),
    move_row("Resize", "nearest", activations=S8),
)
"""Layers that fuse with Q/DQ around them, and layers that Q/DQ commute with."""

NO_LAYER = "TensorRT has no INT8 form of it; it runs in FP16 or FP32 between two conversions"
FLOAT_REASONS = dict.fromkeys(
    ("Softmax", "LayerNormalization", "InstanceNormalization", "Gelu", "Sigmoid", "HardSwish", "Mul", "LSTM", "GRU"),
    NO_LAYER,
)


@dataclass(frozen=True)
class Tensorrt(TableTarget):
    """Explicit quantization: symmetric INT8 activations, INT8 weights per channel. A table, nothing is run."""

    name: ClassVar[str] = "tensorrt"
    summary: ClassVar[str] = "NVIDIA TensorRT, a table for 'qcompile lint' only; not executed here"
    runtime_name: ClassVar[str] = ""
    table: ClassVar[tuple[OpRule, ...]] = RULES
    float_reasons: ClassVar[Mapping[str, str]] = FLOAT_REASONS
    lowering: ClassVar[tuple[str, ...]] = ()
    sparse_patterns: ClassVar[frozenset[str]] = frozenset({"2:4"})
