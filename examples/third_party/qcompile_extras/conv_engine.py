"""conv-engine: a made-up accelerator that runs convolutions and what lies between them, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.plan import Precision, QuantSpec
from qcompiler.protocols import OpRule, Refusal

U8 = QuantSpec(num_bits=8)
S8_PER_CHANNEL = QuantSpec(num_bits=8, signed=True, symmetric=True, axis=0)

RULES = (
    OpRule(
        op_type="Conv",
        precision=Precision.INTEGER,
        weights=(S8_PER_CHANNEL,),
        activations=(U8,),
        runtime_op="QLinearConv",
    ),
    OpRule(op_type="MaxPool", precision=Precision.MOVE, activations=(U8,), runtime_op="MaxPool"),
)
"""Everything else stays in float on the host."""


@dataclass(frozen=True)
class ConvEngine:
    """Integer convolutions with unsigned activations; verified on the host's ONNX Runtime."""

    name: ClassVar[str] = "conv-engine"
    summary: ClassVar[str] = "a made-up accelerator: integer Conv and MaxPool, all else in float on the host"
    profiles: ClassVar[tuple[str, ...]] = ()
    runtime_name: ClassVar[str] = "onnxruntime"
    weight_bits: ClassVar[frozenset[int]] = frozenset({8})
    activation_bits: ClassVar[frozenset[int]] = frozenset({8})

    @property
    def full_name(self) -> str:
        """Return the name; there are no profiles."""
        return self.name

    @property
    def executes_here(self) -> bool:
        """Return False: this machine is none, so no latency is measured and none is reported."""
        return False

    def rules(self) -> Sequence[OpRule]:
        """Return the capability table."""
        return RULES

    def legalize(self, op_type: str, wanted: Precision, weights: QuantSpec | None) -> OpRule | Refusal:
        """Return the row by which a node runs, or why it does not."""
        for rule in RULES:
            if rule.op_type == op_type and wanted is not Precision.DYNAMIC:
                if weights is None or weights.axis is not None:
                    return rule
                return Refusal(f"{op_type} needs one scale per output channel on this engine")
        return Refusal(f"the engine has no {op_type}")

    def lower_passes(self) -> tuple[str, ...]:
        """Return the passes that write quantized operators the way ONNX Runtime fuses them."""
        return ("insert-qdq", "pack-weights")

    def artifacts(self) -> tuple[str, ...]:
        """Return no file beside the model."""
        return ()
