"""NVIDIA's TensorRT as a table to lint against: what its documentation says it runs in INT8. Not executed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.plan import Precision, QuantSpec
from qcompiler.protocols import OpRule, Refusal
from qcompiler.runtime.ort_cpu import compute_row, find_rule, light_row, move_row

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
class Tensorrt:
    """Explicit quantization: symmetric INT8 activations, INT8 weights per channel. A table, nothing is run."""

    name: ClassVar[str] = "tensorrt"
    summary: ClassVar[str] = "NVIDIA TensorRT, a table for 'qcompile lint' only; not executed here"
    profiles: ClassVar[tuple[str, ...]] = ()
    runtime_name: ClassVar[str] = ""

    @property
    def full_name(self) -> str:
        """Return ``tensorrt``."""
        return self.name

    @property
    def executes_here(self) -> bool:
        """Return False: nothing is run for a table."""
        return False

    def rules(self) -> Sequence[OpRule]:
        """Return the table."""
        return RULES

    def legalize(self, op_type: str, wanted: Precision, weights: QuantSpec | None) -> OpRule | Refusal:
        """Return the rule by which a node would run, or why it would not."""
        return find_rule(RULES, op_type, wanted, weights, FLOAT_REASONS)

    def lower_passes(self) -> tuple[str, ...]:
        """Return no pass: nothing is written for a table."""
        return ()

    def artifacts(self) -> tuple[str, ...]:
        """Return no file."""
        return ()
