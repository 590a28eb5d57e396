"""What targets have in common whose answers all follow from a capability table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.plan import Precision, QuantSpec
from qcompiler.protocols import MatMulCost, OpRule, Refusal
from qcompiler.runtime.ort_cpu import FLOAT_REASONS, find_rule

QDQ_LOWERING = ("insert-qdq", "pad-codes", "align-channels", "insert-dynamic", "pack-weights", "pack-constants")
"""The passes that write a plan as a QDQ graph, for ONNX Runtime's CPU provider."""
PACKED_LOWERING = ("pack-embeddings", *QDQ_LOWERING, "matmul-nbits", "sparse-encode", "pack-xor", "pack-bits")
"""The same with rows of tables decoded at every lookup, and with weights packed: ONNX Runtime computes what follows
from constants when it loads a session."""


@dataclass(frozen=True)
class TableTarget:
    """A target that is its table: subclasses set the class variables, and override what differs.

    Class attributes:
        table: what the runtime executes on quantized data.
        float_reasons: operator -> why it stays in float.
        lowering: names of the passes that write a plan.
        weight_bits / activation_bits: widths of codes that a recipe may ask for.
        matmuls: what forms of products cost where it was measured; nothing leaves them to ``place``.
        sparse_patterns: N:M patterns of zeros that its kernels skip, such as "2:4".
        files: what is written beside ``model.onnx``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    runtime_name: ClassVar[str]
    table: ClassVar[tuple[OpRule, ...]]
    profiles: ClassVar[tuple[str, ...]] = ()
    float_reasons: ClassVar[Mapping[str, str]] = FLOAT_REASONS
    lowering: ClassVar[tuple[str, ...]] = QDQ_LOWERING
    weight_bits: ClassVar[frozenset[int]] = frozenset({8})
    activation_bits: ClassVar[frozenset[int]] = frozenset({8})
    matmuls: ClassVar[tuple[MatMulCost, ...]] = ()
    sparse_patterns: ClassVar[frozenset[str]] = frozenset()
    files: ClassVar[tuple[str, ...]] = ()

    @property
    def full_name(self) -> str:
        """Return the name; a target with profiles adds its own."""
        return self.name

    @property
    def executes_here(self) -> bool:
        """Return False: a target that may be this very machine says when."""
        return False

    def rules(self) -> Sequence[OpRule]:
        """Return the capability table."""
        return self.table

    def legalize(self, op_type: str, wanted: Precision, weights: QuantSpec | None) -> OpRule | Refusal:
        """Return the rule by which a node runs, or why it does not."""
        return find_rule(tuple(self.rules()), op_type, wanted, weights, self.float_reasons)

    def matmul_costs(self) -> tuple[MatMulCost, ...]:
        """Return what forms of products cost."""
        return self.matmuls

    def lower_passes(self) -> tuple[str, ...]:
        """Return the names of the passes that write a plan."""
        return self.lowering

    def artifacts(self) -> tuple[str, ...]:
        """Return the files beside the model."""
        return self.files
