"""64-bit ARM processors, ONNX Runtime's CPU provider, with an ``.ort`` file for mobile builds."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from qcompiler.errors import UsageError
from qcompiler.protocols import MatMulCost, OpRule
from qcompiler.runtime.ort_cpu import ACTIVATION_BITS, ORT_CPU_RULES, WEIGHT_BITS
from qcompiler.runtime.ort_matmuls import DOT_PRODUCT_COSTS, I8MM_COSTS, WIDENING_COSTS
from qcompiler.runtime.table_target import PACKED_LOWERING, TableTarget

DEFAULT_PROFILE = "cortex-a76"

PROFILES: dict[str, str] = {
    "cortex-a53": "in-order, no dot product (Raspberry Pi 3, older phones)",
    "cortex-a72": "out-of-order, no dot product (Raspberry Pi 4)",
    "cortex-a76": "dot product instructions (Raspberry Pi 5, phones since 2019)",
    "i8mm": "8-bit matrix instructions (ARMv8.6 and newer)",
}
"""Profile -> what it stands for."""

WITHOUT_DOT_PRODUCT = frozenset({"cortex-a53", "cortex-a72"})


def _narrow_conv_in_float(rule: OpRule) -> OpRule:
    return replace(rule, needs="8 input channels") if rule.op_type == "Conv" else rule


NARROW_RULES = tuple(_narrow_conv_in_float(r) for r in ORT_CPU_RULES)
"""Without dot products, a convolution of few input channels takes more instructions in integers than in float."""


@dataclass(frozen=True)
class Arm(TableTarget):
    """8-bit QDQ with unsigned activations and per-channel signed weights, and the same model as ``.ort``."""

    name: ClassVar[str] = "arm"
    summary: ClassVar[str] = "64-bit ARM, ONNX Runtime CPU, u8 activations, s8 weights per channel, model.ort"
    profiles: ClassVar[tuple[str, ...]] = tuple(PROFILES)
    runtime_name: ClassVar[str] = "onnxruntime"
    table: ClassVar[tuple[OpRule, ...]] = ORT_CPU_RULES
    lowering: ClassVar[tuple[str, ...]] = PACKED_LOWERING
    weight_bits: ClassVar[frozenset[int]] = WEIGHT_BITS
    activation_bits: ClassVar[frozenset[int]] = ACTIVATION_BITS
    files: ClassVar[tuple[str, ...]] = ("model.ort", "model.required_operators.config")
    """For mobile builds, and the operators that a reduced build needs for it."""
    profile: str = DEFAULT_PROFILE

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise UsageError(f"target 'arm' has no profile '{self.profile}'; it has {', '.join(PROFILES)}")

    @property
    def full_name(self) -> str:
        """Return ``arm:`` and the profile."""
        return f"{self.name}:{self.profile}"

    @property
    def executes_here(self) -> bool:
        """Return True on a 64-bit ARM machine."""
        return platform.machine().lower() in ("aarch64", "arm64")

    def rules(self) -> Sequence[OpRule]:
        """Return the capability table of ONNX Runtime's CPU provider, as far as it pays on this profile."""
        return NARROW_RULES if self.profile in WITHOUT_DOT_PRODUCT else self.table

    def matmul_costs(self) -> tuple[MatMulCost, ...]:
        """Return what forms of products cost on this profile, in instructions."""
        if self.profile in WITHOUT_DOT_PRODUCT:
            return WIDENING_COSTS
        return I8MM_COSTS if self.profile == "i8mm" else DOT_PRODUCT_COSTS
