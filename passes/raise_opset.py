"""raise-opset: bring a model to the opset whose operators know 4-bit weights and 16-bit activations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from qcompiler.errors import ModelError
from qcompiler.model.convert import at_opset
from qcompiler.plan import QuantSpec, Role
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport
from qcompiler.state import Context, Fact, State

NEEDED_OPSET = 21
"""QuantizeLinear and DequantizeLinear take INT4 and UINT16 from here on."""


@dataclass(frozen=True, slots=True)
class RaiseOpset:
    """Converts the model to opset 21 if a planned grid is one that older opsets cannot express.

    The gate compares the result with the original, so that a conversion that changes a value does not pass.
    """

    name: ClassVar[str] = "raise-opset"
    kind: ClassVar[PassKind] = PassKind.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a model of opset 21 or later, or as it is where nothing asks for that.

        Raises:
            ModelError: the model cannot be converted.
        """
        opset = state.model.opset_imports.get("", 0)
        asking = sum(t.spec is not None and _is_new(t.role, t.spec) for t in state.plan.tensors.values())
        if not asking or opset >= NEEDED_OPSET:
            return PassResult(state, PassReport(name=self.name, changed=False))
        model, reason = at_opset(state.model, NEEDED_OPSET)
        if reason:
            raise ModelError(
                f"{context.recipe.bits} needs opset {NEEDED_OPSET}, the model has {opset}: {reason}; use --bits W8A8"
            )
        report = PassReport(name=self.name, changed=True, metrics=(Metric("opset", NEEDED_OPSET, ""),))
        return PassResult(replace(state, model=model), report)


def _is_new(role: Role, spec: QuantSpec) -> bool:
    return spec.num_bits < 8 if role is Role.WEIGHT else spec.num_bits > 8
