"""correct-bias: take back the shift of each channel's mean that rounding its weights causes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from qcompiler.lowering import mean_shift
from qcompiler.plan import Precision, Role, TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport, Skip
from qcompiler.state import Context, Fact, State


@dataclass(frozen=True, slots=True)
class CorrectBias:
    """Plans a bias correction of -(W_q - W) E[x] for every layer whose weights are rounded.

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019),
    section 4.2. Differs: E[x] is observed, and padding is treated as if it had the channel's mean.
    """

    name: ClassVar[str] = "correct-bias"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS, Fact.WEIGHT_SCALES})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a correction for every Conv and Gemm with rounded weights whose input was observed.

        A correction that another pass decided stays: a search that moves biases knows more than their means.
        """
        done: list[TensorPlan] = []
        skipped: list[Skip] = []
        for node in state.model.graph:
            decision = state.plan.nodes.get(node.name or "")
            if decision is None or decision.precision not in (Precision.INTEGER, Precision.WEIGHT_ONLY):
                continue
            if node.op_type not in ("Conv", "Gemm"):
                continue
            planned = state.plan.tensors.get(f"{node.name}:bias")
            if planned is not None and planned.decided_by[-1:] != (self.name,):
                skipped.append(Skip(node.name or "", f"its bias was decided by {', '.join(planned.decided_by)}"))
                continue
            shift = mean_shift(state, node)
            if shift is None:
                skipped.append(Skip(node.name or "", "the mean of its input channels is not known"))
                continue
            done.append(
                TensorPlan(
                    name=f"{node.name}:bias",
                    role=Role.BIAS,
                    correction=-shift,
                    decided_by=(self.name,),
                    reason="mean error of the rounded weights",
                )
            )
        report = PassReport(
            name=self.name,
            changed=bool(done),
            metrics=(Metric("corrected", len(done), "layers"),),
            skipped=tuple(skipped),
        )
        return PassResult(replace(state, plan=state.plan.with_tensors(*done)), report)
