"""widen-float16: compute in float32 what a float16 model stores, so that it can be quantized like any other."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.model.edit import all_nodes, clone, fresh_name, replace_constant, tensor_array, value_names
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport
from qcompiler.state import Context, Fact, State

HALF = ir.DataType.FLOAT16
SINGLE = ir.DataType.FLOAT


@dataclass(frozen=True, slots=True)
class WidenFloat16:
    """Turns float16 constants and values into float32; inputs and outputs of the model keep their type.

    ONNX Runtime's CPU provider computes most operators in float32 anyway, and casts around each of them.
    """

    name: ClassVar[str] = "widen-float16"
    kind: ClassVar[PassKind] = PassKind.REWRITE
    requires: ClassVar[frozenset[Fact]] = frozenset()
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.PLACEMENT, Fact.STATISTICS, Fact.RANGES, Fact.WEIGHT_SCALES}
    )

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a float32 model where it was float16, else the state as it is."""
        if not _is_half(state.model):
            return PassResult(state, PassReport(name=self.name, changed=False))
        model = clone(state.model)
        half_outputs = frozenset(v.name or "" for v in model.graph.outputs if v.dtype is HALF)
        widened = 0
        for graph in model.graphs():
            for value in () if graph is model.graph else graph.inputs:
                _widen_type(value)
            for value in list(graph.initializers.values()):
                if value.const_value is not None and value.const_value.dtype is HALF:
                    replace_constant(value, tensor_array(value.const_value).astype(np.float32))
                    widened += 1
        for node, _ in all_nodes(model):
            _widen_attributes(node)
            for output in node.outputs:
                _widen_type(output)
        _cast_ends(model, half_outputs)
        report = PassReport(name=self.name, changed=True, metrics=(Metric("widened", widened, "constants"),))
        return PassResult(replace(state, model=model), report)


def _is_half(model: ir.Model) -> bool:
    """Return True if a model stores float16, and does not take or give it in anything but tensors."""
    ends = (*model.graph.inputs, *model.graph.outputs)
    if any(v.dtype is HALF and not isinstance(v.type, ir.TensorType) for v in ends):
        return False
    values = [v for g in model.graphs() for v in g.initializers.values()]
    return any(v.const_value is not None and v.const_value.dtype is HALF for v in values)


def _widen_type(value: ir.Value) -> None:
    if value.dtype is HALF:
        value.type = copy.deepcopy(value.type)  # a clone shares it with the original
        value.dtype = SINGLE


def _widen_attributes(node: ir.Node) -> None:
    """Let nodes that are told to produce float16 produce float32, and widen constants held in attributes."""
    for name in ("to", "dtype"):
        target = node.attributes.get(name)
        if node.domain in ("", "ai.onnx") and target is not None and target.as_int() == HALF.value:
            node.attributes[name] = ir.AttrInt64(name, SINGLE.value)
    held = node.attributes.get("value")
    if held is not None and held.type == ir.AttributeType.TENSOR and held.as_tensor().dtype is HALF:
        wide = held.as_tensor().numpy().astype(np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(wide))


def _cast_ends(model: ir.Model, half_outputs: frozenset[str]) -> None:
    """Cast float16 inputs to float32 right behind them, and float32 results back right before the outputs."""
    graph, taken = model.graph, value_names(model)
    for value in graph.inputs:
        if value.dtype is not HALF or not value.uses():
            continue
        cast = ir.node("Cast", [value], attributes={"to": SINGLE.value}, name=fresh_name(taken, f"{value.name}_wide"))
        result = cast.outputs[0]
        result.name, result.type, result.shape = cast.name, ir.TensorType(SINGLE), value.shape
        users = [u for u in value.uses() if u.node is not cast]
        graph.insert_before(graph[0], cast)
        for use in users:
            use.node.replace_input_with(use.idx, result)
    for index, value in enumerate(list(graph.outputs)):
        name = value.name or ""
        if name not in half_outputs or value.producer() is None:
            continue
        value.name = fresh_name(taken, f"{name}_wide")
        cast = ir.node("Cast", [value], attributes={"to": HALF.value}, name=fresh_name(taken, f"{name}_half"))
        cast.outputs[0].name, cast.outputs[0].type = name, ir.TensorType(HALF)
        cast.outputs[0].shape = value.shape
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]
