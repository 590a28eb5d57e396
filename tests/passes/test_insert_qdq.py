"""Static quantization: the graphs it writes, and what ONNX Runtime makes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from qcompiler.errors import QCompileError
from qcompiler.plan import Role, TensorPlan
from qcompiler.quant.grid import dequantize, quantize
from qcompiler.recipe import MatchRule
from tests.compiling import PLANNING, lowered, outputs, planned, run_passes, runtime_ops, samples, serialized, start
from tests.golden_text import assert_golden
from tests.models import FLOAT, build, conv_net, dense_net
from tests.passes.lowering import ACTIVATION_SCALE, CLIPPED_SCALE, ZERO_POINT, rounded_plan, sixteenths
from tests.tolerances import OUTPUT_STEPS, half_step

make = helper.make_node


def conv_clip() -> onnx.ModelProto:
    nodes = [
        make("Conv", ["x", "w", "b"], ["c"], name="conv"),
        make("Clip", ["c", "low", "high"], ["y"], name="relu6"),
    ]
    weight = sixteenths(2, 2, 1, 1) + np.float32(0.007)  # on neither grid
    constants = {"w": weight, "b": sixteenths(2), "low": np.float32(0), "high": np.float32(6)}
    return build(nodes, [("x", FLOAT, [1, 2, 2, 2])], [("y", FLOAT, [1, 2, 2, 2])], constants)


def residual() -> onnx.ModelProto:
    nodes = [
        make("Conv", ["x", "w"], ["c"], name="first"),
        make("Conv", ["c", "v"], ["d"], name="second"),
        make("Add", ["c", "d"], ["s"], name="add"),
        make("Conv", ["s", "w"], ["y"], name="third"),
    ]
    constants = {"w": sixteenths(2, 2, 1, 1), "v": sixteenths(2, 2, 1, 1, seed=1)}
    return build(nodes, [("x", FLOAT, [1, 2, 2, 2])], [("y", FLOAT, [1, 2, 2, 2])], constants)


def float_gemm() -> onnx.ModelProto:
    nodes = [
        make("Gemm", ["x", "w", "b"], ["g"], name="fc", transB=1),
        make("Softmax", ["g"], ["y"], name="softmax"),
    ]
    constants = {"w": sixteenths(3, 4), "b": sixteenths(1, 3)}
    return build(nodes, [("x", FLOAT, [2, 4])], [("y", FLOAT, [2, 3])], constants)


def inner_output() -> onnx.ModelProto:
    """A graph output that another layer reads, too."""
    nodes = [
        make("Gemm", ["x", "w", "b"], ["h"], name="fc", transB=1),
        make("Gemm", ["h", "v", "c"], ["y"], name="head"),
    ]
    constants = {"w": sixteenths(3, 4), "b": sixteenths(1, 3), "v": sixteenths(3, 2, seed=1), "c": sixteenths(2)}
    outs = [("h", FLOAT, [2, 3]), ("y", FLOAT, [2, 2])]
    return build(nodes, [("x", FLOAT, [2, 4])], outs, constants)


GRAPHS = {"conv-clip": conv_clip, "residual": residual, "float-gemm": float_gemm, "inner-output": inner_output}


@pytest.mark.parametrize("name", GRAPHS)
def test_golden(name):
    state, where = rounded_plan(GRAPHS[name]())
    assert_golden(f"insert-qdq-{name}", run_passes(state, where, "insert-qdq").model)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv-clip", {"QLinearConv": 1, "Conv": 0, "Clip": 0}),
        ("residual", {"QLinearConv": 3, "QLinearAdd": 1, "Conv": 0, "Add": 0}),
        ("float-gemm", {"QGemm": 1, "Gemm": 0}),
        ("inner-output", {"QGemm": 2, "Gemm": 0}),
    ],
)
def test_the_runtime_runs_them_in_integers(name, expected):
    state, where = rounded_plan(GRAPHS[name]())
    ops = runtime_ops(lowered(state, where).model)
    assert {op: ops.count(op) for op in expected} == expected


# -- our arithmetic against the runtime's --------------------------------------------------------------------


def meaning(proto: onnx.ModelProto, state, feeds, last: int = 255) -> np.ndarray:
    """What the plan of a single Conv with Clip means, in NumPy: quantize, decode, convolve, quantize."""
    grids = {n: (t.scale, t.zero_point) for n, t in state.plan.tensors.items()}
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    x = dequantize(quantize(feeds["x"], *grids["x"], (0, last), None), *grids["x"], None)
    w = dequantize(quantize(constants["w"], *grids["w"], (-127, 127), 0), *grids["w"], 0)
    y = np.einsum("nchw,oc->nohw", x, w[:, :, 0, 0]) + constants["b"].reshape(1, -1, 1, 1)
    y = np.clip(y, 0, 6).astype(np.float32)
    return dequantize(quantize(y, *grids["y"], (0, last), None), *grids["y"], None)


def test_the_emitted_graph_means_what_the_plan_says():
    proto = conv_clip()
    state, where = rounded_plan(proto)
    model = lowered(state, where).model
    data = samples(state.model, 8)
    for index in range(8):
        expected = meaning(proto, state, data[index])
        (plain,) = outputs(model, data[index], optimize=False)
        # Every product and sum of these round numbers is exact in float32, so the meaning is, too.
        assert np.array_equal(plain, expected)
        (fast,) = outputs(model, data[index])
        assert np.abs(fast - expected).max() <= OUTPUT_STEPS * CLIPPED_SCALE


@pytest.mark.parametrize("proto", [conv_net(batch_norm=False), conv_net(activation="LeakyRelu"), dense_net()])
def test_the_integer_kernels_follow_the_graph(proto):
    state, where = planned(proto, data=samples(planned_model(proto), 4))
    model = lowered(state, where).model
    feeds = samples(state.model, 1, seed=9)[0]
    plain, fast = outputs(model, feeds, optimize=False)[0], outputs(model, feeds)[0]
    steps = [float(t.scale) for t in state.plan.tensors.values() if t.role is Role.ACTIVATION]
    # A code that falls on the other side of a tie in one layer moves the next one; outputs here are a few steps wide.
    assert np.abs(plain - fast).max() <= 4 * OUTPUT_STEPS * max(steps)
    (reference,) = outputs(proto, feeds)
    signal, noise = float(np.sum(reference**2)), float(np.sum((reference - fast) ** 2))
    assert noise < signal / 100


# -- 4-bit activations: bytes that a Clip of the codes keeps below 16 ----------------------------------------------


def four_bit_plan():
    """A plan whose values reach beyond both ends of every grid."""
    state, where = rounded_plan(conv_clip(), bits="W8A4")
    grids = {"x": (0.25, 7), "y": (0.125, 0)}
    fixed = [
        replace(
            state.plan.tensors[name],
            scale=np.asarray(scale, np.float32),
            zero_point=np.asarray(zero, np.int32),
            clip=(-zero * scale, (15 - zero) * scale),
        )
        for name, (scale, zero) in grids.items()
    ]
    return replace(state, plan=state.plan.with_tensors(*fixed)), where


def test_golden_of_4_bit_activations():
    state, where = four_bit_plan()
    assert_golden("insert-qdq-four-bits", run_passes(state, where, "insert-qdq").model)


def test_4_bit_codes_end_at_15_and_mean_what_the_plan_says():
    proto = conv_clip()
    state, where = four_bit_plan()
    model = lowered(state, where).model
    data = samples(state.model, 8)
    reached = set()
    for index in range(8):
        feeds = {"x": data[index]["x"] * np.float32(3)}
        expected = meaning(proto, state, feeds, last=15)
        reached |= set(np.rint(expected / 0.125).astype(int).ravel())
        assert np.array_equal(outputs(model, feeds, optimize=False)[0], expected)
        assert np.abs(outputs(model, feeds)[0] - expected).max() <= OUTPUT_STEPS * 0.125
    assert {0, 15} <= reached
    ops = [op for op in runtime_ops(model) if op != "Transpose"]
    assert ops == ["QuantizeLinear", "Clip", "QLinearConv", "Clip", "DequantizeLinear"]


def test_a_clip_that_the_grid_does_not_replace_keeps_its_limit():
    state, where = four_bit_plan()
    wide = replace(state.plan.tensors["y"], scale=np.asarray(0.5, np.float32), clip=(0.0, 7.5))
    model = run_passes(replace(state, plan=state.plan.with_tensors(wide)), where, "insert-qdq").model
    relu6 = next(n for n in model.graph if n.name == "relu6")
    assert len(relu6.inputs) == 3


def planned_model(proto: onnx.ModelProto):
    from tests.compiling import start

    return start(proto).model


# -- mutations: the pipeline notices what is not as planned ------------------------------------------------------


def tamper(monkeypatch, **changes):
    """Let the pass write another plan than the one it was given, for one tensor."""
    from qcompiler.passes import insert_qdq

    name = changes.pop("name")
    right = insert_qdq._Writer

    class Wrong(right):
        def __init__(self, model, plan):
            super().__init__(model, plan.with_tensors(replace(plan.tensors[name], **changes)))

    monkeypatch.setattr(insert_qdq, "_Writer", Wrong)


WRONG = {
    "weight scale": {"name": "w", "scale": np.array([0.0078125, 0.015], np.float32)},
    "weight codes": {"name": "w", "codes": np.zeros((2, 2, 1, 1), np.int8)},
    "weight axis": {"name": "w", "spec": replace(rounded_plan(conv_clip())[0].plan.tensors["w"].spec, axis=1)},
    "activation scale": {"name": "y", "scale": np.asarray(0.0626, np.float32)},
    "activation zero point": {"name": "x", "zero_point": np.asarray(127, np.int32)},
}


@pytest.mark.parametrize("name", WRONG)
def test_the_pipeline_notices(name, monkeypatch):
    state, where = rounded_plan(conv_clip())
    lowered(state, where)
    tamper(monkeypatch, **WRONG[name])
    with pytest.raises(QCompileError, match="did not write the plan"):
        lowered(state, where)


def test_the_pipeline_notices_a_wrong_largest_code(monkeypatch):
    state, where = four_bit_plan()
    lowered(state, where)
    tamper(monkeypatch, name="y", spec=replace(state.plan.tensors["y"].spec, num_bits=3))
    with pytest.raises(QCompileError, match="'y' has another largest code than planned"):
        lowered(state, where)


@pytest.mark.parametrize("graph", [conv_clip, float_gemm, inner_output])
def test_the_pipeline_notices_a_wrong_bias(graph, monkeypatch):
    state, where = rounded_plan(graph())
    node = "conv" if graph is conv_clip else "fc"
    shift = TensorPlan(name=f"{node}:bias", role=Role.BIAS, correction=np.full(2 if graph is conv_clip else 3, 0.5))
    state = replace(state, plan=state.plan.with_tensors(shift))
    lowered(state, where)
    tamper(monkeypatch, name=shift.name, correction=-shift.correction)
    with pytest.raises(QCompileError, match="is not the planned one"):
        lowered(state, where)


def test_the_pipeline_notices_a_float_weight(monkeypatch):
    from qcompiler.passes import insert_qdq

    monkeypatch.setattr(insert_qdq._Writer, "_weight_entry", lambda self, node: None)
    state, where = rounded_plan(conv_clip())
    with pytest.raises(QCompileError, match="no pass wrote the weights of node 'conv'"):
        lowered(state, where)


# -- corners -------------------------------------------------------------------------------------------------


def test_codes_that_the_plan_records_are_written():
    state, where = rounded_plan(conv_clip())
    codes = np.array([[[[1]], [[-2]]], [[[3]], [[127]]]], np.int8)
    state = replace(state, plan=state.plan.with_tensors(replace(state.plan.tensors["w"], codes=codes)))
    model = run_passes(state, where, "insert-qdq").model
    stored = [v.const_value.numpy() for v in model.graph.initializers.values() if v.dtype.name == "INT8"]
    assert [a.tolist() for a in stored] == [codes.tolist()]


def test_the_grids_of_a_shared_weight_are_stored_once():
    state, where = rounded_plan(residual())
    model = run_passes(state, where, "insert-qdq").model
    stored = [v for v in model.graph.initializers.values() if v.dtype.name == "INT8"]
    assert len(stored) == 2
    assert b"w_q" in serialized(model)


def test_a_planned_correction_is_added_to_the_bias():
    state, where = rounded_plan(conv_clip())
    shift = TensorPlan(name="conv:bias", role=Role.BIAS, correction=np.array([0.25, -0.5]))
    state = replace(state, plan=state.plan.with_tensors(shift))
    model = run_passes(state, where, "insert-qdq").model
    bias = next(n for n in model.graph if n.op_type == "Conv").inputs[2].const_value.numpy()
    np.testing.assert_array_equal(bias, sixteenths(2) + np.array([0.25, -0.5], np.float32))


def test_the_float_bias_of_a_gemm_is_within_half_a_step():
    state, where = rounded_plan(float_gemm())
    model = run_passes(state, where, "insert-qdq").model
    node = next(n for n in model.graph if n.op_type == "Gemm").inputs[2].producer()
    codes, scale = (v.const_value.numpy() for v in node.inputs)
    assert codes.dtype == np.int32
    bias = sixteenths(1, 3).reshape(-1)
    assert np.abs(codes * scale - bias).max() <= half_step(float(scale.max()), 1.0)
    np.testing.assert_array_equal(scale, state.plan.tensors["w"].scale * np.float32(ACTIVATION_SCALE))


def test_a_value_read_twice_by_one_node():
    nodes = [
        make("Conv", ["x", "w"], ["c"], name="first"),
        make("Concat", ["c", "c"], ["k"], name="join", axis=1),
        make("Conv", ["k", "v"], ["y"], name="last"),
    ]
    constants = {"w": sixteenths(2, 2, 1, 1), "v": sixteenths(2, 4, 1, 1)}
    proto = build(nodes, [("x", FLOAT, [1, 2, 2, 2])], [("y", FLOAT, [1, 2, 2, 2])], constants)
    state, where = rounded_plan(proto)
    ops = runtime_ops(lowered(state, where).model)
    assert ops.count("QLinearConcat") == 1
    assert ops.count("QLinearConv") == 2


def test_interface_names_and_order_stay():
    state, where = rounded_plan(inner_output())
    model = lowered(state, where).model
    assert [v.name for v in model.graph.outputs] == ["h", "y"]
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert ZERO_POINT in [
        v.const_value.numpy().item() for v in model.graph.initializers.values() if v.dtype.name == "UINT8"
    ]


def test_nothing_planned_is_nothing_written():
    nodes = [make("Softmax", ["x"], ["y"], name="softmax")]
    state, where = rounded_plan(build(nodes, [("x", FLOAT, [2, 4])], [("y", FLOAT, [2, 4])]))
    assert run_passes(state, where, "insert-qdq").model is state.model


@pytest.mark.parametrize("shape", [(4, 16), (1, 4, 16), (2, 3, 4, 16), ("N", 16), ("N", "T", 16), (1, "T", 16)])
@pytest.mark.parametrize("behind", ["Gelu", "LayerNormalization", ""])
def test_products_with_a_bias_behind_them_run_in_integers_whatever_their_shape(shape, behind):
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(s).astype(np.float32) for s in ((16, 32), (32, 8)))
    nodes = [
        make("MatMul", ["x", "w0"], ["p0"], name="first"),
        make("Add", ["p0", "b0"], ["a0"], name="bias0"),
        *({"Gelu": gelu("a0"), "LayerNormalization": normalized("a0"), "": []}[behind]),
        make("MatMul", ["g" if behind else "a0", "w1"], ["p1"], name="second"),
        make("Add", ["b1", "p1"], ["y"], name="bias1"),
    ]
    constants = {"w0": first, "w1": second, "b0": first[0], "b1": second[0], "half": np.float32(0.5)}
    constants |= {"root": np.float32(2**0.5), "one": np.float32(1), "ln": np.ones(32, np.float32)}
    proto = build(nodes, [("x", FLOAT, list(shape))], [("y", FLOAT, [*shape[:-1], 8])], constants)
    rules = [MatchRule(pattern="first|second", scheme="static")]
    passes = ("fold-batch-norm", *PLANNING)
    state, where = planned(proto, data=samples(start(proto).model, free=3), rules=rules, passes=passes)
    ops = runtime_ops(lowered(state, where).model)
    assert ops.count("MatMulIntegerToFloat") + ops.count("QGemm") == 2
    assert "Gemm" not in ops
    assert "DequantizeLinear" not in ops


def gelu(value):
    """Return what exporters write for GELU: ``g``."""
    return [
        make("Div", [value, "root"], ["g1"], name="g1"),
        make("Erf", ["g1"], ["g2"], name="g2"),
        make("Add", ["g2", "one"], ["g3"], name="g3"),
        make("Mul", [value, "g3"], ["g4"], name="g4"),
        make("Mul", ["g4", "half"], ["g"], name="g5"),
    ]


def normalized(value):
    """Return a normalization of the last axis: ``g``."""
    return [make("LayerNormalization", [value, "ln"], ["g"], name="g1")]
