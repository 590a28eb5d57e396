"""insert-qdq: write the static part of a plan as QuantizeLinear and DequantizeLinear nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.lowering import add_codes, correct_bias, lazy_codes
from qcompiler.model.bounds import clip_limits
from qcompiler.model.edit import add_initializer, clone, constant_of, drop_unused, fresh_name, value_names
from qcompiler.plan import CompressionPlan, Precision, Role, TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport
from qcompiler.state import Context, Fact, State

INTEGER = (Precision.INTEGER, Precision.MOVE)
INT32_MAX = 2**31 - 1
MATRIX_RANK = 2
BYTE_BITS = 8
"""Codes of narrower activations are stored in bytes."""


@dataclass(frozen=True, slots=True)
class InsertQdq:
    """Puts Q/DQ pairs on planned activations and integer codes behind DequantizeLinear for planned weights.

    The bias stays float in the file: the runtime turns it into int32 itself, from the scales of input and
    weight, which costs no bytes and no precision; only a Gemm with a float output wants it as int32. Weights
    are symmetric, so their zero point is left out where the kernel does without.

    Activations of fewer than 8 bits are bytes that a Clip of the codes keeps on their grid: that of integers stands
    behind the integer kernel, where one of floats before QuantizeLinear would keep the runtime from fusing it.
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
        return PassResult(replace(state, model=model) if report.changed else state, report)


