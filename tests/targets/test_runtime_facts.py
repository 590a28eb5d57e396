"""Facts about ONNX Runtime's fusions that the lowering passes rely on: a new release may change them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tests.compiling import outputs, runtime_ops
from tests.models import FLOAT, build
from tests.targets.qdq import Graph

IMAGE, ROWS = [1, 16, 6, 6], [4, 16]


def conv(*, bias: str = "", zero_point: bool = False, output: bool = True) -> list[str]:
    graph = Graph()
    inputs = [graph.pair("x"), graph.weight((24, 16, 3, 3), 0, zero_point=zero_point)]
    if bias:
        inputs.append(graph.bias(inputs[1]) if bias == "int32" else graph.constant(np.ones(24, np.float32)))
    value = graph.node("Conv", *inputs)
    return runtime_ops(graph.model(graph.pair(value) if output else value, IMAGE))


@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize("bias", ["", "float", "int32"])
def test_conv_fuses_with_any_bias_and_without_zero_points_of_weights(bias, zero_point):
    ops = conv(bias=bias, zero_point=zero_point)
    assert "QLinearConv" in ops
    assert "Conv" not in ops


def test_conv_needs_a_quantized_output():
    assert "QLinearConv" not in conv(output=False)


def gemm(*, bias: str, zero_point: bool, output: bool) -> list[str]:
    graph = Graph()
    inputs = [graph.pair("x"), graph.weight((16, 24), 1, zero_point=zero_point)]
    if bias:
        inputs.append(graph.bias(inputs[1]) if bias == "int32" else graph.constant(np.ones(24, np.float32)))
    value = graph.node("Gemm", *inputs)
    value = graph.pair(value) if output else graph.node("Softmax", value)
    return runtime_ops(graph.model(value, ROWS))


def test_gemm_needs_the_zero_points_of_its_weights():
    assert "QGemm" in gemm(bias="", zero_point=True, output=True)
    assert "QGemm" not in gemm(bias="", zero_point=False, output=True)


def test_gemm_with_a_float_output_needs_an_int32_bias():
    assert "QGemm" in gemm(bias="float", zero_point=True, output=True)
    assert "QGemm" in gemm(bias="int32", zero_point=True, output=False)
    assert "QGemm" not in gemm(bias="float", zero_point=True, output=False)


def test_gemm_needs_a_bias_of_rank_one():
    graph = Graph()
    inputs = [graph.pair("x"), graph.weight((16, 24), 1, zero_point=True), graph.constant(np.ones((1, 24), np.float32))]
    assert "QGemm" not in runtime_ops(graph.model(graph.pair(graph.node("Gemm", *inputs)), ROWS))


def moved(zero_point: bool) -> list[str]:
    """Conv, MaxPool, Conv with the same grid on both sides of the pool."""
    graph = Graph()
    value = graph.node("Conv", graph.pair("x"), graph.weight((16, 16, 1, 1), 0))
    value = graph.node("MaxPool", graph.pair(value, zero_point=zero_point, zero=0), kernel_shape=[2, 2])
    value = graph.node("Conv", graph.pair(value, zero_point=zero_point, zero=0), graph.weight((8, 16, 1, 1), 0))
    return runtime_ops(graph.model(graph.pair(value), IMAGE))


def test_a_pair_without_a_zero_point_blocks_what_moves_data():
    assert moved(zero_point=True).count("DequantizeLinear") == 1
    assert moved(zero_point=False).count("DequantizeLinear") > 1


@pytest.mark.parametrize("inner", [False, True], ids=["main graph", "inside If"])
@pytest.mark.parametrize("form", ["cast", "palette"])
def test_constants_fold_when_a_session_loads(form, inner):
    nodes = {
        "cast": [
            helper.make_node("Cast", ["codes"], ["wide"], to=FLOAT),
            helper.make_node("Mul", ["wide", "scale"], ["w"]),
        ],
        "palette": [
            helper.make_node("Cast", ["codes"], ["wide"], to=6),
            helper.make_node("Gather", ["scale", "wide"], ["w"]),
        ],
    }[form]
    nodes.append(helper.make_node("MatMul", ["x", "w"], ["z"]))
    constants = {
        "codes": np.ones((16, 16), np.uint8 if form == "palette" else np.int8),
        "scale": np.ones(16, np.float32),
    }
    if inner:
        outs = [helper.make_tensor_value_info("z", FLOAT, [4, 16])]
        then = helper.make_graph(nodes, "then", [], outs)
        plain = [helper.make_node("Identity", ["x"], ["z2"])]
        other = helper.make_graph(plain, "else", [], [helper.make_tensor_value_info("z2", FLOAT, [4, 16])])
        nodes = [helper.make_node("If", ["flag"], ["z3"], then_branch=then, else_branch=other)]
        inputs = [("x", FLOAT, ROWS), ("flag", 9, [])]
        proto = build(nodes, inputs, [("z3", FLOAT, [4, 16])], constants)
    else:
        proto = build(nodes, [("x", FLOAT, ROWS)], [("z", FLOAT, [4, 16])], constants)
    ops = runtime_ops(proto)
    assert "Cast" not in ops
    assert "Gather" not in ops
    assert "Mul" not in ops


def test_a_decoded_weight_does_not_fold():
    graph = Graph()
    proto = graph.model(graph.node("Conv", "x", graph.weight((16, 16, 1, 1), 0)), IMAGE)
    assert "DequantizeLinear" in runtime_ops(proto)


def test_a_float_weight_behind_a_quantized_input_is_quantized_per_tensor():
    """The runtime does that by itself, so no weight of an integer layer may stay float."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((24, 16, 1, 1)).astype(np.float32)
    weight[0] *= 100.0  # one scale for all leaves little for the others
    graph = Graph()
    value = graph.node("Conv", graph.pair("x"), graph.constant(weight))
    proto = graph.model(graph.pair(value, scale=0.2), IMAGE)
    assert "QLinearConv" in runtime_ops(proto)
    x = rng.uniform(-3, 3, IMAGE).astype(np.float32)
    plain, fast = outputs(proto, {"x": x}, optimize=False)[0], outputs(proto, {"x": x})[0]
    assert np.abs(plain[0, 1:] - fast[0, 1:]).max() > 5 * 0.2, "far more than one step"


@pytest.mark.parametrize("fill", [False, True])
def test_a_pad_between_pairs_is_decoded_and_quantized_again(fill):
    """So the pass pads the codes itself."""
    graph = Graph()
    value = graph.pair(graph.node("Conv", graph.pair("x"), graph.weight((16, 16, 1, 1), 0)))
    inputs = [value, graph.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))]
    inputs += [graph.constant(np.float32(0))] if fill else []
    value = graph.node("Conv", graph.pair(graph.node("Pad", *inputs)), graph.weight((8, 16, 1, 1), 0))
    assert runtime_ops(graph.model(graph.pair(value), IMAGE)).count("QuantizeLinear") == 2


def test_only_the_nearest_neighbor_resize_moves_codes():
    def quantizations(mode: str) -> int:
        graph = Graph()
        value = graph.pair(graph.node("Conv", graph.pair("x"), graph.weight((16, 16, 1, 1), 0)))
        scales = graph.constant(np.array([1, 1, 2, 2], np.float32))
        value = graph.pair(graph.node("Resize", value, "", scales, mode=mode))
        value = graph.node("Conv", value, graph.weight((8, 16, 1, 1), 0))
        return runtime_ops(graph.model(graph.pair(value), IMAGE)).count("QuantizeLinear")

    assert (quantizations("nearest"), quantizations("linear")) == (1, 2)
