"""The reference target: what the integers mean, on any machine, for tests and for comparing targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompiler.plan import Precision
from qcompiler.protocols import OpRule
from qcompiler.runtime.ort_cpu import ACTIVATION_BITS, ORT_CPU_RULES, WEIGHT_BITS
from qcompiler.runtime.table_target import TableTarget

PORTABLE_RULES = tuple(r for r in ORT_CPU_RULES if r.precision is not Precision.DYNAMIC)
"""Static grids only: an integer model that computes the same on every machine."""


@dataclass(frozen=True)
class Reference(TableTarget):
    """The portable 8-bit QDQ form on whatever machine this is; its latency is nobody's target."""

    name: ClassVar[str] = "reference"
    summary: ClassVar[str] = "ONNX Runtime CPU on any machine, portable QDQ form, for tests and comparisons"
    runtime_name: ClassVar[str] = "onnxruntime"
    table: ClassVar[tuple[OpRule, ...]] = PORTABLE_RULES
    weight_bits: ClassVar[frozenset[int]] = WEIGHT_BITS
    activation_bits: ClassVar[frozenset[int]] = ACTIVATION_BITS
