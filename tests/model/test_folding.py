"""What follows from constants, in NumPy, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from qcompiler.model.folding import folded
from tests.compiling import outputs, start
from tests.models import FLOAT, build

make = helper.make_node
BYTES = np.arange(7, dtype=np.uint8) * 37
CONSTANTS = {
    "bytes": BYTES,
    "more": np.asarray([255, 0], np.uint8),
    "rows": np.asarray([3, -1], np.int64),
    "grid": np.arange(6, dtype=np.int32).reshape(2, 3) + 40,
    "column": np.asarray([[1], [256], [65536]], np.int32),
    "seven": np.asarray(7, np.int32),
    "zero": np.asarray(0, np.int32),
    "powers": np.asarray([1, 8], np.int64),
    "table": np.arange(20, dtype=np.int8).reshape(10, 2) - 9,
    "index": np.asarray([[9, 0], [3, 3]], np.int64),
    "ends": np.asarray([0, 1, 2, 0], np.int64),
    "from": np.asarray([1], np.int64),
    "to": np.asarray([2], np.int64),
}
CASES = {
    "Cast": make("Cast", ["bytes"], ["y"], to=TensorProto.INT64),
    "Concat": make("Concat", ["bytes", "more"], ["y"], axis=0),
    "Div": make("Div", ["grid", "seven"], ["y"]),
    "Gather": make("Gather", ["table", "index"], ["y"]),
    "Gather on an axis": make("Gather", ["grid", "from"], ["y"], axis=1),
    "MatMul": make("MatMul", ["grid", "column"], ["y"]),
    "Mod": make("Mod", ["grid", "seven"], ["y"]),
    "Pad": make("Pad", ["table", "ends"], ["y"]),
    "Range": make("Range", ["zero", "seven", "one"], ["y"]),
    "Reshape": make("Reshape", ["grid", "rows"], ["y"]),
    "Slice": make("Slice", ["grid", "from", "to"], ["y"]),
}


def model(node: onnx.NodeProto) -> onnx.ModelProto:
    constants = {**CONSTANTS, "one": np.asarray(1, np.int32)}
    used = {name: array for name, array in constants.items() if name in node.input}
    proto = build([node], [], [("y", FLOAT, None)], used)
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    return proto


@pytest.mark.parametrize("node", CASES.values(), ids=CASES.keys())
def test_the_runtime_agrees(node):
    proto = model(node)
    found = folded(next(iter(ir.serde.deserialize_model(proto).graph)).outputs[0])
    inferred = onnx.shape_inference.infer_shapes(
        helper.make_model(
            helper.make_graph(proto.graph.node, "g", [], [helper.make_empty_tensor_value_info("y")],
                              proto.graph.initializer),
            opset_imports=proto.opset_import, ir_version=8,
        )
    )  # fmt: skip
    (expected,) = outputs(inferred, {})
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_what_is_computed_from_an_input_has_no_fixed_value():
    nodes = [make("Cast", ["x"], ["c"], to=TensorProto.INT32), make("Reshape", ["c", "rows"], ["y"])]
    proto = build(nodes, [("x", FLOAT, [6])], [("y", TensorProto.INT32, [3, 2])], {"rows": CONSTANTS["rows"]})
    graph = start(proto).model.graph
    assert folded(graph.outputs[0]) is None
    assert folded(None) is None


def test_an_index_outside_its_table_has_no_value():
    node = make("Gather", ["table", "column"], ["y"])
    assert folded(next(iter(ir.serde.deserialize_model(model(node)).graph)).outputs[0]) is None


def test_unknown_operators_have_no_value():
    node = make("Neg", ["grid"], ["y"])
    assert folded(next(iter(ir.serde.deserialize_model(model(node)).graph)).outputs[0]) is None
