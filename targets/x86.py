"""x86-64 processors with AVX2 or newer, ONNX Runtime's CPU provider."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.plan import Precision, QuantSpec
from qcompiler.protocols import OpRule, Refusal
from qcompiler.runtime.ort_cpu import ORT_CPU_RULES, find_rule


@dataclass(frozen=True)
class X86:
    """8-bit QDQ with unsigned activations and per-channel signed weights; no ``.ort`` file."""

    name: ClassVar[str] = "x86"
    summary: ClassVar[str] = "x86-64 (AVX2 or newer), ONNX Runtime CPU, u8 activations, s8 weights per channel"
    profiles: ClassVar[tuple[str, ...]] = ()
    runtime_name: ClassVar[str] = "onnxruntime"

    @property
    def full_name(self) -> str:
        """Return ``x86``."""
        return self.name

    @property
    def executes_here(self) -> bool:
        """Return True on an x86-64 machine."""
        return platform.machine().lower() in ("x86_64", "amd64")

    def rules(self) -> Sequence[OpRule]:
        """Return the capability table of ONNX Runtime's CPU provider."""
        return ORT_CPU_RULES

    def legalize(self, op_type: str, wanted: Precision, weights: QuantSpec | None) -> OpRule | Refusal:
        """Return the rule by which a node runs, or why it does not."""
        return find_rule(ORT_CPU_RULES, op_type, wanted, weights)

    def lower_passes(self) -> tuple[str, ...]:
        """Return the passes that write a plan for ONNX Runtime."""
        return ("insert-qdq", "insert-dynamic", "pack-weights", "pack-constants")

    def artifacts(self) -> tuple[str, ...]:
        """Return no file beside the model."""
        return ()
