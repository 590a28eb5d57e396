"""The table of the openvino target against the installed OpenVINO, and a compilation that runs in it."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest

from qcompiler.plan import Precision
from qcompiler.recipe import Floors, MatchRule, Recipe
from qcompiler.registry import load_target
from qcompiler.runtime.available import is_installed
from tests.compiling import compiled, lowered, outputs, planned, samples, serialized, start
from tests.models import conv_net, save
from tests.targets.operators import AFTER, BEFORE, OPERATOR, around

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed("openvino"), reason="OpenVINO is not installed: pip install openvino"),
]

RULES = load_target("openvino").rules()


@pytest.fixture
def opened(tmp_path):
    """Give a function that opens a model as the gate does."""
    from qcompiler.runtime import _openvino_sessions

    def open_model(proto):
        return _openvino_sessions.open_session(str(save(proto, tmp_path)), {"threads": 1})

    return open_model


def layers(session):
    """Return name in the model -> (operator, reads integers) of every node that runs."""
    return {name: (op, integer) for names, op, integer in session.layers() for name in names}


@pytest.mark.parametrize("operator", [rule.op_type for rule in RULES])
def test_every_row_runs_in_integers(opened, operator):
    model = onnx.load_from_string(serialized(compiled(around(operator), target="openvino")))
    session = opened(model)
    found = layers(session)
    assert any(integer for name, (_, integer) in found.items() if name.split("/")[0] in (OPERATOR, "y")), found
    assert found.get(BEFORE, found.get(f"{BEFORE}/WithoutBiases")) == ("Convolution", True)
    feeds = samples(start(around(operator)).model, count=1)[0]
    expected, answered = outputs(model, feeds)[0], session.run(None, feeds)[0]
    assert np.abs(expected - answered).max() <= 0.03 * np.abs(expected).max()


def test_what_was_left_out_of_the_table_runs_in_float(opened):
    """x86's table takes a Mul; OpenVINO reads such a file and computes it in float."""
    found = layers(opened(onnx.load_from_string(serialized(compiled(around("Mul"), target="x86")))))
    assert not found[OPERATOR][1], found
    assert found.get(AFTER, found.get(f"{AFTER}/WithoutBiases"))[1]


def test_unsigned_weights_would_run_in_float(opened):
    """u8 weights are why the table asks for signed ones."""
    model = onnx.load_from_string(serialized(compiled(around("Conv"), target="openvino")))
    for constant in model.graph.initializer:
        if constant.data_type == onnx.TensorProto.INT8:
            codes = onnx.numpy_helper.to_array(constant).astype(np.int16) + 128
            constant.CopyFrom(onnx.numpy_helper.from_array(codes.astype(np.uint8), constant.name))
    middle = onnx.numpy_helper.from_array(np.full(16, 128, np.uint8), "middle")
    model.graph.initializer.extend([middle, onnx.numpy_helper.from_array(np.full(8, 128, np.uint8), "middle8")])
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 2:
            node.input.append("middle" if node.output[0].startswith("w1") else "middle8")
    convolutions = [(op, integer) for _, op, integer in opened(model).layers() if op == "Convolution"]
    assert convolutions == [("Convolution", False)] * 2


def test_run_time_scales_would_multiply_in_float(opened):
    model = around("MatMul")
    rule = MatchRule(pattern=f"^{OPERATOR}$", scheme="dynamic")
    found = opened(onnx.load_from_string(serialized(compiled(model, target="x86", rules=(rule,))))).layers()
    assert [integer for _, op, integer in found if op == "FullyConnected"] == [False]
    state, _ = planned(model, target="openvino", rules=(rule,), passes=("place",))
    assert state.plan.nodes[OPERATOR].precision is not Precision.DYNAMIC


@pytest.mark.parametrize(
    ("channels_last", "scale", "integer"),
    [
        (True, np.float32(1), False),
        (True, np.nextafter(np.float32(1), np.float32(2)), True),
        (False, np.float32(1), True),
    ],
)
def test_pixels_behind_a_transpose_run_in_float(opened, channels_last, scale, integer):
    """What docs/targets.md says of a grid of scale 1 and zero point 0."""
    state, where = planned(around("Conv"), target="openvino")
    entry = state.plan.tensors["x"]
    grid = replace(entry, scale=np.asarray(scale, np.float32), zero_point=np.asarray(0, np.int32))
    state = replace(state, plan=state.plan.with_tensors(grid))
    model = onnx.load_from_string(serialized(lowered(state, where).model))
    if channels_last:
        (quantize,) = [n for n in model.graph.node if n.input[0] == "x"]
        quantize.input[0] = "turned"
        model.graph.node.insert(0, onnx.helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 3, 1, 2]))
        for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 16, 16, 8), strict=True):
            dim.dim_value = size
    convolutions = [runs for names, op, runs in opened(model).layers() if op == "Convolution" and BEFORE in names[0]]
    assert convolutions == [integer]


def test_a_compilation_runs_in_openvino(tmp_path):
    from qcompiler.compiler import compile_model

    net = around("Add")
    feeds = samples(start(net).model, count=96)
    np.savez(tmp_path / "data.npz", **{k: np.concatenate([s[k] for s in feeds.samples]) for k in feeds[0]})
    floors = Floors(max_latency_ratio=1000.0)
    recipe = Recipe(targets=("openvino",), data=str(tmp_path / "data.npz"), effort=0, floors=floors)
    (result,) = compile_model(save(net, tmp_path), recipe=recipe, out=tmp_path / "out")
    verdict = result.report.verdict
    assert verdict.executed_on.startswith("OpenVINO 20")
    assert verdict.integer.integer_nodes == verdict.integer.compute_nodes > 0
    assert verdict.integer.integer_macs == verdict.integer.macs > 0
    assert verdict.latency.result.runs > 0
    assert {time.name for time in result.report.layer_times} >= {BEFORE, AFTER}


def test_what_openvino_refuses_is_told_as_such(tmp_path):
    from qcompiler.runtime.gate_process import GateJob, run_gate, write_samples

    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    original = save(conv_net(), tmp_path)
    count = write_samples(samples(start(conv_net()).model, count=1), tmp_path)
    job = GateJob(original=original, result=broken, samples=tmp_path, count=count, threads=1, stages=("compare",))
    findings = run_gate(replace(job, runtime="openvino"), tmp_path)
    assert findings.culprit == "result"
    assert findings.failure


def test_importing_openvino_reports_to_nobody():
    code = (
        "from qcompiler.runtime._openvino_sessions import load_openvino; load_openvino(); "
        "import sys; print([n for n in sys.modules if n.startswith('openvino_telemetry.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