class _Writer:
    def __init__(self, model: ir.Model, plan: CompressionPlan) -> None:
        self.model, self.plan, self.graph = model, plan, model.graph
        self.taken = value_names(model)
        self.constants: dict[bytes, ir.Value] = {}
        self.codes: dict[str, ir.Value] = {}
        self.grids: dict[str, TensorPlan] = {}
        self.pairs = self.weights = 0

    def write(self) -> None:
        """Write all activations, then all weights and biases."""
        nodes = list(self.graph)
        entries = {n: self.plan.activation(v.name or "") for n in nodes for v in n.inputs[:1] if v is not None}
        for value in [*self.graph.inputs, *(v for n in nodes for v in n.outputs)]:
            entry = self.plan.activation(value.name or "")
            if entry is not None and entry.scale is not None:
                self._quantize_value(value, entry)
        for node in nodes:
            weight = self._weight_entry(node) if self._is_integer(node) else None
            if weight is not None:
                correct_bias(self.graph, node, self.plan, self.taken)
                self._quantize_weight(node, weight)
                self._fit_bias(node, weight, entries[node])
                self._keep_bias_apart(node)

    def _is_integer(self, node: ir.Node | None) -> bool:
        entry = self.plan.nodes.get(node.name or "") if node is not None else None
        return entry is not None and entry.precision in INTEGER

    def _quantize_value(self, value: ir.Value, entry: TensorPlan) -> None:
        integer_made = self._is_integer(value.producer())
        users = [u for u in value.uses() if integer_made or self._is_integer(u.node)]
        is_output = value.is_graph_output() and integer_made
        if not users and not is_output:
            return
        name = value.name or ""
        stored, last = _stored_as(entry)
        zero_point = np.asarray(0 if entry.zero_point is None else int(entry.zero_point), stored)
        grid = [
            self._constant(f"{name}_scale", np.asarray(entry.scale)),
            self._constant(f"u{stored.itemsize * 8}_{zero_point}_zero_point", zero_point),
        ]
        if is_output:
            value.name = fresh_name(self.taken, f"{name}_f")
        if last is not None:
            self._leave_limit_to_codes(value, entry)
        made = [ir.node("QuantizeLinear", [value, *grid], name=fresh_name(self.taken, f"{name}_q"))]
        if last is not None and not self._moves_codes(value, entry):
            limit = self._constant(f"u8_{last}", np.asarray(last, stored))
            inputs = [made[0].outputs[0], None, limit]
            made.append(ir.node("Clip", inputs, name=fresh_name(self.taken, f"{name}_limited")))
        made.append(
            ir.node("DequantizeLinear", [made[-1].outputs[0], *grid], name=fresh_name(self.taken, f"{name}_dq"))
        )
        for node in made:
            coded = ir.TensorType(ir.DataType.from_numpy(stored)) if node is not made[-1] else value.type
            node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = node.name, coded, value.shape
        result = made[-1].outputs[0]
        self.grids[result.name or ""] = entry
        self._place(value, made)
        for use in users:
            use.node.replace_input_with(use.idx, result)
        if is_output:
            result.name = name
            for index, output in enumerate(self.graph.outputs):
                if output is value:
                    self.graph.outputs[index] = result
        self.pairs += 1

    def _leave_limit_to_codes(self, value: ir.Value, entry: TensorPlan) -> None:
        """Drop the upper limit of a fused Clip where the codes end below it.

        The runtime takes the grid for one of whole bytes, which reaches far beyond that limit, and would keep the Clip
        as a node of its own.
        """
        node = value.producer()
        if node is None or node.op_type != "Clip" or not self._is_integer(node) or entry.clip is None:
            return
        if entry.clip[1] <= clip_limits(node)[1] and len(node.inputs) > 2:
            node.resize_inputs(2)

    def _moves_codes(self, value: ir.Value, entry: TensorPlan) -> bool:
        """Return True for what a node makes that only moves codes of the same grid, which are limited already."""
        node = value.producer()
        decision = self.plan.nodes.get(node.name or "") if node is not None else None
        source = node.inputs[0] if node is not None else None
        if source is None or decision is None or decision.precision is not Precision.MOVE:
            return False
        before = self.grids.get(source.name or "")
        return before is not None and before.scale == entry.scale and before.zero_point == entry.zero_point

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

    def _quantize_weight(self, node: ir.Node, entry: TensorPlan) -> None:
        """Put integer codes and their DequantizeLinear in the place of a weight; readers share the codes."""
        value, scale, spec = node.inputs[1], entry.scale, entry.spec
        if value is None or scale is None or spec is None:
            return
        if entry.name not in self.codes:
            tensor = lazy_codes(value, entry)()
            self.codes[entry.name] = add_codes(self.graph, fresh_name(self.taken, f"{entry.name}_q"), tensor, entry)
            self.weights += 1
        inputs = [self.codes[entry.name], self._constant(f"{entry.name}_scale", scale)]
        if node.op_type == "Gemm":  # its kernel asks for the zero point that others do without
            inputs.append(self._constant(f"{entry.name}_zero_point", np.zeros(scale.shape, np.int8)))
        attributes = {} if spec.axis is None else {"axis": spec.axis}
        restored = self._restore(node, inputs, attributes, f"{entry.name}_dq")
        restored.type, restored.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        node.replace_input_with(1, restored)

    def _fit_bias(self, node: ir.Node, weight: TensorPlan, data: TensorPlan | None) -> None:
        """Write the bias of a Gemm as its kernel wants it: of rank 1, and as int32 where the output stays float."""
        bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
        if node.op_type != "Gemm" or bias is None or data is None or data.scale is None or weight.scale is None:
            return
        row = bias.reshape(-1)
        if any(use.node.op_type == "QuantizeLinear" for use in node.outputs[0].uses()):
            if bias.ndim != 1:
                node.replace_input_with(2, self._constant(f"{node.name}_bias", row))
            return
        scale = np.asarray(weight.scale * data.scale, np.float32)
        codes = np.rint(row.astype(np.float64) / scale)
        if np.abs(codes).max(initial=0.0) > INT32_MAX:
            return  # a channel with next to no weights: the runtime computes the layer in float
        stored = self._constant(f"{node.name}_bias_codes", codes.astype(np.int32))
        inputs = [stored, self._constant(f"{node.name}_bias_scale", scale)]
        attributes = {"axis": 0} if scale.ndim else {}
        restored = self._restore(node, inputs, attributes, f"{node.name}_bias_dq")
        node.replace_input_with(2, restored)

    def _keep_bias_apart(self, node: ir.Node) -> None:
        """Give the bias that is added to a product the product's rank.

        Of a product of known shape and a bias of rank 1 the runtime makes a Gemm before it looks for Q/DQ pairs, and
        has no integer kernel for that one: it would decode the weights at every run.
        """
        shape = node.outputs[0].shape
        if node.op_type != "MatMul" or shape is None or len(shape) < MATRIX_RANK + 1:
            return
        if not all(isinstance(size, int) for size in shape):
            return
        for use in list(node.outputs[0].uses()):
            bias = use.node.inputs[1 - use.idx] if use.node.op_type == "Add" else None
            array = constant_of(bias)
            if array is not None and array.ndim == 1 and array.size == shape[-1]:
                wide = self._constant(f"{node.name}_bias", array.reshape([1] * (len(shape) - 1) + [-1]))
                use.node.replace_input_with(1 - use.idx, wide)

    def _restore(self, node: ir.Node, inputs: list[ir.Value], attributes: dict[str, int], name: str) -> ir.Value:
        """Insert a DequantizeLinear before a node and return its output."""
        name = fresh_name(self.taken, name)
        made = ir.node("DequantizeLinear", inputs, attributes=attributes, name=name)
        made.outputs[0].name = name
        self.graph.insert_before(node, made)
        return made.outputs[0]

    def _constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """Return a constant of this content, the same one for equal content."""
        key = repr((array.dtype.str, array.shape)).encode() + array.tobytes()
        if key not in self.constants:
            self.constants[key] = add_initializer(self.graph, fresh_name(self.taken, name), array)
        return self.constants[key]


def _stored_as(entry: TensorPlan) -> tuple[np.dtype[Any], int | None]:
    """Return the type of an activation's codes, and the last code where the type holds more."""
    if entry.spec is None or entry.spec.num_bits == BYTE_BITS:
        return np.dtype(np.uint8), None
    if entry.spec.num_bits < BYTE_BITS:
        return np.dtype(np.uint8), entry.spec.code_range[1]
    return np.dtype(np.uint16), None
