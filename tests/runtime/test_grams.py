"""Gram matrices captured from a model: every column is what a weight is multiplied with, judged by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from qcompiler.model.edit import constant_of
from qcompiler.runtime.capture import Executor
from qcompiler.runtime.grams import GramLayout, GramOptions, capture_grams, gram_layout, input_columns
from tests.compiling import samples, start
from tests.models import FLOAT, build

CONVOLUTIONS = {
    "plain": ({}, (4, 3, 3, 3), (1, 3, 7, 8)),
    "padded": ({"pads": [1, 0, 2, 1]}, (4, 3, 3, 3), (1, 3, 7, 8)),
    "strided": ({"strides": [2, 3], "pads": [1, 1, 1, 1]}, (4, 3, 3, 3), (2, 3, 7, 8)),
    "dilated": ({"dilations": [2, 1], "pads": [2, 1, 2, 1]}, (4, 3, 3, 3), (1, 3, 7, 8)),
    "grouped": ({"group": 2}, (4, 2, 3, 3), (1, 4, 6, 6)),
    "depthwise": ({"group": 4, "pads": [1, 1, 1, 1]}, (4, 1, 3, 3), (1, 4, 6, 6)),
    "same upper": ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (4, 3, 3, 2), (1, 3, 7, 8)),
    "same lower": ({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, (4, 3, 4, 2), (1, 3, 7, 8)),
    "valid": ({"auto_pad": "VALID", "strides": [2, 2]}, (4, 3, 3, 3), (1, 3, 7, 8)),
    "one axis": ({"pads": [1, 1]}, (4, 3, 3), (2, 3, 9)),
    "three axes": ({"pads": [0, 1, 0, 0, 1, 0]}, (4, 3, 2, 3, 1), (1, 3, 4, 5, 3)),
}


def conv_net(attributes: dict, weight: tuple[int, ...], data: tuple[int, ...]) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer", **attributes)
    unknown = [None] * len(data)
    constants = {"w": rng.standard_normal(weight).astype(np.float32)}
    return build([node], [("x", FLOAT, list(data))], [("y", FLOAT, unknown)], constants)


def matrix_net(op_type: str, weight: tuple[int, ...], data: tuple[int, ...], **attributes: object) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    node = helper.make_node(op_type, ["x", "w"], ["y"], name="layer", **attributes)
    constants = {"w": rng.standard_normal(weight).astype(np.float32)}
    return build([node], [("x", FLOAT, list(data))], [("y", FLOAT, [None] * len(data))], constants)


def layer_of(model: ir.Model) -> ir.Node:
    return next(n for n in model.graph if n.name == "layer")


NETS = {
    **{name: conv_net(*parts) for name, parts in CONVOLUTIONS.items()},
    "Gemm": matrix_net("Gemm", (5, 3), (4, 5)),
    "Gemm transposed": matrix_net("Gemm", (3, 5), (4, 5), transB=1),
    "MatMul": matrix_net("MatMul", (5, 3), (2, 4, 5)),
}


@pytest.mark.parametrize("name", NETS)
def test_weights_times_columns_are_the_layers_output(name):
    model = start(NETS[name]).model
    node, data = layer_of(model), samples(model, 1)[0]["x"]
    layout = gram_layout(node)
    assert isinstance(layout, GramLayout)
    columns = input_columns(layout, data, 10**9, (0,))
    weight = constant_of(node.inputs[1])
    if node.op_type == "Conv":
        rows = weight.reshape(layout.groups, -1, layout.inputs)
    else:
        rows = (weight if "transB" in node.attributes else weight.T)[None]
    found = np.einsum("gri,gpi->pgr", rows, columns).reshape(columns.shape[1], -1)
    expected = Executor(model, ["y"]).run({"x": data})["y"]
    moved = np.moveaxis(expected, 1, -1) if node.op_type == "Conv" else expected
    np.testing.assert_allclose(found, moved.reshape(len(found), -1), rtol=1e-4, atol=1e-5)
    assert layout.bytes == layout.groups * layout.inputs**2 * 8


def test_the_gram_is_that_of_all_samples_and_batches_do_not_change_it():
    model = start(NETS["grouped"]).model
    layout, data = gram_layout(layer_of(model)), samples(model, 5)
    columns = np.concatenate([input_columns(layout, data[i]["x"], 10**9, (0,)) for i in range(5)], axis=1)
    for batch in (1, 1 << 20):
        gram = capture_grams(model, {"layer": layout}, data, GramOptions(batch_bytes=batch))["layer"]
        assert gram.count == columns.shape[1]
        expected = columns.astype(np.float64).transpose(0, 2, 1) @ columns / gram.count
        np.testing.assert_allclose(gram.second, expected, rtol=1e-6, atol=1e-7)


def test_layers_that_do_not_fit_at_once_take_several_runs():
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["m"], name="first"),
        helper.make_node("Conv", ["m", "w"], ["y"], name="second"),
    ]
    constants = {"w": rng.standard_normal((3, 3, 1, 1)).astype(np.float32)}
    model = start(build(nodes, [("x", FLOAT, [1, 3, 4, 4])], [("y", FLOAT, [1, 3, 4, 4])], constants)).model
    layouts = {n.name: gram_layout(n) for n in model.graph}
    data, told = samples(model, 3), []
    options = GramOptions(batch_bytes=layouts["first"].bytes, progress=lambda done, total: told.append((done, total)))
    apart = capture_grams(model, layouts, data, options)
    assert told == [(n, 6) for n in range(1, 7)]
    together = capture_grams(model, layouts, data, GramOptions())
    for name in layouts:
        np.testing.assert_array_equal(apart[name].second, together[name].second)


def test_layers_that_read_the_same_share_what_is_summed():
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", f"w{n}"], [f"y{n}"], name=f"layer{n}") for n in range(3)]
    constants = {f"w{n}": rng.standard_normal((5, 3 + n)).astype(np.float32) for n in range(3)}
    outputs = [(f"y{n}", FLOAT, [4, 3 + n]) for n in range(3)]
    model = start(build(nodes, [("x", FLOAT, [4, 5])], outputs, constants)).model
    layouts = {n.name: gram_layout(n) for n in model.graph}
    found = capture_grams(model, layouts, samples(model, 3), GramOptions())
    alone = capture_grams(model, {"layer1": layouts["layer1"]}, samples(model, 3), GramOptions())["layer1"]
    assert list(found) == list(layouts)
    for gram in found.values():
        assert gram.count == alone.count
        np.testing.assert_array_equal(gram.second, alone.second)


def test_positions_are_drawn_the_same_every_time_and_within_the_limit():
    model = start(NETS["padded"]).model
    layout, data = gram_layout(layer_of(model)), samples(model, 4)
    first, second, other = (
        capture_grams(model, {"layer": layout}, data, GramOptions(positions=40, seed=seed))["layer"]
        for seed in (0, 0, 1)
    )
    assert first.count == 40
    np.testing.assert_array_equal(first.second, second.second)
    assert (first.second != other.second).any()
    every = input_columns(layout, data[0]["x"], 10**9, (0,))[0]
    drawn = input_columns(layout, data[0]["x"], 10, (0, 0))[0]
    assert len(np.unique(drawn, axis=0)) == 10
    assert all((every == column).all(1).any() for column in drawn)


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (matrix_net("Gemm", (5, 3), (5, 4), transA=1), "scales or transposes"),
        (matrix_net("Gemm", (5, 3), (4, 5), alpha=2.0), "scales or transposes"),
        (matrix_net("MatMul", (2, 5, 3), (2, 4, 5)), "no matrix"),
        (matrix_net("MatMul", (5000, 1), (1, 5000)), "5,000 inputs"),
    ],
)
def test_a_layer_without_a_gram_says_why(net, reason):
    found = gram_layout(layer_of(start(net).model))
    assert isinstance(found, str)
    assert reason in found
