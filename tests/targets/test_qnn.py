"""The table of the qnn target against Qualcomm's simulator, and a compilation that runs in it."""

import numpy as np
import onnx
import pytest
from onnx import helper

from qcompiler.errors import ModelError
from qcompiler.recipe import Recipe
from qcompiler.registry import load_target
from tests.compiling import compiled, outputs, samples, serialized, start
from tests.models import FLOAT, build, conv_net, save
from tests.targets.operators import AFTER, BEFORE, OPERATOR, around

pytest.importorskip("onnxruntime_qnn", reason="the QNN provider is not installed: pip install onnxruntime-qnn")
pytestmark = pytest.mark.slow

RULES = load_target("qnn").rules()


@pytest.fixture
def opened(tmp_path):
    """Give a function that opens a model on the simulated HTP, which has to run all of it."""
    from qcompiler.runtime import _qnn_sessions

    def open_model(proto):
        return _qnn_sessions.open_session(str(save(proto, tmp_path)), {"threads": 1})

    return open_model


@pytest.mark.parametrize("bits", ["W8A8", "W8A16", "W4A8", "W4A16"])
@pytest.mark.parametrize("operator", [rule.op_type for rule in RULES])
def test_every_row_runs_on_the_htp_in_integers(opened, operator, bits):
    model = onnx.load_from_string(serialized(compiled(around(operator), target="qnn", bits=bits)))
    session = opened(model)
    integer = {names[0]: runs for names, _, runs in session.layers()}
    assert integer[BEFORE]
    assert integer[OPERATOR]
    assert integer.get(AFTER, True)
    feeds = samples(start(around(operator)).model, count=1)[0]
    expected, answered = outputs(model, feeds)[0], session.run(None, feeds)[0]
    assert np.abs(expected - answered).max() <= 0.05 * np.abs(expected).max()


def test_a_float_product_is_not_called_integer(opened):
    model = onnx.load_from_string(serialized(compiled(around("Gemm"), target="qnn")))
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    session = opened(around("Gemm"))
    assert not any(runs for _, _, runs in session.layers())


def data_for(model, folder):
    feeds = samples(start(model).model, count=96)
    np.savez(folder / "data.npz", **{k: np.concatenate([s[k] for s in feeds.samples]) for k in feeds[0]})
    return str(folder / "data.npz")


def test_a_compilation_runs_in_the_simulator(tmp_path):
    from qcompiler.compiler import compile_model

    model = around("Add")
    recipe = Recipe(targets=("qnn",), data=data_for(model, tmp_path), effort=0)
    (result,) = compile_model(save(model, tmp_path), recipe=recipe, out=tmp_path / "out")
    verdict = result.report.verdict
    assert verdict.executed_on.startswith("Qualcomm's HTP simulator")
    assert "not executed on Snapdragon HTP" in verdict.executed_on
    assert verdict.latency is None
    assert verdict.integer.integer_nodes == verdict.integer.compute_nodes == 3
    context = onnx.load(result.folder / "model_ctx.onnx")
    assert [node.op_type for node in context.graph.node] == ["EPContext"]
    assert "model_ctx.onnx loads and gives the same outputs as model.onnx" in verdict.notes


def test_shapes_must_be_static(tmp_path):
    from qcompiler.compiler import compile_model

    with pytest.raises(ModelError, match=r"static shapes only; input 'image' is \(N, 3, 16, 16\): fix it"):
        compile_model(save(conv_net(), tmp_path), recipe=Recipe(targets=("qnn",)), out=tmp_path / "out")


def test_what_the_htp_does_not_run_is_named(opened):
    nodes = [helper.make_node("Det", ["x"], ["y"], name="determinant")]
    with pytest.raises(RuntimeError, match="the HTP does not run Det 'determinant'"):
        opened(build(nodes, [("x", FLOAT, [1, 4, 4])], [("y", FLOAT, [1])]))
