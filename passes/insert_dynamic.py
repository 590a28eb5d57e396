"""insert-dynamic: integer matrix products whose activations get their scale at run time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from qcompiler.errors import QCompileError
from qcompiler.lowering import add_codes, lazy_codes
from qcompiler.model.edit import add_initializer, all_nodes, clone, drop_unused, fresh_name, take_over, value_names
from qcompiler.plan import Precision, Role, TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport
from qcompiler.state import Context, Fact, State


@dataclass(frozen=True, slots=True)
class InsertDynamic:
    """Replaces planned MatMul nodes by DynamicQuantizeLinear, MatMulInteger, Cast and Mul.

    These are standard operators; ONNX Runtime fuses them into one kernel.
    """

    name: ClassVar[str] = "insert-dynamic"
    kind: ClassVar[PassKind] = PassKind.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT, Fact.WEIGHT_SCALES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a graph in which every dynamic node multiplies integers."""
        if not any(n.precision is Precision.DYNAMIC for n in state.plan.nodes.values()):
            return PassResult(state, PassReport(name=self.name, changed=False))
        model = clone(state.model)
        taken = value_names(model)
        quantized: dict[ir.Value, list[ir.Value]] = {}
        stored: dict[str, tuple[ir.Value, ir.Value]] = {}
        count = 0
        for node, graph in all_nodes(model):
            decision = state.plan.nodes.get(node.name or "")
            weight = node.inputs[1] if len(node.inputs) > 1 else None
            entry = state.plan.tensors.get(weight.name or "") if weight is not None else None
            if decision is None or decision.precision is not Precision.DYNAMIC or weight is None:
                continue
            if entry is None or entry.role is not Role.WEIGHT or entry.scale is None:
                continue
            data = node.inputs[0]
            if data is None:
                continue
            if data not in quantized:
                quantized[data] = _quantize(graph, node, data, taken)
            if entry.name not in stored:
                stored[entry.name] = _store(graph, weight, entry, taken)
            _multiply(graph, node, quantized[data], stored[entry.name], taken)
            count += 1
        drop_unused(model)
        report = PassReport(name=self.name, changed=bool(count), metrics=(Metric("dynamic", count, "nodes"),))
        return PassResult(replace(state, model=model) if count else state, report)


def _quantize(graph: ir.Graph, node: ir.Node, data: ir.Value, taken: set[str]) -> list[ir.Value]:
    """Return codes, scale and zero point of a value, quantized at run time once for all its users."""
    name = fresh_name(taken, f"{data.name}_dynamic")
    made = ir.node("DynamicQuantizeLinear", [data], num_outputs=3, name=name)
    for output, kind in zip(made.outputs, ("q", "scale", "zero_point"), strict=True):
        output.name = fresh_name(taken, f"{data.name}_{kind}")
    graph.insert_before(node, made)
    return list(made.outputs)


def _store(graph: ir.Graph, weight: ir.Value, entry: TensorPlan, taken: set[str]) -> tuple[ir.Value, ir.Value]:
    """Return a weight's codes and its scale, as constants."""
    tensor = weight.const_value
    if tensor is None or entry.scale is None:
        raise QCompileError(f"weight '{entry.name}' is planned without a scale, or is no constant")
    shape = ir.Shape(tensor.shape.numpy())
    codes = ir.LazyTensor(lazy_codes(weight, entry), ir.DataType.INT8, shape, cache=False)
    stored = add_codes(graph, fresh_name(taken, f"{weight.name}_codes"), codes, entry)
    scale = add_initializer(graph, fresh_name(taken, f"{weight.name}_scale"), entry.scale.reshape(-1))
    return stored, scale


def _multiply(
    graph: ir.Graph, node: ir.Node, data: list[ir.Value], weight: tuple[ir.Value, ir.Value], taken: set[str]
) -> None:
    """Put the integer product in the place of a MatMul; the last node keeps its name and its output."""
    codes, scale, zero_point = data
    base = node.name or "matmul"
    product = ir.node("MatMulInteger", [codes, weight[0], zero_point], name=fresh_name(taken, f"{base}_integer"))
    cast = ir.node(
        "Cast", [product.outputs[0]], attributes={"to": ir.DataType.FLOAT.value}, name=fresh_name(taken, f"{base}_cast")
    )
    factor = ir.node("Mul", [scale, weight[1]], name=fresh_name(taken, f"{base}_factor"))
    result = ir.node("Mul", [cast.outputs[0], factor.outputs[0]], name=node.name)
    for made in (product, cast, factor):
        made.outputs[0].name = made.name
    graph.insert_before(node, [product, cast, factor, result])
    take_over(node, result.outputs[0])
