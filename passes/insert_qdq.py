"""insert-qdq: write the static part of a plan as QuantizeLinear and DequantizeLinear nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.lowering import correct_bias
from qcompiler.model.edit import add_initializer, clone, constant_of, drop_unused, fresh_name, value_names
from qcompiler.plan import CompressionPlan, Precision, Role, TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.grid import quantize
from qcompiler.records import Metric, PassReport
from qcompiler.state import Context, Fact, State

INTEGER = (Precision.INTEGER, Precision.MOVE)


@dataclass(frozen=True, slots=True)
class InsertQdq:
    """Puts Q/DQ pairs on planned activations and integer codes behind DequantizeLinear for planned weights.

    The bias stays float in the file: the runtime turns it into int32 itself, from the scales of input and
    weight, which costs no bytes and no precision. Weights are symmetric, so their zero point is left out.
    """

    name: ClassVar[str] = "insert-qdq"
    kind: ClassVar[PassKind] = PassKind.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT, Fact.RANGES, Fact.WEIGHT_SCALES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a graph in which every static integer node stands between Q/DQ pairs."""
        model = clone(state.model)
        writer = _Writer(model, state.plan)
        writer.write()
        drop_unused(model)
        metrics = (Metric("activations", writer.pairs, "Q/DQ pairs"), Metric("weights", writer.weights, "tensors"))
        report = PassReport(name=self.name, changed=bool(writer.pairs or writer.weights), metrics=metrics)
        return PassResult(replace(state, model=model), report)


