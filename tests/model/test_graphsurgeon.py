"""GraphSurgeonPass: each thing that graphsurgeon's round trip loses, and that the pass restores it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import pytest
from onnx import helper

from qcompiler.errors import UsageError
from qcompiler.graphsurgeon import GraphSurgeonPass
from qcompiler.model import dialect, edit
from qcompiler.model.load import load_model
from qcompiler.model.save import save_model, to_proto
from qcompiler.plan import CompressionPlan
from qcompiler.protocols import Pass, PassKind, PassResult
from qcompiler.recipe import Recipe
from qcompiler.state import Context, Fact, State
from tests import models


def run(model: ir.Model, function: Callable[[gs.Graph], gs.Graph | None]) -> PassResult:
    context = Context(target=None, recipe=Recipe())  # type: ignore[arg-type]
    state = State(model=model, plan=CompressionPlan())
    return GraphSurgeonPass("test", function).run(state, context)


def rename_relu(graph: gs.Graph) -> None:
    """Change something, so that the pass returns the model that made the round trip."""
    for node in graph.nodes:
        if node.op == "Relu":
            node.op = "LeakyRelu"
            node.attrs = {"alpha": 0.0}


def decorated() -> onnx.ModelProto:
    """Return a model that has everything the round trip loses."""
    model = models.dense_net()
    model.domain, model.model_version, model.doc_string = "org.example", 7, "about the model"
    model.metadata_props.add(key="license", value="MIT")
    graph = model.graph
    graph.doc_string = "about the graph"
    graph.metadata_props.add(key="graph", value="yes")
    graph.node[0].doc_string = "about the node"
    graph.node[0].metadata_props.add(key="node", value="yes")
    graph.input[0].doc_string = "about the input"
    graph.input[0].metadata_props.add(key="input", value="yes")
    annotation = graph.quantization_annotation.add(tensor_name="h")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b2")
    return model


LOST: dict[str, Callable[[onnx.ModelProto], object]] = {
    "model metadata": lambda m: [(p.key, p.value) for p in m.metadata_props],
    "model doc string": lambda m: m.doc_string,
    "model domain": lambda m: m.domain,
    "model version": lambda m: m.model_version,
    "graph metadata": lambda m: [(p.key, p.value) for p in m.graph.metadata_props],
    "node metadata": lambda m: [(p.key, p.value) for p in m.graph.node[0].metadata_props],
    "node doc string": lambda m: m.graph.node[0].doc_string,
    "input metadata": lambda m: [(p.key, p.value) for p in m.graph.input[0].metadata_props],
    "input doc string": lambda m: m.graph.input[0].doc_string,
    "quantization annotation": lambda m: [a.SerializeToString() for a in m.graph.quantization_annotation],
}


@pytest.mark.parametrize("what", LOST)
def test_the_round_trip_loses_it_and_the_pass_keeps_it(what: str) -> None:
    look = LOST[what]
    original = decorated()
    assert look(original)
    assert not look(gs.export_onnx(gs.import_onnx(decorated())))
    result = run(dialect.from_proto(decorated(), Path()), rename_relu)
    assert result.report.changed
    assert look(to_proto(result.state.model)) == look(original)


def test_graph_doc_string_survives() -> None:
    result = run(dialect.from_proto(decorated(), Path()), rename_relu)
    assert to_proto(result.state.model).graph.doc_string == "about the graph"


def test_sparse_constants_come_through(tmp_path: Path) -> None:
    values = models.numpy_helper.from_array(np.array([1.5], np.float32), "w")
    sparse = models.helper.make_sparse_tensor(values, models.numpy_helper.from_array(np.array([1]), "i"), [4, 4])
    nodes = [
        models.helper.make_node("MatMul", ["x", "w"], ["m"]),
        models.helper.make_node("Relu", ["m"], ["y"]),
    ]
    model = models.build(nodes, [("x", models.FLOAT, [1, 4])], [("y", models.FLOAT, [1, 4])])
    model.graph.sparse_initializer.append(sparse)
    path = models.save(model, tmp_path)
    result = run(load_model(path).model, rename_relu)
    save_model(result.state.model, tmp_path / "out.onnx")
    feeds = models.random_inputs(path)
    np.testing.assert_array_equal(models.run(path, feeds)[0], models.run(tmp_path / "out.onnx", feeds)[0])


def test_sub_byte_constants_come_through(tmp_path: Path) -> None:
    model = models.build(
        [
            models.helper.make_node("DequantizeLinear", ["p", "s"], ["d"]),
            models.helper.make_node("Relu", ["d"], ["y"]),
        ],
        [],
        [("y", models.FLOAT, [3])],
        {"s": np.asarray(0.5, np.float32)},
        opset=21,
    )
    model.ir_version = 10
    model.graph.initializer.append(helper.make_tensor("p", onnx.TensorProto.INT4, [3], [1, -2, 3]))
    result = run(load_model(models.save(model, tmp_path)).model, rename_relu)
    save_model(result.state.model, tmp_path / "out.onnx")
    np.testing.assert_array_equal(models.run(tmp_path / "out.onnx", {})[0], [0.5, 0, 1.5])


BUILDERS = (models.dense_net, models.conv_net, models.branch_net, models.loop_net, models.token_net)


@pytest.mark.parametrize("make", BUILDERS)
def test_function_that_changes_nothing(tmp_path: Path, make: Callable[[], onnx.ModelProto]) -> None:
    model = load_model(models.save(make(), tmp_path)).model
    result = run(model, lambda graph: None)
    assert not result.report.changed
    assert result.state.model is model


def constants(model: ir.Model) -> list[tuple[str | None, str, int]]:
    return [(g.name, n, id(v.const_value)) for g in model.graphs() for n, v in sorted(g.initializers.items())]


@pytest.mark.parametrize("make", BUILDERS)
def test_unchanged_constants_are_the_same_tensors(tmp_path: Path, make: Callable[[], onnx.ModelProto]) -> None:
    """Also in subgraphs, into which graphsurgeon copies the constants of outer graphs that they use."""
    path = models.save(make(), tmp_path)
    model = load_model(path).model

    def add_a_node(graph: gs.Graph) -> None:
        old = graph.outputs[0]
        graph.outputs[0] = gs.Variable("z", dtype=old.dtype, shape=old.shape)
        graph.nodes.append(gs.Node("Identity", inputs=[old], outputs=[graph.outputs[0]]))

    changed = run(model, add_a_node).state.model
    before = {n: (v.const_value, v.graph.name) for n, v in edit.values_by_name(model).items() if v.const_value}
    after = {n: (v.const_value, v.graph.name) for n, v in edit.values_by_name(changed).items() if v.const_value}
    assert {n: (id(t), g) for n, (t, g) in before.items()} == {n: (id(t), g) for n, (t, g) in after.items()}
    save_model(changed, tmp_path / "out.onnx")
    feeds = models.random_inputs(path)
    np.testing.assert_array_equal(models.run(path, feeds)[0], models.run(tmp_path / "out.onnx", feeds)[0])


def test_given_model_is_not_changed_and_new_nodes_get_names(tmp_path: Path) -> None:
    model = load_model(models.save(models.dense_net(), tmp_path)).model
    text = ir.to_onnx_text(model)

    def scale_weights(graph: gs.Graph) -> gs.Graph:
        for tensor in graph.tensors().values():
            if tensor.name == "w1":
                tensor.values = tensor.values * 2
        last = graph.nodes[-1]
        last.outputs = [gs.Variable("inner", np.float32)]
        graph.nodes.insert(0, gs.Node("Neg", inputs=last.outputs, outputs=graph.outputs))
        return graph

    result = run(model, scale_weights)
    assert ir.to_onnx_text(model) == text
    graph = result.state.model.graph
    assert [n.name for n in graph] == ["fc1", "relu1", "fc2", "bias2", "Neg"]
    before, after = (
        edit.constant_of(model.graph.initializers["w1"]),
        edit.constant_of(graph.initializers["w1"]),
    )
    assert before is not None
    np.testing.assert_array_equal(after, 2 * before)
    assert {m.name: m.value for m in result.report.metrics} == {"nodes before": 4, "nodes after": 5}


def test_external_constants(tmp_path: Path) -> None:
    path = models.with_external_data(models.dense_net(), tmp_path)
    result = run(load_model(path).model, rename_relu)
    tensors = [v.const_value for v in result.state.model.graph.initializers.values()]
    assert all(isinstance(t, ir.ExternalTensor) for t in tensors)


def test_is_a_pass() -> None:
    step: Pass = GraphSurgeonPass("drop-dropout", rename_relu)
    assert isinstance(step, Pass)
    assert (step.name, step.kind) == ("drop-dropout", PassKind.REWRITE)
    assert GraphSurgeonPass("lower", rename_relu, PassKind.LOWER).kind is PassKind.LOWER
    assert Fact.STATISTICS in step.invalidates


def test_failing_function(tmp_path: Path) -> None:
    def fail(graph: gs.Graph) -> None:
        raise KeyError("no such\nnode")

    with pytest.raises(UsageError, match="pass 'test': its function or graphsurgeon failed") as caught:
        run(load_model(models.save(models.dense_net(), tmp_path)).model, fail)
    assert "\n" not in str(caught.value)


def test_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_graphsurgeon", None)
    with pytest.raises(UsageError, match="pip install"):
        run(load_model(models.save(models.dense_net(), tmp_path)).model, rename_relu)


def test_model_beyond_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompiler.graphsurgeon._LIMIT_BYTES", 0)
    with pytest.raises(UsageError, match="--skip-pass test"):
        run(load_model(models.save(models.dense_net(), tmp_path)).model, rename_relu)
