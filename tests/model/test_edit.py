"""Small edits on graphs."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from qcompiler.model import edit
from qcompiler.model.load import load_model
from tests import models


def load(tmp_path: Path, model: object = None) -> ir.Model:
    return load_model(models.save(model or models.branch_net(), tmp_path)).model  # type: ignore[arg-type]


def test_clone_shares_tensors_and_nothing_else(tmp_path: Path) -> None:
    model = load(tmp_path)
    text = ir.to_onnx_text(model)
    copy = edit.clone(model)
    assert ir.to_onnx_text(copy) == text
    values, copied = edit.values_by_name(model), edit.values_by_name(copy)
    assert values.keys() == copied.keys()
    for name, value in values.items():
        assert copied[name] is not value
        assert copied[name].const_value is value.const_value
    for node, _ in edit.all_nodes(copy):
        node.op_type = "Changed"
    edit.replace_constant(copied["shared"], np.zeros(8, np.float32))
    assert ir.to_onnx_text(model) == text


def test_all_nodes_with_their_graphs(tmp_path: Path) -> None:
    model = load(tmp_path)
    found = list(edit.all_nodes(model))
    assert [n.op_type for n, _ in found] == ["If", "MatMul", "Add", "MatMul", "Add"]
    assert all(node.graph is graph for node, graph in found)
    for node, graph in edit.all_nodes(model):
        if node.op_type == "Add":
            graph.remove(node)
    assert [n.op_type for n, _ in edit.all_nodes(model)] == ["If", "MatMul", "MatMul"]


def test_names(tmp_path: Path) -> None:
    names = edit.value_names(load(tmp_path))
    assert {"x", "flag", "y", "shared", "w", "w_1", "m", "m_1"} <= names
    assert edit.fresh_name(names, "new") == "new"
    assert [edit.fresh_name(names, "w") for _ in range(2)] == ["w_2", "w_3"]


def test_constant_of(tmp_path: Path) -> None:
    model = load(tmp_path, models.dense_net())
    array = edit.constant_of(model.graph.initializers["w1"])
    assert array is not None
    assert (array.shape, array.dtype) == ((32, 16), np.float32)
    assert edit.constant_of(model.graph.inputs[0]) is None
    assert edit.constant_of(None) is None


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.FLOAT, np.float32),
        (TensorProto.FLOAT16, np.float16),
        (TensorProto.INT8, np.int8),
        (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
        (TensorProto.INT4, ml_dtypes.int4),
    ],
)
def test_external_tensors_are_read_not_mapped(tmp_path: Path, kind: int, dtype: type) -> None:
    packed = helper.make_tensor("w", kind, [5], np.arange(5) - 2)
    proto = TensorProto.FromString(packed.SerializeToString())
    content = ir.serde.deserialize_tensor(proto).tobytes()
    (tmp_path / "w.bin").write_bytes(b"12345" + content)
    tensor = ir.ExternalTensor(tmp_path / "w.bin", 5, len(content), ir.DataType(kind), shape=ir.Shape([5]), name="w")
    assert edit.tensor_bytes(tensor) == content
    array = edit.tensor_array(tensor)
    assert array.dtype == dtype
    np.testing.assert_array_equal(array.astype(np.float32), np.arange(5) - 2)
    assert tensor.raw is None or kind == TensorProto.INT4


def test_load_external(tmp_path: Path) -> None:
    model = load_model(models.with_external_data(models.dense_net(), tmp_path)).model
    edit.load_external(model)
    (tmp_path / "weights.bin").unlink()
    assert edit.constant_of(model.graph.initializers["b2"]) is not None
    assert not any(isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values())


def test_add_and_replace_constants(tmp_path: Path) -> None:
    model = load(tmp_path, models.dense_net())
    value = edit.add_initializer(model.graph, "new", np.ones((2, 3), np.int8))
    assert model.graph.initializers["new"] is value
    assert (value.dtype, value.shape) == (ir.DataType.INT8, ir.Shape([2, 3]))
    edit.replace_constant(value, np.zeros(4, np.float32))
    assert (value.dtype, value.shape, value.name) == (ir.DataType.FLOAT, ir.Shape([4]), "new")
    np.testing.assert_array_equal(edit.constant_of(value), np.zeros(4))