class _Writer:
    def __init__(self, model: ir.Model, plan: CompressionPlan) -> None:
        self.model, self.plan, self.graph = model, plan, model.graph
        self.taken = value_names(model)
        self.constants: dict[bytes, ir.Value] = {}
        self.pairs = self.weights = 0

    def write(self) -> None:
        """Write all activations, then all weights and bias corrections."""
        nodes = list(self.graph)
        values = [*self.graph.inputs, *(v for n in nodes for v in n.outputs)]
        for value in values:
            entry = self.plan.activation(value.name or "")
            if entry is not None and entry.scale is not None:
                self._quantize_value(value, entry)
        for node in nodes:
            if self._precision(node) in INTEGER:
                entry = self._weight_entry(node)
                correct_bias(self.graph, node, self.plan, self.taken)
                if entry is not None:
                    self._quantize_weight(node, entry)
                    self._quantize_bias(node, entry)

    def _precision(self, node: ir.Node) -> Precision:
        entry = self.plan.nodes.get(node.name or "")
        return entry.precision if entry is not None else Precision.FLOAT

    def _quantize_value(self, value: ir.Value, entry: TensorPlan) -> None:
        integer_made = value.producer() is not None and self._precision(value.producer()) in INTEGER
        users = [u for u in value.uses() if integer_made or self._precision(u.node) in INTEGER]
        is_output = value.is_graph_output() and integer_made
        if not users and not is_output:
            return
        name = value.name or ""
        scale = self._constant(name, "scale", entry.scale)
        zero_point = int(entry.zero_point) if entry.zero_point is not None else 0
        grid = [scale, self._zero_point(zero_point)]
        if is_output:
            value.name = fresh_name(self.taken, f"{name}_f")
        quantized = ir.node("QuantizeLinear", [value, *grid], name=fresh_name(self.taken, f"{name}_q"))
        restored = ir.node("DequantizeLinear", [quantized.outputs[0], *grid], name=fresh_name(self.taken, f"{name}_dq"))
        quantized.outputs[0].name, restored.outputs[0].name = quantized.name, restored.name
        quantized.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        quantized.outputs[0].shape = value.shape
        result = restored.outputs[0]
        result.type, result.shape = value.type, value.shape
        self._place(value, [quantized, restored])
        for use in users:
            use.node.replace_input_with(use.idx, result)
        if is_output:
            result.name = name
            for index, output in enumerate(self.graph.outputs):
                if output is value:
                    self.graph.outputs[index] = result
        self.pairs += 1

    def _place(self, value: ir.Value, nodes: list[ir.Node]) -> None:
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, nodes)
        else:
            self.graph.insert_before(self.graph[0], nodes)

    def _weight_entry(self, node: ir.Node) -> TensorPlan | None:
        value = node.inputs[1] if len(node.inputs) > 1 else None
        entry = self.plan.tensors.get(value.name or "") if value is not None else None
        return entry if entry is not None and entry.role is Role.WEIGHT and entry.scale is not None else None

    def _quantize_bias(self, node: ir.Node, weight: TensorPlan) -> None:
        """Write the bias of a Gemm whose output stays float as int32, without which it would not fuse."""
        data = node.inputs[0]
        source = data.producer() if data is not None else None
        entry = self.plan.activation(source.inputs[0].producer().inputs[0].name or "") if _is_pair(source) else None  # type: ignore[union-attr]
        bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        if node.op_type != "Gemm" or bias is None or entry is None or entry.scale is None or weight.scale is None:
            return
        if any(use.node.op_type == "QuantizeLinear" for use in node.outputs[0].uses()):
            return
        scale = (weight.scale * entry.scale).astype(np.float32)
        codes = np.rint(np.asarray(bias, np.float64).reshape(-1) / scale).astype(np.int64)
        limit = 2**31 - 1
        stored = self._constant(f"{node.name}_bias", "codes", np.clip(codes, -limit, limit).astype(np.int32))
        step = self._constant(f"{node.name}_bias", "scale", scale)
        attributes = {"axis": 0} if scale.ndim else {}
        name = fresh_name(self.taken, f"{node.name}_bias_dq")
        restore = ir.node("DequantizeLinear", [stored, step], attributes=attributes, name=name)
        restore.outputs[0].name = name
        self.graph.insert_before(node, restore)
        node.replace_input_with(2, restore.outputs[0])

    def _quantize_weight(self, node: ir.Node, entry: TensorPlan) -> None:
        value = node.inputs[1]
        if value is None:
            return
        result = decoded_weight(self.graph, value, entry, self.taken)
        if result is None:
            return
        restore, output = result
        if node.op_type == "Gemm":  # its kernel asks for the zero point that others do without
            zero = np.zeros(np.shape(entry.scale), np.int8)
            restore.resize_inputs(3)
            restore.replace_input_with(2, self._constant(entry.name, "zero_point", zero))
        self.graph.insert_before(node, restore)
        for use in list(value.uses()):
            if self._precision(use.node) in INTEGER and use.node.graph is self.graph:
                use.node.replace_input_with(use.idx, output)
        self.weights += 1

    def _constant(self, name: str, kind: str, array: np.ndarray | None) -> ir.Value:  # type: ignore[type-arg]
        content = np.asarray(array)
        key = content.dtype.str.encode() + content.tobytes()
        if key not in self.constants:
            self.constants[key] = add_initializer(self.graph, fresh_name(self.taken, f"{name}_{kind}"), content)
        return self.constants[key]

    def _zero_point(self, code: int) -> ir.Value:
        return self._constant(f"u8_{code}", "zero_point", np.asarray(code, np.uint8))


def _is_pair(node: ir.Node | None) -> bool:
    """Return True for a DequantizeLinear behind a QuantizeLinear."""
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return False
    before = node.inputs[0].producer()
    return before is not None and before.op_type == "QuantizeLinear" and before.inputs[0] is not None


def decoded_weight(
    graph: ir.Graph, value: ir.Value, entry: TensorPlan, taken: set[str]
) -> tuple[ir.Node, ir.Value] | None:
    """Return the DequantizeLinear node that restores a weight from integer codes, and its output.

    Two nodes may share a weight: the codes are added once and found again by name.
    """
    weight = constant_of(value)
    if weight is None or entry.scale is None or entry.zero_point is None or entry.spec is None:
        return None
    spec, name = entry.spec, value.name or ""
    codes = entry.codes
    if codes is None:
        codes = quantize(np.asarray(weight, np.float32), entry.scale, entry.zero_point, spec.code_range, spec.axis)
    stored = add_initializer(graph, fresh_name(taken, f"{name}_q"), codes.astype(np.int8))
    scale = add_initializer(graph, fresh_name(taken, f"{name}_s"), entry.scale)
    attributes = {} if spec.axis is None else {"axis": spec.axis}
    restore = ir.node("DequantizeLinear", [stored, scale], attributes=attributes)
    output = restore.outputs[0]
    output.name, output.type, output.shape = fresh_name(taken, f"{name}_dq"), ir.TensorType(ir.DataType.FLOAT), value.shape
    return restore, output
