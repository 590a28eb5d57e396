"""power-of-two-scales: a plan pass for hardware that shifts where others multiply."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from qcompiler.plan import Role, TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport, Skip
from qcompiler.state import Context, Fact, State


@dataclass(frozen=True, slots=True)
class PowerOfTwoScales:
    """Rounds the scale of every activation up to a power of two.

    Attributes:
        max_stretch: an activation whose range would grow by more than this factor keeps its scale.
    """

    name: ClassVar[str] = "power-of-two-scales"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.RANGES})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()
    max_stretch: float = 2.0

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with rounded scales; an activation behind a Clip keeps its own."""
        limited = {v.name for node in state.model.graph if node.op_type == "Clip" for v in node.outputs}
        rounded: list[TensorPlan] = []
        skipped: list[Skip] = []
        for entry in state.plan.tensors.values():
            if entry.role is not Role.ACTIVATION or entry.scale is None:
                continue
            stretch = float(np.exp2(np.ceil(np.log2(entry.scale))) / entry.scale)
            if entry.name in limited:
                skipped.append(Skip(entry.name, "a grid beyond the limit of its Clip would not fuse"))
            elif stretch > self.max_stretch:
                skipped.append(Skip(entry.name, f"its range would grow by {stretch:.2f}"))
            else:
                rounded.append(self._stretched(entry, stretch))
        report = PassReport(
            name=self.name,
            changed=bool(rounded),
            options={"max_stretch": self.max_stretch},
            metrics=(Metric("rounded", len(rounded), "activations"),),
            skipped=tuple(skipped),
        )
        return PassResult(replace(state, plan=state.plan.with_tensors(*rounded)), report)

    def _stretched(self, entry: TensorPlan, stretch: float) -> TensorPlan:
        """Return an entry whose grid covers a range that many times as wide, around the same zero point."""
        if entry.scale is None or entry.clip is None:
            return entry
        low, high = entry.clip
        return replace(
            entry,
            scale=np.asarray(entry.scale * stretch, np.float32),
            clip=(low * stretch, high * stretch),
            reason=f"{entry.reason}, scale rounded up to a power of two",
            decided_by=(*entry.decided_by, self.name),
        )
