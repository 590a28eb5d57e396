"""The tensor processor (HTP) of Snapdragon chips, through ONNX Runtime's QNN provider and its simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.plan import Precision, QuantSpec
from qcompiler.protocols import OpRule, Refusal
from qcompiler.runtime.ort_cpu import compute_row, find_rule, light_row, move_row

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
class Qnn:
    """8-bit QDQ in which the layers' outputs are quantized too, and the same as a context binary."""

    name: ClassVar[str] = "qnn"
    summary: ClassVar[str] = "Snapdragon HTP (ONNX Runtime QNN), u8 activations, s8 weights, static shapes"
    profiles: ClassVar[tuple[str, ...]] = ()
    runtime_name: ClassVar[str] = "qnn"

    @property
    def full_name(self) -> str:
        """Return ``qnn``."""
        return self.name

    @property
    def executes_here(self) -> bool:
        """Return False: what runs here is a simulator, and its time means nothing."""
        return False

    def rules(self) -> Sequence[OpRule]:
        """Return the capability table of the QNN provider on the HTP."""
        return RULES

    def legalize(self, op_type: str, wanted: Precision, weights: QuantSpec | None) -> OpRule | Refusal:
        """Return the rule by which a node runs, or why it does not."""
        return find_rule(RULES, op_type, wanted, weights, FLOAT_REASONS)

    def lower_passes(self) -> tuple[str, ...]:
        """Return the passes that write a plan as a QDQ graph."""
        return ("insert-qdq", "insert-dynamic", "pack-weights", "pack-constants")

    def artifacts(self) -> tuple[str, ...]:
        """Return the context binary, which loads on the device without compiling there."""
        return ("model_ctx.onnx",)
