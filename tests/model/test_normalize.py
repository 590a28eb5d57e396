"""The normal form, part by part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.model import edit, normalize
from qcompiler.model.load import LoadedModel, load_model
from tests import models
from tests.model.compare import assert_same_outputs

X = ("x", models.FLOAT, ["N", 4])
Y = ("y", models.FLOAT, ["N", 4])


def node(op: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, **attributes)


def load(model: onnx.ModelProto, folder: Path) -> LoadedModel:
    """Load a model, check that it computes the same, and return it."""
    path = models.save(model, folder)
    loaded = load_model(path)
    assert_same_outputs(path, loaded, folder, models.random_inputs(path))
    return loaded


def op_types(loaded: LoadedModel) -> list[str]:
    return [n.op_type for n in loaded.model.graph.all_nodes()]


@pytest.mark.parametrize("make", [models.branch_net, models.loop_net, models.function_net, models.token_net])
def test_names_are_unique_over_all_graphs(tmp_path: Path, make: object) -> None:
    model = load(make(), tmp_path).model  # type: ignore[operator]
    nodes = [n.name for n in model.graph.all_nodes()]
    assert all(nodes)
    assert len(nodes) == len(set(nodes))
    values = [
        v.name
        for g in model.graphs()
        for v in (*g.inputs, *g.initializers.values(), *(o for n in g for o in n.outputs))
        if v.name != ""
    ]
    assert all(values)
    assert len(values) == len(set(values))


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    loaded = load(models.function_net(), tmp_path)
    assert not loaded.model.functions
    assert op_types(loaded) == ["MatMul", "Relu", "MatMul", "Relu"]
    assert set(loaded.model.opset_imports) == {""}
    assert "local functions inlined: 1" in loaded.notes


def test_function_of_another_opset_stays(tmp_path: Path) -> None:
    body = [node("Relu", ["a"], ["b"])]
    function = helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 13)])
    model = models.build([node("F", ["x"], ["y"], domain="local")], [X], [Y], functions=[function])
    loaded = load(model, tmp_path)
    assert op_types(loaded) == ["F"]
    assert any("local functions stay" in n and "Opset mismatch" in n for n in loaded.notes)


@pytest.mark.parametrize(
    "attribute",
    [
        {"value": numpy_helper.from_array(np.arange(4, dtype=np.float32))},
        {"value_float": 2.0},
        {"value_floats": [1.0, 2.0, 3.0, 4.0]},
        {"value_int": 3},
        {"value_ints": [1, 2, 3, 4]},
    ],
)
def test_constants_become_initializers(tmp_path: Path, attribute: dict[str, object]) -> None:
    nodes = [
        node("Constant", [], ["c"], **attribute),
        node("Cast", ["c"], ["f"], to=models.FLOAT),
        node("Mul", ["x", "f"], ["y"]),
    ]
    loaded = load(models.build(nodes, [X], [Y]), tmp_path)
    assert op_types(loaded) == ["Cast", "Mul"]
    assert "c" in loaded.model.graph.initializers


def test_constants_in_subgraphs_stay_in_their_graph(tmp_path: Path) -> None:
    model = models.branch_net()
    for attribute in model.graph.node[0].attribute:
        weight = attribute.g.initializer.pop()
        attribute.g.node.insert(0, node("Constant", [], ["w"], value=weight))
    loaded = load(model, tmp_path)
    assert "Constant" not in op_types(loaded)
    assert [len(g.initializers) for g in loaded.model.graphs()] == [1, 1, 1]


def test_constant_output_and_string_constant_stay(tmp_path: Path) -> None:
    nodes = [
        node("Constant", [], ["y"], value_floats=[1.0, 2.0]),
        node("Constant", [], ["s"], value_string="gr\u00fc\u00df"),
        node("Identity", ["s"], ["t"]),
        node("Relu", ["x"], ["z"]),
    ]
    outputs = [("y", models.FLOAT, [2]), ("t", TensorProto.STRING, []), ("z", models.FLOAT, ["N", 4])]
    assert op_types(load(models.build(nodes, [X], outputs), tmp_path)).count("Constant") == 2


@pytest.mark.parametrize("ir_version", [3, 8])
def test_default_values_of_inputs_become_constants(tmp_path: Path, ir_version: int) -> None:
    model = models.dense_net()
    model.ir_version = ir_version
    for tensor in model.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(info)
    loaded = load(model, tmp_path)
    assert [v.name for v in loaded.model.graph.inputs] == ["x"]
    assert loaded.notes == ("inputs with a default value became constants: 'w1', 'b1', 'w2' and 1 more",)
    onnx.checker.check_model(tmp_path / "normalized.onnx")


def test_unused_nodes_and_constants_go(tmp_path: Path) -> None:
    model = models.branch_net()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unused"))
    model.graph.node.append(node("Abs", ["x"], ["nobody"]))
    branch = model.graph.node[0].attribute[0].g
    branch.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unused_inside"))
    loaded = load(model, tmp_path)
    assert "Abs" not in op_types(loaded)
    assert not [name for g in loaded.model.graphs() for name in g.initializers if "unused" in name]


def test_identities_go_only_within_a_graph(tmp_path: Path) -> None:
    nodes = [
        node("Identity", ["x"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("Identity", ["b"], ["c"]),
        node("Neg", ["c"], ["y"]),
        node("Identity", ["b"], ["z"]),
    ]
    loaded = load(models.build(nodes, [X], [Y, ("z", models.FLOAT, ["N", 4])]), tmp_path)
    assert op_types(loaded) == ["Relu", "Neg", "Identity"]
    assert "Identity" in op_types(load(models.loop_net(), tmp_path))


def test_branch_that_hands_on_an_outer_value_keeps_its_identity(tmp_path: Path) -> None:
    out = helper.make_tensor_value_info("o", models.FLOAT, ["N", 4])
    branches = {
        name: helper.make_graph([node(op, ["r"], ["o"])], name, [], [out])
        for name, op in (("then_branch", "Identity"), ("else_branch", "Neg"))
    }
    nodes = [node("Relu", ["x"], ["r"]), node("If", ["flag"], ["y"], **branches)]
    model = models.build(nodes, [X, ("flag", TensorProto.BOOL, [])], [Y])
    assert sorted(op_types(load(model, tmp_path))) == ["Identity", "If", "Neg", "Relu"]


def test_nodes_are_sorted(tmp_path: Path) -> None:
    nodes = [node("Relu", ["a"], ["y"]), node("Neg", ["x"], ["a"])]
    loaded = load(models.build(nodes, [X], [Y]), tmp_path)
    assert op_types(loaded) == ["Neg", "Relu"]


def test_shapes_are_inferred_and_the_interface_stays(tmp_path: Path) -> None:
    model = models.conv_net()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    loaded = load(model, tmp_path)
    shapes = {name: v.shape for name, v in edit.values_by_name(loaded.model).items()}
    assert shapes["a1"] == ir.Shape(["N", 8, 16, 16])
    assert shapes["f"] == ir.Shape(["N", 8])
    assert shapes["scores"] == ir.Shape(["N", "classes"])


def test_shapes_follow_from_small_constants(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "shape"], ["r"]), node("Relu", ["r"], ["y"])]
    output = ("y", models.FLOAT, None)
    model = models.build(nodes, [("x", models.FLOAT, [2, 6])], [output], {"shape": np.array([3, -1])})
    values = edit.values_by_name(load(model, tmp_path).model)
    assert values["r"].shape == ir.Shape([3, 4])
    assert values["y"].shape is None


def test_metadata_of_the_model_stays_and_that_of_nodes_goes(tmp_path: Path) -> None:
    model = models.dense_net()
    model.doc_string = "about the model"
    model.metadata_props.add(key="author", value="me")
    model.graph.node[0].doc_string = "stack trace " * 100
    model.graph.node[0].metadata_props.add(key="pkg.torch.stack_trace", value="x" * 1000)
    load(model, tmp_path)
    written = onnx.load(tmp_path / "normalized.onnx")
    assert written.doc_string == "about the model"
    assert {p.key: p.value for p in written.metadata_props} == {"author": "me"}
    assert not written.graph.node[0].doc_string
    assert not written.graph.node[0].metadata_props


def test_names_of_inputs_and_outputs_win(tmp_path: Path) -> None:
    out = helper.make_tensor_value_info("y2", models.FLOAT, ["N", 4])
    branches = {
        name: helper.make_graph([node("Relu", ["x"], ["inner"]), node("Neg", ["inner"], ["y2"])], name, [], [out])
        for name in ("then_branch", "else_branch")
    }
    nodes = [node("If", ["flag"], ["y"], **branches), node("Abs", ["y"], ["inner"])]
    inputs, outputs = [X, ("flag", TensorProto.BOOL, [])], [Y, ("inner", models.FLOAT, ["N", 4])]
    loaded = load(models.build(nodes, inputs, outputs), tmp_path)
    assert [v.name for v in loaded.model.graph.outputs] == ["y", "inner"]


def test_unique_names_fill_in_missing_ones() -> None:
    model = ir.serde.deserialize_model(models.dense_net())
    for n in model.graph:
        n.name = None
    normalize.unique_names(model)
    assert [n.name for n in model.graph] == ["Gemm", "Relu", "MatMul", "Add"]


def test_omitted_outputs_stay_unnamed(tmp_path: Path) -> None:
    model = models.token_net()
    model.graph.node[2].output[:] = ["l", "", "cell"]
    model.graph.output.append(helper.make_tensor_value_info("cell", models.FLOAT, [1, "N", 6]))
    loaded = load(model, tmp_path)
    assert [o.name for o in loaded.model.graph.node("lstm").outputs] == ["l", "", "cell"]
