"""The reference target: what the integers mean, on any machine, for tests and for comparing targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.plan import Precision, QuantSpec
from qcompiler.protocols import OpRule, Refusal
from qcompiler.runtime.ort_cpu import ORT_CPU_RULES, find_rule

PORTABLE_RULES = tuple(r for r in ORT_CPU_RULES if r.precision is not Precision.DYNAMIC)
"""Static grids only: an integer model that computes the same on every machine."""


@dataclass(frozen=True)
class Reference:
    """The portable 8-bit QDQ form on whatever machine this is; its latency is nobody's target."""

    name: ClassVar[str] = "reference"
    summary: ClassVar[str] = "ONNX Runtime CPU on any machine, portable QDQ form, for tests and comparisons"
    profiles: ClassVar[tuple[str, ...]] = ()
    runtime_name: ClassVar[str] = "onnxruntime"

    @property
    def full_name(self) -> str:
        """Return ``reference``."""
        return self.name

    @property
    def executes_here(self) -> bool:
        """Return False: no latency of this target means anything."""
        return False

    def rules(self) -> Sequence[OpRule]:
        """Return the static rows of the capability table of ONNX Runtime's CPU provider."""
        return PORTABLE_RULES

    def legalize(self, op_type: str, wanted: Precision, weights: QuantSpec | None) -> OpRule | Refusal:
        """Return the rule by which a node runs, or why it does not."""
        return find_rule(PORTABLE_RULES, op_type, wanted, weights)

    def lower_passes(self) -> tuple[str, ...]:
        """Return the passes that write a plan for ONNX Runtime."""
        return ("insert-qdq", "insert-dynamic", "pack-weights", "pack-constants")

    def artifacts(self) -> tuple[str, ...]:
        """Return no file beside the model."""
        return ()
