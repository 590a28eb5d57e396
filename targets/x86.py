"""x86-64 processors with AVX2 or newer, ONNX Runtime's CPU provider."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.protocols import MatMulCost, OpRule
from qcompiler.runtime.ort_cpu import ACTIVATION_BITS, ORT_CPU_RULES, WEIGHT_BITS
from qcompiler.runtime.ort_matmuls import X86_COSTS
from qcompiler.runtime.table_target import PACKED_LOWERING, TableTarget


@dataclass(frozen=True)
class X86(TableTarget):
    """8-bit QDQ with unsigned activations and per-channel signed weights; no ``.ort`` file."""

    name: ClassVar[str] = "x86"
    summary: ClassVar[str] = "x86-64 (AVX2 or newer), ONNX Runtime CPU, u8 activations, s8 weights per channel"
    runtime_name: ClassVar[str] = "onnxruntime"
    table: ClassVar[tuple[OpRule, ...]] = ORT_CPU_RULES
    lowering: ClassVar[tuple[str, ...]] = PACKED_LOWERING
    weight_bits: ClassVar[frozenset[int]] = WEIGHT_BITS
    activation_bits: ClassVar[frozenset[int]] = ACTIVATION_BITS
    matmuls: ClassVar[tuple[MatMulCost, ...]] = X86_COSTS

    @property
    def executes_here(self) -> bool:
        """Return True on an x86-64 machine."""
        return platform.machine().lower() in ("x86_64", "amd64")
