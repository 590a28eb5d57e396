"""Every format of the qnn target in Qualcomm's simulator: s8 and s4 weights, u8 and u16 activations."""

import io
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from qcompiler.model.convert import at_opset
from qcompiler.plan import CompressionPlan, Role
from qcompiler.recipe import Floors, Recipe, parse_bits
from qcompiler.runtime.capture import Executor
from tests.compiling import compiled, lowered, outputs, planned, samples, serialized, start
from tests.models import FLOAT, build, conv_net, save
from tests.tolerances import HTP_SUM_UNITS, OUTPUT_STEPS, SQNR_ROOM

pytest.importorskip("onnxruntime_qnn", reason="the QNN provider is not installed: pip install onnxruntime-qnn")
pytestmark = pytest.mark.slow

FORMATS = ("W8A8", "W8A16", "W4A8", "W4A16")
every_format = pytest.mark.parametrize("bits", FORMATS)


@pytest.fixture
def opened(tmp_path):
    """Give a function that opens a model on the simulated HTP, which has to run all of it."""
    from qcompiler.runtime import _qnn_sessions

    def open_model(proto):
        return _qnn_sessions.open_session(str(save(proto, tmp_path)), {"threads": 1})

    return open_model


def single_conv():
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((12, 8, 3, 3)) / 8).astype(np.float32)
    bias = rng.standard_normal(12).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", pads=[1, 1, 1, 1])]
    shapes = [("x", FLOAT, [1, 8, 12, 12])], [("y", FLOAT, [1, 12, 12, 12])]
    return build(nodes, *shapes, {"w": weight, "b": bias})


def written(bits):
    """Return the plan of a single convolution, its model, samples, and what the plan means."""
    state, where = planned(single_conv(), target="qnn", bits=bits)
    model = onnx.load_from_string(serialized(lowered(state, where).model))
    feeds = samples(state.model, 1, seed=7)[0]
    return state.plan, model, feeds, outputs(model, feeds, optimize=False)[0]


def allowed(plan):
    """Return how far the simulator may be from what a plan of a single convolution means."""
    x, w, y = (float(np.max(plan.tensors[name].scale)) for name in ("x", "w", "y"))
    wide = plan.tensors["x"].spec.num_bits == 16
    return OUTPUT_STEPS * y * (1 + 1e-3) + (HTP_SUM_UNITS * x * w if wide else 0.0)


def types(model):
    kinds = onnx.TensorProto
    stored = {kinds.DataType.Name(t.data_type) for t in model.graph.initializer if len(t.dims) > 1}
    made = {t.data_type for n in model.graph.node if n.op_type == "QuantizeLinear" for t in named(model, n.input[2])}
    return stored, {kinds.DataType.Name(kind) for kind in made}


def named(model, name):
    return [t for t in model.graph.initializer if t.name == name]


@every_format
def test_a_layer_computes_what_its_plan_means(bits, opened):
    plan, model, feeds, expected = written(bits)
    weight_bits, activation_bits = parse_bits(bits)
    assert types(model) == ({f"INT{weight_bits}"}, {f"UINT{activation_bits}"})
    assert model.opset_import[0].version == (17 if bits == "W8A8" else 21)
    session = opened(model)
    assert {names[0]: runs for names, _, runs in session.layers()}["conv"]
    answered = session.run(None, feeds)[0]
    assert np.abs(answered - expected).max() <= allowed(plan)


@every_format
@pytest.mark.parametrize(("which", "factor"), [("x_dq", 1.1), ("w_dq", 1.1), ("y_q", 0.5)])
def test_a_wrong_scale_is_caught(bits, which, factor, opened):
    """An output's grid is that of its QuantizeLinear; the HTP does not look at the scale behind it."""
    plan, model, feeds, expected = written(bits)
    (node,) = [n for n in model.graph.node if n.name == which]
    (scale,) = named(model, node.input[1])
    wrong = numpy_helper.to_array(scale) * np.float32(factor)
    model.graph.initializer.append(numpy_helper.from_array(wrong, "wrong_scale"))
    node.input[1] = "wrong_scale"
    answered = opened(model).run(None, feeds)[0]
    assert np.abs(answered - expected).max() > allowed(plan)


def test_int4_without_a_zero_point_would_be_read_as_something_else(opened):
    """Why store-int4 spells the zero point out, which ONNX lets a file leave out."""
    plan, model, feeds, expected = written("W4A8")
    (node,) = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0].startswith("w_")]
    node.input.pop()
    assert len(node.input) == 2
    assert np.array_equal(outputs(model, feeds, optimize=False)[0], expected)
    answered = opened(model).run(None, feeds)[0]
    assert np.abs(answered - expected).max() > 10 * allowed(plan)


