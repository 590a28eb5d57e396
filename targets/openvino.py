"""Intel's OpenVINO on this machine's processor, which executes a QDQ file in integers as it is."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.plan import Precision, QuantSpec
from qcompiler.protocols import OpRule, Refusal
from qcompiler.runtime.available import is_installed
from qcompiler.runtime.ort_cpu import compute_row, light_row, move_row
from qcompiler.runtime.table_target import TableTarget

RULES: tuple[OpRule, ...] = (
    compute_row("Conv", "Convolution"),
    compute_row("Gemm", "FullyConnected", output=False),
    compute_row("MatMul", "FullyConnected", output=False),
    light_row("Add", "Eltwise", "two computed inputs"),
    light_row("Concat", "Concatenation"),
    light_row("AveragePool", "Pooling"),
    light_row("GlobalAveragePool", "Reduce"),
    light_row("Sigmoid", "Subgraph"),
    light_row("LeakyRelu", "Subgraph"),
    *(move_row(op) for op in ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice")),
    move_row("Gather"),
    move_row("Resize", "nearest"),
    move_row("Pad", "constant zero"),
)
"""What OpenVINO's CPU plugin was seen to read and write as integers, by the precisions of its execution graph."""

FLOAT_REASONS: dict[str, str] = {
    "Softmax": "no integer kernel in OpenVINO's CPU plugin",
    "LayerNormalization": "no integer kernel in OpenVINO's CPU plugin",
    "Gelu": "no integer kernel in OpenVINO's CPU plugin",
    "Mul": "OpenVINO multiplies in float, and its producers then write float",
}
DYNAMIC_REASON = "OpenVINO computes run-time activation scales, but then multiplies in float"


@dataclass(frozen=True)
class Openvino(TableTarget):
    """8-bit QDQ with unsigned activations and signed weights, static grids only: the file OpenVINO reads."""

    name: ClassVar[str] = "openvino"
    summary: ClassVar[str] = "OpenVINO on this processor, u8 activations, s8 weights per channel, static grids"
    runtime_name: ClassVar[str] = "openvino"
    table: ClassVar[tuple[OpRule, ...]] = RULES
    float_reasons: ClassVar[Mapping[str, str]] = FLOAT_REASONS

    @property
    def executes_here(self) -> bool:
        """Return True where OpenVINO is installed, on a processor that it has integer kernels for."""
        machine = platform.machine().lower()
        return machine in ("x86_64", "amd64", "aarch64", "arm64") and is_installed(self.runtime_name)

    def legalize(self, op_type: str, wanted: Precision, weights: QuantSpec | None) -> OpRule | Refusal:
        """Return the rule by which a node runs, or why it does not."""
        if wanted is Precision.DYNAMIC:
            return Refusal(DYNAMIC_REASON)
        return super().legalize(op_type, wanted, weights)
