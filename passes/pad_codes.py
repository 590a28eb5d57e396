"""pad-codes: let a Pad between two pairs of one grid pad the codes themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from qcompiler.model.edit import clone, drop_unused
from qcompiler.plan import Precision
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport
from qcompiler.state import Context, Fact, State


@dataclass(frozen=True, slots=True)
class PadCodes:
    """Moves planned Pads into the codes, where ONNX Runtime's CPU provider would decode for them.

    The zero point is what is padded with. Codes of more than 8 bits are left alone: there is no kernel for them.
    """

    name: ClassVar[str] = "pad-codes"
    kind: ClassVar[PassKind] = PassKind.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT, Fact.LOWERED})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a graph in which no planned Pad stands between DequantizeLinear and QuantizeLinear."""
        moved = frozenset(n.name for n in state.plan.nodes.values() if n.precision is Precision.MOVE)
        if not any(n.op_type == "Pad" and n.name in moved for n in state.model.graph):
            return PassResult(state, PassReport(name=self.name, changed=False))
        model = clone(state.model)
        pads = [n for n in model.graph if n.op_type == "Pad" and n.name in moved]
        count = sum(_pad_codes(model.graph, node) for node in pads)
        drop_unused(model)
        report = PassReport(name=self.name, changed=bool(count), metrics=(Metric("padded in codes", count, "nodes"),))
        return PassResult(replace(state, model=model) if count else state, report)


def _pad_codes(graph: ir.Graph, node: ir.Node) -> bool:
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    behind = next((u.node for u in node.outputs[0].uses() if u.node.op_type == "QuantizeLinear"), None)
    if before is None or before.op_type != "DequantizeLinear" or behind is None or before.inputs[2] is None:
        return False
    if before.inputs[2].dtype is not ir.DataType.UINT8:
        return False
    node.replace_input_with(0, before.inputs[0])
    node.resize_inputs(max(len(node.inputs), 3))
    node.replace_input_with(2, before.inputs[2])
    padded, codes = node.outputs[0], behind.outputs[0]
    padded.type = codes.type
    codes.replace_all_uses_with(padded)
    graph.remove(behind, safe=True)
    return True