def static(proto, size=1):
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for value in (*copy.graph.input, *copy.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size
    return copy


def logits_of(model):
    """Return a classifier without its Softmax, behind which errors are no longer a share of the signal."""
    (position,) = [i for i, n in enumerate(model.graph.node) if n.op_type == "Softmax"]
    model.graph.output[0].name = model.graph.node[position].input[0]
    del model.graph.node[position:]
    return model


def compiled_result(model, folder, data, bits):
    from qcompiler.compiler import compile_model

    np.savez(folder / "data.npz", **{model.graph.input[0].name: data})
    weight_bits, activation_bits = parse_bits(bits)
    recipe = Recipe(
        targets=("qnn",),
        data=str(folder / "data.npz"),
        effort=0,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        floors=Floors(min_agreement=0.0, min_sqnr_db=-100.0),
    )
    (result,) = compile_model(save(model, folder), recipe=recipe, out=folder / "out")
    return result


def noise_share(plan, proto, data):
    """Return the error power that the grids of a plan cause, as a share of the power of what they quantize.

    A weight's share is measured where its grid was chosen; that of an activation is (step^2 / 12) / mean square, and
    what its grid cuts off.
    """
    weights = [t.error_db for t in plan.tensors.values() if t.role is Role.WEIGHT and t.error_db is not None]
    total = sum(10.0 ** (-level / 10.0) for level in weights)
    names = [t.name for t in plan.tensors.values() if t.role is Role.ACTIVATION]
    executor = Executor(start(proto).model, names)
    found = [executor.run({proto.graph.input[0].name: row[None]}) for row in data]
    for name in names:
        entry = plan.tensors[name]
        values = np.stack([np.asarray(values[name], np.float64) for values in found])
        if entry.clip is None or entry.scale is None:
            continue
        cut = np.mean(np.square(values - np.clip(values, *entry.clip)))
        total += (float(entry.scale) ** 2 / 12.0 + cut) / max(float(np.mean(np.square(values))), 1e-30)
    return float(total)


def check_result(result, bits, model, data):
    """Hold a result to what every format promises, and its error against the float model to its grids."""
    verdict = result.report.verdict
    assert verdict.executed_on.startswith("Qualcomm's HTP simulator")
    assert verdict.integer.integer_nodes == verdict.integer.compute_nodes > 0
    assert "model_ctx.onnx loads and gives the same outputs as model.onnx" in verdict.notes
    assert [n.op_type for n in onnx.load(result.folder / "model_ctx.onnx").graph.node] == ["EPContext"]
    plan = CompressionPlan.load(result.folder)
    weight_bits, activation_bits = parse_bits(bits)
    for role, wanted in ((Role.WEIGHT, weight_bits), (Role.ACTIVATION, activation_bits)):
        assert {t.spec.num_bits for t in plan.tensors.values() if t.role is role} == {wanted}
    for output in verdict.outputs:
        level = np.inf if output.sqnr_db is None else output.sqnr_db
        assert level >= -10 * np.log10(SQNR_ROOM * noise_share(plan, model, data[:8])), bits


@every_format
def test_a_small_network_agrees_with_its_float_model(bits, tmp_path):
    model = static(conv_net(channels=16, batch_norm=False))
    data = np.random.default_rng(0).standard_normal((96, 3, 16, 16)).astype(np.float32)
    check_result(compiled_result(model, tmp_path, data, bits), bits, model, data)


@every_format
def test_resnet8_agrees_with_its_float_model(bits, shared_data, tmp_path):
    images = pytest.importorskip("PIL.Image")
    model = logits_of(static(onnx.load(shared_data / "models" / "mlperftiny_resnet8.onnx")))
    stored = np.load(shared_data / "cifar10" / "calib_512.npz")
    files = stored["buf"].tobytes()
    ends = stored["off"][:97]
    pixels = [images.open(io.BytesIO(files[a:b])).convert("RGB") for a, b in pairwise(ends)]
    data = np.stack([np.asarray(image, np.float32) for image in pixels])
    check_result(compiled_result(model, tmp_path, data, bits), bits, model, data)


def test_a_repaired_result_gets_a_context_binary_of_its_own(tmp_path):
    from qcompiler.artifacts import write_artifact

    state, where = planned(single_conv(), target="qnn")
    path = save(onnx.load_from_string(serialized(lowered(state, where).model)), tmp_path)
    first = write_artifact("model_ctx.onnx", path).read_bytes()
    save(onnx.load_from_string(serialized(compiled(single_conv(), target="qnn", bits="W8A16"))), tmp_path)
    assert write_artifact("model_ctx.onnx", path).read_bytes() != first


def test_the_models_of_these_tests_are_older_than_int4():
    raised, reason = at_opset(start(single_conv()).model, 21)
    assert reason == ""
    assert raised.opset_imports[""] == 21 > start(single_conv()).model.opset_imports[""]
