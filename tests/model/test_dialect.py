"""What ONNX can say and onnx_ir cannot hold comes through loading and saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.errors import ModelError
from qcompiler.model import dialect, edit
from qcompiler.model.load import load_model
from qcompiler.model.save import save_model
from tests import models
from tests.model.compare import assert_same_outputs

X = ("x", models.FLOAT, [1, 4])
Y = ("y", models.FLOAT, [1, 4])


def sparse(indices: list[object], name: str = "w") -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([1.5, -2.5], np.float32), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(indices), "i"), [4, 4])


@pytest.mark.parametrize("indices", [[1, 6], [[0, 1], [1, 2]]])
@pytest.mark.parametrize("as_node", [False, True])
def test_sparse_constants_become_dense(tmp_path: Path, indices: list[object], as_node: bool) -> None:
    model = models.build([helper.make_node("MatMul", ["x", "w"], ["y"])], [X], [Y])
    if as_node:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse(indices)))
    else:
        model.graph.sparse_initializer.append(sparse(indices))
    path = models.save(model, tmp_path)
    loaded = load_model(path)
    array = edit.constant_of(loaded.model.graph.initializers["w"])
    assert array is not None
    assert (array[0, 1], array[1, 2], np.count_nonzero(array)) == (1.5, -2.5, 2)
    assert_same_outputs(path, loaded, tmp_path, models.random_inputs(path))


def test_sparse_constant_that_would_not_fit(tmp_path: Path) -> None:
    model = models.build([helper.make_node("MatMul", ["x", "w"], ["y"])], [X], [Y])
    huge = sparse([1, 6])
    huge.dims[:] = [2**20, 2**20]
    model.graph.sparse_initializer.append(huge)
    with pytest.raises(ModelError, match="'w' has"):
        dialect.from_proto(model, tmp_path)


def test_map_outputs_keep_their_type(tmp_path: Path) -> None:
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[7, 8, 9, 10])
    model = models.build([node], [X], [])
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    value = helper.make_tensor_type_proto(models.FLOAT, [])
    pairs = helper.make_map_type_proto(TensorProto.INT64, value)
    model.graph.output.append(helper.make_value_info("y", helper.make_sequence_type_proto(pairs)))
    path = models.save(model, tmp_path)
    loaded = load_model(path)
    assert loaded.facts.outputs[0][:2] == ("y", "map")
    assert_same_outputs(path, loaded, tmp_path, models.random_inputs(path))
    save_model(edit.clone(loaded.model), tmp_path / "copy.onnx")
    assert onnx.load(tmp_path / "copy.onnx").graph.output == model.graph.output


def test_long_name_of_the_domain(tmp_path: Path) -> None:
    model = models.build([helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")], [X], [Y])
    model.opset_import[0].domain = "ai.onnx"
    path = models.save(model, tmp_path)
    loaded = load_model(path)
    assert loaded.model.opset_imports == {"": 17}
    assert loaded.model.graph[0].domain == ""
    assert loaded.facts.opset == 17
    assert_same_outputs(path, loaded, tmp_path, models.random_inputs(path))


def test_graphs_in_the_order_of_onnx_ir() -> None:
    proto = models.branch_net()
    model = ir.serde.deserialize_model(proto)
    assert [g.name for g in dialect.graphs_of(proto.graph)] == [g.name for g in model.graphs()]
